"""Outputs: checked before work, held by one job, written aside, then published."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import uuid
from collections.abc import Iterable, Iterator

from spark_dedup.errors import InputError
from spark_dedup.paths import Location, delete, exists, is_local, move, normalise_path

__all__ = ["check_apart", "check_output", "exclusive", "publish", "staged"]

logger = logging.getLogger(__name__)


def check_output(output: Location, *, inputs: Iterable[str] = (), mode: str = "error") -> str:
    """Check that an output folder can be written, before any work.

    Returns:
        The normalised output path.

    Raises:
        InputError: the output is an input, or lies inside one, or holds one.
        FileExistsError: it exists and ``mode`` is ``"error"``, or it is a file.
        PermissionError: its folder cannot be written.
    """
    path = normalise_path(output)
    check_apart(path, inputs)
    if mode == "error" and exists(path):
        raise FileExistsError(f"output {path} exists: choose another folder or ask for overwriting")
    if is_local(path):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise FileExistsError(f"output {path} is a file: choose a folder")
        for folder in dict.fromkeys((path, os.path.dirname(path))):
            _check_writable(folder, path)
    return path


def _check_writable(folder: str, path: str) -> None:
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{folder} is a file, so {path} cannot be made: choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} is read-only: choose an output folder you can write")


def check_apart(path: str, inputs: Iterable[str], *, may_hold: bool = False) -> None:
    """Check that an output does not meet an input, links followed.

    Args:
        path: normalised output path.
        inputs: paths that are read.
        may_hold: whether an input may lie below the output.

    Raises:
        InputError: it is an input, or lies inside one, or holds one.
    """
    own = _real(path)
    for given in map(normalise_path, inputs):
        other = _real(given)
        if own == other or own.startswith(f"{other}/"):
            raise InputError(f"output {path} is equal to or inside the input {given}: choose another folder")
        if not may_hold and other.startswith(f"{own}/"):
            raise InputError(f"output {path} holds the input {given}: choose another folder")


def _real(path: str) -> str:
    return os.path.realpath(path) if is_local(path) else path


@contextlib.contextmanager
def exclusive(output: Location) -> Iterator[None]:
    """Hold an output folder for one job; the hold ends with the process, however it ends.

    Stores without file locks are not held: there the publishing step lets only one job win. Parent folders that
    are made for the lock go again when the job leaves nothing in them.

    Raises:
        InputError: when another job holds it.
        PermissionError: when the folder of the output cannot be written.
    """
    path = normalise_path(output)
    if not is_local(path):
        yield
        return
    made = _missing_folders(os.path.dirname(path))
    lock = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.lock")
    handle = _take(lock, path)
    try:
        yield
    finally:
        # Unlinked while it is held, so whoever gets the lock next sees that the file is no longer this one.
        with contextlib.suppress(OSError):
            os.unlink(lock)
        if handle is not None:
            os.close(handle)
        with contextlib.suppress(OSError):
            for folder in made:
                os.rmdir(folder)


def _missing_folders(folder: str) -> list[str]:
    missing = []
    while not os.path.exists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def _take(lock: str, path: str) -> int | None:
    """Lock the file of that name and return its descriptor; None where the file system has no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            os.makedirs(os.path.dirname(lock), exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another job has just removed the empty folder
            continue
        except FileExistsError:
            if os.path.lexists(os.path.dirname(lock)) and not os.path.isdir(os.path.dirname(lock)):
                raise NotADirectoryError(
                    f"{os.path.dirname(lock)} is a file: choose another output"
                ) from None
            continue  # made and removed again by another job while we looked
        except PermissionError as error:
            raise PermissionError(
                f"{os.path.dirname(lock)} is read-only: choose an output folder you can write"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise InputError(f"another job is writing {path}: wait for it or choose another output") from None
        except OSError as error:
            os.close(handle)
            logger.warning("%s cannot be locked (%s): run only one job on it at a time", path, error.strerror)
            return None
        if _stands(handle, lock):
            return handle
        os.close(handle)


def _stands(handle: int, lock: str) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(lock))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def staged(final: Location, *, mode: str = "error") -> Iterator[str]:
    """Yield a folder beside ``final`` to write into; it becomes ``final`` only when the block ends well.

    The caller holds the output (``exclusive``), so what killed runs left beside it can be cleared here.

    Args:
        final: folder to publish.
        mode: ``"error"`` or ``"overwrite"``; the old folder is kept until the new one stands.

    Raises:
        FileExistsError: when ``final`` exists and ``mode`` is ``"error"``.
    """
    path = normalise_path(final)
    parent, name = path.rsplit("/", 1)
    _clear_killed(parent, name)
    if mode == "error":
        _refuse_existing(path)
    aside = f"{parent}/.{name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        yield aside
        publish(aside, path, mode=mode)
    finally:
        delete(aside)


def _clear_killed(parent: str, name: str) -> None:
    if not is_local(parent) or not os.path.isdir(parent):
        return
    left = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{12}}\.tmp(?P<rest>\.old|\.located)?")
    for entry in sorted(os.listdir(parent)):
        found = left.fullmatch(entry)
        if found and found["rest"] == ".old" and not os.path.lexists(f"{parent}/{name}"):
            # Killed between the two renames of publishing: the old result is the finished one.
            os.rename(f"{parent}/{entry}", f"{parent}/{name}")
        elif found:
            delete(f"{parent}/{entry}")


def _refuse_existing(path: str) -> None:
    if exists(path):
        raise FileExistsError(f"output {path} exists: choose another folder or ask for overwriting")


def publish(aside: str, path: str, *, mode: str = "error") -> None:
    """Move a finished folder to its place.

    Raises:
        FileExistsError: when something is there and ``mode`` is ``"error"``.
    """
    if mode == "error":
        _refuse_existing(path)
    if exists(path):
        old = f"{aside}.old"
        move(path, old)
        move(aside, path)
        delete(old)
    else:
        move(aside, path)
