"""Batches of files whose rows share a range of ids: their keys, their checks, and what can be asked about them."""

from __future__ import annotations

import operator
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from spark_dedup.errors import InputError, UnknownBatchError

__all__ = [
    "Batch",
    "BatchIds",
    "Files",
    "StaleBatchError",
    "as_batches",
    "as_count",
    "hash_files",
    "named_few",
    "spellings",
    "stale_error",
]

Files: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

NAMED = 5
_S3 = re.compile(r"^s3a?://")


class StaleBatchError(InputError):
    """A registered batch of files is no longer what it was when its ids were given out."""


@dataclass(frozen=True)
class Batch:
    """Files whose rows share one range of ids, as they were when counted.

    Attributes:
        files: paths as Curator spells them, in reading order.
        count: rows in all the files.
        size: bytes in all the files, None when unknown.
        modified_ms: latest modification, milliseconds since 1970, None when unknown.
    """

    files: tuple[str, ...]
    count: int
    size: int | None = None
    modified_ms: int | None = None

    @property
    def key(self) -> str:
        """Key of the batch in the registry."""
        return hash_files(self.files)

    @property
    def name(self) -> str:
        """Name of the batch in messages: its first file, and how many follow."""
        if not self.files:
            return "a batch of no files"
        return self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")


def hash_files(files: Files) -> str:
    """Return the key of a batch: UUID version 5 of the paths joined by ``;``, in their order.

    Args:
        files: one path, or the paths of a batch.
    """
    return str(uuid.uuid5(uuid.NAMESPACE_URL, ";".join(_as_paths(files))))


def spellings(files: Files) -> list[tuple[str, ...]]:
    """Return the paths of a batch as a key may spell them, the one that new keys get first.

    Of S3 that is Curator's, ``s3://``; ``s3a://`` is Spark's, and stands in older registries.
    """
    paths = _as_paths(files)
    ways = [tuple(_S3.sub(scheme, path) for path in paths) for scheme in ("s3://", "s3a://")]
    return list(dict.fromkeys(ways))


def _as_paths(files: Files) -> tuple[str, ...]:
    """Return the paths of a batch as text; one path is a batch of one.

    Raises:
        InputError: for anything but paths.
    """
    if isinstance(files, str | os.PathLike):
        return (os.fspath(files),)
    try:
        return tuple(os.fspath(file) for file in files)
    except TypeError as error:
        raise InputError(f"files must be a path or a sequence of paths, not {files!r}") from error


def as_count(count: int, files: Files) -> int:
    """Return a row count as an int, NumPy's integers included.

    Raises:
        InputError: when it is not a whole number, or negative.
    """
    try:
        if isinstance(count, bool):
            raise TypeError
        value = operator.index(count)
    except TypeError as error:
        raise InputError(
            f"count must be an int, not {count!r} ({type(count).__name__}), for {files!r}"
        ) from error
    if value < 0:
        raise InputError(f"count must not be negative, but is {value} for {files!r}")
    return value


def as_batches(batches: Iterable[tuple[Files, int]]) -> list[Batch]:
    """Validate ``(files, count)`` pairs."""
    return [Batch(_as_paths(files), as_count(count, files)) for files, count in batches]


def named_few(names: Sequence[str]) -> str:
    """List up to five names for a message, and how many were left out."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def stale_error(stale: Sequence[str]) -> StaleBatchError:
    """Return the error that names batches which changed since they were registered."""
    return StaleBatchError(
        f"changed since their ids were registered: {named_few(stale)}; "
        "restore the files (get_batch_range tells the ids of then), or register them under new names or in a new "
        "registry"
    )


class BatchIds(ABC):
    """What the generator in memory and the registry in Delta answer alike."""

    @staticmethod
    def hash_files(files: Files) -> str:
        """Return the key of a batch of files; their order counts."""
        return hash_files(files)

    @abstractmethod
    def register_batches(self, batches: Iterable[tuple[Files, int]]) -> list[int]:
        """Return the first ids of many ``(files, count)``."""

    def register_batch(self, files: Files, count: int) -> int:
        """Return the first id of a batch, giving it ``count`` ids when it is new.

        NeMo Curator returns the first id of a known batch whatever the count, and so gives ids twice where files
        grew; for the ids of then, ask ``get_batch_range``.

        Raises:
            StaleBatchError: the batch is known with another count.
            InputError: ``count`` is negative or no int.
        """
        return self.register_batches([(files, count)])[0]

    @abstractmethod
    def _range(self, key: str) -> tuple[int, int] | None:
        """Return the first and last id under a key, None when it was never registered."""

    def get_batch_range(self, files: Files | None = None, key: str | None = None) -> tuple[int, int]:
        """Return the first and last id of a batch, named by its files or its key.

        Raises:
            InputError: unless exactly one of ``files`` and ``key`` is given.
            UnknownBatchError: a ``KeyError``: the batch was never registered.
        """
        if (files is None) == (key is None):
            raise InputError("give exactly one of files and key")
        keys = [hash_files(way) for way in spellings(files or ())] if key is None else [key]
        found = next((ids for ids in map(self._range, keys) if ids is not None), None)
        if found is None:
            what = f"key {key!r}" if files is None else f"files {named_few(_as_paths(files)) or '[]'}"
            raise UnknownBatchError(f"no ids are registered for {what}")
        return found
