"""What a job learns of its input before any work starts."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spark_dedup.datasets import read_dataset
from spark_dedup.encodings import check_packed
from spark_dedup.errors import InputError
from spark_dedup.footers import check_readable, parquet_footers
from spark_dedup.ids import jsonl
from spark_dedup.ids.batches import named_few
from spark_dedup.ids.splits import rows_by_url
from spark_dedup.listing import FileInfo, Named, list_files
from spark_dedup.parts import Parts
from spark_dedup.schemas import check_schemas, null_parts
from spark_dedup.settings import NANOS_AS_LONG, VECTORIZED, change, conf_of, given_options, parquet_as_it_is
from spark_dedup.sources import Source, delta_version, find_source
from spark_dedup.tables import col, require_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

__all__ = [
    "JobInput",
    "at_version",
    "check_unchanged",
    "inspect_input",
    "plain_files",
    "read_input",
    "table_version",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobInput:
    """An input that was looked at.

    Attributes:
        source: what it is.
        files: its data files, when it is paths; else empty.
        num_rows: rows by the footers of parquet files; None where only reading would tell.
        paths: paths that no output may touch.
        parts: what has no type in which files, as ``read_dataset`` takes it.
        rows: those of each parquet file.
    """

    source: Source
    files: list[FileInfo]
    num_rows: int | None
    paths: tuple[str, ...] = ()
    parts: Parts = field(default_factory=dict, kw_only=True)
    rows: Mapping[FileInfo, int] = field(default_factory=dict, kw_only=True)

    @property
    def num_bytes(self) -> int:
        """Bytes of the files."""
        return sum(file.size for file in self.files)


def inspect_input(
    spark: SparkSession,
    source: Named,
    *,
    filetype: str,
    extensions: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    nulls_fit: bool = False,
    by_spark: bool = True,
    shown: bool = False,
) -> JobInput:
    """Find and check an input; parquet footers are read, in parallel, and must agree.

    To be called inside ``parquet_as_it_is``, which puts back the settings that some columns need.

    Args:
        spark: the session.
        source: path, paths, Delta path or table name.
        filetype: ``parquet``, ``jsonl`` or ``delta``.
        extensions: endings of files to take.
        columns: columns whose type must agree in all files; all when None.
        nulls_fit: files may have a column of nulls alone, without a type, that has one in others; they are read
            by the ``parts`` that this returns.
        by_spark: whether Spark reads the columns, not Python tasks.
        shown: users read the files themselves, in sessions of their own.

    Raises:
        MissingInputError: no such path, or no files.
        InputError: unsupported filetype, unreadable files, another schema.
    """
    found = find_source(spark, source, filetype=filetype, extensions=extensions)
    if found.kind == "table":
        location = _location_of(spark, found.names[0])
        return JobInput(found, [], None, () if location is None else (location,))
    if found.kind == "delta":
        return JobInput(found, [], None, found.names)
    files = list_files(list(found.names), filetype=filetype, extensions=extensions)
    if filetype != "parquet":
        return JobInput(found, files, None, found.names)
    footers = parquet_footers(files)
    check_schemas(files, footers, columns=columns, nulls_fit=nulls_fit)
    shown = shown and conf_of(spark, VECTORIZED, "true") == "true"
    if check_packed(files, footers, columns=columns, by_spark=by_spark, shown=shown):
        change(spark, VECTORIZED, "false")
    times = conf_of(spark, "spark.sql.timeType.enabled") == "true"
    if check_readable(files, footers, columns=columns, times=times):
        change(spark, NANOS_AS_LONG, "true")
    parts = null_parts(files, footers, columns=columns) if nulls_fit else {}
    rows = {file: footer.num_rows for file, footer in zip(files, footers, strict=True)}
    return JobInput(found, files, sum(rows.values()), found.names, parts=parts, rows=rows)


def check_unchanged(
    found: JobInput, *, filetype: str, extensions: Sequence[str] | None = None, or_more: bool = False
) -> None:
    """Check, when a step has read an input's files, that they are those that the job began with.

    Args:
        found: what ``inspect_input`` found.
        filetype: as it was given there.
        extensions: as they were given there.
        or_more: files that came since are an error, too: the next step would read them.

    Raises:
        InputError: with some of the files.
    """
    if not found.files:
        return
    now = set(list_files(list(found.source.names), filetype=filetype, extensions=extensions))
    changed = set(found.files) ^ now if or_more else set(found.files) - now
    if changed:
        raise InputError(
            f"the input changed while the job ran: {named_few(sorted({file.path for file in changed}))}; "
            "run it again when nobody writes there"
        )


def plain_files(
    found: JobInput, *, filetype: str, read_kwargs: Mapping[str, Any] | None = None
) -> list[FileInfo]:
    """Return the files of an input that is nothing but parquet files, read as they are; none of any other."""
    return found.files if filetype == "parquet" and not given_options(read_kwargs) else []


def _location_of(spark: SparkSession, table: str) -> str | None:
    """Return the folder of a table, by its quoted name; None for a view."""
    rows = spark.sql(f"DESCRIBE TABLE EXTENDED {table}").where("col_name = 'Location'").collect()
    return str(rows[-1]["data_type"]) if rows else None


def read_input(
    spark: SparkSession,
    source: Named,
    *,
    filetype: str,
    columns: Sequence[str] | None = None,
    read_kwargs: Mapping[str, Any] | None = None,
    extensions: Sequence[str] | None = None,
    on_bad_lines: str = "error",
    schema: StructType | None = None,
    parts: Parts | None = None,
    check_lines: bool = True,
    arrays: bool = True,
) -> tuple[DataFrame, int | None]:
    """Read documents as they are, without making ids.

    Args:
        spark: the session.
        source: path, paths, Delta path or table name.
        filetype: ``parquet``, ``jsonl`` or ``delta``.
        columns: columns to keep; all when None.
        read_kwargs: options for Spark's reader.
        extensions: endings of files to take.
        on_bad_lines: ``"error"``, or ``"skip"`` to leave malformed JSON lines out.
        schema: schema of files, when it is known.
        parts: as ``read_dataset`` takes it.
        check_lines: look for malformed JSON lines, in a pass of its own; False leaves them as rows of nulls.
        arrays: whether a line may be an array of objects, where lines are checked.

    Returns:
        The documents, and how many, where that was learnt.

    Raises:
        InputError: malformed JSON lines, by file and line; and as ``read_dataset``.
    """
    found = find_source(spark, source, filetype=filetype, extensions=extensions)
    if filetype != "jsonl" or found.kind != "files":
        return read_dataset(
            spark,
            source,
            filetype=filetype,
            columns=columns,
            read_kwargs=read_kwargs,
            extensions=extensions,
            schema=schema,
            parts=parts,
        ), None

    names, to_count, df = jsonl.open_jsonl(
        spark, found, read_kwargs=read_kwargs, extensions=extensions, schema=schema
    )
    kept = [col(name) for name in (names if columns is None else columns)]
    if names:  # without any, malformed lines may be why
        require_columns(names, columns or [], where=str(found))
        if not check_lines:
            return df.select(*kept), None
    files = list_files(list(found.names), filetype=filetype, extensions=extensions)
    text = jsonl.as_text(spark, found, read_kwargs=read_kwargs, extensions=extensions)
    splits, _, skipped = jsonl.check_files(df, to_count, text, files, on_bad_lines, arrays=arrays)
    require_columns(names, columns or [], where=str(found))
    if skipped:
        df = df.where(jsonl.bad_text().isNull())
    return df.select(*kept), sum(rows_by_url(splits).values()) - skipped


def at_version(
    spark: SparkSession, source: Named, *, filetype: str, read_kwargs: Mapping[str, Any] | None = None
) -> Mapping[str, Any] | None:
    """Return options of the reader that hold a Delta table at its newest version; for all else the given ones.

    Else a step of a job would read what others wrote since the step before it.
    """
    found = find_source(spark, source, filetype=filetype)
    version = None if found.kind == "files" or _asks_for_version(read_kwargs) else delta_version(spark, found)
    if version is None:
        return read_kwargs
    held = {**given_options(read_kwargs), "versionAsOf": version.removeprefix("delta:")}
    if found.kind == "table":
        try:
            with parquet_as_it_is(spark):  # a session's own settings are no reason
                read_dataset(spark, source, filetype=filetype, read_kwargs=held)
        except InputError:  # on Databricks those with row filters tell versions, and are not read by them
            return read_kwargs
    return held


def table_version(
    spark: SparkSession, source: Named, *, filetype: str, read_kwargs: Mapping[str, Any] | None = None
) -> str | None:
    """Return what changes when a table does; None for files, and where ``read_kwargs`` name the version."""
    found = find_source(spark, source, filetype=filetype)
    if found.kind == "files" or _asks_for_version(read_kwargs):
        return None
    # A view, or a table that is not Delta, is never taken for unchanged.
    return delta_version(spark, found) or uuid.uuid4().hex


def _asks_for_version(read_kwargs: Mapping[str, Any] | None) -> bool:
    return not {"versionasof", "timestampasof"}.isdisjoint(map(str.lower, given_options(read_kwargs)))
