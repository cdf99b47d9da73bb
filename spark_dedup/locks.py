"""How one job holds an output on this machine's file systems: by a lock on a file ``.NAME.lock`` beside it.

The system frees the lock of a killed process. A file that stays behind does no harm: the next job locks it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import stat
import time
from collections.abc import Iterator

from spark_dedup.errors import HeldError

__all__ = ["locked"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: str, *, patience_s: float) -> Iterator[None]:
    """Hold a local output for one job.

    Parent folders that are made for the lock go again when the job leaves nothing in them.

    Args:
        path: the output, normalised.
        patience_s: seconds to wait for a job that holds it.

    Raises:
        HeldError: when another job holds it.
        PermissionError: when the folder of the output cannot be written.
    """
    folder, name = os.path.split(path)
    made = _missing_folders(folder)
    lock = os.path.join(folder, f".{name}.lock")
    handle = _take_in_turn(lock, path, patience_s)
    try:
        yield
    finally:
        # Unlinked while it is held, so whoever gets the lock next sees that the file is no longer this one.
        with contextlib.suppress(OSError):
            os.unlink(lock)
        if handle is not None:
            os.close(handle)
        with contextlib.suppress(OSError):
            for empty in made:
                os.rmdir(empty)


def _missing_folders(folder: str) -> list[str]:
    missing = []
    while not os.path.exists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def _take_in_turn(lock: str, path: str, patience_s: float) -> int | None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return _take(lock, path)
        except HeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02 + 0.08 * random.random())


def _take(lock: str, path: str) -> int | None:
    """Lock the file of that name and return its descriptor; None where the file system has no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        handle = _opened(lock, path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise HeldError(f"another job is writing {path}: wait for it or choose another output") from None
        except OSError as error:
            os.close(handle)
            logger.warning("%s cannot be locked (%s): run only one job on it at a time", path, error.strerror)
            return None
        if _stands(handle, lock):
            return handle
        os.close(handle)


def _opened(lock: str, path: str) -> int:
    """Open the lock's file, made with its folders where missing: another job may remove them at any moment."""
    folder = os.path.dirname(lock)
    vanished = 0
    while True:
        try:
            os.makedirs(folder, exist_ok=True)
            return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError as error:
            vanished += 1
            if vanished == 100:
                raise PermissionError(
                    f"no file can be made in {folder}: choose an output folder you can write"
                ) from error
        except FileExistsError:
            if _is_no_folder(folder):
                raise NotADirectoryError(f"{folder} is a file: choose another output") from None
        except PermissionError as error:
            below = f"a folder below {path}" if os.path.isdir(path) else "an output folder you can write"
            raise PermissionError(
                f"{folder} is read-only, so {path} cannot be locked: choose {below}"
            ) from error


def _is_no_folder(path: str) -> bool:
    """Return whether something else than a folder is there, by one look: folders come and go meanwhile."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return os.path.islink(path)


def _stands(handle: int, lock: str) -> bool:
    """Return whether the file that was opened still has its name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(lock))
    except FileNotFoundError:
        return False
