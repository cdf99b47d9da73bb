"""The clustering step of the semantic jobs: fit, assign, write clusters and centroids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_dedup.errors import InputError
from spark_dedup.ids.splits import on_gpu
from spark_dedup.outputs import staged
from spark_dedup.progress import job_progress
from spark_dedup.semantic.assign import assign_clusters, cluster_layout
from spark_dedup.semantic.cluster_files import write_centroids, write_clusters
from spark_dedup.semantic.embedding_files import EmbeddingFiles
from spark_dedup.semantic.kmeans import KMeansModel, fit_kmeans
from spark_dedup.workflows.inputs import JobInput

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dedup.workflows.clusters import KMeansStage

__all__ = ["cluster"]

logger = logging.getLogger(__name__)


def cluster(
    job: KMeansStage,
    spark: SparkSession,
    df: DataFrame,
    found: JobInput,
    folder: str,
    *,
    kept: Sequence[str],
    files: EmbeddingFiles | None,
    codec: str,
) -> dict[str, Any]:
    """Fit, assign and write; return counts and quality.

    Args:
        job: the job.
        spark: its session.
        df: the input's id, embedding and kept columns.
        found: what was found of the input before work.
        folder: where clusters and centroids go, in place of old ones.
        kept: columns written beside the id and the embedding.
        files: the same rows as files, where tasks can read them by themselves.
        codec: compression of the clusters' files, by Arrow's name.
    """
    model = _fit(job, df, files)
    assigned = assign_clusters(
        df,
        model,
        id_field=job.id_field,
        embedding_field=job.embedding_field,
        metadata_fields=kept,
        invalid_embeddings=job.invalid_embeddings,
        packed=not on_gpu(spark),
        files=None if on_gpu(spark) else files,
    )
    # The fit may have seen a share of the rows.
    seen = int(model.cluster_sizes.sum())
    sizes = np.ceil(model.cluster_sizes * ((found.num_rows or seen) / seen)).astype(np.int64)
    rows = cluster_layout(assigned, cluster_sizes=sizes, id_field=job.id_field)
    with staged(folder, mode="overwrite") as aside, job_progress(spark, "writing the clusters"):
        written = write_clusters(rows, aside, embedding_field=job.embedding_field, codec=codec)
        _check_count(job, found, sum(written.values()))
        write_centroids(aside, model.centroids)
    counts = written.values()
    done = {
        "num_documents": sum(counts),
        "n_iter": int(model.n_iter),
        "inertia": float(model.inertia),
        "largest_cluster": max(counts),
        "num_invalid_embeddings": (found.num_rows or 0) - sum(counts),
    }
    if job.verbose:
        logger.info(
            "%d clusters of up to %d records, inertia %.6g", len(counts), max(counts), done["inertia"]
        )
    return done


def _fit(job: KMeansStage, df: DataFrame, files: EmbeddingFiles | None) -> KMeansModel:
    return fit_kmeans(
        df,
        n_clusters=job.n_clusters,
        embedding_field=job.embedding_field,
        id_field=job.id_field,
        embedding_dim=job.embedding_dim,
        max_iter=job.max_iter,
        tol=job.tol,
        random_state=job.random_state,
        init=job.init,
        n_init=job.n_init,
        oversampling_factor=job.oversampling_factor,
        max_samples_per_batch=job.max_samples_per_batch,
        fit_data_fraction=job.fit_data_fraction,
        max_points_per_centroid=job.max_points_per_centroid,
        invalid_embeddings=job.invalid_embeddings,
        device=job.device,
        files=files,
    )


def _check_count(job: KMeansStage, found: JobInput, written: int) -> None:
    """Raise ``InputError`` unless the rows written are those whose ids were checked, but for unusable ones."""
    rows = found.num_rows or 0
    if written == rows or (written < rows and job.invalid_embeddings == "drop"):
        return
    raise InputError(
        f"{found.source} had {rows:,} rows when its ids were checked and {written:,} when they were clustered: "
        "run it again when nobody writes there; of a view that gives other rows each time, write a table first"
    )
