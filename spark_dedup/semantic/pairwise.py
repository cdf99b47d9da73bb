"""For each record, the most similar record of its cluster that ranks before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType, StructField, StructType

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
from spark_dedup.workers import in_worker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["pairwise_similarity"]

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
