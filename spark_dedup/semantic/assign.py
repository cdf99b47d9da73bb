"""Assign rows to fitted centroids, and lay them out by cluster for writing."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import functions as F

from spark_dedup.errors import InputError
from spark_dedup.kernels.kmeans import assign
from spark_dedup.semantic.embedding_files import EmbeddingFiles, plain_rows
from spark_dedup.semantic.embeddings import (
    Invalid,
    array_column,
    check_invalid_option,
    check_of,
    from_matrix,
    packed_matrix,
    unit_matrix,
)
from spark_dedup.semantic.ranking import COSINE_DIST_TO_CENT_COL, L2_DIST_TO_CENT_COL
from spark_dedup.session import is_connect, task_slots
from spark_dedup.tables import col, require_columns
from spark_dedup.workers import BatchFunction, in_worker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

    from spark_dedup.semantic.kmeans import KMeansModel

__all__ = ["CENTROID_COL", "assign_clusters", "check_kept", "cluster_layout", "require_arrow"]

CENTROID_COL = "centroid"
_ADDED = (L2_DIST_TO_CENT_COL, COSINE_DIST_TO_CENT_COL, CENTROID_COL)

LARGE_BYTES = 16 << 20
"""Centroids above this go to Connect's tasks as a file. Classic Spark itself broadcasts a large function."""


def assign_clusters(
    df: DataFrame,
    model: KMeansModel,
    *,
    id_field: str = "id",
    embedding_field: str = "embeddings",
    metadata_fields: Sequence[str] | None = None,
    invalid_embeddings: Invalid = "error",
    packed: bool = False,
    files: EmbeddingFiles | None = None,
) -> DataFrame:
    """Assign every row to its nearest centroid; lazy.

    Args:
        df: rows with ids and embeddings.
        model: from :func:`fit_kmeans`.
        id_field: column of ids, of any type.
        embedding_field: as for :func:`fit_kmeans`.
        metadata_fields: columns to keep besides.
        invalid_embeddings: ``"error"`` fails the job at an unusable embedding, ``"drop"`` leaves it out.
        packed: give the embedding as binary of little-endian float32, which Spark copies whole where it copies
            an array value by value. Binary keeps a plan off the GPU.
        files: the same rows as files (from :func:`find_embedding_files`), which tasks then read by themselves
            where Arrow knows all columns.

    Returns:
        The id, the embedding as unit array<float> (or packed), the metadata fields, ``l2_dist_to_cent`` and
        ``cosine_dist_to_cent`` (float) and ``centroid`` (int).

    Raises:
        InputError: columns are missing, of a wrong type, or named like one that is added.
    """
    check_invalid_option(invalid_embeddings)
    kept = [id_field, *(name for name in metadata_fields or () if name not in (id_field, embedding_field))]
    require_columns(df, kept, where="the embeddings")
    check_kept([*kept, embedding_field])
    require_arrow(df, kept)
    columns = [col(id_field), array_column(df, embedding_field), *map(col, kept[1:])]
    # Plain names inside: mapInArrow looks its columns up by unquoted names.
    source = df.select(*(column.alias(f"c{i}") for i, column in enumerate(columns)))
    schema = _assigned_schema(source, packed=packed)
    load, dim = _shipped(df.sparkSession, model.centroids), model.centroids.shape[1]
    drop, give = invalid_embeddings == "drop", packed_matrix if packed else from_matrix
    opened: BatchFunction = iter
    if files is not None and files.columns >= set(kept):
        shares = files.small_shares(max(1, task_slots(df.sparkSession)))
        source = df.sparkSession.range(0, len(shares), 1, len(shares))
        opened = plain_rows(shares, [id_field, embedding_field, *kept[1:]])

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        centroids = load()
        for batch in opened(batches):
            unit, codes = unit_matrix(batch.column(1), dim)
            if codes.any():
                if not drop:
                    check_of(codes, dim, batch.column(0)).settle(embedding_field, "error")
                batch = batch.filter(pa.array(codes == 0))
            labels, l2, cosine = assign(unit, centroids)
            columns = [batch.column(0), give(unit), *batch.columns[2:]]
            columns += [pa.array(l2), pa.array(cosine), pa.array(labels)]
            yield pa.RecordBatch.from_arrays(columns, schema.names)

    return source.mapInArrow(in_worker(run), schema).toDF(id_field, embedding_field, *kept[1:], *_ADDED)


def check_kept(names: Iterable[str]) -> None:
    """Check that no column to keep is called like one that is added, in whatever case.

    Raises:
        InputError: naming the first.
    """
    taken = [name for name in names if name.lower() in _ADDED]
    if taken:
        raise InputError(f"column '{taken[0]}' would be replaced by the result; rename it first")


def require_arrow(df: DataFrame, names: Iterable[str]) -> None:
    """Check that tasks can be handed columns, whose types must be Arrow's.

    Raises:
        InputError: naming the first that is of another, such as an interval of months.
    """
    from pyspark.sql.pandas.types import to_arrow_type

    for name in names:
        kind = df.schema[name].dataType
        try:
            to_arrow_type(kind)
        except Exception as error:  # its class differs between versions
            raise InputError(
                f"column '{name}' has type {kind.simpleString()}, which Arrow does not have: cast or drop it"
            ) from error


def _shipped(spark: SparkSession, centroids: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    """Return a function that gives the centroids in a task."""
    if not is_connect(spark) or centroids.nbytes <= LARGE_BYTES:
        return lambda: centroids
    name = f"spark-dedup-centroids-{hashlib.sha256(centroids.tobytes()).hexdigest()}.npy"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        np.save(path, centroids)
        spark.addArtifact(path, file=True)

    def load() -> NDArray[np.float32]:
        from pyspark import SparkFiles

        loaded: NDArray[np.float32] = np.load(SparkFiles.get(name))
        return loaded

    return load


def _assigned_schema(source: DataFrame, *, packed: bool) -> StructType:
    from pyspark.sql.types import ArrayType, BinaryType, FloatType, IntegerType, StructField, StructType

    fields = list(source.schema.fields)
    fields[1] = StructField(fields[1].name, BinaryType() if packed else ArrayType(FloatType()))
    added = (FloatType(), FloatType(), IntegerType())
    return StructType(fields + [StructField(f"a{i}", kind) for i, kind in enumerate(added)])


def cluster_layout(
    assigned: DataFrame,
    *,
    cluster_sizes: NDArray[np.int64],
    id_field: str = "id",
    rows_per_file: int = 1_000_000,
) -> DataFrame:
    """Bring a cluster's rows together, so that a write partitioned by ``centroid`` makes few files.

    A cluster of up to ``rows_per_file`` rows lies in one partition, and so in one file; a larger one is cut
    by a hash of the id into as many pieces as it needs, so that no task writes a giant alone.

    Args:
        assigned: from :func:`assign_clusters`.
        cluster_sizes: (K,) rows per cluster, roughly: ``model.cluster_sizes``, scaled up after a sample.
        id_field: column of ids.
        rows_per_file: rows that a file is meant to hold.

    Returns:
        The same rows, sorted by centroid within partitions.
    """
    pieces = -(-cluster_sizes // max(1, rows_per_file))
    giants = np.flatnonzero(pieces > 1)
    salt = F.lit(0).cast("bigint")
    if len(giants):
        cut = F.create_map(*[F.lit(int(v)) for k in giants for v in (k, pieces[k])])
        count = F.coalesce(F.element_at(cut, F.col(CENTROID_COL)), F.lit(1))
        salt = F.pmod(F.xxhash64(col(id_field)), count)
    wanted = int(max(1, pieces.sum() if len(giants) else 1, -(-int(cluster_sizes.sum()) // rows_per_file)))
    partitions = max(task_slots(assigned.sparkSession), min(wanted, 10_000), 1)
    return assigned.repartition(partitions, F.col(CENTROID_COL), salt).sortWithinPartitions(CENTROID_COL)
