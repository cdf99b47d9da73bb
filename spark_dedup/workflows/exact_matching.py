"""The steps of the exact job: the ids to remove, the rows behind them for limits and ledger, the removal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from spark_dedup.exact import apply_sources, duplicate_rows, keep_order, ledger_rows
from spark_dedup.limits import SafetyStopError, over_a_limit
from spark_dedup.outputs import staged
from spark_dedup.paths import Location, delete, spark_location, spark_path
from spark_dedup.progress import job_progress
from spark_dedup.rules import SOURCE_RANK, count_by_source, with_source_rank
from spark_dedup.tables import col
from spark_dedup.workflows.exact_inputs import (
    GENERATOR_FILE,
    IDS_FOLDER,
    REMOVED_FOLDER,
    Documents,
    id_of,
    input_of,
    registry_of,
    with_ids,
)
from spark_dedup.workflows.id_lists import write_ids
from spark_dedup.workflows.recording import record_run
from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dedup.workflows.exact import ExactDeduplicationWorkflow

__all__ = ["LEDGER_ROWS", "forget_rows", "identify", "keeps_rows", "record", "remove", "safety_stop"]

LEDGER_ROWS = ".ledger_rows"


def identify(
    job: ExactDeduplicationWorkflow, spark: SparkSession, found: Documents, output: str
) -> dict[str, Any]:
    """Write the ids to remove; return counts and time."""
    started = time.monotonic()
    generator_path = None
    df, num_documents = found.df, found.num_rows or 0
    if job.assign_id:
        generator_path = f"{output}/{GENERATOR_FILE}"
        df, num_documents = with_ids(job, spark, found, generator_path)
    by_source: dict[str, int] = {}
    if job.source_field is not None:
        by_source = count_by_source(df, source_field=job.source_field)
    rows = _match(job, df)
    if keeps_rows(job):
        rows = _keep_rows(spark, rows, output)
    with job_progress(spark, "writing duplicate ids"):
        num_duplicates, num_groups = write_ids(
            rows, df.select(col(id_of(job))), f"{output}/{IDS_FOLDER}", write_kwargs=job.write_kwargs
        )
    return {
        "identification_time": time.monotonic() - started,
        "num_documents": num_documents,
        "num_duplicates": num_duplicates,
        "num_groups": num_groups,
        "id_generator_path": generator_path,
        **({"documents_by_source": by_source} if by_source else {}),
    }


def _match(job: ExactDeduplicationWorkflow, df: DataFrame) -> DataFrame:
    """Return ``duplicate_rows`` by the job's rules; lazy."""
    keep: list[str | tuple[str, str]] = [
        (name, "desc" if descending else "asc") for name, descending in keep_order(job.keep)
    ]
    if job.source_field is not None:
        df = with_source_rank(
            df,
            source_field=job.source_field,
            priority=job.source_priority,
            protected=job.protected_sources,
        )
        keep = [SOURCE_RANK, *keep]
    rows = duplicate_rows(
        df,
        text_field=job.text_field,
        id_field=id_of(job),
        keep=keep or None,
        verify=job.verify,
        hash_method=job.hash_method,
        n_partitions=job.total_nparts,
        drop_all_copies=job.drop_all_copies,
    )
    if job.source_field is None:
        return rows
    return apply_sources(
        rows, df, id_field=id_of(job), source_field=job.source_field, protected=job.protected_sources
    )


def keeps_rows(job: ExactDeduplicationWorkflow) -> bool:
    """Return whether a later step needs more than the ids."""
    return (job.ledger, job.max_cluster_fraction, job.source_field) != (None, None, None)


def _keep_rows(spark: SparkSession, rows: DataFrame, output: str) -> DataFrame:
    """Write the full rows once, for the ids and the ledger both."""
    kept = f"{output}/{LEDGER_ROWS}"
    with staged(kept, mode="overwrite") as aside, job_progress(spark, "grouping equal texts"):
        rows.write.parquet(spark_location(aside))
    return spark.read.parquet(spark_path(kept))


def _kept_rows(job: ExactDeduplicationWorkflow, spark: SparkSession, output: str) -> DataFrame:
    """Return the ledger rows of the matching step, where ``keeps_rows``."""
    rows = spark.read.parquet(spark_path(f"{output}/{LEDGER_ROWS}"))
    return ledger_rows(rows, protected=job.protected_sources)


def safety_stop(
    job: ExactDeduplicationWorkflow, spark: SparkSession, output: str, identified: Mapping[str, Any]
) -> SafetyStopError | None:
    """Return why nothing may be removed, or None. The ids, and the run in the ledger, stay for review."""
    return over_a_limit(
        _kept_rows(job, spark, output) if keeps_rows(job) else None,
        num_documents=identified["num_documents"],
        num_duplicates=identified["num_duplicates"],
        max_removed_fraction=job.max_removed_fraction,
        max_cluster_fraction=job.max_cluster_fraction,
        documents_by_source=identified.get("documents_by_source"),
    )


def record(
    job: ExactDeduplicationWorkflow,
    spark: SparkSession,
    ledger: Location,
    output: str,
    identified: Mapping[str, Any],
    began: datetime,
    stop: SafetyStopError | None,
) -> dict[str, Any]:
    """Write the run to a ledger; return where it stands."""
    return record_run(
        spark,
        ledger,
        _kept_rows(job, spark, output),
        method="exact",
        source=input_of(job),
        filetype=job.input_filetype,
        id_field=id_of(job),
        metadata=identified,
        began=began,
        stop=stop,
        parameters={
            "text_field": job.text_field,
            "input_filetype": job.input_filetype,
            "keep": keep_order(job.keep),
            "verify": job.verify,
            "hash_method": job.hash_method,
            "source_field": job.source_field,
            "source_priority": list(job.source_priority),
            "protected_sources": list(job.protected_sources),
            "drop_all_copies": job.drop_all_copies,
            "max_removed_fraction": job.max_removed_fraction,
            "max_cluster_fraction": job.max_cluster_fraction,
        },
        device=job.device,
        registry=registry_of(job),
        extensions=job.input_file_extensions,
        read_kwargs=job.read_kwargs,
    )


def remove(job: ExactDeduplicationWorkflow, spark: SparkSession, output: str) -> dict[str, Any]:
    """Write the documents that remain; return counts and time."""
    done = TextDuplicatesRemovalWorkflow(
        input_path=input_of(job),
        ids_to_remove_path=f"{output}/{IDS_FOLDER}",
        output_path=f"{output}/{REMOVED_FOLDER}",
        input_filetype=job.input_filetype,
        id_field=id_of(job),
        duplicate_id_field=id_of(job),
        input_file_extensions=job.input_file_extensions,
        input_kwargs=job.read_kwargs,
        registry=registry_of(job),
        output_filetype="parquet" if job.input_filetype == "delta" else job.input_filetype,
        output_mode="overwrite",
        on_bad_lines=job.on_bad_lines,
    ).run(spark)
    keys = ("num_duplicates_removed", "num_documents_written")
    return {"removal_time": done["total_time"], **{key: done[key] for key in keys}}


def forget_rows(output: str) -> None:
    """Delete the full rows: no later step needs them."""
    delete(f"{output}/{LEDGER_ROWS}")
