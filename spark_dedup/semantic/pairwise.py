"""For each record, the most similar record of its cluster that ranks before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType, StructField, StructType

from spark_dedup.errors import InputError
from spark_dedup.kernels import cuml
from spark_dedup.kernels.arrays import Array, normalise, row_norms
from spark_dedup.kernels.similarity import NO_MATCH, Best, best_among, best_earlier, nearest_rows
from spark_dedup.semantic.blocks import TASKS_PER_SLOT, of_one_block, spread
from spark_dedup.semantic.cluster_reading import StoredClusters
from spark_dedup.semantic.embeddings import Matrix, array_column, to_matrix
from spark_dedup.semantic.gpu import fit_device, use_device
from spark_dedup.semantic.ranking import DISTANCES, OrderKey, RankingStrategy, order_keys
from spark_dedup.session import task_slots
from spark_dedup.tables import col, require_columns
from spark_dedup.workers import in_worker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["matcher", "pairwise_similarity", "unit_rows"]

_UNIT_TOLERANCE = 1e-6
_FLUSH_ROWS = 8192
_PLAIN_IDS = ("tinyint", "smallint", "int", "bigint", "string")
"""Types that Arrow orders as Spark does."""


def pairwise_similarity(
    assigned: DataFrame,
    *,
    id_field: str = "id",
    embedding_field: str = "embeddings",
    which_to_keep: str = "hard",
    distance_metric: str = "cosine",
    ranking_strategy: RankingStrategy | None = None,
    pairwise_batch_size: int = 1024,
    random_state: int = 42,
    n_probe: int = 1,
    centroids: NDArray[np.float32] | None = None,
    rank_first: Sequence[OrderKey] = (),
    stored: StoredClusters | None = None,
    device: str = "auto",
) -> DataFrame:
    """Find each record's largest cosine similarity to an earlier-ranked record of its cluster, and that record.

    A cluster is cut into blocks of 4 to 16 ``pairwise_batch_size`` rows. A task holds one block and streams the
    blocks before it, so its memory does not grow with the cluster; the blocks with most work run first. Scores
    are the float64 dot products rounded to float32: they depend neither on blocks nor on partitions.

    Lazy. ``assigned`` is read three times when the result is computed (cluster sizes, block limits of the
    large clusters, vectors), so write or cache it first when it is costly.

    Args:
        assigned: records with the id, unit embeddings, ``centroid`` and the columns that the ranking needs.
        id_field: id column, unique, of any type.
        embedding_field: embedding column.
        which_to_keep: ``"hard"``, ``"easy"`` or ``"random"``, see :func:`~spark_dedup.semantic.ranking.order_keys`.
        distance_metric: ``"cosine"`` or ``"l2"``, for ``"hard"`` and ``"easy"``.
        ranking_strategy: wins over ``which_to_keep``.
        pairwise_batch_size: rows multiplied at once; bounds the memory of a task.
        random_state: seed of ``which_to_keep="random"``.
        n_probe: clusters each record is compared in: its own and the ``n_probe - 1`` next nearest. Finds pairs
            that a cluster border divides, for about ``n_probe`` ** 2 times the multiplications.
        centroids: (n_clusters, dim) raw centroids, needed for ``n_probe > 1``.
        rank_first: keys that rank before all of these, most important first; equal ones leave it to them.
        stored: all records as files, which tasks then read by themselves; of ``assigned`` only the schema counts.
        device: ``"auto"``, ``"cpu"`` or ``"gpu"``: where tasks multiply. A GPU wants a larger
            ``pairwise_batch_size``, such as 8192.

    Returns:
        One row per record: ``id`` (its own type), ``max_id``, ``cosine_sim_score`` (float). The first-ranked
        record of a cluster has its own id and 0; equal scores go to the earliest rank (across the clusters of
        ``n_probe > 1``: to the smallest id).

    Raises:
        InputError: bad arguments or missing columns; when it runs, an embedding that is not finite or is zero.
    """
    if pairwise_batch_size < 1:
        raise InputError(f"pairwise_batch_size must be at least 1, not {pairwise_batch_size}")
    require_columns(assigned, [id_field, embedding_field, "centroid"], where="the assigned records")
    usual = order_keys(
        assigned,
        id_field=id_field,
        which_to_keep=which_to_keep,
        distance_metric=distance_metric,
        ranking_strategy=ranking_strategy,
        random_seed=random_state,
    )
    ranking = [*rank_first, *usual]
    keys = [f"_k{i}" for i in range(len(ranking))]
    spark = assigned.sparkSession
    slots = task_slots(spark)

    def chosen(df: DataFrame) -> DataFrame:
        rows = df.select(
            col(id_field).alias("_id"),
            array_column(df, embedding_field).alias("_e"),
            col("centroid").cast("int").alias("_c"),
            *[key.column.alias(name) for key, name in zip(ranking, keys, strict=True)],
        )
        return rows if n_probe == 1 else _probe(rows, n_probe, centroids)

    match = matcher(pairwise_batch_size, cuml.call if fit_device(spark, device) == "gpu" else None)
    by_distance = ranking_strategy is None and which_to_keep != "random" and not rank_first and n_probe == 1
    one_block, cut = None, None
    if stored is not None and by_distance and dict(assigned.dtypes)[id_field] in _PLAIN_IDS:
        one_block, cut = _divided(stored.sizes(), batch=pairwise_batch_size, slots=slots)
    matches = None
    if stored is not None and one_block is not None:
        tasks, read = stored.whole(
            one_block,
            tasks=slots * TASKS_PER_SLOT,
            id_field=id_field,
            rank_by=DISTANCES[distance_metric],
            ascending=usual[0].ascending,
        )
        work = in_worker(lambda batches: match(read(batches)))
        matches = tasks.mapInArrow(work, _match_schema(assigned, id_field))
    if matches is None or cut:
        if stored is not None:
            assigned = stored.rows()
        if cut is not None:
            assigned = assigned.where(F.col("centroid").isin([*cut]))
        rows = chosen(assigned if stored is None else stored.vectors(slots=slots, clusters=cut))
        units = spread(
            rows,
            cluster="_c",
            keys=keys,
            ascending=[key.ascending for key in ranking],
            batch=pairwise_batch_size,
            slots=slots,
            # The clusters that n_probe adds are told by the vectors.
            ranked=chosen(assigned) if n_probe == 1 else None,
        )
        found = units.select("_unit", "_query", "_id", "_e").mapInArrow(
            in_worker(match), _match_schema(rows, "_id")
        )
        matches = found if matches is None else matches.unionByName(found)
    if n_probe != 1:
        matches = _best_of_clusters(matches)
    return matches.select(
        F.col("id"),
        F.coalesce("max_id", "id").alias("max_id"),
        F.coalesce("cosine_sim_score", F.lit(0.0).cast("float")).alias("cosine_sim_score"),
    )


def _divided(
    sizes: Mapping[int, int] | None, *, batch: int, slots: int
) -> tuple[dict[int, int] | None, set[int] | None]:
    """Return the sizes of the clusters that one task compares whole, and which others are cut into blocks."""
    if sizes is None:
        return None, None
    one_block = of_one_block(sizes, batch=batch, slots=slots)
    return {cluster: sizes[cluster] for cluster in one_block}, sizes.keys() - one_block


def _match_schema(rows: DataFrame, id_field: str) -> StructType:
    id_type = next(f.dataType for f in rows.schema.fields if f.name == id_field)
    return StructType(
        [
            StructField("id", id_type),
            StructField("max_id", id_type),
            StructField("cosine_sim_score", FloatType()),
        ]
    )


def _best_of_clusters(found: DataFrame) -> DataFrame:
    """Reduce a record's matches, one per probed cluster, to the best."""
    worst_last = F.coalesce(-F.col("cosine_sim_score"), F.lit(2.0).cast("float")).alias("rank")
    best = F.min(F.struct(worst_last, F.col("max_id"), F.col("cosine_sim_score")))
    return found.groupBy("id").agg(best.alias("b")).select("id", "b.max_id", "b.cosine_sim_score")


def _probe(rows: DataFrame, n_probe: int, centroids: NDArray[np.float32] | None) -> DataFrame:
    """Repeat every record for the next nearest clusters."""
    if n_probe < 1:
        raise InputError(f"n_probe must be at least 1, not {n_probe}")
    if centroids is None:
        raise InputError("n_probe > 1 needs the centroids: pass centroids=model.centroids")
    means = np.ascontiguousarray(centroids, dtype=np.float32)
    count = min(n_probe, len(means))

    def repeat(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if not batch.num_rows:
                continue
            yield batch
            nearest = nearest_rows(unit_rows(batch.column("_e"), batch.column("_id")), means, count)
            own = batch.column("_c").to_numpy()[:, None]
            # The own cluster counts as the first, wherever rounding puts it.
            order = np.argsort(nearest == own, axis=1, kind="stable")
            others = np.take_along_axis(nearest, order, axis=1)[:, : count - 1]
            columns = batch.columns
            place = batch.schema.get_field_index("_c")
            for j in range(count - 1):
                columns[place] = pa.array(others[:, j].astype(np.int32))
                yield pa.RecordBatch.from_arrays(columns, schema=batch.schema)

    return rows.mapInArrow(in_worker(repeat), rows.schema)


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
