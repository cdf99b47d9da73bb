"""Documents with ids: the first id of a row's file plus the row's place in it. No shuffle, no sort."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spark_dedup.datasets import find_source, list_files, read_dataset
from spark_dedup.ids.counting import count_parquet
from spark_dedup.ids.files import FileRange, file_ranges, match_urls
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.tables import ID, col, require_columns

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from spark_dedup.paths import Location

__all__ = ["read_documents"]

logger = logging.getLogger(__name__)

PATH, ROW, FIRST, COUNT = (f"__spark_dedup_{name}" for name in ("path", "row", "first", "count"))


def read_documents(
    spark: SparkSession,
    path: Location | Sequence[Location],
    *,
    filetype: str = "parquet",
    registry: IdRegistry | IdGenerator | Location,
    columns: Sequence[str] | None = None,
    read_kwargs: Mapping[str, Any] | None = None,
    extensions: Sequence[str] | None = None,
    register_new: bool = True,
) -> DataFrame:
    """Read documents with their ids in a column ``_curator_dedup_id`` (bigint), registering new files."""
    ids = registry if isinstance(registry, IdRegistry | IdGenerator) else IdRegistry.open(spark, registry)
    source = find_source(spark, path, filetype=filetype)
    files = list_files(path, filetype=filetype, extensions=extensions)
    df = read_dataset(spark, path, filetype=filetype, read_kwargs=read_kwargs, extensions=extensions)
    if columns is not None:
        require_columns(df, columns, where=str(source))
    ranges = file_ranges(files, ids, count_parquet, register_new=register_new)
    return _with_ids(spark, df, ranges, columns)


def _with_ids(
    spark: SparkSession, df: DataFrame, ranges: Sequence[FileRange], columns: Sequence[str] | None
) -> DataFrame:
    from pyspark.sql import functions as F

    kept = [name for name in (columns if columns is not None else df.columns) if name.lower() != ID]
    if len(kept) < len(df.columns if columns is None else columns):
        logger.warning("the files hold a column %s already; it is not trusted but made anew", ID)
    urls = match_urls(df.inputFiles(), {r.path for r in ranges})
    hidden = "__metadata" if "_metadata" in df.columns else "_metadata"
    placed = df.select(
        *[col(name) for name in kept],
        F.col(f"{hidden}.file_path").alias(PATH),
        F.col(f"{hidden}.row_index").alias(ROW),
    )
    firsts = _firsts(spark, ranges, urls)
    return placed.join(F.broadcast(firsts), PATH, "left").select(
        *[col(name) for name in kept], _checked_id().alias(ID)
    )


def _checked_id() -> Column:
    from pyspark.sql import functions as F

    first, row, count, path = (F.col(name) for name in (FIRST, ROW, COUNT, PATH))
    unknown = F.raise_error(F.concat(F.lit("no ids are registered for "), path)).cast("bigint")
    longer = F.raise_error(
        F.concat(F.lit("more rows than were counted, so it changed while it was read: "), path)
    ).cast("bigint")
    return F.when(first.isNull(), unknown).when(row >= count, longer).otherwise(first + row)


def _firsts(spark: SparkSession, ranges: Sequence[FileRange], urls: Mapping[str, str]) -> DataFrame:
    """Return the table of first ids by the two ways in which Spark spells a local file."""
    import pyarrow as pa

    rows = [
        (spelling, r.first_id, r.count)
        for r in ranges
        for spelling in dict.fromkeys((urls[r.path], urls[r.path].replace("file:///", "file:/", 1)))
    ]
    paths, firsts, counts = zip(*rows, strict=True)
    return spark.createDataFrame(
        pa.table(
            {
                PATH: pa.array(paths, pa.string()),
                FIRST: pa.array(firsts, pa.int64()),
                COUNT: pa.array(counts, pa.int64()),
            }
        )
    )
