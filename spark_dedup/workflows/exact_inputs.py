"""What the exact job checks before any work, and how it reads its documents with their ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spark_dedup.exact import check_orderable, check_text, keep_order
from spark_dedup.ids.assign import documents
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.ledger import check_ledger
from spark_dedup.listing import Named
from spark_dedup.names import is_table_name, spelled
from spark_dedup.outputs import check_apart, check_output, clear_killed
from spark_dedup.partitions import are_partitioned
from spark_dedup.parts import parts_of
from spark_dedup.paths import normalise_path
from spark_dedup.progress import job_progress
from spark_dedup.tables import ID, require_columns
from spark_dedup.workflows.arguments import check_size, split_settings
from spark_dedup.workflows.inputs import JobInput, inspect_input, plain_files, read_input
from spark_dedup.workflows.steps import refuse_finished
from spark_dedup.workflows.unique_ids import check_unique_ids

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dedup.workflows.exact import ExactDeduplicationWorkflow

__all__ = [
    "DEFAULT_BLOCKSIZE",
    "GENERATOR_FILE",
    "IDS_FOLDER",
    "OWNED",
    "REMOVED_FOLDER",
    "Documents",
    "id_of",
    "input_of",
    "inspect",
    "registry_of",
    "running_settings",
    "startup_settings",
    "with_ids",
]

IDS_FOLDER = "ExactDuplicateIds"
GENERATOR_FILE = "exact_id_generator.json"
REMOVED_FOLDER = "deduplicated"
OWNED = (IDS_FOLDER, REMOVED_FOLDER, GENERATOR_FILE)
DEFAULT_BLOCKSIZE = "2GiB"


@dataclass(frozen=True)
class Documents(JobInput):
    """An input that was looked at, with its documents as they are."""

    df: DataFrame = field(kw_only=True)


def id_of(job: ExactDeduplicationWorkflow) -> str:
    """Return the name of the id column."""
    return job.id_field if job.id_field is not None else ID


def input_of(job: ExactDeduplicationWorkflow) -> Named:
    """Return the input, which the job was checked to have."""
    assert job.input_path is not None
    return job.input_path


def registry_of(job: ExactDeduplicationWorkflow) -> str | None:
    """Return where the id registry lies; None when the documents bring their ids."""
    if not job.assign_id:
        return None
    if job.registry is None:
        return f"{normalise_path(job.output_path)}/id_registry"
    return spelled(job.registry)


def running_settings(job: ExactDeduplicationWorkflow) -> dict[str, str]:
    """Return settings that a running session takes."""
    if job.input_blocksize == DEFAULT_BLOCKSIZE and job.identification_batchsize == 1:
        return {}
    return split_settings(check_size(job.input_blocksize) * job.identification_batchsize)


def startup_settings(job: ExactDeduplicationWorkflow) -> dict[str, str]:
    """Return settings that a session takes only when it starts."""
    asked: Mapping[str, int | str | None] = {
        "spark.rapids.memory.gpu.allocSize": job.rmm_pool_size,
        "spark.rapids.memory.host.spillStorageSize": job.spill_memory_limit,
    }
    return {key: str(value) for key, value in asked.items() if value not in (None, "auto")}


def inspect(job: ExactDeduplicationWorkflow, spark: SparkSession, output: str) -> Documents:
    """Check input, output and columns before any work."""
    own = [] if job.id_field is None else [job.id_field]
    wanted = list(dict.fromkeys([*_columns(job), *own]))
    found = inspect_input(
        spark,
        input_of(job),
        filetype=job.input_filetype,
        extensions=job.input_file_extensions,
        columns=None if job.perform_removal else wanted,  # removal writes all of them
        nulls_fit=True,
    )
    parts = parts_of(found.parts, wanted)
    check_apart(output, found.paths, may_hold=True)
    for name in (IDS_FOLDER, REMOVED_FOLDER):
        check_output(f"{output}/{name}", inputs=found.paths, mode="overwrite")
    registry = registry_of(job)
    if registry is not None and not is_table_name(registry):
        check_apart(normalise_path(registry), found.paths, may_hold=True)
    refuse_finished(output, owned=OWNED, mode=job.output_mode)
    df, num_rows = read_input(
        spark,
        input_of(job),
        filetype=job.input_filetype,
        read_kwargs=job.read_kwargs,
        extensions=job.input_file_extensions,
        on_bad_lines=job.on_bad_lines,
        parts=parts,
        check_lines=not job.assign_id,  # making ids looks for them as well
        arrays=_may_be_arrays(job, found),
    )
    check_text(df, job.text_field)
    require_columns(df, wanted, where=str(found.source))
    check_orderable(df, id_field=job.id_field, keep=job.keep)
    if job.ledger is not None:
        check_ledger(
            spark, job.ledger, dict(df.dtypes)[job.id_field] if job.id_field is not None else "bigint"
        )
    if job.id_field is not None:
        with job_progress(spark, "checking that ids are unique"):
            plain = plain_files(found, filetype=job.input_filetype, read_kwargs=job.read_kwargs)
            num_rows = check_unique_ids(spark, df, job.id_field, files=plain)
    elif found.source.kind == "files":
        num_rows = found.num_rows
    return Documents(found.source, found.files, num_rows, found.paths, parts=parts, rows=found.rows, df=df)


def with_ids(
    job: ExactDeduplicationWorkflow, spark: SparkSession, found: Documents, generator_path: str
) -> tuple[DataFrame, int]:
    """Register the files, and write the ids' ranges as JSON; return the documents with ids, and how many."""
    registry = registry_of(job)
    assert registry is not None
    with job_progress(spark, "registering ids"):
        read = documents(
            spark,
            input_of(job),
            filetype=job.input_filetype,
            registry=registry,  # not opened yet: malformed lines shall leave none behind
            columns=_columns(job),
            on_bad_lines=job.on_bad_lines,
            read_kwargs=job.read_kwargs,
            extensions=job.input_file_extensions,
            schema=found.df.schema if found.source.kind == "files" else None,
            parts=found.parts,
            rows=found.rows,
            arrays=_may_be_arrays(job, found),
        )
    # The ids of a Delta table count the rows that deletion vectors hide, too.
    in_table = found.source.kind != "files"
    num_documents = int(found.df.count()) if in_table else read.num_ids - read.num_skipped
    clear_killed(generator_path)
    IdRegistry.open(spark, registry).to_disk(generator_path)
    return read.df, num_documents


def _may_be_arrays(job: ExactDeduplicationWorkflow, found: JobInput) -> bool:
    """Return whether JSON lines may be arrays of objects: not where removal writes lines as they are."""
    return not job.perform_removal or are_partitioned(found.files, found.source.names)


def _columns(job: ExactDeduplicationWorkflow) -> list[str]:
    source = [] if job.source_field is None else [job.source_field]
    return list(dict.fromkeys([job.text_field, *(name for name, _ in keep_order(job.keep)), *source]))
