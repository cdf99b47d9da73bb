"""Outputs: checked before work, held by one job, written aside, then published."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator

from spark_dedup.errors import InputError
from spark_dedup.paths import Location, delete, exists, is_local, move, normalise_path

__all__ = ["check_output", "exclusive", "publish", "staged"]


def check_output(output: Location, *, inputs: Iterable[str] = (), mode: str = "error") -> str:
    """Check that an output folder can be written, before any work.

    Returns:
        The normalised output path.

    Raises:
        InputError: the output is an input, or lies inside one, or holds one.
        FileExistsError: it exists and ``mode`` is ``"error"``.
        PermissionError: its folder cannot be written.
    """
    path = normalise_path(output)
    for given in map(normalise_path, inputs):
        if path == given or path.startswith(given + "/"):
            raise InputError(f"output {path} is equal to or inside the input {given}: choose another folder")
        if given.startswith(path + "/"):
            raise InputError(f"output {path} holds the input {given}: choose another folder")
    if mode == "error" and exists(path):
        raise FileExistsError(f"output {path} exists: choose another folder or ask for overwriting")
    if is_local(path):
        parent = path
        while not os.path.exists(parent):
            parent = os.path.dirname(parent)
        if not os.path.isdir(parent):
            raise NotADirectoryError(f"{parent} is a file, so {path} cannot be made: choose another folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(f"{parent} is read-only: choose an output folder you can write")
    return path


@contextlib.contextmanager
def exclusive(output: Location) -> Iterator[None]:
    """Hold an output folder for one job; the hold ends with the process, however it ends.

    Stores without file locks are not held: there the publishing step lets only one job win.

    Raises:
        InputError: when another job holds it.
    """
    path = normalise_path(output)
    if not is_local(path):
        yield
        return
    import fcntl

    os.makedirs(os.path.dirname(path), exist_ok=True)
    lock = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.lock")
    with open(lock, "a", encoding="ascii") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"another job is writing {path}: wait for it or choose another output"
            ) from error
        yield
        with contextlib.suppress(OSError):
            os.unlink(lock)


@contextlib.contextmanager
def staged(final: Location, *, mode: str = "error") -> Iterator[str]:
    """Yield a folder beside ``final`` to write into; it becomes ``final`` only when the block ends well.

    Args:
        final: folder to publish.
        mode: ``"error"`` or ``"overwrite"``; the old folder is kept until the new one stands.

    Raises:
        FileExistsError: when ``final`` exists at publishing and ``mode`` is ``"error"``.
    """
    path = normalise_path(final)
    parent, name = path.rsplit("/", 1)
    aside = f"{parent}/.{name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        yield aside
        publish(aside, path, mode=mode)
    finally:
        delete(aside)


def publish(aside: str, path: str, *, mode: str = "error") -> None:
    """Move a finished folder to its place."""
    if exists(path):
        if mode == "error":
            raise FileExistsError(f"output {path} exists: choose another folder or ask for overwriting")
        old = f"{aside}.old"
        move(path, old)
        move(aside, path)
        delete(old)
    else:
        move(aside, path)
