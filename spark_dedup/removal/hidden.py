"""Which rows of which files a list of ids hides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_dedup.ids.files import FileRange
from spark_dedup.tables import as_compared, col, hidden_metadata

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["Hidden", "hidden_by_id", "hidden_by_range"]

Hidden = tuple[str, np.ndarray]
"""A file, by path or URI, and the places of rows in it."""

_FILE, _PLACE, _BUCKET = (f"__spark_dedup_{name}" for name in ("file", "place", "bucket"))
_ROWS_PER_BUCKET = 8 * 4096
"""Of Spark's bitmaps, by their documentation."""


def hidden_by_id(
    docs: DataFrame, listed: DataFrame, *, id_field: str, duplicate_id_field: str
) -> Iterator[Hidden]:
    """Find the rows whose id is listed: one job that reads the documents' ids and nothing else.

    Args:
        docs: the documents, straight from a scan of parquet files.
        listed: list of ids to hide; repeated and unknown ones do no harm.
        id_field: id column of ``docs``.
        duplicate_id_field: id column of ``listed``.

    Yields:
        Each file's URI and the places of its rows, uint64 and ascending; the driver holds one file's at a time.
    """
    from pyspark.sql import functions as F

    hidden = hidden_metadata(docs)
    placed = docs.select(
        col(id_field).alias("__spark_dedup_id"),
        F.col(f"{hidden}.file_path").alias(_FILE),
        F.col(f"{hidden}.row_index").alias(_PLACE),
    )
    key = as_compared((docs, id_field), (listed, duplicate_id_field))
    wanted = listed.select(key(col(duplicate_id_field)).alias("__spark_dedup_listed"))
    is_listed = key(F.col("__spark_dedup_id")) == F.col("__spark_dedup_listed")
    found = placed.join(wanted, is_listed, "left_semi")
    for uri, rows in groupby(_bitmaps(found, _FILE), key=itemgetter(0)):
        yield uri, np.concatenate([_places(bucket, bitmap) for _, bucket, bitmap in rows])


def hidden_by_range(
    listed: DataFrame, ranges: Sequence[FileRange], *, duplicate_id_field: str
) -> Iterator[Hidden]:
    """Find the rows whose id is listed where ids count up through the files: no document is read.

    Args:
        listed: list of ids to hide.
        ranges: which ids each file has.
        duplicate_id_field: id column of ``listed``.

    Yields:
        Each file's path and the places of its rows, as ``hidden_by_id``.
    """
    ids = listed.select(col(duplicate_id_field).cast("bigint").alias(_PLACE)).where(f"{_PLACE} >= 0")
    chunks = (_places(bucket, bitmap) for bucket, bitmap in _bitmaps(ids))
    some = next(chunks, None)
    for file in sorted(ranges, key=lambda r: r.first_id):
        end = file.first_id + file.count
        held = [np.empty(0, np.uint64)]
        while some is not None and some[0] < end:
            held.append(some[(some >= file.first_id) & (some < end)] - np.uint64(file.first_id))
            later = some[some >= end]
            some = later if len(later) else next(chunks, None)
        places = np.concatenate(held)
        if len(places):
            yield file.path, places


def _bitmaps(places: DataFrame, *keys: str) -> Iterator[Any]:
    """Yield (keys, bucket, bitmap) of the column of places, in order."""
    from pyspark.sql import functions as F

    place = F.col(_PLACE) + 1  # Spark's buckets count from one
    return (
        places.groupBy(*keys, F.bitmap_bucket_number(place).alias(_BUCKET))
        .agg(F.bitmap_construct_agg(F.bitmap_bit_position(place)))
        .orderBy(*keys, _BUCKET)
        .toLocalIterator(prefetchPartitions=True)
    )


def _places(bucket: int, bitmap: bytes) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return np.flatnonzero(bits).astype(np.uint64) + np.uint64((bucket - 1) * _ROWS_PER_BUCKET)
