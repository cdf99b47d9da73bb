"""What jobs make of arguments that several have: checks, settings, a session."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError
from spark_dedup.ids.curator import parse_bytes
from spark_dedup.session import active_or_build
from spark_dedup.settings import conf_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["check_compression", "check_count", "check_size", "session_with", "split_settings"]

logger = logging.getLogger(__name__)

_CODECS = {
    "parquet": ("none", "uncompressed", "snappy", "gzip", "lzo", "brotli", "lz4", "lz4_raw", "zstd"),
    "jsonl": ("none", "uncompressed", "bzip2", "deflate", "gzip", "lz4", "snappy"),
}


def check_count(name: str, value: object) -> None:
    """Check that an argument is a whole number of at least 1.

    Raises:
        InputError: it is none; names the argument.
    """
    if type(value) is not int or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")


def check_size(size: int | str) -> int:
    """Return a size in bytes, as ``parse_bytes`` reads it.

    Raises:
        InputError: for anything else, or a size below one byte.
    """
    value = parse_bytes(size)
    if value < 1:
        raise InputError(f"{size!r} is no size: it must be positive")
    return value


def check_compression(options: Mapping[str, Any] | None, *, argument: str, filetype: str = "parquet") -> None:
    """Check the compression that options of a writer name, which Spark itself looks at when it writes.

    Raises:
        InputError: with those there are.
    """
    names = [value for key, value in (options or {}).items() if key.lower() == "compression"]
    named = str(names[0]).lower() if names and names[0] is not None else "none"
    # JSON lines take a class of Hadoop's as well.
    if named not in _CODECS[filetype] and not (filetype == "jsonl" and "." in named):
        raise InputError(f"{argument}: compression {names[0]!r} is not one of {', '.join(_CODECS[filetype])}")


def split_settings(blocksize: int | str | None) -> dict[str, str]:
    """Return the Spark setting that cuts input into pieces of at most ``blocksize``."""
    return {} if blocksize is None else {"spark.sql.files.maxPartitionBytes": str(check_size(blocksize))}


def session_with(
    spark: SparkSession | None, startup: Mapping[str, str], *, device: str, reason: str
) -> SparkSession:
    """Return the given, the active, or a new session; warn where it can no longer take settings of its start."""
    session = active_or_build(spark, device=device, conf=startup)
    for key, value in startup.items():
        if conf_of(session, key) != value:
            logger.warning(
                "%s: this session no longer takes %s=%s: give it to the session's start", reason, key, value
            )
    return session
