"""What the arguments of the removal job say by themselves, and which of them contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.names import is_table_name, quote_name, split_name
from spark_dedup.tables import ID
from spark_dedup.workflows.arguments import check_compression, check_size

if TYPE_CHECKING:
    from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

__all__ = [
    "check_arguments",
    "columns_of",
    "fields_of",
    "ids_are_made",
    "is_grouped",
    "names_table",
    "table_name",
]

OUTPUT_TYPES = ("parquet", "jsonl", "delta", "view", "delta-clone")
OUTPUT_MODES = ("error", "overwrite", "ignore")


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


def ids_are_made(job: TextDuplicatesRemovalWorkflow) -> bool:
    """Return whether a registry gives the ids, not a column."""
    return job.registry is not None or job.id_generator_path is not None


def is_grouped(job: TextDuplicatesRemovalWorkflow) -> bool:
    """Return whether the files' ids are said to come from batches of several."""
    return job.input_files_per_partition is not None or job.input_blocksize is not None


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
