"""k-means over a DataFrame: fit centroids, assign rows to them, lay the result out for writing.

The fit is one Spark job. Its tasks form a barrier stage, one per slot; each keeps its rows in a local file
that it maps, and only sums and centroids travel. On the driver: validation of arguments, and a first small
job that finds the length of the embeddings.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import functions as F

from spark_dedup.errors import InputError
from spark_dedup.kernels.kmeans import assign
from spark_dedup.semantic.embeddings import (
    EmbeddingCheck,
    Invalid,
    array_column,
    check_invalid_option,
    check_of,
    embedding_width,
    from_matrix,
    unit_matrix,
)
from spark_dedup.semantic.lloyd import Fit, Iteration, lloyd, parallel_start, random_start
from spark_dedup.semantic.peers import Peers
from spark_dedup.semantic.progress import Reporter, progress
from spark_dedup.semantic.resident import collect_rows, staged
from spark_dedup.session import barrier_slots, job_progress
from spark_dedup.tables import col, require_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = [
    "COSINE_DIST_TO_CENT_COL",
    "L2_DIST_TO_CENT_COL",
    "KMeansModel",
    "assign_clusters",
    "cluster_layout",
    "fit_kmeans",
]

logger = logging.getLogger(__name__)

L2_DIST_TO_CENT_COL = "l2_dist_to_cent"
COSINE_DIST_TO_CENT_COL = "cosine_dist_to_cent"
CENTROID_COL = "centroid"

_RESULT_SCHEMA = "summary string, centroids binary, sizes binary"
_INITS = ("k-means||", "scalable-k-means++", "random")


@dataclass(frozen=True, eq=False)
class KMeansModel:
    """Fitted centroids.

    Attributes:
        centroids: (n_clusters, dim) float32.
        inertia: sum of squared distances of the fitted rows to their centroids.
        n_iter: iterations done.
        cluster_sizes: (n_clusters,) int64 fitted rows per cluster.
        history: every iteration's inertia, moved rows and seconds since the start; empty on a GPU.
        invalid: embeddings left out.
    """

    centroids: NDArray[np.float32]
    inertia: float
    n_iter: int
    cluster_sizes: NDArray[np.int64]
    history: tuple[Iteration, ...] = ()
    invalid: int = 0


@dataclass(frozen=True, eq=False)
class FitOptions:
    """What a task of the fit needs to know."""

    n_clusters: int
    dim: int
    max_iter: int
    tol: float
    random_state: int
    init: str | NDArray[np.float32]
    n_init: int
    oversampling_factor: float
    max_samples_per_batch: int
    max_points_per_centroid: int | None
    drop_invalid: bool


def fit_kmeans(
    df: DataFrame,
    *,
    n_clusters: int,
    embedding_field: str = "embeddings",
    id_field: str | None = None,
    embedding_dim: int | None = None,
    max_iter: int = 300,
    tol: float = 1e-4,
    random_state: int = 42,
    init: str | NDArray[Any] = "k-means||",
    n_init: int = 1,
    oversampling_factor: float = 2.0,
    max_samples_per_batch: int = 1 << 15,
    fit_data_fraction: float | None = None,
    max_points_per_centroid: int | None = None,
    invalid_embeddings: Invalid = "error",
    device: str = "auto",
) -> KMeansModel:
    """Fit plain Euclidean k-means to the embeddings, scaled to unit length.

    The same data and ``random_state`` give the same centroids whatever the partitions, cores and order of
    rows: draws depend on a hash of the id, sums are exact, near ties are settled exactly.

    Args:
        df: rows with embeddings.
        n_clusters: number of centroids.
        embedding_field: array of numbers, Spark ML vector, or packed binary (with ``embedding_dim``).
        id_field: column whose hash decides what is drawn; None hashes the embedding itself, so that equal
            embeddings are drawn together. Give it when many embeddings are equal.
        embedding_dim: length of an embedding; None takes the commonest among the first rows.
        max_iter: most iterations.
        tol: stop when centroids move by no more than this times the mean variance (as scikit-learn).
        random_state: seed.
        init: ``"k-means||"`` (or ``"scalable-k-means++"``), ``"random"`` rows, or (n_clusters, dim) centroids.
        n_init: fits from as many starts, the best by inertia is kept; 1 for given centroids.
        oversampling_factor: rows drawn by a round of k-means||, over ``n_clusters``.
        max_samples_per_batch: rows that a GPU works on at once; the CPU takes what fits its cache.
        fit_data_fraction: fit on this share of the rows, in (0, 1), drawn by hash.
        max_points_per_centroid: fit on at most this many rows per centroid, drawn by hash.
        invalid_embeddings: ``"error"``, or ``"drop"`` to leave out null, ragged, non-finite and zero ones.
        device: ``"auto"``, ``"cpu"`` or ``"gpu"`` (cuML on the executors' GPUs, one task per GPU).

    Raises:
        InputError: for arguments out of range, columns that do not fit, unusable embeddings, or fewer rows
            than clusters.
    """
    check_invalid_option(invalid_embeddings)
    check_parameters(n_clusters, max_iter, tol, n_init, oversampling_factor, fit_data_fraction)
    if max_points_per_centroid is not None and max_points_per_centroid < 1:
        raise InputError(f"max_points_per_centroid must be at least 1, not {max_points_per_centroid}")
    column = array_column(df, embedding_field)
    require_columns(df, [id_field] if id_field else [], where="the embeddings")
    dim = embedding_width(df, embedding_field, embedding_dim)
    options = FitOptions(
        n_clusters, dim, max_iter, tol, random_state, check_init(init, n_clusters, dim),
        1 if not isinstance(init, str) else n_init,
        oversampling_factor, max_samples_per_batch, max_points_per_centroid, invalid_embeddings == "drop",
    )  # fmt: skip
    name = col(id_field) if id_field else F.lit(None)
    key = F.xxhash64(name) if id_field else F.xxhash64(column)
    rows = df.select(key.alias("key"), name.cast("string").alias("id"), column.alias("e"))
    if fit_data_fraction is not None:
        # Another seed than the key's own, and than the starts': a sample of a sample must stay fair.
        share = F.pmod(F.xxhash64(F.lit(random_state), F.col("key")), F.lit(1 << 30))
        rows = rows.where(share < int(fit_data_fraction * (1 << 30)))
    summary, centroids, sizes = _run(rows, options, by_key=id_field is not None)
    check = EmbeddingCheck(dim, summary["rows"], Counter(summary["counts"]), tuple(summary["examples"]))
    check.settle(embedding_field, invalid_embeddings)
    if "n_iter" not in summary:
        raise InputError(
            f"n_clusters is {n_clusters:,}, but there are only {check.rows - check.invalid:,} usable embeddings"
        )
    history = tuple(Iteration(**entry) for entry in summary["history"])
    return KMeansModel(centroids, summary["inertia"], summary["n_iter"], sizes, history, check.invalid)


def _run(
    rows: DataFrame, options: FitOptions, *, by_key: bool
) -> tuple[dict[str, Any], NDArray[np.float32], NDArray[np.int64]]:
    spark = rows.sparkSession
    slots = barrier_slots(spark)
    spread = rows.repartition(max(1, slots), F.col("key")) if by_key else rows.repartition(max(1, slots))
    what = f"k-means, {options.n_clusters:,} clusters"
    with job_progress(spark, what), progress(spark, options.max_iter) as reporter:
        work = staged(lambda batches, peers: fit_task(batches, peers, options, reporter))
        found = spread.mapInArrow(work, _RESULT_SCHEMA, barrier=slots > 0).collect()[0]
    centroids = np.frombuffer(found.centroids, np.float32).reshape(-1, options.dim)
    return json.loads(found.summary), centroids, np.frombuffer(found.sizes, np.int64)


def fit_task(
    batches: Iterable[pa.RecordBatch], peers: Peers, options: FitOptions, reporter: Reporter
) -> Iterator[pa.RecordBatch]:
    """One task's part of the fit; the root gives one row, the others none."""
    data = collect_rows(batches, options.dim)
    checks = list(peers.gather(data.check))
    check = sum(checks[1:], checks[0]) if checks else data.check
    usable = check.rows - check.invalid
    enough = usable >= options.n_clusters and (options.drop_invalid or not check.invalid)
    enough, usable = peers.from_root((enough, usable))
    best: Fit | None = None
    if enough:
        cap = (options.max_points_per_centroid or usable) * options.n_clusters
        if cap < usable:
            data = data.capped(cap / usable, options.random_state)
        squares = sum(peers.gather(data.squares()))
        for run in range(options.n_init):
            start = _start(data.x, data.keys, peers, options, options.random_state + run)
            fit = lloyd(
                data.x, start, peers, squares=squares,
                max_iter=options.max_iter, tol=options.tol, report=reporter.report,
            )  # fmt: skip
            if fit is not None and (best is None or fit.inertia < best.inertia):
                best = fit
    if peers.rank == 0:
        yield _result(check, best)


def _start(
    x: NDArray[np.float32], keys: NDArray[np.int64], peers: Peers, options: FitOptions, seed: int
) -> NDArray[np.float32] | None:
    if not isinstance(options.init, str):
        return options.init
    if options.init == "random":
        return random_start(x, keys, peers, n_clusters=options.n_clusters, seed=seed)
    return parallel_start(
        x,
        keys,
        peers,
        n_clusters=options.n_clusters,
        oversampling_factor=options.oversampling_factor,
        seed=seed,
    )


def _result(check: EmbeddingCheck, fit: Fit | None) -> pa.RecordBatch:
    summary: dict[str, Any] = {"rows": check.rows, "counts": check.counts, "examples": check.examples}
    centroids, sizes = b"", b""
    if fit is not None:
        history = [asdict(entry) for entry in fit.history]
        summary |= {"inertia": fit.inertia, "n_iter": fit.n_iter, "history": history}
        centroids, sizes = fit.centroids.tobytes(), fit.sizes.tobytes()
    columns = [pa.array([json.dumps(summary)]), pa.array([centroids]), pa.array([sizes])]
    return pa.RecordBatch.from_arrays(columns, ["summary", "centroids", "sizes"])


def check_parameters(
    n_clusters: int,
    max_iter: int,
    tol: float,
    n_init: int,
    oversampling_factor: float,
    fit_data_fraction: float | None,
) -> None:
    """Raise ``InputError`` for a k-means parameter that is out of range."""
    for name, value in (("n_clusters", n_clusters), ("max_iter", max_iter), ("n_init", n_init)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
    if not tol >= 0:
        raise InputError(f"tol must be at least 0, not {tol!r}")
    if not oversampling_factor > 0:
        raise InputError(f"oversampling_factor must be above 0, not {oversampling_factor!r}")
    if fit_data_fraction is not None and not 0 < fit_data_fraction < 1:
        raise InputError(
            f"fit_data_fraction must lie between 0 and 1, both exclusive, not {fit_data_fraction!r}"
        )


def check_init(init: str | NDArray[Any], n_clusters: int, dim: int) -> str | NDArray[np.float32]:
    """Return the start's name or its centroids as float32.

    Raises:
        InputError: an unknown name, or an array of another shape or with non-finite values.
    """
    if isinstance(init, str):
        if init not in _INITS:
            raise InputError(f"init must be one of {', '.join(_INITS)} or an array, not {init!r}")
        return init
    array = np.ascontiguousarray(init, dtype=np.float32)
    if array.shape != (n_clusters, dim):
        raise InputError(
            f"init has shape {array.shape}; n_clusters={n_clusters} and embeddings of length {dim} "
            f"need {(n_clusters, dim)}"
        )
    if not np.isfinite(array).all():
        raise InputError("init holds NaN or infinite values")
    return array


def assign_clusters(
    df: DataFrame,
    model: KMeansModel,
    *,
    id_field: str = "id",
    embedding_field: str = "embeddings",
    metadata_fields: Sequence[str] | None = None,
    invalid_embeddings: Invalid = "error",
) -> DataFrame:
    """Assign every row to its nearest centroid; lazy.

    Args:
        df: rows with ids and embeddings.
        model: from :func:`fit_kmeans`.
        id_field: column of ids, of any type.
        embedding_field: as for :func:`fit_kmeans`.
        metadata_fields: columns to keep besides.
        invalid_embeddings: ``"error"`` fails the job at an unusable embedding, ``"drop"`` leaves it out.

    Returns:
        The id, the embedding as unit array<float>, the metadata fields, ``l2_dist_to_cent`` and
        ``cosine_dist_to_cent`` (float) and ``centroid`` (int).

    Raises:
        InputError: columns are missing, of a wrong type, or named like one that is added.
    """
    check_invalid_option(invalid_embeddings)
    added = (L2_DIST_TO_CENT_COL, COSINE_DIST_TO_CENT_COL, CENTROID_COL)
    kept = [id_field, *(name for name in metadata_fields or () if name not in (id_field, embedding_field))]
    require_columns(df, kept, where="the embeddings")
    taken = [name for name in [*kept, embedding_field] if name in added]
    if taken:
        raise InputError(f"column '{taken[0]}' would be replaced by the result; rename it first")
    source = df.select(col(id_field), array_column(df, embedding_field).alias(embedding_field),
                       *map(col, kept[1:]))  # fmt: skip
    schema = _assigned_schema(source, embedding_field, added)
    centroids, dim = model.centroids, model.centroids.shape[1]
    drop = invalid_embeddings == "drop"

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            unit, codes = unit_matrix(batch.column(1), dim)
            if codes.any():
                if not drop:
                    check_of(codes, dim, batch.column(0)).settle(embedding_field, "error")
                batch = batch.filter(pa.array(codes == 0))
            labels, l2, cosine = assign(unit, centroids)
            columns = [batch.column(0), from_matrix(unit), *batch.columns[2:]]
            columns += [pa.array(l2), pa.array(cosine), pa.array(labels)]
            yield pa.RecordBatch.from_arrays(columns, [*batch.schema.names, *added])

    return source.mapInArrow(run, schema)


def _assigned_schema(source: DataFrame, embedding_field: str, added: Sequence[str]) -> Any:
    from pyspark.sql.types import ArrayType, FloatType, IntegerType, StructField, StructType

    fields = [f for f in source.schema.fields if f.name != embedding_field]
    fields.insert(1, StructField(embedding_field, ArrayType(FloatType())))
    return StructType([*fields, *(StructField(n, FloatType()) for n in added[:2]),
                       StructField(added[2], IntegerType())])  # fmt: skip


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
    partitions = max(barrier_slots(assigned.sparkSession), min(wanted, 10_000), 1)
    return assigned.repartition(partitions, F.col(CENTROID_COL), salt).sortWithinPartitions(CENTROID_COL)
