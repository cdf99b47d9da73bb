"""How one job holds an output on a store without file locks, such as an object store.

A job raises a flag, a small object of its own in the folder ``.NAME.lock`` beside the output, and then lists that
folder. It holds the output when no other flag is up; else it lowers its own. Of two jobs, the one that raised its
flag later sees the other's, as a listing shows every write that has ended (S3 since 2020, GCS, ABFS, HDFS): they
never hold together. This needs no conditional write, which not every store has.

The holder rewrites its flag every ``RENEW_S``. A flag that stays the same for ``STALE_S``, by the clock of whoever
waits, belongs to a job that was killed. A holder that could not rewrite its own for ``GIVE_UP_S``, which is less,
publishes nothing any more.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Iterator

from spark_dedup.errors import HeldError, InputError, first_line
from spark_dedup.paths import filesystem, make_folder
from spark_dedup.stores import named_refusal

__all__ = ["held_here", "leased", "require_held"]

logger = logging.getLogger(__name__)

RENEW_S, GIVE_UP_S, STALE_S = 10.0, 40.0, 60.0

_LEASES: dict[str, _Lease] = {}
"""What this process holds, by the output's path."""


@contextlib.contextmanager
def leased(path: str, *, patience_s: float) -> Iterator[None]:
    """Hold an output on a remote store for one job; a killed job's hold ends a minute later.

    Args:
        path: the output, normalised.
        patience_s: seconds to wait for a job that holds it and lives.

    Raises:
        HeldError: when another job holds it.
        InputError: when it cannot be written.
    """
    lease = _Lease(path)
    lease.take(patience_s)
    _LEASES[path] = lease
    try:
        yield
    finally:
        del _LEASES[path]
        lease.release()


def held_here(path: str) -> bool:
    """Return whether this process took a hold of a path, or of a folder above it."""
    return any(path == own or path.startswith(f"{own}/") for own in tuple(_LEASES))


def require_held(path: str) -> None:
    """Check, before a result is published, that the hold which was taken stands.

    Raises:
        RuntimeError: the process stood still, or its store did not answer, so long that another job may work there.
    """
    for own, lease in tuple(_LEASES.items()):
        if (path == own or path.startswith(f"{own}/")) and not lease.stands():
            raise RuntimeError(
                f"the hold of {own} was not renewed for {GIVE_UP_S:.0f} s, so another job may be writing there: "
                "nothing was published; run the job again"
            )


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        with named_refusal(path):
            yield
    except FileNotFoundError as error:  # no such bucket
        raise InputError(f"output {path} cannot be written ({first_line(error)}): choose another") from error


class _Lease:
    """A flag, and the thread that rewrites it."""

    def __init__(self, path: str) -> None:
        self._path = path
        parent, _, name = path.rpartition("/")
        # A whole bucket has nothing beside it.
        self._beside = f"{path}/.lock" if parent.endswith(":/") else f"{parent}/.{name}.lock"
        self._fs, self._folder = filesystem(self._beside)
        self._name = uuid.uuid4().hex
        self._count = 0
        self._said: set[bytes] = set()  # what the flag may say: a write that failed may have been done
        self._renewed = 0.0
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="spark_dedup-lease", daemon=True)

    def take(self, patience_s: float) -> None:
        """Raise the flag and be the only one, or fail."""
        deadline = time.monotonic() + patience_s
        with _named(self._path):
            make_folder(self._beside)
        dead: dict[str, bytes] = {}
        while True:
            try:
                with _named(self._path):
                    self._write()
                others = {name: text for name, text in self._others().items() if dead.get(name) != text}
            except BaseException:
                self._lower(self._name)
                raise
            if not others:
                break
            self._lower(self._name)
            dead |= self._watch(others, deadline)
        for name in dead:
            self._lower(name)
        self._thread.start()

    def release(self) -> None:
        """Lower the flag."""
        self._ended.set()
        self._thread.join()
        self._lower(self._name)

    def stands(self) -> bool:
        """Return whether no other job can have taken this one for dead."""
        return not self._lost and time.monotonic() - self._renewed < GIVE_UP_S

    def _write(self) -> None:
        began = time.monotonic()
        self._count += 1
        text = f"{self._name} {self._count}".encode()
        self._said.add(text)
        self._fs.pipe_file(f"{self._folder}/{self._name}", text)
        self._renewed = began
        self._said = {text}

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                if self._fs.cat_file(f"{self._folder}/{self._name}") not in self._said:
                    raise FileNotFoundError
                self._write()
            except FileNotFoundError:  # lowered by a job that took this one, standing still, for dead
                self._lost = True
                return
            except Exception as error:  # of the store's own library; it may answer again in time
                logger.debug("the hold of %s was not renewed now: %s", self._path, error)

    def _others(self) -> dict[str, bytes]:
        """Return the flags of other jobs that are up, and what they say."""
        self._fs.invalidate_cache()
        try:
            names = [
                place.rstrip("/").rpartition("/")[2] for place in self._fs.ls(self._folder, detail=False)
            ]
        except FileNotFoundError:
            return {}
        found = {}
        for name in names:
            if name not in ("", self._name, self._folder.rpartition("/")[2]):
                with contextlib.suppress(FileNotFoundError):
                    found[name] = self._fs.cat_file(f"{self._folder}/{name}")
        return found

    def _watch(self, seen: dict[str, bytes], deadline: float) -> dict[str, bytes]:
        """Wait until the flags seen are down, or have not changed for so long that nobody holds them.

        Returns:
            Those that nobody holds.

        Raises:
            HeldError: one was rewritten, and the deadline is over.
        """
        began, pause, told = time.monotonic(), 0.05, False
        while time.monotonic() - began < STALE_S:
            time.sleep(pause * (0.5 + random.random()))
            pause = min(2 * pause, 2.0, STALE_S / 10)
            now = self._others()
            if any(now.get(name, text) != text for name, text in seen.items()):
                if time.monotonic() >= deadline:
                    raise HeldError(
                        f"another job is writing {self._path}: wait for it or choose another output"
                    )
                return {}
            if not seen.keys() & now.keys():
                return {}
            if not told and time.monotonic() - began > STALE_S / 4:
                told = True
                logger.warning(
                    "a job that may have been killed holds %s: waiting %.0f s for a sign of it",
                    self._path,
                    STALE_S,
                )
        return {name: text for name, text in seen.items() if name in now}

    def _lower(self, name: str) -> None:
        with contextlib.suppress(Exception):
            self._fs.rm_file(f"{self._folder}/{name}")
