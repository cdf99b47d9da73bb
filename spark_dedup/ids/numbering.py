"""Ids for the rows of a scan, as one more column: a broadcast join with one row per file or split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from spark_dedup.ids import jsonl
from spark_dedup.ids.files import FileRange
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.ids.rows import as_frame
from spark_dedup.ids.splits import Split, number_rows, placed, small_table, split_table
from spark_dedup.tables import ID, col, hidden_metadata

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

__all__ = ["number_by_row_index", "number_by_split"]

PATH, ROW, FIRST, COUNT = (f"__spark_dedup_{name}" for name in ("path", "row", "first", "count"))


def number_by_row_index(
    spark: SparkSession,
    df: DataFrame,
    ranges: Sequence[FileRange],
    kept: Sequence[str],
    urls: Mapping[str, str],
) -> DataFrame:
    """Number the rows of a parquet or Delta scan by the place that Spark's reader tells.

    Args:
        spark: the session.
        df: the scan.
        ranges: id range of each file.
        kept: columns to keep.
        urls: path of each file → the URI that Spark reads it by.
    """
    from pyspark.sql import functions as F

    hidden = hidden_metadata(df)
    columns = [col(name) for name in kept]
    rows = df.select(
        *columns, F.col(f"{hidden}.file_path").alias(PATH), F.col(f"{hidden}.row_index").alias(ROW)
    )
    joined = rows.join(F.broadcast(as_frame(spark, _file_table(ranges, urls))), PATH, "left")
    return joined.select(*columns, _id_by_place().alias(ID))


def _file_table(ranges: Sequence[FileRange], urls: Mapping[str, str]) -> pa.Table:
    """Return first id and rows of each file by both ways in which Spark spells a local one."""
    rows = [
        (spelling, r.first_id, r.count)
        for r in ranges
        for spelling in dict.fromkeys((urls[r.path], urls[r.path].replace("file:///", "file:/", 1)))
    ]
    schema = pa.schema([(PATH, pa.string()), (FIRST, pa.int64()), (COUNT, pa.int64())])
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[], [], []], schema=schema)


def _id_by_place() -> Column:
    from pyspark.sql import functions as F

    first, row, count = F.col(FIRST), F.col(ROW), F.col(COUNT)
    unknown = "no ids are registered for a file that appeared while documents were read: "
    longer = "a file has more rows than were counted, so it changed while it was read: "
    why = F.concat(F.when(first.isNull(), F.lit(unknown)).otherwise(F.lit(longer)), F.col(PATH))
    return F.when(row < count, first + row).otherwise(F.raise_error(why).cast("bigint"))


def number_by_split(
    spark: SparkSession,
    df: DataFrame,
    ranges: Sequence[FileRange],
    kept: Sequence[str],
    splits: Sequence[Split],
    ids: IdRegistry | IdGenerator,
    *,
    bad: Column | None = None,
) -> DataFrame:
    """Number the rows of any file scan by split, and leave out those with the text ``bad``.

    Args:
        spark: the session.
        df: the scan.
        ranges: id range of each file.
        kept: columns to keep.
        splits: those of the scan, as ``count_splits`` counted them.
        ids: the registry; on a GPU the table of splits is kept beside it.
        bad: text of malformed records, null for good ones.
    """
    columns = [col(name) for name in kept]
    rows = placed(df, [*columns, *([] if bad is None else [bad.alias(jsonl.BAD)])])
    table = split_table(splits, ranges)
    near = ids.location if isinstance(ids, IdRegistry) else None
    joined, number = number_rows(rows, small_table(spark, table, near))
    if bad is not None:
        joined = joined.where(col(jsonl.BAD).isNull())
    return joined.select(*columns, number.alias(ID))
