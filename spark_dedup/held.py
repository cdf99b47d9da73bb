"""Rows held between steps: computed once, and read from where they lie by all that follows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.paths import delete, spark_location, spark_path
from spark_dedup.session import is_connect

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["Hold", "holding", "on_executors"]

Hold = Callable[["DataFrame"], "DataFrame"]
"""Computes rows, now, and returns them as they lie somewhere."""


@contextmanager
def holding(spark: SparkSession, folder: str) -> Iterator[Hold]:
    """Yield what holds rows: on the executors, or, where the session refuses that, as parquet files.

    Args:
        spark: the session.
        folder: a free place for the files, which is deleted in the end.
    """
    if _has_checkpoints(spark):
        yield on_executors
        return

    def in_files(rows: DataFrame) -> DataFrame:
        place = f"{folder}/{uuid.uuid4().hex}"
        rows.write.parquet(spark_location(place))
        return spark.read.schema(rows.schema).parquet(spark_path(place))

    try:
        yield in_files
    finally:
        delete(folder)


def on_executors(rows: DataFrame) -> DataFrame:
    """Hold rows on the executors.

    Raises:
        InputError: a session that cannot.
    """
    if not _has_checkpoints(rows.sparkSession):
        raise InputError(
            "this session holds no rows between steps (localCheckpoint), as Spark Connect of 3.5 and serverless "
            "compute: take a classic session, or the semantic job with ledger=, which holds them in files"
        )
    return rows.localCheckpoint()


def _has_checkpoints(spark: SparkSession) -> bool:
    if not is_connect(spark):
        return True
    try:
        spark.range(1).localCheckpoint()
    except Exception:  # Spark 3.5 has no such method; serverless compute refuses it in words of its own
        return False
    return True
