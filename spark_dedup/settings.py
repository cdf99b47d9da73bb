"""Settings of a running session: read, applied for a while, put back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["NANOS_AS_LONG", "conf_of", "parquet_as_it_is", "settings"]

logger = logging.getLogger(__name__)

NANOS_AS_LONG = "spark.sql.legacy.parquet.nanosAsLong"
"""Else a column of nanoseconds that nobody asked for keeps Spark from reading the others."""

_CALENDAR = ("datetimeRebaseModeInRead", "datetimeRebaseModeInWrite", "int96RebaseModeInRead")


def conf_of(spark: SparkSession, key: str, default: str = "") -> str:
    """Return a setting of a session, or the default where it is unset or, as on serverless, not told."""
    try:
        return spark.conf.get(key, None) or default
    except Exception:  # its class differs between classic and Connect
        return default


def parquet_as_it_is(spark: SparkSession) -> AbstractContextManager[None]:
    """Have parquet's timestamps written as they were read inside the block, where the session takes it.

    ``NANOS_AS_LONG``, which keeps a scan off the GPU, is off until an input needs it, and put back at the end.
    """
    # Spark 3 fails at dates before 1900 unless told that they are of today's calendar, which Spark 4 assumes.
    keys = [f"spark.sql.parquet.{name}" for name in _CALENDAR]
    unset = {key: "CORRECTED" for key in keys if not conf_of(spark, key)}
    # Spark's own default is INT96, which other readers take for nanoseconds, where far dates overflow.
    micros = {"spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS", NANOS_AS_LONG: "false"}
    return settings(spark, {**micros, **unset})


@contextlib.contextmanager
def settings(spark: SparkSession, wanted: Mapping[str, str], *, reason: str | None = None) -> Iterator[None]:
    """Apply runtime settings inside the block and put the old ones back.

    With a ``reason``, warn of each that the session does not take.
    """
    before: dict[str, str | None] = {}
    try:
        for key, value in wanted.items():
            try:
                before[key] = spark.conf.get(key, None)
                spark.conf.set(key, value)
            except Exception as error:  # its class differs between classic and Connect
                before.pop(key, None)
                first = str(error).splitlines()[0]
                level = logging.DEBUG if reason is None else logging.WARNING
                logger.log(level, "%s: this session no longer takes %s=%s (%s)", reason, key, value, first)
        yield
    finally:  # of an interrupted start, too
        for key, old in before.items():
            spark.conf.unset(key) if old is None else spark.conf.set(key, old)
