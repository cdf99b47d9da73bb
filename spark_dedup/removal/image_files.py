"""Files of images and tar shards: where they lie, where they go, and the copying that tasks do."""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import pyarrow as pa

from spark_dedup.errors import InputError
from spark_dedup.ids.batches import named_few
from spark_dedup.listing import FileInfo, Named, list_files
from spark_dedup.outputs import exclusive, staged
from spark_dedup.paths import Location, delete, filesystem, is_local, make_folder, normalise_path
from spark_dedup.removal.shards import copy_without, sample_keys

__all__ = ["copies", "copy_file", "list_keys", "list_shards", "places_below", "rewrite_shard", "roots_of"]

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def roots_of(named: Named) -> list[str]:
    """Return the paths that were named, normalised."""
    return [normalise_path(path) for path in ([named] if isinstance(named, str | os.PathLike) else named)]


def places_below(files: Sequence[FileInfo], roots: Sequence[str]) -> list[str]:
    """Return where each file goes below the output: its path below what was named.

    Raises:
        InputError: a name that Spark cannot hold, or two files that would go to one place.
    """
    places = []
    for file in files:
        root = next((r for r in roots if file.path.startswith(f"{r}/")), None)
        places.append(file.path[len(root) + 1 :] if root else file.path.rsplit("/", 1)[1])
    seen: dict[str, str] = {}
    for file, place in zip(files, places, strict=True):
        if any("\ud800" <= letter <= "\udfff" for letter in file.path):  # a byte that is not UTF-8
            raise InputError(
                f"{file.path!r}: Spark knows no names that are not UTF-8: rename the file or folder"
            )
        if place in seen:
            raise InputError(
                f"{seen[place]} and {file.path} would both become {place}: take the folders apart"
            )
        seen[place] = file.path
    return places


def list_keys(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """List the samples of shards (``path``): ``path``, ``key``, and ``error`` where a shard cannot be read."""
    for batch in batches:
        for path in batch.column("path").to_pylist():
            fs, inner = filesystem(path)
            keys: list[str | None] = []
            error = None
            try:
                with fs.open(inner, "rb") as file:
                    keys += sample_keys(file)
            except (tarfile.TarError, OSError, EOFError) as problem:
                keys, error = [None], str(problem).splitlines()[0] or type(problem).__name__
            n = len(keys)
            columns = [[path] * n, keys, [error] * n]
            names = ["path", "key", "error"]
            yield pa.record_batch([pa.array(c, pa.string()) for c in columns], names=names)


def list_shards(shards: Named) -> list[FileInfo]:
    """List the tar shards under paths.

    Raises:
        InputError: some are compressed.
    """
    found = list_files(shards, extensions=(".tar", *_PACKED), ignore_case=True, by_spark=False)
    packed = [file.path for file in found if file.path.lower().endswith(_PACKED)]
    if packed:
        raise InputError(
            f"compressed shards are not rewritten: {named_few(packed)}. Unpack them to .tar first"
        )
    return found


@contextlib.contextmanager
def copies(output: Location) -> Iterator[str]:
    """Hold an output and yield the folder that tasks copy to, which becomes it when the block ends well."""
    with exclusive(output), staged(output) as aside:
        make_folder(aside)
        make_folder(_unfinished(aside))
        try:
            yield aside
        finally:
            delete(_unfinished(aside))


def _unfinished(aside: str) -> str:
    return f"{aside}.unfinished"


def copy_file(source: str, folder: str, place: str) -> None:
    """Copy a file to a place below a folder."""
    with _pair(source, folder, place) as (reader, writer):
        shutil.copyfileobj(reader, writer, 1 << 20)


def rewrite_shard(source: str, folder: str, place: str, keys: frozenset[str]) -> None:
    """Copy a shard without the samples of these keys."""
    with _pair(source, folder, place) as (reader, writer):
        copy_without(reader, writer, keys)


@contextlib.contextmanager
def _pair(source: str, folder: str, place: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file to read and one to write below a folder, on any store, making the folders between.

    A local file gets its name when it is whole, as one of a store does: a second attempt at a task, which
    speculation starts and kills at any moment, would write into the first one's.
    """
    if is_local(folder) and not os.path.isdir(_unfinished(folder)):
        # A task that a failed job left running must not bring back what was cleared.
        raise FileNotFoundError(f"{folder} is gone, as its job ended, or lies on another machine")
    fs, inner = filesystem(source)
    target = f"{folder}/{place}"
    to, name = filesystem(target)
    make_folder(target.rsplit("/", 1)[0])
    written = f"{_unfinished(folder)}/{uuid.uuid4().hex}" if is_local(folder) else name
    with fs.open(inner, "rb") as reader, to.open(written, "wb") as writer:
        yield reader, writer
    if is_local(folder):
        os.replace(written, name)
