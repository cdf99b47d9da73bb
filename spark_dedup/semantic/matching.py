"""What a task of the pairwise comparison does: blocks of unit rows in, each record's best match out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spark_dedup.errors import InputError
from spark_dedup.kernels import cuml
from spark_dedup.kernels.arrays import Array, normalise, row_norms
from spark_dedup.kernels.similarity import NO_MATCH, Best, best_among, best_earlier, nearest_rows
from spark_dedup.semantic.embeddings import Matrix, to_matrix
from spark_dedup.semantic.gpu import use_device

__all__ = ["matcher", "probed_clusters", "unit_rows"]

_UNIT_TOLERANCE = 1e-6
_FLUSH_ROWS = 8192
_UNCOUNTED = (
    "some records have no centroid, or the assigned records are others each time they are read: fill the column, "
    "or write or cache the records first"
)


def unit_rows(embeddings: pa.Array, ids: pa.Array) -> Matrix:
    """Return a batch as unit rows; rows that already are unit keep their bits."""
    first = embeddings[0].as_py()
    if first is None:
        raise InputError(f"the embedding of id {ids[0]} is null")
    dim = len(first) // 4 if isinstance(first, bytes) else len(first)
    x = to_matrix(embeddings, dim)
    norms = row_norms(x)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        named = ", ".join(str(ids[int(i)]) for i in bad[:5])
        raise InputError(f"{bad.size} embeddings are zero or not finite; ids {named}")
    off = np.abs(norms - 1) > _UNIT_TOLERANCE
    if off.any():
        x = np.where(off[:, None], normalise(x, norms), x)
    return x


def probed_clusters(
    x: Matrix, own: NDArray[Any], centroids: NDArray[np.float32] | None, n_probe: int
) -> NDArray[np.int64]:
    """Return the (n, ``n_probe``) clusters that each row is compared in: its own, then the next nearest.

    Fewer where there are not as many; the own one alone without the (n_clusters, dim) raw centroids.
    """
    own = own.astype(np.int64)[:, None]
    if centroids is None:
        return own
    nearest = nearest_rows(x, centroids, min(n_probe, len(centroids)))
    # The own cluster counts as the first, wherever rounding puts it.
    order = np.argsort(nearest == own, axis=1, kind="stable")
    others = np.take_along_axis(nearest, order, axis=1)[:, :-1]
    return np.concatenate([own, others], axis=1)


def matcher(
    tile: int, calls: cuml.Calls | None = None
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the task's function: batches sorted by unit, queries first, to batches of matches.

    Args:
        tile: rows multiplied at once.
        calls: the GPU library's calls, or None to multiply on the CPU.
    """

    def match(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if calls is not None:
            use_device(0, calls)
        unit: _Unit | None = None
        done: list[pa.RecordBatch] = []
        waiting = 0
        for batch in batches:
            for part in _runs(batch):
                number = part.column("_unit")[0].as_py()
                if unit is None or unit.number != number:
                    if unit is not None:
                        done.append(unit.matches())
                        waiting += done[-1].num_rows
                    unit = _Unit(number, tile, calls)
                    if waiting >= _FLUSH_ROWS:
                        yield _joined(done)
                        done, waiting = [], 0
                unit.add(part)
        if unit is not None:
            done.append(unit.matches())
        if done:
            yield _joined(done)

    return match


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    names = batches[0].schema.names
    return pa.RecordBatch.from_arrays(
        [pa.concat_arrays([b.column(n) for b in batches]) for n in names], names
    )


def _runs(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch where the unit or the role changes."""
    if not batch.num_rows:
        return
    if batch.column("_unit").null_count:
        raise InputError(_UNCOUNTED)
    code = batch.column("_unit").to_numpy().astype(np.int64) * 2
    code += batch.column("_query").to_numpy(zero_copy_only=False)
    edges = [0, *(np.flatnonzero(np.diff(code)) + 1).tolist(), len(code)]
    for start, stop in pairwise(edges):
        yield batch.slice(start, stop - start)


class _Unit:
    """One block of a cluster and the best matches that its rows have so far."""

    def __init__(self, number: int, tile: int, calls: cuml.Calls | None) -> None:
        self.number = number
        self._tile = tile
        self._calls = calls
        self._parts: list[tuple[Matrix, pa.Array]] = []
        self._queries: tuple[Array, pa.Array] | None = None
        self._score = np.empty(0, dtype=np.float32)
        self._match: pa.Array | None = None

    def add(self, part: pa.RecordBatch) -> None:
        """Take the next rows: queries first, then the earlier blocks in rank order."""
        ids = part.column("_id")
        x = unit_rows(part.column("_e"), ids)
        if part.column("_query")[0].as_py():
            self._parts.append((x, ids))
            return
        queries, _ = self._gathered()
        found = best_among(queries, self._put(x), tile=self._tile, floor=self._put(self._score))
        self._take(found, ids)

    def matches(self) -> pa.RecordBatch:
        """Return the finished block: id, max_id and score, null without an earlier record."""
        queries, ids = self._gathered()
        # The earlier blocks rank first, so at equal scores they win over the block itself.
        self._take(best_earlier(queries, tile=self._tile), ids)
        score = pa.array(self._score, mask=np.isneginf(self._score))
        return pa.RecordBatch.from_arrays([ids, self._match, score], ["id", "max_id", "cosine_sim_score"])

    def _gathered(self) -> tuple[Array, pa.Array]:
        """Return the queries, where they are multiplied, and their ids."""
        if self._queries is None:
            if not self._parts:
                raise InputError(_UNCOUNTED)
            rows = [x for x, _ in self._parts]
            ids = pa.concat_arrays([ids for _, ids in self._parts])
            self._queries = self._put(rows[0] if len(rows) == 1 else np.concatenate(rows)), ids
            self._score = np.full(len(ids), -np.inf, dtype=np.float32)
            self._match = pa.nulls(len(ids), ids.type)
            self._parts = []
        return self._queries

    def _put(self, array: Array) -> Array:
        return array if self._calls is None else self._calls("to_device", array)

    def _take(self, found: Best, ids: pa.Array) -> None:
        """Replace the matches that ``found`` improves."""
        score, index = found if self._calls is None else (self._calls("to_host", array) for array in found)
        better = (index != NO_MATCH) & (score > self._score)
        if better.any():
            self._score = np.where(better, score, self._score)
            self._match = pc.if_else(pa.array(better), ids.take(pa.array(index, mask=~better)), self._match)
