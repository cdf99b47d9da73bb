"""For each record, the most similar record of its cluster that ranks before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType, StructType

from spark_dedup.errors import InputError
from spark_dedup.kernels import cuml
from spark_dedup.semantic.blocks import TASKS_PER_SLOT, of_one_block, spread
from spark_dedup.semantic.cluster_reading import StoredClusters
from spark_dedup.semantic.embeddings import array_column
from spark_dedup.semantic.gpu import fit_device
from spark_dedup.semantic.matching import matcher, probed_clusters, unit_rows
from spark_dedup.semantic.ranking import DISTANCES, OrderKey, RankingStrategy, order_keys
from spark_dedup.session import task_slots
from spark_dedup.tables import col, require_columns
from spark_dedup.workers import BatchFunction, in_worker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["pairwise_similarity"]

_PLAIN_IDS = ("tinyint", "smallint", "int", "bigint", "string")
"""Types that Arrow orders as Spark does."""


@dataclass(frozen=True, eq=False)
class _Comparison:
    """The checked arguments of ``pairwise_similarity``, and what a task does with its rows."""

    id_field: str
    embedding_field: str
    ranking: Sequence[OrderKey]
    n_probe: int
    centroids: NDArray[np.float32] | None
    batch: int
    slots: int
    match: BatchFunction


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
        id_field: id column, of any type; unique and not null, which jobs check and this does not: a record that
            matches another of its own id reads as one without a match.
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
    ranking = order_keys(
        assigned,
        id_field=id_field,
        which_to_keep=which_to_keep,
        distance_metric=distance_metric,
        ranking_strategy=ranking_strategy,
        random_seed=random_state,
    )
    spark = assigned.sparkSession
    match = matcher(pairwise_batch_size, cuml.call if fit_device(spark, device) == "gpu" else None)
    how = _Comparison(
        id_field=id_field, embedding_field=embedding_field, ranking=[*rank_first, *ranking], n_probe=n_probe,
        centroids=centroids, batch=pairwise_batch_size, slots=task_slots(spark), match=match,
    )  # fmt: skip
    by_distance = ranking_strategy is None and which_to_keep != "random" and not rank_first and n_probe == 1
    sizes = None
    if stored is not None and by_distance and dict(assigned.dtypes)[id_field] in _PLAIN_IDS:
        sizes = stored.sizes()
    if stored is None:
        matches = _in_blocks(how, assigned, assigned)
    elif sizes is None:
        matches = _in_blocks(how, stored.vectors(slots=how.slots), stored.rows())
    else:
        matches = _by_clusters(how, stored, sizes, rank_by=DISTANCES[distance_metric])
    if n_probe != 1:
        matches = _best_of_clusters(matches)
    return matches.select(
        F.col("id"),
        F.coalesce("max_id", "id").alias("max_id"),
        F.coalesce("cosine_sim_score", F.lit(0.0).cast("float")).alias("cosine_sim_score"),
    )


def _by_clusters(
    how: _Comparison, stored: StoredClusters, sizes: Mapping[int, int], *, rank_by: str
) -> DataFrame:
    """Compare each cluster in one task, which reads and ranks it by itself; those of several blocks by these."""
    whole = of_one_block(sizes, batch=how.batch, slots=how.slots)
    tasks, read = stored.whole(
        {cluster: sizes[cluster] for cluster in whole},
        tasks=how.slots * TASKS_PER_SLOT,
        id_field=how.id_field,
        rank_by=rank_by,
        ascending=how.ranking[0].ascending,
    )
    match = how.match
    work = in_worker(lambda batches: match(read(batches)))
    matches = tasks.mapInArrow(work, _match_schema(stored.frame, how.id_field))
    cut = sizes.keys() - whole
    if not cut:
        return matches
    vectors = stored.vectors(slots=how.slots, clusters=cut)
    return matches.unionByName(_in_blocks(how, vectors, stored.rows(cut)))


def _in_blocks(how: _Comparison, assigned: DataFrame, ranked: DataFrame) -> DataFrame:
    """Compare clusters block by block; ``ranked`` are the same records, whose keys may be read for less."""
    keys = [f"_k{i}" for i in range(len(how.ranking))]

    def chosen(df: DataFrame) -> DataFrame:
        return df.select(
            col(how.id_field).alias("_id"),
            array_column(df, how.embedding_field).alias("_e"),
            col("centroid").cast("int").alias("_c"),
            *[key.column.alias(name) for key, name in zip(how.ranking, keys, strict=True)],
        )

    rows, ranked = chosen(assigned), chosen(ranked)
    if how.n_probe != 1:
        # The clusters that this adds are told by the vectors.
        rows = ranked = _probe(rows, how.n_probe, how.centroids)
    units = spread(
        rows,
        cluster="_c",
        keys=keys,
        ascending=[key.ascending for key in how.ranking],
        batch=how.batch,
        slots=how.slots,
        ranked=ranked,
    )
    sent = units.select("_unit", "_query", "_id", "_e")
    return sent.mapInArrow(in_worker(how.match), _match_schema(rows, "_id"))


def _match_schema(rows: DataFrame, id_field: str) -> StructType:
    id_type = rows.schema[id_field].dataType
    return StructType().add("id", id_type).add("max_id", id_type).add("cosine_sim_score", FloatType())


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

    def repeat(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if not batch.num_rows:
                continue
            x = unit_rows(batch.column("_e"), batch.column("_id"))
            columns = batch.columns
            place = batch.schema.get_field_index("_c")
            for clusters in probed_clusters(x, batch.column("_c").to_numpy(), means, n_probe).T:
                columns[place] = pa.array(clusters.astype(np.int32))
                yield pa.RecordBatch.from_arrays(columns, schema=batch.schema)

    return rows.mapInArrow(in_worker(repeat), rows.schema)
