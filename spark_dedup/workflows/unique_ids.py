"""Ids that a column brings: each value once, and no null, or an error that names some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError
from spark_dedup.footers import alike_columns, parquet_footers
from spark_dedup.ids.splits import on_gpu
from spark_dedup.listing import FileInfo
from spark_dedup.paths import is_local
from spark_dedup.tables import col, file_and_start

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["check_unique_ids"]

_INTEGERS = ("tinyint", "smallint", "int", "bigint")
_MOST_BYTES = 64 << 20
_BATCH_ROWS = 65_536
_BUFFER_BYTES = 1 << 20


def check_unique_ids(
    spark: SparkSession, df: DataFrame, id_field: str, *, files: Sequence[FileInfo] = ()
) -> int:
    """Check that a column holds each value once and no null; return the number of rows.

    Reads that column alone. Up to 64 MiB of ids in local parquet files are compared here, without a Spark job.
    Else integers that count up through each piece of a file are proved unique by their ranges; others that lie
    close together are counted in bitmaps, which are small and need no exchange to speak of; the rest are grouped.

    Args:
        spark: the session.
        df: the rows.
        id_field: the column.
        files: the parquet files that ``df`` is read from, all of them and nothing else; none when it is not so.

    Raises:
        InputError: with the number of nulls, or up to five of the repeated ids.
    """
    from pyspark.sql import functions as F

    few = _count_few(files, id_field, dict(df.dtypes)[id_field])
    if few is not None:
        return few
    ids = df.select(col(id_field).alias("id"))
    integer = dict(ids.dtypes)["id"] in _INTEGERS
    counts = [F.count(F.lit(1)).alias("rows"), F.count("id").alias("present")]
    row: Any = (_ranges(ids) if integer else ids.agg(*counts)).first()
    total = int(row["rows"])
    if row["present"] < total:
        raise InputError(
            f"id column {id_field!r} has {total - row['present']} null(s) in {total} rows: fill or drop them"
        )
    if not total or (integer and (row["proved"] or _bitmaps_prove(spark, ids, row))):
        return total
    repeated = ids.groupBy("id").count().where("count > 1").orderBy("id").limit(5).collect()
    if repeated:
        shown = ", ".join(str(row["id"]) for row in repeated)
        raise InputError(f"id column {id_field!r} has duplicate ids, such as {shown}: make them unique")
    return total


def _bitmaps_prove(spark: SparkSession, ids: DataFrame, row: Any) -> bool:
    """Return whether bitmaps show integers to be distinct; they serve where ``row``, of ``_ranges``, is dense."""
    from pyspark.sql import functions as F

    if row["high"] - row["low"] >= 64 * row["rows"] or on_gpu(spark):  # bitmaps would leave the GPU
        return False
    buckets = ids.select(
        F.expr("bitmap_bucket_number(id)").alias("bucket"),
        F.expr("bitmap_bit_position(id)").alias("position"),
    )
    maps = buckets.groupBy("bucket").agg(F.expr("bitmap_count(bitmap_construct_agg(position))").alias("n"))
    distinct: Any = maps.agg(F.sum("n")).first()
    return bool(distinct[0] == row["rows"])


def _count_few(files: Sequence[FileInfo], id_field: str, spark_type: str) -> int | None:
    """Return how many ids the files hold, if all are unique and few enough to be held here; else None."""
    import pyarrow as pa

    if not files or spark_type not in (*_INTEGERS, "string") or not all(is_local(f.path) for f in files):
        return None
    footers = parquet_footers(files)
    if sum(footer.num_rows for footer in footers) * (8 if spark_type == "bigint" else 4) > _MOST_BYTES:
        return None
    alike = (alike_columns(*found, {id_field: spark_type}) for found in zip(files, footers, strict=True))
    if not all(alike):
        return None
    held: list[pa.Array] = []
    left = _MOST_BYTES
    try:
        for ids in _batches(files, id_field):
            left -= ids.nbytes
            if ids.null_count or left < 0:
                return None
            held.append(ids)
    except (pa.ArrowException, OSError):  # Spark's error names the file
        return None
    count = sum(map(len, held))
    return count if _count_distinct(held) == count else None


def _count_distinct(arrays: Sequence[pa.Array]) -> int:
    """Return the number of different values in arrays without nulls, of integers or of strings."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not arrays:
        return 0
    if pa.types.is_integer(arrays[0].type):
        # NumPy's vectorised sort: Arrow's hash table takes 8 to 40 times as long, longest for numbers in order.
        ids = np.sort(np.concatenate([np.asarray(array) for array in arrays]))
        return int(np.count_nonzero(ids[1:] != ids[:-1])) + min(len(ids), 1)
    # Large strings: the offsets of all of them together may not fit 32 bits.
    return int(pc.count_distinct(pa.chunked_array([ids.cast(pa.large_string()) for ids in arrays])).as_py())


def _batches(files: Sequence[FileInfo], column: str) -> Iterator[pa.Array]:
    import pyarrow.parquet as pq

    for file in files:
        # Without a buffer Arrow would read a row group's whole column at once.
        with pq.ParquetFile(file.path, buffer_size=_BUFFER_BYTES) as opened:
            for batch in opened.iter_batches(_BATCH_ROWS, columns=[column], use_threads=False):
                yield batch.column(column)  # asked for a.b, Arrow also gives the b of a struct a


def _ranges(ids: DataFrame) -> DataFrame:
    """Return one row: ``rows``, ids ``present``, ``low``, ``high``, and whether ranges ``proved`` them unique.

    A piece whose ids grow as its rows do has each of its range once; ranges that do not meet share none.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    number = F.col("id").cast("bigint")
    url, start = file_and_start(ids)
    of_file = [url.alias("file"), start.alias("start")]
    try:
        ids.select(*of_file).columns  # noqa: B018 - a Connect session looks only now
    except Exception:  # of a join, where rows have no one file; its class differs between classic and Connect
        of_file = []
    small = number.between(-(1 << 61), 1 << 61)  # beyond, the difference might not fit
    pieces = (
        ids.select(
            number.alias("id"),
            F.when(small, number - F.monotonically_increasing_id()).alias("first"),
            F.spark_partition_id().alias("task"),
            *of_file,
        )
        .groupBy("task", *(["file", "start"] if of_file else []))
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
        F.coalesce(F.sum("rows"), F.lit(0)).alias("rows"),
        F.coalesce(F.sum("present"), F.lit(0)).alias("present"),
        F.min("low").alias("low"),
        F.max("high").alias("high"),
        F.min("proved").alias("proved"),
    )
