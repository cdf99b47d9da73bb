"""How many of the true near-duplicate pairs the clustering lets us find, measured on a sample.

Pairs that a cluster border divides are never compared. A random sample of records is compared with all records,
so that their true pairs are known, and the share that lies inside a common cluster is the recall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import functions as F

from spark_dedup.errors import InputError
from spark_dedup.kernels.similarity import pairs_above
from spark_dedup.semantic.embeddings import Matrix, array_column
from spark_dedup.semantic.identify import SCORE_TOLERANCE, check_eps
from spark_dedup.semantic.matching import probed_clusters, unit_rows
from spark_dedup.semantic.ranking import check_seed
from spark_dedup.semantic.recall import Audit, AuditRow, MissedPair, ratio_interval
from spark_dedup.tables import col, id_text, require_columns
from spark_dedup.workers import in_worker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["audit_recall"]

_BLOCK = 1024
_RESULT = "kind string, eps int, probe int, at int, n bigint, other string, score double"


@dataclass(frozen=True, eq=False)
class _Sample:
    """What the tasks need: the sampled rows, and the clusters each is compared in, own first."""

    x: Matrix
    ids: tuple[str, ...]
    keys: tuple[int, ...]
    probes: NDArray[np.int64]
    centroids: NDArray[np.float32] | None
    eps: tuple[float, ...]
    missed: int


def audit_recall(
    assigned: DataFrame,
    *,
    eps: float | Sequence[float],
    id_field: str = "id",
    embedding_field: str = "embeddings",
    n_probe: int = 1,
    centroids: NDArray[np.float32] | None = None,
    sample_size: int = 1000,
    random_state: int = 42,
    confidence: float = 0.95,
    missed: int = 20,
) -> Audit:
    """Estimate what share of the true pairs the clustering finds, for 1 to ``n_probe`` probed clusters.

    Two jobs: one draws the sample, the other compares it with every record, block by block. The sample and the
    counts, no rows, come to the driver.

    Args:
        assigned: records with id, unit embeddings and ``centroid``.
        eps: threshold or thresholds: a pair of similarity ``1 - eps`` or above is a true pair.
        id_field: id column; unique, which is not checked: where records share an id, pairs are counted wrongly.
        embedding_field: embedding column.
        n_probe: largest number of probed clusters to report.
        centroids: (n_clusters, dim) raw centroids, needed for ``n_probe > 1``.
        sample_size: records to draw, by a seeded hash of the id; all when there are fewer.
        random_state: seed.
        confidence: of the intervals.
        missed: how many missed pairs to return, the most similar ones.

    Raises:
        InputError: arguments out of range, missing columns, or no records.
    """
    thresholds = tuple(check_eps(e) for e in (eps if isinstance(eps, Iterable) else [eps]))
    if n_probe < 1 or sample_size < 1 or not thresholds:
        raise InputError("n_probe and sample_size must be at least 1, and there must be an eps")
    if n_probe > 1 and centroids is None:
        raise InputError("n_probe > 1 needs the centroids: pass centroids=model.centroids")
    require_columns(assigned, [id_field, embedding_field, "centroid"], where="the assigned records")
    rows = assigned.select(
        id_text(assigned, id_field).alias("id"),
        # The hour that summer time repeats has its texts twice.
        F.xxhash64(col(id_field)).alias("key"),
        array_column(assigned, embedding_field).alias("e"),
        col("centroid").cast("int").alias("c"),
    )
    means = None if centroids is None or n_probe == 1 else np.ascontiguousarray(centroids, dtype=np.float32)
    drawn = _draw(rows, sample_size, check_seed(random_state))
    x = unit_rows(drawn.column("e"), drawn.column("id"))
    sample = _Sample(
        x,
        tuple(drawn.column("id").to_pylist()),
        tuple(drawn.column("key").to_pylist()),
        probed_clusters(x, drawn.column("c").to_numpy(), means, n_probe),
        means,
        thresholds,
        missed,
    )
    counted = rows.mapInArrow(in_worker(_compare(sample)), _RESULT)
    kept = counted.filter("kind = 'missed'").orderBy(F.desc("score"), "at", "other").limit(2 * missed)
    sums = (
        counted.filter("kind <> 'missed'")
        .groupBy("kind", "eps", "probe", "at")
        .agg(F.sum("n").alias("n"), F.lit(None).cast("string").alias("other"), F.lit(0.0).alias("score"))
    )
    return _report(sums.unionByName(kept).collect(), sample, confidence)


def _draw(rows: DataFrame, count: int, seed: int) -> pa.RecordBatch:
    """Draw records by a seeded hash of the id: the same ones for any partitioning."""
    order = F.xxhash64(F.lit(seed), F.col("id"))
    # A task packs them, as Spark 3 hands no Arrow to the driver.
    packed = (
        rows.orderBy(order, "id", "key").limit(count).mapInArrow(in_worker(_pack), "rows binary").collect()
    )
    if not packed:
        raise InputError("there are no records to audit")
    table = pa.concat_tables(pa.ipc.open_stream(row.rows).read_all() for row in packed)
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:
        raise InputError(
            f"{count:,} records are more than one Arrow array holds: ask for a smaller sample_size"
        )
    return batches[0]


def _pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BLOCK):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch.slice(start, _BLOCK))
            yield pa.RecordBatch.from_pydict({"rows": pa.array([sink.getvalue().to_pybytes()], pa.binary())})


def _compare(sample: _Sample) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the task's function: counts per sampled record, sizes per cluster, the best missed pairs."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tally = _Tally(sample)
        for batch in batches:
            for start in range(0, batch.num_rows, _BLOCK):
                tally.add(batch.slice(start, _BLOCK))
        yield from tally.result()

    return run


class _Tally:
    """Counts of one task; their size depends on the sample and the number of clusters, not on the rows."""

    def __init__(self, sample: _Sample) -> None:
        self._sample = sample
        self._width = sample.probes.shape[1]
        shape = (len(sample.eps), self._width + 1, len(sample.ids))
        self._counts = np.zeros(shape, dtype=np.int64)
        self._sizes: list[dict[int, int]] = [{} for _ in range(self._width)]
        self._missed: list[tuple[float, int, int, str]] = []
        self._place = {own: i for i, own in enumerate(zip(sample.ids, sample.keys, strict=True))}

    def add(self, batch: pa.RecordBatch) -> None:
        """Count one block."""
        sample = self._sample
        ids = batch.column("id")
        x = unit_rows(batch.column("e"), ids)
        probes = probed_clusters(x, batch.column("c").to_numpy(), sample.centroids, self._width)
        for width, sizes in enumerate(self._sizes):
            for cluster, n in zip(*np.unique(probes[:, width], return_counts=True), strict=True):
                sizes[int(cluster)] = sizes.get(int(cluster), 0) + int(n)
        limits = [1 - e - SCORE_TOLERANCE for e in sample.eps]
        row, at, score = pairs_above(x, sample.x, min(limits))
        named = zip(ids.to_pylist(), batch.column("key").to_pylist(), strict=True)
        own = np.array([self._place.get(name, -1) for name in named])
        other = own[row] != at
        row, at, score = row[other], at[other], score[other]
        # The first number of probed clusters that brings the two together; width + 1 for none.
        first = np.full(len(row), self._width, dtype=np.int64)
        for width in range(self._width - 1, -1, -1):
            mine, theirs = probes[row, : width + 1], sample.probes[at, : width + 1]
            first[(mine[:, :, None] == theirs[:, None, :]).any(axis=(1, 2))] = width
        for i, limit in enumerate(limits):
            true = score >= limit
            np.add.at(self._counts, (i, first[true], at[true]), 1)
            self._keep_missed(i, score, at, row, ids, true & (first > 0))

    def _keep_missed(
        self, i: int, score: NDArray[Any], at: NDArray[Any], row: NDArray[Any], ids: pa.Array, which: Any
    ) -> None:
        places = np.flatnonzero(which)
        best = places[np.argsort(-score[places], kind="stable")[: self._sample.missed]]
        self._missed += [(float(score[p]), i, int(at[p]), ids[int(row[p])].as_py()) for p in best]
        self._missed.sort(key=lambda m: (-m[0], m[1:]))
        del self._missed[2 * self._sample.missed * len(self._sample.eps) :]

    def result(self) -> Iterator[pa.RecordBatch]:
        """Yield the counts as rows."""
        i, probe, at = np.nonzero(self._counts)
        n = self._counts[i, probe, at]
        rows = [("pairs", *map(int, r), None, 0.0) for r in zip(i, probe, at, n, strict=True)]
        for width, sizes in enumerate(self._sizes):
            rows += [("size", 0, width, cluster, count, None, 0.0) for cluster, count in sizes.items()]
        rows += [("missed", i, 0, at, 1, other, score) for score, i, at, other in self._missed]
        if rows:
            names = ["kind", "eps", "probe", "at", "n", "other", "score"]
            types = [pa.string(), pa.int32(), pa.int32(), pa.int32(), pa.int64(), pa.string(), pa.float64()]
            columns = [pa.array(values, t) for values, t in zip(zip(*rows, strict=True), types, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, names)


def _report(rows: Sequence[Any], sample: _Sample, confidence: float) -> Audit:
    width = sample.probes.shape[1]
    counts = np.zeros((len(sample.eps), width + 1, len(sample.ids)), dtype=np.int64)
    sizes: list[dict[int, int]] = [{} for _ in range(width)]
    for r in rows:
        if r.kind == "pairs":
            counts[r.eps, r.probe, r.at] = r.n
        elif r.kind == "size":
            sizes[r.probe][r.at] = r.n
    total = sum(sizes[0].values())
    members: dict[int, int] = {}
    costs = []
    for level in sizes:
        for cluster, n in level.items():
            members[cluster] = members.get(cluster, 0) + n
        costs.append(sum(n * (n - 1) / 2 for n in members.values()))
    table = []
    for i, eps in enumerate(sample.eps):
        true = counts[i].sum(axis=0)
        for probe in range(width):
            found = counts[i, : probe + 1].sum(axis=0)
            recall, low, high = ratio_interval(found, true, population=total, confidence=confidence)
            cost = costs[probe] / costs[0] if costs[0] else 1.0
            table.append(AuditRow(eps, probe + 1, recall, low, high, int(true.sum()), int(found.sum()), cost))
    missed = sorted({(r.score, r.eps, r.at, r.other) for r in rows if r.kind == "missed"}, reverse=True)
    pairs = [MissedPair(sample.eps[e], sample.ids[at], other, s) for s, e, at, other in missed]
    return Audit(tuple(table), tuple(pairs[: sample.missed]), len(sample.ids), total, confidence)
