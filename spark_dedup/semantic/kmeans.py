"""Fit k-means to the embeddings of a DataFrame.

The fit is one Spark job. Its tasks form a barrier stage, one per slot; each keeps its rows in a local file
that it maps, and only sums and centroids travel. On the driver: validation of arguments, and a first small
job that finds the length of the embeddings.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import functions as F

from spark_dedup.errors import InputError, named_errors
from spark_dedup.progress import job_progress
from spark_dedup.semantic.embedding_files import EmbeddingFiles, Sample, keyed_rows
from spark_dedup.semantic.embeddings import (
    EmbeddingCheck,
    Invalid,
    array_column,
    check_invalid_option,
    embedding_width,
)
from spark_dedup.semantic.fit import RESULT_SCHEMA, FitOptions, fit_task
from spark_dedup.semantic.gpu import fit_device, gpu_tasks
from spark_dedup.semantic.lloyd import Iteration
from spark_dedup.semantic.peers import GONE
from spark_dedup.semantic.progress import progress
from spark_dedup.semantic.ranking import check_seed
from spark_dedup.semantic.resident import staged
from spark_dedup.session import barrier_slots
from spark_dedup.tables import col, id_text, require_columns
from spark_dedup.workers import BatchFunction, in_worker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["KMeansModel", "check_init", "check_parameters", "fit_kmeans"]

logger = logging.getLogger(__name__)

Rows = tuple["DataFrame", BatchFunction]
"""Rows, one partition per task, and how a task reads its batches of them."""

_SAMPLE_OF = 1 << 30
_NO_BARRIER = re.compile(r"SPARK-24(?:819|820|942)|NOT_SUPPORTED_WITH_SERVERLESS")
"""Spark's errors for too few slots, a plan that no barrier stage may have, and dynamic allocation."""
_INITS = ("k-means||", "scalable-k-means++", "random")
_LOSSES = (r"ExecutorLostFailure.*", r"Python worker exited unexpectedly", GONE)
"""How Spark tells of a worker that was killed, and the stage's other tasks that it left them."""


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
    files: EmbeddingFiles | None = None,
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
        files: the same rows as files (from :func:`find_embedding_files`), which tasks then read by themselves
            where the files' row groups spread evenly.

    Raises:
        InputError: for arguments out of range, columns that do not fit, unusable embeddings, or fewer rows
            than clusters.
    """
    check_invalid_option(invalid_embeddings)
    check_parameters(
        n_clusters=n_clusters,
        max_iter=max_iter,
        n_init=n_init,
        max_samples_per_batch=max_samples_per_batch,
        max_points_per_centroid=max_points_per_centroid,
        tol=tol,
        oversampling_factor=oversampling_factor,
        fit_data_fraction=fit_data_fraction,
    )
    random_state = check_seed(random_state)
    rows_in = _rows_by_tasks(df, id_field, embedding_field, files, _sample(fit_data_fraction, random_state))
    if embedding_dim is None and files is not None:
        embedding_dim = files.width(embedding_field)
    dim = embedding_width(df, embedding_field, embedding_dim)
    options = FitOptions(
        n_clusters, dim, max_iter, tol, random_state, check_init(init, n_clusters, dim),
        n_init if isinstance(init, str) else 1, oversampling_factor, max_samples_per_batch,
        max_points_per_centroid, invalid_embeddings == "drop", fit_device(df.sparkSession, device),
    )  # fmt: skip
    summary, centroids, sizes = _run(df.sparkSession, options, rows_in)
    check = EmbeddingCheck(dim, summary["rows"], Counter(summary["counts"]), tuple(summary["examples"]))
    check.settle(embedding_field, invalid_embeddings)
    if "n_iter" not in summary:
        where = f" in the sample of fit_data_fraction={fit_data_fraction}" if fit_data_fraction else ""
        found = f"{check.rows - check.invalid:,} usable embeddings{where}"
        raise InputError(f"n_clusters is {n_clusters:,}, but there are only {found}")
    history = tuple(Iteration(**entry) for entry in summary["history"])
    return KMeansModel(centroids, summary["inertia"], summary["n_iter"], sizes, history, check.invalid)


def _sample(fraction: float | None, seed: int) -> Sample | None:
    # Another seed than the key's own, and than the starts': a sample of a sample must stay fair.
    return None if fraction is None else Sample(seed, int(fraction * _SAMPLE_OF), _SAMPLE_OF)


def _rows_by_tasks(
    df: DataFrame,
    id_field: str | None,
    embedding_field: str,
    files: EmbeddingFiles | None,
    sample: Sample | None,
) -> Callable[[int], Rows]:
    """Return what gives a number of tasks their rows: a key that draws them, the id as text, and the embedding."""
    column = array_column(df, embedding_field)
    require_columns(df, [id_field] if id_field else [], where="the embeddings")
    name = id_text(df, id_field) if id_field else F.lit(None).cast("string")
    key = F.xxhash64(col(id_field)) if id_field else F.xxhash64(column)
    rows = df.select(key.alias("key"), name.alias("id"), column.alias("e"))
    if sample is not None:
        rows = rows.where(sample.condition("key"))

    def rows_in(count: int) -> Rows:
        if id_field is None:
            return rows.repartition(count), iter
        shares = None if files is None else files.even_shares(count)
        if shares is None:
            return rows.repartition(count, "key"), iter
        numbers = df.sparkSession.range(0, count, 1, count)
        return numbers, keyed_rows(shares, id_field=id_field, embedding_field=embedding_field, sample=sample)

    return rows_in


def _run(
    spark: SparkSession, options: FitOptions, rows_in: Callable[[int], Rows]
) -> tuple[dict[str, Any], NDArray[np.float32], NDArray[np.int64]]:
    slots, profile = gpu_tasks(spark) if options.device == "gpu" else (barrier_slots(spark), None)
    if slots:
        own = {"profile": profile} if profile else {}  # Spark 3.5 knows no such argument
        try:
            return _run_stage(spark, options, rows_in(slots), barrier=True, **own)
        except Exception as error:  # its class differs between classic and Connect
            refused = _NO_BARRIER.search(str(error))
            if refused is None or options.device == "gpu":
                raise
            logger.warning("this session runs no barrier stage (%s): k-means runs in one task", refused[0])
    else:
        logger.warning("dynamic allocation allows no barrier stage: k-means runs in one task")
    return _run_stage(spark, options, rows_in(1), barrier=False)


def _run_stage(
    spark: SparkSession, options: FitOptions, rows_by_task: Rows, **where: Any
) -> tuple[dict[str, Any], NDArray[np.float32], NDArray[np.int64]]:
    rows, opened = rows_by_task
    what = f"k-means, {options.n_clusters:,} clusters"
    with (
        job_progress(spark, what),
        progress(spark, options.max_iter) as reporter,
        _named_loss(),
        named_errors(),
    ):
        work = staged(lambda batches, peers: fit_task(opened(batches), peers, options, reporter))
        found = rows.mapInArrow(in_worker(work), RESULT_SCHEMA, **where).collect()[0]
    centroids = np.frombuffer(found.centroids, np.float32).reshape(-1, options.dim)
    return json.loads(found.summary), centroids, np.frombuffer(found.sizes, np.int64)


@contextlib.contextmanager
def _named_loss() -> Iterator[None]:
    """Say so where a worker was lost: Spark repeats neither a task of a barrier stage nor, if it is the last, all.

    Raises:
        RuntimeError: naming how Spark told of it, and what to do.
    """
    try:
        yield
    except Exception as error:  # its class differs between classic and Connect
        text = str(error)
        found = (re.search(loss, text) for loss in _LOSSES if "barrier" in text)
        lost = next((match[0].strip() for match in found if match), None)
        if lost is None:
            raise
        raise RuntimeError(
            f"k-means lost one of its workers ({lost}) and cannot go on without it: run it again; where it was "
            "killed for want of memory, raise spark.executor.memoryOverhead"
        ) from error


def check_parameters(
    *, tol: float, oversampling_factor: float, fit_data_fraction: float | None, **counts: int | None
) -> None:
    """Raise ``InputError`` for a k-means parameter that is out of range."""
    for name, value in counts.items():
        if value is None and name == "max_points_per_centroid":
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
    if not (isinstance(tol, Real) and tol >= 0):
        raise InputError(f"tol must be at least 0, not {tol!r}")
    if not (isinstance(oversampling_factor, Real) and 0 < oversampling_factor < math.inf):
        raise InputError(f"oversampling_factor must be above 0 and finite, not {oversampling_factor!r}")
    if fit_data_fraction is None:
        return
    if not (isinstance(fit_data_fraction, Real) and 0 < fit_data_fraction < 1):
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
    if array.ndim != 2 or len(array) != n_clusters:
        raise InputError(
            f"init has shape {array.shape}; n_clusters={n_clusters} needs that many rows, a centroid each"
        )
    if array.shape[1] != dim:
        raise InputError(
            f"init has shape {array.shape}; embeddings of length {dim} need ({n_clusters}, {dim})"
        )
    if not np.isfinite(array).all():
        raise InputError("init holds NaN or infinite values")
    return array
