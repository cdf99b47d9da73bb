"""Settings of a running session: read, applied for a while, put back."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError, first_line

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = [
    "NANOS_AS_LONG",
    "VECTORIZED",
    "WHOLE_FILES",
    "change",
    "check_whole_tables",
    "conf_of",
    "given_options",
    "parquet_as_it_is",
    "reader_options",
    "settings",
]

logger = logging.getLogger(__name__)

NANOS_AS_LONG = "spark.sql.legacy.parquet.nanosAsLong"
"""Else a column of nanoseconds that nobody asked for keeps Spark from reading the others."""

VECTORIZED = "spark.sql.parquet.enableVectorizedReader"
"""Spark's fast reader, which does not know numbers that are split into byte streams."""

_VARIANT_PARTS = "spark.sql.variant.pushVariantIntoScan"
"""Whether Spark reads parts of variants; with useV1SourceList without parquet, Spark 4.1 then loses all of them."""

WHOLE_FILES = {"ignoreCorruptFiles": "false", "ignoreMissingFiles": "false"}
"""Options of Spark's reader, and settings below ``spark.sql.files``: else it may leave out what it cannot read."""

_OLD_READERS = "spark.sql.sources.useV1SourceList"
"""Formats that Spark reads by its first readers: those of parquet tell the places of rows, which clones need."""

_CALENDAR = ("datetimeRebaseModeInRead", "datetimeRebaseModeInWrite", "int96RebaseModeInRead")


def conf_of(spark: SparkSession, key: str, default: str = "") -> str:
    """Return a setting of a session, or the default where it is unset or, as on serverless, not told."""
    try:
        return spark.conf.get(key, None) or default
    except Exception:  # its class differs between classic and Connect
        return default


def parquet_as_it_is(spark: SparkSession) -> AbstractContextManager[None]:
    """Have files read whole, and parquet's timestamps and variants written as they were, if the session takes it.

    ``NANOS_AS_LONG``, which keeps a scan off the GPU, is off and ``VECTORIZED`` as it was until an input needs them
    otherwise; both are put back at the end.
    """
    # Spark 3 fails at dates before 1900 unless told that they are of today's calendar, which Spark 4 assumes.
    keys = [f"spark.sql.parquet.{name}" for name in _CALENDAR]
    unset = {key: "CORRECTED" for key in keys if not conf_of(spark, key)}
    # Spark's own default is INT96, which other readers take for nanoseconds, where far dates overflow.
    micros = {"spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS", NANOS_AS_LONG: "false"}
    zoneless = {"spark.sql.parquet.inferTimestampNTZ.enabled": "true"}  # else written as if they were UTC's
    reader = {VECTORIZED: conf_of(spark, VECTORIZED, "true")}
    whole = {f"spark.sql.files.{name}": value for name, value in WHOLE_FILES.items()}
    wanted = {**whole, **micros, **zoneless, **unset, **reader, _VARIANT_PARTS: "false"}
    return settings(spark, {**_places_told(spark), **wanted})


def _places_told(spark: SparkSession) -> dict[str, str]:
    """Return the setting by which parquet is read by the reader that tells places; none where it is already."""
    try:
        given = spark.conf.get(_OLD_READERS, None)
    except Exception:  # its class differs between classic and Connect
        given = None
    if given is None or "parquet" in given.lower().split(","):
        return {}
    return {_OLD_READERS: f"{given},parquet".lstrip(",")}


def given_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of a reader or writer that were given: one that is None was not."""
    return {name: value for name, value in (options or {}).items() if value is not None}


def reader_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of a reader that were given, and those by which it leaves out nothing that it cannot read.

    Raises:
        InputError: one that was given asks for that.
    """
    given = given_options(options)
    fixed = {name.lower() for name in WHOLE_FILES}
    for name, value in given.items():
        if name.lower() in fixed and str(value).lower() != "false":
            raise InputError(
                f"option {name!r} would lose documents silently: leave it out, and write damaged files again or "
                "remove them"
            )
    return {name: value for name, value in given.items() if name.lower() not in fixed} | WHOLE_FILES


def check_whole_tables(spark: SparkSession) -> None:
    """Check that the session reads tables whole: Delta and views do not take it from the reader's options.

    Raises:
        InputError: with the settings that lose rows of damaged files.
    """
    lossy = [key for name in WHOLE_FILES if conf_of(spark, key := f"spark.sql.files.{name}") == "true"]
    if lossy:
        raise InputError(
            f"this session would lose rows of tables silently: set {' and '.join(lossy)} to false"
        )


@contextlib.contextmanager
def settings(spark: SparkSession, wanted: Mapping[str, str], *, reason: str | None = None) -> Iterator[None]:
    """Apply runtime settings inside the block and put the old ones back.

    With a ``reason``, warn of each that the session does not take.
    """
    from spark_dedup.session import session_key

    session, mine = session_key(spark), _Held()
    held: list[str] = []
    try:
        for key, value in wanted.items():
            held.append(key)
            try:
                _take(spark, (session, key), value, mine)
            except Exception as error:  # its class differs between classic and Connect
                level, why = logging.DEBUG if reason is None else logging.WARNING, first_line(error)
                logger.log(level, "%s: this session no longer takes %s=%s (%s)", reason, key, value, why)
        yield
    finally:  # of an interrupted start, too
        for key in held:
            _give_back(spark, (session, key), mine)


def change(spark: SparkSession, key: str, value: str) -> None:
    """Change a setting that blocks hold, if the session takes it, until the last of them ends.

    Those of other threads must do with it as well.
    """
    from spark_dedup.session import session_key

    with _lock, contextlib.suppress(Exception):  # its class differs between classic and Connect
        spark.conf.set(key, value)
        for later in _holders.get((session_key(spark), key), [])[1:]:
            later.before[key] = value


class _Held:
    """A block that holds settings: by key, what was set before, or before whoever still holds it."""

    def __init__(self) -> None:
        self.before: dict[str, str | None] = {}


_holders: dict[tuple[str, str], list[_Held]] = {}
"""Who holds a session's setting, oldest first: jobs in threads of one session end in any order."""
_lock = threading.RLock()


def _take(spark: SparkSession, place: tuple[str, str], value: str, mine: _Held) -> None:
    key = place[1]
    with _lock:
        old = spark.conf.get(key, None)
        mine.before[key] = old
        _holders.setdefault(place, []).append(mine)
        try:
            spark.conf.set(key, value)
        except Exception:
            _forget(place, mine)
            raise


def _give_back(spark: SparkSession, place: tuple[str, str], mine: _Held) -> None:
    """Put back what was set before, or, where a later holder is at work, leave that to it."""
    key = place[1]
    with _lock:
        if key not in mine.before:
            return
        later = _holders[place][_holders[place].index(mine) + 1 :]
        old = mine.before[key]
        _forget(place, mine)
        if later:
            later[0].before[key] = old
        elif old is None:
            spark.conf.unset(key)
        else:
            spark.conf.set(key, old)


def _forget(place: tuple[str, str], mine: _Held) -> None:
    mine.before.pop(place[1])
    _holders[place].remove(mine)
    if not _holders[place]:
        del _holders[place]
