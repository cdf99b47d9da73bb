"""How the removal job writes: in one go, in passes, as a table, a view, a clone."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from spark_dedup.ids import jsonl
from spark_dedup.ids.files import match_urls
from spark_dedup.ids.splits import on_gpu
from spark_dedup.listing import FileInfo
from spark_dedup.names import path_relation, quote_name, split_name
from spark_dedup.outputs import staged
from spark_dedup.paths import delete, spark_location, spark_path
from spark_dedup.progress import job_progress
from spark_dedup.removal import passes
from spark_dedup.removal.delta import clone_without, drop_empty_files, shown_relation, view_query
from spark_dedup.removal.hidden import hidden_by_id, hidden_by_range
from spark_dedup.removal.lines import one_object, unescaped, with_field
from spark_dedup.removal.text import count_documents, count_listed, remove_duplicates
from spark_dedup.removal.vectors import clone_files
from spark_dedup.settings import given_options
from spark_dedup.sources import delta_detail
from spark_dedup.sql_ids import numbered_query
from spark_dedup.tables import col, have_char
from spark_dedup.workflows.remaining import (
    check_balance,
    count_written,
    name_files,
    save,
    write_table,
    write_view,
)
from spark_dedup.workflows.removal_arguments import (
    fields_of,
    ids_are_made,
    is_grouped,
    names_table,
    table_name,
)
from spark_dedup.workflows.removal_inputs import RemovalInput, listed_ids
from spark_dedup.workflows.removal_reading import documents_of, located_ids, ranges_of, registry_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

__all__ = ["write"]

logger = logging.getLogger(__name__)


def write(job: TextDuplicatesRemovalWorkflow, spark: SparkSession, found: RemovalInput) -> tuple[int, int]:
    """Write or show what remains; return rows read and rows removed."""
    listed = listed_ids(job, spark)
    if job.output_filetype == "view":
        return _create_view(job, spark, found, listed)
    if names_table(job):
        return _fill_table(job, spark, found, listed)
    with staged(job.output_path, mode="overwrite" if _replaces(job) else "error") as aside:
        counts = _write_aside(job, spark, found, listed, aside)
        filetype = "delta" if job.output_filetype == "delta-clone" else job.output_filetype
        check_balance(*counts, count_written(spark, aside, filetype=filetype))
        name_files(aside, filetype=job.output_filetype, extension=job.output_file_extension)
    return counts


def _replaces(job: TextDuplicatesRemovalWorkflow) -> bool:
    return job.output_mode == "overwrite"


def _create_view(
    job: TextDuplicatesRemovalWorkflow, spark: SparkSession, found: RemovalInput, listed: DataFrame
) -> tuple[int, int]:
    with job_progress(spark, "creating the view"):
        relation = _relation(job, spark, found)
        docs = documents_of(job, spark, found)
        counts = _count(job, found, docs, listed, _is_long(int(listed.count())))
        is_char = have_char((docs, job.id_field), (listed, job.duplicate_id_field))
        query = view_query(
            relation, found.listed, _output_columns(job, docs), **fields_of(job), is_char=is_char
        )
        write_view(spark, query, table_name(job), expected=counts, replace=_replaces(job))
    return counts


def _fill_table(
    job: TextDuplicatesRemovalWorkflow, spark: SparkSession, found: RemovalInput, listed: DataFrame
) -> tuple[int, int]:
    docs = documents_of(job, spark, found, _limited(job, found))
    length = int(listed.count())
    counts = _count(job, found, docs, listed, _is_long(length))
    with ExitStack() as held, job_progress(spark, f"writing {table_name(job)}"):
        if _is_long(length) and _can_hide(job, spark, found):
            clone = _name_aside(job)
            held.callback(spark.sql, f"DROP TABLE IF EXISTS {clone}")
            kept = _hidden(job, spark, found, listed, clone)
        else:
            kept = _remaining(job, docs, listed, length)
        write_table(
            spark,
            _output(job, kept),
            table_name(job),
            expected=counts,
            replace=_replaces(job),
            output_kwargs=job.output_kwargs,
        )
    return counts


def _write_aside(
    job: TextDuplicatesRemovalWorkflow,
    spark: SparkSession,
    found: RemovalInput,
    listed: DataFrame,
    aside: str,
) -> tuple[int, int]:
    if job.output_filetype == "delta-clone":
        with job_progress(spark, "hiding duplicates in a clone"):
            if found.source.kind == "files":
                return _clone_files(job, spark, found, listed, aside)
            counts = _count(job, found, found.df, listed, _is_long(int(listed.count())))
            clone_without(spark, found.source, listed, path_relation("delta", aside), **fields_of(job))
            drop_empty_files(aside)
            return counts
    docs = documents_of(job, spark, found, _limited(job, found))
    with job_progress(spark, "counting listed documents"):
        length = int(listed.count())
        is_long = _is_long(length)
        if is_long and found.source.kind == "files" and not is_grouped(job):
            located = located_ids(job, spark, found, docs, listed, files=_limited(job, found))
            if located is not None:
                return _write_passes(job, spark, found, docs, *located, aside)
        # Lines that are kept give their ids at the price of a second parse.
        counted = docs if ids_are_made(job) or job.input_task_limit is not None else found.df
        counts = _count(job, found, counted, listed, is_long)
    with ExitStack() as held, job_progress(spark, "writing the documents that remain"):
        if is_long and _can_hide(job, spark, found):
            held.callback(delete, f"{aside}.clone")
            kept = _hidden(job, spark, found, listed, path_relation("delta", f"{aside}.clone"))
        else:
            kept = _remaining(job, docs, listed, length)
        _save(job, kept, aside)
    return counts


def _can_hide(job: TextDuplicatesRemovalWorkflow, spark: SparkSession, found: RemovalInput) -> bool:
    """Return whether a long list may be applied by a clone, which joins ids alone and broadcasts nothing."""
    # Delta cannot read a column of that name beside deletion vectors.
    is_plain = _is_plain(job) and "_metadata" not in map(str.lower, found.df.columns)
    # On a GPU the join is quick, and deletion vectors keep a plan off it.
    if not is_plain or ids_are_made(job) or on_gpu(spark):
        return False
    detail = delta_detail(spark, found.source)
    if detail is None:
        return False
    kept = detail["properties"]  # Iceberg's readers know no deletion vectors
    return not any(kept[key] == "true" for key in kept if key.startswith("delta.enableIcebergCompat"))


def _is_plain(job: TextDuplicatesRemovalWorkflow) -> bool:
    """Return whether the table is read as it is, if at an older version."""
    return given_options(job.input_kwargs).keys() <= {"versionAsOf"}


def _hidden(
    job: TextDuplicatesRemovalWorkflow,
    spark: SparkSession,
    found: RemovalInput,
    listed: DataFrame,
    clone: str,
) -> DataFrame:
    """Return the documents that remain, as a clone shows them, which the caller drops."""
    version = given_options(job.input_kwargs).get("versionAsOf")
    clone_without(spark, found.source, listed, clone, **fields_of(job), version=version)
    return spark.table(clone).select(*[col(name) for name in found.df.columns])


def _relation(job: TextDuplicatesRemovalWorkflow, spark: SparkSession, found: RemovalInput) -> str:
    """Return the documents with their ids, as SQL names them in FROM."""
    relation = shown_relation(spark, found.source, job.input_filetype)
    location = registry_of(job)
    if location is None:
        return relation
    numbered = numbered_query(
        spark, relation, found.df, found.source, filetype=job.input_filetype, location=location
    )
    return f"({numbered})"


def _name_aside(job: TextDuplicatesRemovalWorkflow) -> str:
    """Return a quoted name beside the output table's."""
    *above, name = split_name(str(job.output_path))
    return quote_name((*above, f"{name}__aside_{uuid.uuid4().hex[:8]}"))


def _clone_files(
    job: TextDuplicatesRemovalWorkflow,
    spark: SparkSession,
    found: RemovalInput,
    listed: DataFrame,
    aside: str,
) -> tuple[int, int]:
    ranges = ranges_of(job, spark, found)
    if ranges is None:
        hidden = hidden_by_id(found.df, listed, **fields_of(job))
    else:
        hidden = hidden_by_range(listed, ranges, duplicate_id_field=job.duplicate_id_field)
    urls = match_urls(found.df.inputFiles(), [file.path for file in found.files])
    return clone_files(found.files, found.source, aside, schema=found.df.schema, urls=urls, hidden=hidden)


def _limited(job: TextDuplicatesRemovalWorkflow, found: RemovalInput) -> list[FileInfo] | None:
    return None if job.input_task_limit is None else found.files[: job.input_task_limit]


def _is_long(length: int) -> bool:
    return length > passes.IDS_PER_PASS


def _remaining(
    job: TextDuplicatesRemovalWorkflow, docs: DataFrame, listed: DataFrame, length: int
) -> DataFrame:
    """Return the documents that remain by one join; the list is broadcast unless it is far too long for that."""
    broadcast = length <= passes.IDS_TO_BROADCAST
    if not broadcast:
        logger.warning("a list of %d ids is too long to broadcast here: documents are shuffled", length)
    return remove_duplicates(docs, listed, **fields_of(job), broadcast=broadcast)


def _count(
    job: TextDuplicatesRemovalWorkflow,
    found: RemovalInput,
    docs: DataFrame,
    listed: DataFrame,
    is_long: bool,
) -> tuple[int, int]:
    """Return rows read and rows removed; the former from footers where they tell."""
    if found.num_rows is None or job.input_task_limit is not None:
        return count_documents(docs, listed, **fields_of(job), is_long=is_long)
    return found.num_rows, count_listed(docs, listed, **fields_of(job), is_long=is_long)


def _write_passes(
    job: TextDuplicatesRemovalWorkflow,
    spark: SparkSession,
    found: RemovalInput,
    docs: DataFrame,
    ids: DataFrame,
    keys: Mapping[str, str],
    aside: str,
) -> tuple[int, int]:
    """Write in passes over groups of files, each with its part of the located ``ids``, too many to broadcast."""
    from pyspark.sql import functions as F

    located_at = f"{aside}.located"
    try:
        ids.write.mode("overwrite").parquet(spark_location(located_at))
        located = spark.read.parquet(spark_path(located_at))
        rows = located.groupBy("file").agg(F.count("*").alias("n")).collect()
        counts = {row["file"]: row["n"] for row in rows}
        parts = passes.plan_passes(keys, counts, ids_per_pass=passes.IDS_PER_PASS)
        by_path = {file.path: file for file in found.files}
        for number, part in enumerate(parts, 1):
            with job_progress(spark, f"writing the documents that remain, pass {number} of {len(parts)}"):
                some = documents_of(job, spark, found, [by_path[path] for path in part.paths])
                _save(job, remove_duplicates(some, part.ids(located), id_field=job.id_field), aside)
    finally:
        delete(located_at)
    known = found.num_rows is not None and job.input_task_limit is None
    return (found.num_rows or 0) if known else int(docs.count()), sum(counts.values())


def _output_columns(job: TextDuplicatesRemovalWorkflow, df: DataFrame) -> list[str]:
    columns = list(job.output_fields) if job.output_fields is not None else list(df.columns)
    return [name for name in columns if not (job.drop_id_field and name == job.id_field)]


def _output(job: TextDuplicatesRemovalWorkflow, df: DataFrame) -> DataFrame:
    return df.select(*[col(name) for name in _output_columns(job, df)])


def _save(job: TextDuplicatesRemovalWorkflow, kept: DataFrame, folder: str) -> None:
    if jsonl.LINE not in kept.columns:
        save(_output(job, kept), folder, filetype=job.output_filetype, output_kwargs=job.output_kwargs)
        return
    line = unescaped(one_object(col(jsonl.LINE)))
    if ids_are_made(job) and not job.drop_id_field:
        line = with_field(line, job.id_field, col(job.id_field))
    save(kept.select(line.alias("value")), folder, filetype="text", output_kwargs=job.output_kwargs)
