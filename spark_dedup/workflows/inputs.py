"""What a job learns of its input before any work starts."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_dedup.datasets import (
    FileInfo,
    Named,
    Source,
    find_source,
    list_files,
    partition_root,
    read_dataset,
    read_files,
)
from spark_dedup.errors import InputError
from spark_dedup.footers import check_schemas, parquet_footers
from spark_dedup.ids import jsonl
from spark_dedup.ids.curator import parse_bytes
from spark_dedup.ids.files import match_urls
from spark_dedup.ids.splits import count_splits, rows_by_url
from spark_dedup.names import path_relation
from spark_dedup.paths import is_local
from spark_dedup.runtime import ensure_pyspark
from spark_dedup.session import build_session
from spark_dedup.tables import col, require_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

__all__ = [
    "JobInput",
    "base_of",
    "check_size",
    "check_unique_ids",
    "inspect_input",
    "location_of",
    "read_input",
    "session_with",
    "split_settings",
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
    """

    source: Source
    files: list[FileInfo]
    num_rows: int | None
    paths: tuple[str, ...] = ()

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
) -> JobInput:
    """Find and check an input; parquet footers are read, in parallel, and must agree.

    Args:
        spark: the session.
        source: path, paths, Delta path or table name.
        filetype: ``parquet``, ``jsonl`` or ``delta``.
        extensions: endings of files to take.
        columns: columns whose type must agree in all files; all when None.

    Raises:
        FileNotFoundError: no such path, or no files.
        InputError: unsupported filetype, unreadable files, another schema.
    """
    found = find_source(spark, source, filetype=filetype)
    if found.kind == "table":
        location = location_of(spark, found.names[0])
        return JobInput(found, [], None, () if location is None else (location,))
    if found.kind == "delta":
        return JobInput(found, [], None, found.names)
    files = list_files(list(found.names), filetype=filetype, extensions=extensions)
    if filetype != "parquet" or not is_local(files[0].path):
        return JobInput(found, files, None, found.names)
    footers = parquet_footers(files)
    check_schemas(files, footers, columns=columns)
    return JobInput(found, files, sum(footer.num_rows for footer in footers), found.names)


def location_of(spark: SparkSession, table: str) -> str | None:
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
    check_lines: bool = True,
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
        check_lines: look for malformed JSON lines, in a pass of its own; False leaves them as rows of nulls.

    Returns:
        The documents, and how many, where that was learnt.

    Raises:
        InputError: malformed JSON lines, by file and line; and as ``read_dataset``.
    """
    found = find_source(spark, source, filetype=filetype)
    if filetype != "jsonl" or found.kind != "files":
        return read_dataset(
            spark,
            source,
            filetype=filetype,
            columns=columns,
            read_kwargs=read_kwargs,
            extensions=extensions,
            schema=schema,
        ), None

    def read(wanted: StructType | None) -> DataFrame:
        reader = spark.read.options(**(read_kwargs or {})).options(**jsonl.OPTIONS)
        known = wanted if wanted is not None else schema
        return read_files(reader.schema(known) if known else reader, found, filetype, extensions)

    names, to_count, df = jsonl.open_jsonl(read)
    require_columns(names, columns or [], where=str(found))
    kept = [col(name) for name in (names if columns is None else columns)]
    if not check_lines:
        return df.select(*kept), None
    splits = count_splits(to_count, bad=jsonl.bad_text())
    files = list_files(list(found.names), filetype=filetype, extensions=extensions)
    urls = match_urls(df.inputFiles(), [file.path for file in files])
    skipped = jsonl.check_lines(splits, {url: path for path, url in urls.items()}, on_bad_lines)
    if skipped:
        df = df.where(col(jsonl.BAD).isNull())
    return df.select(*kept), sum(rows_by_url(splits).values()) - skipped


def base_of(files: Sequence[FileInfo], source: Source) -> dict[str, str]:
    """Return the reader option by which some files of a source keep the columns that its folders give."""
    base = partition_root(files, source)
    return {} if base is None else {"basePath": base}


def check_unique_ids(spark: SparkSession, df: DataFrame, id_field: str) -> int:
    """Check that a column holds each value once and no null; return the number of rows.

    Reads that column alone. Integers that count up through each piece of a file are proved unique by their ranges;
    others that lie close together are counted in bitmaps, which are small and need no exchange to speak of; the
    rest are grouped.

    Raises:
        InputError: with the number of nulls, or up to five of the repeated ids.
    """
    from pyspark.sql import functions as F

    ids = df.select(col(id_field).alias("id"))
    integer = dict(ids.dtypes)["id"] in ("tinyint", "smallint", "int", "bigint")
    found = _ranges(ids) if integer else ids.agg(F.count(F.lit(1)), F.count("id"))
    row: Any = found.first()
    total, present, *more = row
    if present < total:
        raise InputError(
            f"id column {id_field!r} has {total - present} null(s) in {total} rows: fill or drop them"
        )
    if not total or (integer and more[2]):
        return int(total)
    plugin = "SQLPlugin" in (spark.conf.get("spark.plugins", "") or "")  # bitmaps would leave the GPU
    if integer and not plugin and more[1] - more[0] < 64 * total:
        buckets = ids.select(
            F.expr("bitmap_bucket_number(id)").alias("bucket"),
            F.expr("bitmap_bit_position(id)").alias("position"),
        )
        maps = buckets.groupBy("bucket").agg(
            F.expr("bitmap_count(bitmap_construct_agg(position))").alias("n")
        )
        distinct = (maps.agg(F.sum("n")).first() or (0,))[0]
        if distinct == total:
            return int(total)
    repeated = ids.groupBy("id").count().where("count > 1").orderBy("id").limit(5).collect()
    if repeated:
        shown = ", ".join(str(row["id"]) for row in repeated)
        raise InputError(f"id column {id_field!r} has duplicate ids, such as {shown}: make them unique")
    return int(total)


def _ranges(ids: DataFrame) -> DataFrame:
    """Return one row: rows, ids that are not null, the least, the greatest, and whether ranges prove them unique.

    A piece whose ids grow as its rows do has each of its range once; ranges that do not meet share none.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    number = F.col("id").cast("bigint")
    small = number.between(-(1 << 61), 1 << 61)  # beyond, the difference might not fit
    pieces = (
        ids.select(
            number.alias("id"),
            F.when(small, number - F.monotonically_increasing_id()).alias("first"),
            F.spark_partition_id().alias("task"),
            F.input_file_name().alias("file"),
            F.input_file_block_start().alias("start"),
        )
        .groupBy("task", "file", "start")
        .agg(
            F.count(F.lit(1)).alias("rows"),
            F.count("id").alias("present"),
            F.min("id").alias("low"),
            F.max("id").alias("high"),
            ((F.count("first") == F.count(F.lit(1))) & (F.min("first") == F.max("first"))).alias("grows"),
        )
    )
    before = F.lag("high").over(Window.partitionBy(F.lit(0)).orderBy("low"))
    apart = F.coalesce(before < F.col("low"), F.lit(True))
    return pieces.withColumn("proved", F.col("grows") & apart).agg(
        F.coalesce(F.sum("rows"), F.lit(0)),
        F.coalesce(F.sum("present"), F.lit(0)),
        F.min("low"),
        F.max("high"),
        F.min("proved"),
    )


def check_size(size: int | str) -> int:
    """Return a size in bytes, as ``parse_bytes`` reads it.

    Raises:
        InputError: for anything else, or a size below one byte.
    """
    value = parse_bytes(size)
    if value < 1:
        raise InputError(f"{size!r} is no size: it must be positive")
    return value


def split_settings(blocksize: int | str | None) -> dict[str, str]:
    """Return the Spark setting that cuts input into pieces of at most ``blocksize``."""
    return {} if blocksize is None else {"spark.sql.files.maxPartitionBytes": str(check_size(blocksize))}


def session_with(
    spark: SparkSession | None, startup: Mapping[str, str], *, device: str, reason: str
) -> SparkSession:
    """Return the given, the active, or a new session; warn where it can no longer take settings of its start."""
    if spark is None:
        ensure_pyspark()
        from pyspark.sql import SparkSession

        spark = SparkSession.getActiveSession()
    if spark is None:
        return build_session(device=device, conf=startup)
    for key, value in startup.items():
        if spark.conf.get(key, None) != value:
            logger.warning(
                "%s: this session no longer takes %s=%s: give it to the session's start", reason, key, value
            )
    return spark


def table_version(spark: SparkSession, source: Named, *, filetype: str) -> str | None:
    """Return what changes when a Delta path or table does; None for files, which tell by themselves."""
    found = find_source(spark, source, filetype=filetype)
    if found.kind == "files":
        return None
    relation = found.names[0] if found.kind == "table" else path_relation("delta", found.names[0])
    try:
        newest = spark.sql(f"DESCRIBE HISTORY {relation} LIMIT 1").first()
    except Exception:  # a view or a table that is not Delta: never taken for unchanged
        return uuid.uuid4().hex
    return f"delta:{newest['version']}" if newest else None
