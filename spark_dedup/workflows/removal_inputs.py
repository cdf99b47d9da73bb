"""What the removal job checks before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spark_dedup.datasets import Source, find_source, given_options, read_dataset, relation_of, table_exists
from spark_dedup.errors import InputError, MissingInputError
from spark_dedup.names import is_table_name, quote_name, split_name
from spark_dedup.outputs import check_output
from spark_dedup.partitions import are_partitioned
from spark_dedup.paths import exists, normalise_path
from spark_dedup.removal.delta import check_alone, check_clonable, check_flat
from spark_dedup.removal.text import check_id_types
from spark_dedup.session import require_delta
from spark_dedup.tables import ID, require_columns
from spark_dedup.workflows.inputs import JobInput, check_compression, check_size, inspect_input, read_input
from spark_dedup.workflows.remaining import check_no_table, check_schema, check_view_name

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

__all__ = [
    "RemovalInput",
    "check_arguments",
    "columns_of",
    "fields_of",
    "ids_are_made",
    "inspect",
    "is_grouped",
    "is_there",
    "keeps_lines",
    "listed_ids",
    "names_table",
    "table_name",
]

OUTPUT_TYPES = ("parquet", "jsonl", "delta", "view", "delta-clone")
OUTPUT_MODES = ("error", "overwrite", "ignore")


@dataclass(frozen=True)
class RemovalInput(JobInput):
    """An input that was looked at, with its documents as they are and the list of ids."""

    df: DataFrame = field(kw_only=True)
    listed: Source = field(kw_only=True)


def check_arguments(job: TextDuplicatesRemovalWorkflow) -> None:
    """Settle aliases, and refuse arguments that contradict each other."""
    job.id_field = job.input_id_field or job.id_field
    job.duplicate_id_field = job.ids_to_remove_duplicate_id_field or job.duplicate_id_field
    job.output_mode = job.output_mode or "error"
    if job.output_filetype not in OUTPUT_TYPES:
        raise InputError(f"output_filetype must be {', '.join(OUTPUT_TYPES)}, not {job.output_filetype!r}")
    if job.output_mode not in OUTPUT_MODES:
        raise InputError(f"output_mode must be one of {', '.join(OUTPUT_MODES)}, not {job.output_mode!r}")
    _check_fields(job)
    if job.registry is not None and job.id_generator_path is not None:
        raise InputError("registry and id_generator_path both give ids: name one of them")
    if ids_are_made(job) and job.id_field != ID:
        raise InputError(
            f"assigned ids are called {ID}: leave out id_field {job.id_field!r}, or registry and id_generator_path"
        )
    if job.input_task_limit is not None and job.input_task_limit < 1:
        raise InputError("input_task_limit must be 1 or more")
    if job.input_blocksize is not None:
        check_size(job.input_blocksize)
    if job.output_filetype in ("view", "delta-clone"):
        _check_shown(job)
    else:
        kind = "jsonl" if job.output_filetype == "jsonl" else "parquet"
        check_compression(job.output_kwargs, argument="output_kwargs", filetype=kind)


def _check_fields(job: TextDuplicatesRemovalWorkflow) -> None:
    for name in ("input_fields", "output_fields"):
        if getattr(job, name) is not None and not getattr(job, name):
            raise InputError(f"{name} is empty: name columns, or leave it out for all")
    if job.output_fields is None:
        return
    if job.drop_id_field and job.id_field in job.output_fields:
        raise InputError(f"Cannot drop id_field '{job.id_field}' when it is included in output_fields.")
    if len(set(job.output_fields)) < len(job.output_fields):
        raise InputError(f"output_fields names a column twice: {', '.join(job.output_fields)}")


def _check_shown(job: TextDuplicatesRemovalWorkflow) -> None:
    """Refuse what only a rewrite could do."""
    names = ["input_task_limit", "input_kwargs", "input_file_extensions"]
    names += ["output_kwargs", "output_file_extension"]
    if job.output_filetype == "delta-clone":
        names += ["input_fields", "output_fields", "drop_id_field"]
    asked = [name for name in names if getattr(job, name) not in (None, False)]
    if asked:
        raise InputError(
            f"output_filetype {job.output_filetype!r} shows the input as it is: leave {', '.join(asked)} out, "
            "or write parquet, jsonl or delta"
        )
    if job.output_filetype == "delta-clone":
        if job.input_filetype == "jsonl":
            raise InputError("a delta-clone is made of parquet files or a Delta table, not of JSON lines")
        return
    if job.id_generator_path is not None or (ids_are_made(job) and is_grouped(job)):
        raise InputError(
            "a view tells ids by a column, or by an id registry that has a range for each file: name id_field, or "
            "the registry alone; spark-dedup ids import makes one of id_generator_path"
        )
    split_name(str(job.output_path))


def names_table(job: TextDuplicatesRemovalWorkflow) -> bool:
    """Return whether the output is a name in the catalog, not a folder."""
    return job.output_filetype == "view" or (
        job.output_filetype == "delta" and is_table_name(job.output_path)
    )


def table_name(job: TextDuplicatesRemovalWorkflow) -> str:
    """Return the output's name in the catalog, quoted."""
    return quote_name(split_name(str(job.output_path)))


def is_there(job: TextDuplicatesRemovalWorkflow, spark: SparkSession) -> bool:
    """Return whether the output exists."""
    if names_table(job):
        return table_exists(spark, table_name(job))
    return exists(normalise_path(job.output_path))


def ids_are_made(job: TextDuplicatesRemovalWorkflow) -> bool:
    """Return whether a registry gives the ids, not a column."""
    return job.registry is not None or job.id_generator_path is not None


def is_grouped(job: TextDuplicatesRemovalWorkflow) -> bool:
    """Return whether the files' ids are said to come from batches of several."""
    return job.input_files_per_partition is not None or job.input_blocksize is not None


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


def columns_of(job: TextDuplicatesRemovalWorkflow) -> list[str] | None:
    """Return the columns to read; None for all."""
    if job.input_fields is None:
        return None
    if ids_are_made(job):
        return [name for name in job.input_fields if name != ID]
    return list(dict.fromkeys([*job.input_fields, job.id_field]))


def fields_of(job: TextDuplicatesRemovalWorkflow) -> dict[str, str]:
    """Return the id columns of documents and list, as functions take them."""
    return {"id_field": job.id_field, "duplicate_id_field": job.duplicate_id_field}


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
