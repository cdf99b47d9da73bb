"""Which steps of a job are finished, so that a killed job goes on and a finished one is not overwritten."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from spark_dedup.listing import FileInfo
from spark_dedup.paths import Location, delete, exists, filesystem, make_folder, normalise_path

__all__ = ["Steps", "fingerprint", "refuse_finished", "steps_of"]

logger = logging.getLogger(__name__)

_FILE = ".spark_dedup_steps.json"
_UNREADABLE: dict[str, Any] = {"finished": False, "fingerprint": None, "steps": {}, "wrote": [], "owned": []}


def fingerprint(parameters: Mapping[str, Any], files: Sequence[FileInfo] = ()) -> str:
    """Return a digest of what a step's result depends on: parameters, and the input's files, sizes and times."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode())
    for file in files:
        digest.update(f"\n{file.path}\t{file.size}\t{file.modified_ms}".encode())
    return digest.hexdigest()


def refuse_finished(output: Location, *, owned: Sequence[str], mode: str) -> None:
    """Refuse to touch an output that is finished, unless asked.

    Args:
        output: the job's output folder.
        owned: folders and files below ``output`` that the job writes.
        mode: ``"error"`` or ``"overwrite"``.

    Raises:
        FileExistsError: when the output is finished, or holds one of ``owned`` that no run of ours accounts for, or
            an unfinished run of a job of another kind, which could not go on once its record is replaced.
    """
    folder = normalise_path(output)
    record = _read(f"{folder}/{_FILE}")
    if record is not None and not record["finished"] and _is_anothers(record["owned"], owned):
        raise FileExistsError(
            f"output {folder} holds an unfinished run of another job: run that one again first, or choose another "
            f"output folder, or delete {folder}/{_FILE}"
        )
    there = [name for name in owned if exists(f"{folder}/{name}")]
    if there and mode == "error" and (record is None or record["finished"]):
        raise FileExistsError(
            f"output {folder} holds {', '.join(there)} of a finished run: choose another output folder, "
            'or output_mode="overwrite" (a semantic job: clear_output=True; a command: --overwrite or --clear)'
        )


def _is_anothers(theirs: Sequence[str], owned: Sequence[str]) -> bool:
    """Return whether a job of another kind wrote a record; a stage of a job owns a part of what the job does."""
    return bool(theirs) and not (set(theirs) <= set(owned) or set(owned) <= set(theirs))


@contextlib.contextmanager
def steps_of(
    output: Location,
    digest: str,
    *,
    owned: Sequence[str],
    beside: Sequence[str] = (),
    mode: str = "error",
    shared: Callable[[str], bool] | None = None,
) -> Iterator[Steps]:
    """Yield the ``Steps`` of a job; one that fails before its first step ends leaves things as they were.

    The arguments are those of ``Steps``, and ``shared``, which tells of the path of one of ``beside`` whether
    another job uses it by now; then it stays.

    Raises:
        FileExistsError: as ``refuse_finished``.
    """
    steps = Steps(output, digest, owned=owned, beside=beside, mode=mode)
    try:
        yield steps
    except BaseException:  # an interrupt is not a kill: there is time to put things back
        steps.withdraw(shared)
        raise


class Steps:
    """The record of finished steps beside a job's output.

    Steps of a killed run with the same fingerprint stand. What a finished or another run left is replaced step by
    step, and what no step has replaced is cleared on ``close``.

    Attributes:
        resumed: whether an unfinished run with the same fingerprint was found.

    Args:
        output: the job's output folder, held by the caller.
        digest: ``fingerprint`` of this run.
        owned: folders and files below ``output`` that the job writes; nothing else is ever cleared.
        beside: others that it makes when missing, and never replaces.
        mode: ``"error"`` or ``"overwrite"``.

    Raises:
        FileExistsError: as ``refuse_finished``.
    """

    def __init__(
        self,
        output: Location,
        digest: str,
        *,
        owned: Sequence[str],
        beside: Sequence[str] = (),
        mode: str = "error",
    ) -> None:
        refuse_finished(output, owned=owned, mode=mode)
        self.output = normalise_path(output)
        self._digest, self._owned = digest, owned
        self._path = f"{self.output}/{_FILE}"
        self._fresh = not exists(self.output)
        self._new = [name for name in owned if not exists(f"{self.output}/{name}")]
        self._made_beside = [name for name in beside if not exists(f"{self.output}/{name}")]
        self._before = _read(self._path)
        self._done: dict[str, dict[str, Any]] = {}
        self._wrote: list[str] = []
        self.resumed = self._resume()
        try:
            self._write(finished=False)
        except BaseException:
            if self._fresh:
                delete(self.output)
            raise

    def _resume(self) -> bool:
        before = self._before
        if before is None or before["finished"]:
            return False
        if before["fingerprint"] != self._digest:
            logger.warning(
                "parameters or input changed since the unfinished run in %s: starting over", self.output
            )
            return False
        gone = [n for n in before["wrote"] if n in self._owned and not exists(f"{self.output}/{n}")]
        if gone:
            logger.warning(
                "%s of the unfinished run in %s was deleted: starting over", ", ".join(gone), self.output
            )
            return False
        self._done, self._wrote = dict(before["steps"]), list(before["wrote"])
        if self._done:
            logger.info("going on after the finished steps: %s", ", ".join(self._done))
        return True

    def result(self, step: str) -> dict[str, Any] | None:
        """Return what a finished step recorded, or None when it has to run."""
        return self._done.get(step)

    def finish(self, step: str, result: dict[str, Any], *, wrote: Sequence[str] = ()) -> dict[str, Any]:
        """Record a step as finished: plain values that a later run needs, and what of ``owned`` it wrote."""
        self._done[step] = result
        self._wrote += wrote
        self._write(finished=False)
        return result

    def close(self) -> None:
        """Record the whole job as finished, and clear what it owns and no step wrote."""
        for name in self._owned:
            if name not in self._wrote:
                delete(f"{self.output}/{name}")
        self._write(finished=True)

    def withdraw(self, shared: Callable[[str], bool] | None = None) -> None:
        """Put things back as they were, when no step has ended yet, but for what ``shared`` says others use."""
        if self._done:
            return
        beside = [f"{self.output}/{name}" for name in self._made_beside]
        alone = [path for path in beside if not (shared and exists(path) and shared(path))]
        if self._fresh and alone == beside:
            delete(self.output)
            return
        for path in (*(f"{self.output}/{name}" for name in self._new), *alone):
            delete(path)
        if self._before is None:
            delete(self._path)
        else:
            self._put(self._before)

    def _write(self, *, finished: bool) -> None:
        self._put(
            {
                "fingerprint": self._digest,
                "finished": finished,
                "steps": self._done,
                "wrote": self._wrote,
                "owned": list(self._owned),
            }
        )

    def _put(self, record: Mapping[str, Any]) -> None:
        fs, inner = filesystem(self._path)
        make_folder(self._path.rsplit("/", 1)[0])
        try:
            fs.pipe_file(f"{inner}.tmp", json.dumps(record, indent=1).encode())
            fs.mv(f"{inner}.tmp", inner)
        except BaseException:
            delete(f"{self._path}.tmp")
            raise


def _read(path: str) -> dict[str, Any] | None:
    if not exists(path):
        return None
    fs, inner = filesystem(path)
    try:
        record = json.loads(fs.cat_file(inner))
    except ValueError:  # not ours, or torn by a store without renames: its steps count as not done
        return dict(_UNREADABLE)
    return {**_UNREADABLE, **record} if isinstance(record, dict) else dict(_UNREADABLE)
