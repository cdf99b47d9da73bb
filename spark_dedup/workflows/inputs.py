"""What a job learns of its input before any work starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_dedup.datasets import FileInfo, Source, check_schemas, find_source, list_files, parquet_footers
from spark_dedup.errors import InputError
from spark_dedup.paths import is_local
from spark_dedup.tables import col

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["JobInput", "check_unique_ids", "inspect_input", "parse_bytes", "split_settings"]


@dataclass(frozen=True)
class JobInput:
    """An input that was looked at.

    Attributes:
        source: what it is.
        files: its data files, when it is paths; else empty.
        num_rows: rows by the footers of parquet files; None where only reading would tell.
    """

    source: Source
    files: list[FileInfo]
    num_rows: int | None

    @property
    def num_bytes(self) -> int:
        """Bytes of the files."""
        return sum(file.size for file in self.files)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths that no output may touch."""
        return () if self.source.kind == "table" else self.source.names


def inspect_input(
    spark: SparkSession,
    source: Any,
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
    if found.kind != "files":
        return JobInput(found, [], None)
    files = list_files(list(found.names), filetype=filetype, extensions=extensions)
    if filetype != "parquet" or not is_local(files[0].path):
        return JobInput(found, files, None)
    footers = parquet_footers(files)
    check_schemas(files, footers, columns=columns)
    return JobInput(found, files, sum(footer.num_rows for footer in footers))


def check_unique_ids(spark: SparkSession, df: DataFrame, id_field: str) -> int:
    """Check that a column holds each value once and no null; return the number of rows.

    Reads that column alone. Integers that lie close together are counted in bitmaps, which are small and need no
    exchange to speak of; others are grouped.

    Raises:
        InputError: with the number of nulls, or up to five of the repeated ids.
    """
    from pyspark.sql import functions as F

    ids = df.select(col(id_field).alias("id"))
    integer = dict(ids.dtypes)["id"] in ("tinyint", "smallint", "int", "bigint")
    bounds = [F.min("id"), F.max("id")] if integer else [F.lit(None), F.lit(None)]
    total, present, low, high = ids.agg(F.count(F.lit(1)), F.count("id"), *bounds).first() or (
        0,
        0,
        None,
        None,
    )
    if present < total:
        raise InputError(
            f"id column {id_field!r} has {total - present} null(s) in {total} rows: fill or drop them"
        )
    if not total:
        return 0
    plugin = "SQLPlugin" in (spark.conf.get("spark.plugins", "") or "")  # bitmaps would leave the GPU
    if integer and not plugin and int(high or 0) - int(low or 0) < 64 * total:
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


_UNITS = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
}
_UNITS |= {"gb": 10**9, "tb": 10**12}


def parse_bytes(size: int | str) -> int:
    """Return bytes from ``1024``, ``"512MiB"`` or ``"2GB"``.

    Raises:
        InputError: for anything else, or a size below one byte.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", str(size))
    unit = _UNITS.get(found[2].lower()) if found else None
    try:
        value = int(float(found[1]) * unit) if found and unit else 0
    except ValueError:
        value = 0
    if value < 1:
        raise InputError(f'{size!r} is not a size: write bytes, or for example "512MiB"')
    return value


def split_settings(blocksize: int | str | None) -> dict[str, str]:
    """Return the Spark setting that cuts input into pieces of at most ``blocksize``."""
    return {} if blocksize is None else {"spark.sql.files.maxPartitionBytes": str(parse_bytes(blocksize))}
