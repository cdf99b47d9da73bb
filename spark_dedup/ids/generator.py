"""Contiguous id ranges for batches of files, in plain Python; the same JSON file as NeMo Curator's id generator."""

from __future__ import annotations

import json
import operator
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from spark_dedup.errors import InputError

__all__ = ["Batch", "Files", "IdGenerator", "StaleBatchError", "hash_files", "read_state", "write_state"]

Files: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Ranges: TypeAlias = dict[str, tuple[int, int]]

NAMED = 5


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
    return str(uuid.uuid5(uuid.NAMESPACE_URL, ";".join(as_paths(files))))


def as_paths(files: Files) -> tuple[str, ...]:
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
    return [Batch(as_paths(files), as_count(count, files)) for files, count in batches]


def named_few(names: Sequence[str]) -> str:
    """List up to five names for a message, and how many were left out."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def pick_one(files: Files | None, key: str | None) -> str:
    """Return the key that is asked for.

    Raises:
        InputError: unless exactly one of the two is given.
    """
    if (files is None) == (key is None):
        raise InputError("give exactly one of files and key")
    return key if key is not None else hash_files(files or ())


class IdGenerator:
    """Gives every batch of files a contiguous range of ids, each id once. Thread-safe; no Spark.

    Args:
        start_id: the first id to give out.
        batch_registry: ranges given out before, key → (first id, last id).

    Attributes:
        next_id: the first id not given out.
        batch_registry: key → (first id, last id), both inclusive; an empty batch has ``(n, n - 1)``.
    """

    def __init__(self, start_id: int = 0, batch_registry: Mapping[str, Sequence[int]] | None = None) -> None:
        self.next_id = as_count(start_id, "start_id")
        self.batch_registry: Ranges = {k: (int(r[0]), int(r[1])) for k, r in (batch_registry or {}).items()}
        self._lock = threading.Lock()

    @staticmethod
    def hash_files(files: Files) -> str:
        """Return the key of a batch of files; their order counts."""
        return hash_files(files)

    def register_batch(self, files: Files, count: int) -> int:
        """Return the first id of a batch, giving it ``count`` ids when it is new.

        Raises:
            StaleBatchError: the batch is known with another count.
            InputError: ``count`` is negative or no int.
        """
        return self.register_batches([(files, count)])[0]

    def register_batches(self, batches: Iterable[tuple[Files, int]]) -> list[int]:
        """Return the first ids of many batches: all are registered, or, after an error, none.

        Args:
            batches: ``(files, count)`` pairs.
        """
        checked = as_batches(batches)
        with self._lock:
            start, fresh, stale = self.next_id, Ranges(), list[str]()
            keys = [batch.key for batch in checked]
            for key, batch in zip(keys, checked, strict=True):
                known = self.batch_registry.get(key) or fresh.get(key)
                if known is None:
                    fresh[key] = (start, start + batch.count - 1)
                    start += batch.count
                elif known[1] - known[0] + 1 != batch.count:
                    stale.append(f"{batch.name} ({known[1] - known[0] + 1} rows then, {batch.count} now)")
            if stale:
                raise stale_error(stale)
            self.batch_registry.update(fresh)
            self.next_id = start
            return [self.batch_registry[key][0] for key in keys]

    def get_batch_range(self, files: Files | None = None, key: str | None = None) -> tuple[int, int]:
        """Return the first and last id of a batch, named by its files or its key.

        Raises:
            InputError: unless exactly one of ``files`` and ``key`` is given.
            KeyError: the batch was never registered.
        """
        wanted = pick_one(files, key)
        try:
            return self.batch_registry[wanted]
        except KeyError:
            raise unknown_error(files, key) from None

    def to_disk(self, path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
        """Write the state as JSON to any place that fsspec reaches; a local file appears whole or not at all."""
        with self._lock:
            state = {"next_id": self.next_id, "batch_registry": dict(self.batch_registry)}
        write_state(path, state, storage_options)

    @classmethod
    def from_disk(
        cls, path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
    ) -> IdGenerator:
        """Read a state that ``to_disk`` or NeMo Curator wrote.

        Raises:
            InputError: the file is malformed, ranges overlap, or ``next_id`` lies inside a range.
        """
        next_id, ranges = read_state(path, storage_options)
        return cls(next_id, ranges)

    def __repr__(self) -> str:
        return f"IdGenerator(next_id={self.next_id}, batches={len(self.batch_registry)})"


def stale_error(stale: Sequence[str]) -> StaleBatchError:
    """Return the error that names batches which changed since they were registered."""
    return StaleBatchError(
        f"changed since their ids were registered: {named_few(stale)}; "
        "restore the files, or register them under new names or in a new registry"
    )


def unknown_error(files: Files | None, key: str | None) -> KeyError:
    """Return the error for a batch that was never registered."""
    what = f"key {key!r}" if files is None else f"files {named_few(as_paths(files)) or '[]'}"
    return KeyError(f"no ids are registered for {what}")


def write_state(
    path: str | os.PathLike[str], state: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Write a generator's state as JSON through fsspec.

    A local file is written aside and renamed, so that a reader or a crash never meets half of it.
    """
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    fs, name = fsspec.core.url_to_fs(os.fspath(path), **(storage_options or {}))
    fs.makedirs(fs._parent(name), exist_ok=True)
    if not isinstance(fs, LocalFileSystem):
        with fs.open(name, "w", encoding="utf-8") as file:
            json.dump(state, file)
        return
    aside = Path(f"{name}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(name)
    finally:
        aside.unlink(missing_ok=True)


def read_state(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[int, Ranges]:
    """Read and check a generator's JSON state.

    Returns:
        ``(next_id, {key: (first id, last id)})``.

    Raises:
        InputError: saying what is wrong in which file.
    """
    import fsspec

    where = os.fspath(path)
    with fsspec.open(where, "r", encoding="utf-8", **(storage_options or {})) as file:
        try:
            state = json.load(file, object_pairs_hook=_no_repeats)
        except ValueError as error:
            raise InputError(f"{where} is not an id generator file: {error}") from error
    problem = _shape_problem(state)
    if problem is None:
        ranges = {key: (first, last) for key, (first, last) in state["batch_registry"].items()}
        problem = _range_problem(state["next_id"], ranges)
    if problem is not None:
        raise InputError(f"{where} is not a sound id generator file: {problem}")
    return state["next_id"], ranges


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, times = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice!r} stands in it {times} times")
    return result


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shape_problem(state: object) -> str | None:
    if not isinstance(state, dict) or not {"next_id", "batch_registry"} <= state.keys():
        return 'it must be {"next_id": int, "batch_registry": {key: [first, last]}}'
    if not _is_int(state["next_id"]) or state["next_id"] < 0:
        return f"next_id is {state['next_id']!r}, not a whole number from 0"
    if not isinstance(state["batch_registry"], dict):
        return "batch_registry is not an object"
    for key, value in state["batch_registry"].items():
        if not (isinstance(value, list) and len(value) == 2 and all(map(_is_int, value))):
            return f"the range of batch {key!r} is {value!r}, not [first, last]"
        if value[0] < 0 or value[1] < value[0] - 1:
            return f"the range of batch {key!r} is {value!r}: last lies before first, or first below 0"
    return None


def _range_problem(next_id: int, ranges: Ranges) -> str | None:
    end, before = 0, ""
    for key, (first, last) in sorted(ranges.items(), key=operator.itemgetter(1)):
        if first > last:
            continue
        if first < end:
            return f"batches {before!r} and {key!r} overlap at id {first}"
        end, before = last + 1, key
    if next_id < end:
        return f"next_id {next_id} lies inside or below the range {list(ranges[before])} of batch {before!r}"
    return None
