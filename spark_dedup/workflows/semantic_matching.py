"""The steps of the semantic job after clustering: similarities, then the ids to remove, by threshold and rules."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F

from spark_dedup import rules
from spark_dedup.datasets import read_dataset
from spark_dedup.errors import named_errors
from spark_dedup.held import Hold
from spark_dedup.ids.splits import on_gpu
from spark_dedup.limits import SafetyStopError, over_a_limit
from spark_dedup.outputs import staged
from spark_dedup.paths import spark_location
from spark_dedup.progress import job_progress
from spark_dedup.semantic.cluster_files import read_centroids
from spark_dedup.semantic.cluster_reading import StoredClusters, one_cluster
from spark_dedup.semantic.identify import above_threshold, identify_semantic
from spark_dedup.semantic.pairwise import pairwise_similarity
from spark_dedup.semantic.ranking import COSINE_DIST_TO_CENT_COL, L2_DIST_TO_CENT_COL, OrderKey
from spark_dedup.settings import given_options
from spark_dedup.tables import col
from spark_dedup.workflows.clusters import KMEANS_FOLDER
from spark_dedup.workflows.recording import record_run
from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dedup.workflows.semantic import SemanticDeduplicationWorkflow

__all__ = [
    "DUPLICATES_FOLDER",
    "PAIRWISE_FOLDER",
    "REMOVED_FOLDER",
    "compare",
    "identify",
    "ledger_rows",
    "rank_first",
    "record",
    "remove",
    "safety_stop",
]

logger = logging.getLogger(__name__)

PAIRWISE_FOLDER = "pairwise_results"
DUPLICATES_FOLDER = "duplicates"
REMOVED_FOLDER = "deduplicated"
_IDS_PER_FILE = 2_000_000
_ID_BYTES = 8


def rank_first(job: SemanticDeduplicationWorkflow) -> list[OrderKey]:
    """Return what ranks the records of a cluster before the job's ranking does: sources, then lengths."""
    keys = []
    if job.source_field is not None and (job.source_priority or job.protected_sources):
        rank = rules.source_rank(
            job.source_field, priority=job.source_priority, protected=job.protected_sources
        )
        keys.append(OrderKey(rank, True))
    if job.keep_longest is not None:
        keys.append(OrderKey(col(rules.TEXT_LENGTH), False))
    return keys


def compare(job: SemanticDeduplicationWorkflow, spark: SparkSession, cache: str) -> dict[str, Any]:
    """Write ``pairwise_results``; return the time it took."""
    started = time.monotonic()
    folder = f"{cache}/{KMEANS_FOLDER}"
    stored = None if on_gpu(spark) else _stored(job, spark, folder)
    clusters = read_dataset(spark, folder) if stored is None else stored.frame
    pairs = pairwise_similarity(
        clusters,
        id_field=job.id_field,
        embedding_field=job.embedding_field,
        which_to_keep=job.which_to_keep,
        distance_metric=job.distance_metric,
        ranking_strategy=job.ranking_strategy,
        pairwise_batch_size=job.pairwise_batch_size,
        random_state=job.random_state,
        n_probe=job.n_probe,
        centroids=read_centroids(folder) if job.n_probe > 1 else None,
        rank_first=rank_first(job),
        stored=stored,
        device=job.device,
    )
    with (
        staged(f"{cache}/{PAIRWISE_FOLDER}", mode="overwrite") as aside,
        job_progress(spark, "comparing records inside their clusters"),
        named_errors(),
    ):
        pairs.write.options(**given_options(job.cache_kwargs)).parquet(spark_location(aside))
    return {"pairwise_time": time.monotonic() - started}


def _stored(job: SemanticDeduplicationWorkflow, spark: SparkSession, folder: str) -> StoredClusters:
    """Return the clusters with the columns that are compared and that rank."""
    columns = [
        job.id_field,
        job.embedding_field,
        "centroid",
        L2_DIST_TO_CENT_COL,
        COSINE_DIST_TO_CENT_COL,
    ]
    columns += [] if job.ranking_strategy is None else job.ranking_strategy.metadata_cols
    columns += [] if job.source_field is None else [job.source_field]
    columns += [] if job.keep_longest is None else [rules.TEXT_LENGTH]
    return StoredClusters(
        one_cluster(spark, folder), folder, list(dict.fromkeys(columns)), job.embedding_field
    )


def identify(
    job: SemanticDeduplicationWorkflow, spark: SparkSession, cache: str, folder: str
) -> dict[str, Any]:
    """Write the ids to remove to ``folder``; return counts and time."""
    started = time.monotonic()
    by_source: dict[str, int] = {}
    if job.source_field is not None:
        by_source = rules.count_by_source(_records(job, spark, cache), source_field="source")
    ids = _ids_to_remove(job, spark, cache)
    count = int(ids.count())
    files = max(1, -(-count // _IDS_PER_FILE))
    options = given_options(job.write_kwargs)
    if job._duplicates_num_row_groups_hint is not None:
        size = count * _ID_BYTES // (files * job._duplicates_num_row_groups_hint)
        options["parquet.block.size"] = max(1, size)
    with staged(folder, mode="overwrite") as aside, job_progress(spark, "writing duplicate ids"):
        ids.coalesce(files).sortWithinPartitions("id").write.options(**options).parquet(spark_location(aside))
    if job.verbose:
        logger.info("%d records to remove at eps %g", count, job.eps)
    return {
        "num_duplicates": count,
        "identification_time": time.monotonic() - started,
        **({"documents_by_source": by_source} if by_source else {}),
    }


def ledger_rows(job: SemanticDeduplicationWorkflow, spark: SparkSession, cache: str, hold: Hold) -> DataFrame:
    """Return the ledger rows of the duplicates, with their sources where they are known."""
    assert job.eps is not None
    records = _records(job, spark, cache)
    # Protected records leave the matches before chains are followed, so that chains end at them.
    rows = identify_semantic(_removable(job, spark, cache), eps=job.eps, clusters=records, hold=hold)
    if job.source_field is not None:
        rows = rules.with_sources(rows, records, id_field="id", source_field="source")
    return rules.drop_all_copies(rows, protected=job.protected_sources) if job.drop_all_copies else rows


def safety_stop(
    job: SemanticDeduplicationWorkflow,
    spark: SparkSession,
    cache: str,
    folder: str,
    metadata: Mapping[str, Any],
) -> SafetyStopError | None:
    """Return why nothing of what is listed in ``folder`` may be removed, or None. It stays for review."""
    removed = None
    if isinstance(job.max_removed_fraction, Mapping) and job.eps is not None:
        removed = read_dataset(spark, folder).join(_records(job, spark, cache), "id", "inner")
    return over_a_limit(
        removed,
        num_documents=metadata["num_documents"],
        num_duplicates=metadata["num_duplicates"],
        max_removed_fraction=job.max_removed_fraction,
        max_cluster_fraction=job.max_cluster_fraction,
        documents_by_source=metadata.get("documents_by_source"),
        largest_cluster=metadata["largest_cluster"],
    )


def record(
    job: SemanticDeduplicationWorkflow,
    spark: SparkSession,
    rows: DataFrame,
    metadata: Mapping[str, Any],
    *,
    began: datetime,
    stop: SafetyStopError | None,
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the run and its ``ledger_rows`` to the job's ledger; return where it is, and the run's id."""
    assert job.ledger is not None
    with job_progress(spark, "counting groups"):
        num_groups = int(rows.select("group_id", "kept_id").distinct().count())
    return record_run(
        spark,
        job.ledger,
        rows,
        method="semantic",
        source=job.input_path,
        filetype=job.input_filetype,
        extensions=job.input_file_extensions,
        read_kwargs=job.read_kwargs,
        id_field=job.id_field,
        metadata={**metadata, "num_groups": num_groups},
        began=began,
        stop=stop,
        parameters={
            **identity,
            "eps": job.eps,
            "drop_all_copies": job.drop_all_copies,
            "max_removed_fraction": job.max_removed_fraction,
            "max_cluster_fraction": job.max_cluster_fraction,
        },
        device=job.device,
    )


def remove(job: SemanticDeduplicationWorkflow, spark: SparkSession, output: str) -> dict[str, Any]:
    """Write the records that remain; return counts and time."""
    done = TextDuplicatesRemovalWorkflow(
        input_path=job.input_path,
        ids_to_remove_path=f"{output}/{DUPLICATES_FOLDER}",
        output_path=f"{output}/{REMOVED_FOLDER}",
        input_filetype=job.input_filetype,
        id_field=job.id_field,
        input_file_extensions=job.input_file_extensions,
        input_kwargs=job.read_kwargs,
        output_filetype=job.input_filetype,
        output_mode="overwrite",
    ).run(spark)
    keys = ("num_duplicates_removed", "num_documents_written")
    return {"removal_time": done["total_time"], **{key: done[key] for key in keys}}


def _ids_to_remove(job: SemanticDeduplicationWorkflow, spark: SparkSession, cache: str) -> DataFrame:
    """Return the ids to remove, each once. No chain has to be followed for them."""
    assert job.eps is not None
    found = _removable(job, spark, cache).filter(above_threshold(job.eps))
    ids = found.select("id")
    if not job.drop_all_copies:
        return ids
    # A chain ends at a matched record that is not itself removed.
    survivors = found.select(F.col("max_id").alias("id")).distinct().join(ids, "id", "left_anti")
    return ids.unionByName(_without_protected(job, survivors, spark, cache))


def _removable(job: SemanticDeduplicationWorkflow, spark: SparkSession, cache: str) -> DataFrame:
    """Return the matches of all records that a rule does not keep."""
    pairs = read_dataset(spark, f"{cache}/{PAIRWISE_FOLDER}")
    return _without_protected(job, pairs, spark, cache)


def _without_protected(
    job: SemanticDeduplicationWorkflow, rows: DataFrame, spark: SparkSession, cache: str
) -> DataFrame:
    if not job.protected_sources:
        return rows
    records = _records(job, spark, cache)
    safe = records.where(F.col("source").isin(list(job.protected_sources))).select("id")
    return rows.join(safe, "id", "left_anti")


def _records(job: SemanticDeduplicationWorkflow, spark: SparkSession, cache: str) -> DataFrame:
    """Return ``id``, ``centroid`` and, where it is known, ``source`` (string) of all records."""
    clusters = read_dataset(spark, f"{cache}/{KMEANS_FOLDER}")
    source = [] if job.source_field is None else [col(job.source_field).cast("string").alias("source")]
    return clusters.select(col(job.id_field).alias("id"), "centroid", *source)
