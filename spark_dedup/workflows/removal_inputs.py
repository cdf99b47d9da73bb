"""What the removal job checks before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spark_dedup.datasets import read_dataset
from spark_dedup.errors import InputError, MissingInputError
from spark_dedup.names import is_table_name, split_name
from spark_dedup.outputs import check_output
from spark_dedup.partitions import are_partitioned
from spark_dedup.paths import exists, normalise_path
from spark_dedup.removal.delta import check_alone, check_clonable, check_flat
from spark_dedup.removal.text import check_id_types
from spark_dedup.session import require_delta
from spark_dedup.settings import given_options
from spark_dedup.sources import Source, find_source, relation_of, table_exists
from spark_dedup.tables import ID, require_columns
from spark_dedup.workflows.inputs import JobInput, inspect_input, read_input
from spark_dedup.workflows.remaining import check_no_table, check_schema, check_view_name
from spark_dedup.workflows.removal_arguments import columns_of, ids_are_made, names_table, table_name

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

__all__ = [
    "RemovalInput",
    "inspect",
    "is_there",
    "keeps_lines",
    "listed_ids",
]


@dataclass(frozen=True)
class RemovalInput(JobInput):
    """An input that was looked at, with its documents as they are and the list of ids."""

    df: DataFrame = field(kw_only=True)
    listed: Source = field(kw_only=True)


def is_there(job: TextDuplicatesRemovalWorkflow, spark: SparkSession) -> bool:
    """Return whether the output exists."""
    if names_table(job):
        return table_exists(spark, table_name(job))
    return exists(normalise_path(job.output_path))


def keeps_lines(job: TextDuplicatesRemovalWorkflow, found: RemovalInput) -> bool:
    """Return whether JSON lines are written as they were read: not where fields are chosen or made otherwise."""
    read, written = given_options(job.input_kwargs), given_options(job.output_kwargs)
    dropped = job.drop_id_field and not ids_are_made(job)
    made_anew = ids_are_made(job) and ID in map(str.lower, found.df.columns)
    return (
        (found.source.kind, job.input_filetype, job.output_filetype) == ("files", "jsonl", "jsonl")
        and (job.input_fields, job.output_fields) == (None, None)
        and not (read or written.keys() - {"compression"} or dropped or made_anew)
        and not are_partitioned(found.files, found.source.names)
    )


def listed_ids(job: TextDuplicatesRemovalWorkflow, spark: SparkSession) -> DataFrame:
    """Return the list of ids to remove."""
    return read_dataset(spark, job.ids_to_remove_path, read_kwargs=job.duplicate_id_read_kwargs)


def inspect(job: TextDuplicatesRemovalWorkflow, spark: SparkSession) -> RemovalInput:
    """Look at documents, list and output, and refuse what cannot work, before anything is written."""
    if job.output_mode == "error" and is_there(job, spark):
        raise FileExistsError(
            f"output {job.output_path} exists: choose another one, or output_mode 'overwrite' "
            "(a command: --overwrite) or 'ignore'"
        )
    shown = job.output_filetype in ("view", "delta-clone")
    found = inspect_input(
        spark,
        job.input_path,
        filetype=job.input_filetype,
        extensions=job.input_file_extensions,
        columns=columns_of(job),
        nulls_fit=not shown,
        shown=shown,
    )
    listed = inspect_input(spark, job.ids_to_remove_path, filetype="parquet")
    _check_registry(job, spark)
    _check_target(job, spark, found, listed)
    df, num_rows = read_input(
        spark,
        job.input_path,
        filetype=job.input_filetype,
        columns=columns_of(job),
        read_kwargs=job.input_kwargs,
        extensions=job.input_file_extensions,
        on_bad_lines=job.on_bad_lines,
        parts=found.parts,
        check_lines=not ids_are_made(job),  # making ids looks for them as well
    )
    _check_columns(job, spark, df, found)
    if job.output_filetype == "view":
        check_alone(spark, found.files, found.source, df.schema, filetype=job.input_filetype)
        check_alone(spark, listed.files, listed.source, listed_ids(job, spark).schema)
    return RemovalInput(
        found.source,
        found.files,
        found.num_rows if num_rows is None else num_rows,
        found.paths,
        parts=found.parts,
        rows=found.rows,
        df=df,
        listed=listed.source,
    )


def _check_registry(job: TextDuplicatesRemovalWorkflow, spark: SparkSession) -> None:
    """Check that a registry that was named is there, as opening it would make one."""
    if job.registry is None:
        return
    if is_table_name(job.registry):
        find_source(spark, job.registry)
    elif not exists(f"{normalise_path(job.registry)}/_delta_log"):
        raise MissingInputError(
            f"no id registry at {job.registry}: name the one that gave the ids, or id_generator_path"
        )


def _check_target(
    job: TextDuplicatesRemovalWorkflow, spark: SparkSession, found: JobInput, listed: JobInput
) -> None:
    if names_table(job):
        tables = [each.source.names[0] for each in (found, listed) if each.source.kind == "table"]
        if _full_name(spark, table_name(job)) in {_full_name(spark, name) for name in tables}:
            raise InputError(f"output {table_name(job)} is an input as well: choose another name")
        check_schema(spark, table_name(job))
    else:
        inputs = [*found.paths, *listed.paths, *_paths_of_ids(job)]
        check_output(job.output_path, inputs=inputs, mode="overwrite")
        check_no_table(spark, job.output_path, filetype=job.output_filetype)
    if job.output_filetype in ("delta", "delta-clone"):
        require_delta(spark)
    if job.output_filetype == "delta-clone" and found.source.kind != "files":
        if ids_are_made(job):
            raise InputError(
                f"output_filetype {job.output_filetype!r} shows the input as it is, so the ids must be "
                "one of its columns: write parquet with assigned ids first, or name id_field"
            )
        check_clonable(spark, found.source)
    if job.output_filetype == "view":
        check_view_name(spark, table_name(job))
        for each in (found, listed):
            relation_of(each.source)
            check_flat(each.files, each.source)
    if job.input_task_limit is not None and found.source.kind != "files":
        raise InputError(f"input_task_limit counts files, and {found.source} is a table: filter a view of it")


def _paths_of_ids(job: TextDuplicatesRemovalWorkflow) -> list[str]:
    """Return where the ids come from, unless it is a table or the documents themselves."""
    if job.id_generator_path is not None:
        return [str(job.id_generator_path)]
    if job.registry is None or is_table_name(job.registry):
        return []
    return [normalise_path(job.registry)]


def _full_name(spark: SparkSession, name: str) -> tuple[str, ...]:
    """Return catalog, schema and name of a table in lower case, as no catalog tells names by their case."""
    parts = split_name(name)
    current = (spark.catalog.currentCatalog(), spark.catalog.currentDatabase())
    return tuple(part.lower() for part in (*current[: 3 - len(parts)], *parts))


def _check_columns(
    job: TextDuplicatesRemovalWorkflow, spark: SparkSession, df: DataFrame, found: JobInput
) -> None:
    from pyspark.sql import functions as F

    if job.output_filetype == "delta-clone" and "_metadata" in map(str.lower, df.columns):
        raise InputError(
            f"{found.source} has a column '_metadata', which Delta cannot read beside deletion vectors: write "
            "parquet or delta"
        )
    if job.output_filetype in ("delta", "delta-clone"):
        _check_cases(job.output_fields or df.columns, found)
    probe = df
    if ids_are_made(job):
        probe = df.select(F.lit(0).cast("bigint").alias(ID))
    elif job.id_field == ID and ID not in df.columns:
        raise InputError(
            f"column {ID!r} not found in {found.source}: name the id column with id_field, or the registry or "
            "id_generator_path that gave the ids"
        )
    check_id_types(
        probe, listed_ids(job, spark), id_field=job.id_field, duplicate_id_field=job.duplicate_id_field
    )
    wanted = [name for name in job.output_fields or [] if not (ids_are_made(job) and name == ID)]
    require_columns(df, wanted, where=str(found.source))
    left = job.output_fields or [*df.columns, *([ID] if ids_are_made(job) else [])]
    if job.drop_id_field and set(left) <= {job.id_field}:
        raise InputError(f"nothing is left to write without {job.id_field!r}, the only column")


def _check_cases(names: Sequence[str], found: JobInput) -> None:
    """Check that Delta, which minds no case whatever the session says, can tell columns apart."""
    by_lower: dict[str, str] = {}
    for name in names:
        other = by_lower.setdefault(name.lower(), name)
        if other != name:
            raise InputError(
                f"{found.source} has columns {other!r} and {name!r}, which Delta does not tell apart: write "
                "parquet, or name output_fields"
            )
