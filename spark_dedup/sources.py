"""What a user names - a path, paths, a table: which of them it is, and at what version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError, MissingInputError, first_line
from spark_dedup.listing import EXTENSIONS, Named, named_paths, no_such_path, outermost
from spark_dedup.names import is_table_name, path_relation, quote_name, split_name
from spark_dedup.paths import exists, normalise_path
from spark_dedup.settings import given_options

if TYPE_CHECKING:
    from pyspark.sql import Row, SparkSession

__all__ = [
    "Source",
    "delta_detail",
    "delta_version",
    "find_source",
    "relation_of",
    "table_exists",
    "table_format",
]


@dataclass(frozen=True)
class Source:
    """A dataset that was found: ``kind`` is ``files``, ``delta`` (a path) or ``table``; ``names`` say where."""

    kind: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.names)


def find_source(
    spark: SparkSession,
    source: Named,
    *,
    filetype: str = "parquet",
    extensions: Sequence[str] | None = None,
) -> Source:
    """Find out what a user's name stands for.

    Args:
        spark: the session.
        source: path, paths, Delta path or table name.
        filetype: ``parquet``, ``jsonl`` or ``delta``.
        extensions: endings of files to take instead of the filetype's own.

    Raises:
        InputError: for an unsupported filetype, several Delta paths, or none where Delta was said.
        MissingInputError: for a path or table that does not exist.
    """
    from spark_dedup.hadoop import require_client
    from spark_dedup.session import require_delta

    if filetype not in (*EXTENSIONS, "delta"):
        raise InputError(f"unsupported filetype {filetype!r}: use {', '.join(EXTENSIONS)} or delta")
    given = named_paths(source)
    if not given:
        raise InputError("no input path was given")
    if len(given) == 1 and is_table_name(given[0]):
        name = quote_name(split_name(str(given[0])))
        if table_exists(spark, name):
            return Source("table", (name,))
        raise MissingInputError(
            f"{given[0]!r} is neither an existing path nor a table of this session's catalog"
        )
    unique = list(dict.fromkeys(normalise_path(path) for path in given))
    for path in unique:
        require_client(path)
        if not exists(path):
            raise no_such_path(path)
    paths = outermost(unique, "parquet" if filetype == "delta" else filetype, extensions)
    delta = [path for path in paths if exists(f"{path}/_delta_log")]
    if (delta or filetype == "delta") and len(paths) > 1:
        raise InputError("several paths cannot be read as Delta: name one Delta path, or a view over them")
    if filetype == "delta" and not delta:
        raise InputError(f"{paths[0]} is no Delta table: it has no _delta_log; name the table's folder")
    if delta:
        require_delta(spark)
        return Source("delta", paths)
    return Source("files", paths)


def table_exists(spark: SparkSession, name: str) -> bool:
    """Return whether the catalog has a table or view of a quoted name.

    Raises:
        InputError: it cannot say, as of an unknown catalog.
    """
    try:
        return bool(spark.catalog.tableExists(name))
    except Exception as error:  # its class differs between classic and Connect
        raise InputError(f"cannot look for the table {name}: {first_line(error)}") from error


def table_format(spark: SparkSession, source: Source) -> str | None:
    """Return the format of a Delta path's or a table's files; None for a view, and for files of no table."""
    detail = _detail(spark, source)
    return detail["format"] if detail else None


def relation_of(source: Source, filetype: str = "parquet") -> str:
    """Return a dataset as SQL names it in FROM.

    Raises:
        InputError: for several paths, which SQL cannot name at once.
    """
    if source.kind == "table":
        return source.names[0]
    if len(source.names) != 1:
        raise InputError("SQL names one path at a time: make a view of them first, or take them one by one")
    kind = "delta" if source.kind == "delta" else "json" if filetype == "jsonl" else "parquet"
    return path_relation(kind, source.names[0])


def delta_detail(spark: SparkSession, source: Source) -> Row | None:
    """Return what ``DESCRIBE DETAIL`` says of a Delta path or table; None for files, views and other tables."""
    detail = _detail(spark, source)
    return detail if detail is not None and detail["format"] == "delta" else None


def _detail(spark: SparkSession, source: Source) -> Row | None:
    if source.kind == "files":
        return None
    try:
        return spark.sql(f"DESCRIBE DETAIL {relation_of(source)}").first()
    except Exception:  # a view; its class differs between classic and Connect
        return None


def delta_version(
    spark: SparkSession, source: Source, read_kwargs: Mapping[str, Any] | None = None
) -> str | None:
    """Return ``delta:N``, the version of a Delta path or table that is read; None for views and other tables.

    It is the newest, unless options of the reader (``versionAsOf``, ``timestampAsOf``) ask for an older one.
    """
    from pyspark.sql import functions as F

    asked = {name.lower(): value for name, value in given_options(read_kwargs).items()}
    limit = "" if {"versionasof", "timestampasof"} & asked.keys() else " LIMIT 1"
    try:
        history = spark.sql(f"DESCRIBE HISTORY {relation_of(source)}{limit}")
        if "versionasof" in asked:
            history = history.where(F.col("version") == F.lit(int(asked["versionasof"])))
        if "timestampasof" in asked:
            history = history.where(
                F.col("timestamp") <= F.lit(str(asked["timestampasof"])).cast("timestamp")
            )
        newest = history.orderBy(F.desc("version")).first()
    except Exception:  # its class differs between classic and Connect
        return None
    return f"delta:{newest['version']}" if newest else None
