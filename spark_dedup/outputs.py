"""Outputs: checked before work, held by one job, written aside, then published."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

from spark_dedup.errors import InputError
from spark_dedup.hadoop import require_client
from spark_dedup.leases import held_here, leased, require_held
from spark_dedup.locks import locked
from spark_dedup.paths import (
    Location,
    aside_of,
    delete,
    exists,
    filesystem,
    find_files,
    is_local,
    move,
    normalise_path,
)
from spark_dedup.stores import is_s3, named_refusal

__all__ = ["check_apart", "check_output", "clear_killed", "exclusive", "publish", "staged"]

_ONE_STORE = re.compile(r"^s3[an]?://")


def check_output(
    output: Location,
    *,
    inputs: Iterable[str] = (),
    mode: str = "error",
    replaced: bool = True,
    by_spark: bool = True,
) -> str:
    """Check that an output folder can be written, before any work.

    Args:
        output: the folder.
        inputs: paths that are read.
        mode: ``"error"`` or ``"overwrite"``.
        replaced: whether the folder as a whole is put in the place of an old one, not only filled.
        by_spark: whether Spark writes it, not only Python.

    Returns:
        The normalised output path.

    Raises:
        InputError: the output is an input, or lies inside one, or holds one; or it is a mount point, which nothing
            replaces; or Spark has no client for its store.
        FileExistsError: it exists and ``mode`` is ``"error"``, or it is a file.
        PermissionError: its folder cannot be written.
    """
    path = normalise_path(output)
    check_apart(path, inputs)
    if by_spark:
        require_client(path)
    if mode == "error":
        _refuse_existing(path)
    if is_s3(path):
        _check_bucket(path)
    elif is_local(path):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise FileExistsError(f"output {path} is a file: choose a folder")
        if replaced and os.path.ismount(path):
            raise InputError(
                f"output {path} is a mount point, which cannot be replaced: name a folder below it"
            )
        for folder in dict.fromkeys((path, os.path.dirname(path))):
            _check_writable(folder, path)
    return path


def _refuse_existing(path: str) -> None:
    if exists(path):
        raise FileExistsError(f"output {path} exists: choose another folder or ask for overwriting")


def _check_bucket(path: str) -> None:
    """Refuse a bucket that is not there, which otherwise looks like an output that does not exist yet."""
    fs, inner = filesystem(path)
    try:
        with named_refusal(path):
            fs.ls(inner, detail=False)
    except FileNotFoundError as error:
        if "specified bucket does not exist" in str(error):  # S3's words for NoSuchBucket
            raise InputError(f"output {path}: no such bucket: make it, or choose another") from error


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
    return os.path.realpath(path) if is_local(path) else _ONE_STORE.sub("s3://", path)


def exclusive(output: Location, *, patience_s: float = 0.0) -> AbstractContextManager[None]:
    """Hold an output folder for one job; the hold ends with the process, however it ends.

    On a store without file locks it is a lease, which a killed job keeps for a minute more.

    Args:
        output: the folder; it need not exist.
        patience_s: seconds to wait for a job that holds it.

    Raises:
        HeldError: when another job holds it.
        InputError: when its store cannot be written.
        PermissionError: when the folder of the output cannot be written.
    """
    path = normalise_path(output)
    return (locked if is_local(path) else leased)(path, patience_s=patience_s)


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
    clear_killed(path, mode)
    if mode == "error":
        _refuse_existing(path)
    aside = aside_of(path)
    try:
        yield aside
        publish(aside, path, mode=mode)
    finally:
        delete(aside)


def clear_killed(path: str, mode: str = "error") -> None:
    """Clear what killed runs left beside an output that is held, and put back an old result that they moved away.

    On a store where this process holds nothing, a new result may be a running job's: only old ones are touched.
    """
    parent, name = path.rsplit("/", 1)
    left = re.compile(
        rf"\.{re.escape(name)}\.[0-9a-f]{{12}}\.tmp(?P<rest>\.old|\.located|\.clone|\.unfinished|\.held)?"
    )
    entries = _names(parent)
    for entry in entries:
        found = left.fullmatch(entry)
        if found is None:
            continue
        beside = f"{parent}/{entry}"
        if found["rest"] == ".old" and not exists(path):
            # Killed between the two moves of publishing: the old result is the finished one.
            move(beside, path)
        elif is_local(parent):
            delete(beside)
        elif found["rest"] == ".old":
            _settle(beside, path, mode)
        elif held_here(path) and f"{entry}.old" not in entries:
            delete(beside)


def _settle(old: str, path: str, mode: str) -> None:
    """Delete an old result, or put it back, on a store that moves file by file: its run may have died at any."""
    if not exists(old.removesuffix(".old")):
        delete(old)  # the new one stands
    elif mode == "overwrite" or held_here(path):  # else the new result may be moving in now, by a running job
        fs, inner = filesystem(old)
        place = filesystem(path)[1]
        if all(fs.exists(place + file[len(inner) :]) for file in find_files(fs, inner)):
            delete(old)  # killed before it was all moved away
        else:
            delete(path)
            move(old, path)
        if held_here(path):
            delete(old.removesuffix(".old"))


def _names(folder: str) -> list[str]:
    if is_local(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    fs, inner = filesystem(f"{folder}/")
    fs.invalidate_cache()
    try:
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(inner, detail=False))
    except FileNotFoundError:
        return []


def publish(aside: str, path: str, *, mode: str = "error") -> None:
    """Move a finished folder to its place; after an error, what was there before is there again.

    Raises:
        RuntimeError: the hold of the output was lost meanwhile.
        FileExistsError: when something is there and ``mode`` is ``"error"``.
    """
    require_held(path)
    if mode == "error":
        _refuse_existing(path)
        _place(aside, path)
        return
    old = f"{aside}.old"
    if not exists(path):
        move(aside, path)
        return
    move(path, old)
    try:
        move(aside, path)
    except BaseException:  # an interrupt too: on a store that copies, there is time for one
        delete(path)
        move(old, path)
        raise
    delete(old)


def _place(aside: str, path: str) -> None:
    try:
        move(aside, path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            _refuse_existing(path)
        raise
