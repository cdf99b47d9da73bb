"""Contiguous id ranges for batches of files, in plain Python; the same JSON file as NeMo Curator's id generator."""

from __future__ import annotations

import json
import operator
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from spark_dedup.errors import InputError
from spark_dedup.ids.batches import BatchIds, Files, as_batches, as_count, stale_error
from spark_dedup.paths import filesystem, has_folders, normalise_path, write_whole

if TYPE_CHECKING:
    import fsspec

__all__ = ["IdGenerator", "read_state", "write_state"]

Ranges: TypeAlias = dict[str, tuple[int, int]]


class IdGenerator(BatchIds):
    """Gives every batch of files a contiguous range of ids, each id once. Thread-safe; no Spark.

    Args:
        start_id: the first id to give out; after ``batch_registry``, where that goes further.
        batch_registry: ranges given out before, key → (first id, last id).

    Raises:
        InputError: a range that is none, or ranges that overlap.

    Attributes:
        next_id: the first id not given out.
        batch_registry: key → (first id, last id), both inclusive; an empty batch has ``(n, n - 1)``.
    """

    def __init__(self, start_id: int = 0, batch_registry: Mapping[str, Sequence[int]] | None = None) -> None:
        given = {key: [int(number) for number in ends] for key, ends in (batch_registry or {}).items()}
        last = max((ends[-1] for ends in given.values() if ends and ends[0] <= ends[-1]), default=-1)
        state = {"next_id": max(as_count(start_id, "start_id"), last + 1), "batch_registry": given}
        self.next_id, self.batch_registry = _checked(state, "batch_registry is not sound")
        self._lock = threading.Lock()

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

    def _range(self, key: str) -> tuple[int, int] | None:
        return self.batch_registry.get(key)

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


def write_state(
    path: str | os.PathLike[str], state: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Write a generator's state as JSON through fsspec.

    A local file is written aside and renamed, so that a reader or a crash never meets half of it.
    """
    from fsspec.implementations.local import LocalFileSystem

    fs, name = _reached(path, storage_options)
    if not isinstance(fs, LocalFileSystem):
        if has_folders(normalise_path(path)):
            fs.makedirs(fs._parent(name), exist_ok=True)
        with fs.open(name, "w", encoding="utf-8") as file:
            json.dump(state, file)
        return
    write_whole(name, json.dumps(state).encode())


def read_state(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[int, Ranges]:
    """Read and check a generator's JSON state.

    Returns:
        ``(next_id, {key: (first id, last id)})``.

    Raises:
        InputError: saying what is wrong in which file.
    """
    where = os.fspath(path)
    fs, name = _reached(path, storage_options)
    with fs.open(name, "r", encoding="utf-8") as file:
        try:
            state = json.load(file, object_pairs_hook=_no_repeats)
        except ValueError as error:
            raise InputError(f"{where} is not an id generator file: {error}") from error
    return _checked(state, f"{where} is not a sound id generator file")


def _reached(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path and the path on it."""
    import fsspec

    where = normalise_path(path)
    if not storage_options:
        return filesystem(where)
    found: tuple[fsspec.AbstractFileSystem, str] = fsspec.core.url_to_fs(where, **storage_options)
    return found


def _checked(state: Any, fault: str) -> tuple[int, Ranges]:
    problem = _shape_problem(state)
    if problem is None:
        ranges = {key: (first, last) for key, (first, last) in state["batch_registry"].items()}
        problem = _range_problem(state["next_id"], ranges)
    if problem is not None:
        raise InputError(f"{fault}: {problem}")
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
