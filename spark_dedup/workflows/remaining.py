"""Where the documents that remain go: files, a table of the catalog, a view."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError, first_line
from spark_dedup.footers import parquet_footers
from spark_dedup.listing import list_files
from spark_dedup.names import is_table_name, quote_name, split_name
from spark_dedup.paths import Location, filesystem, is_local, move, spark_location, spark_path
from spark_dedup.removal.vectors import NAMES_TO_MAP, nested_names
from spark_dedup.sources import table_exists

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = [
    "check_balance",
    "check_no_table",
    "check_schema",
    "check_view_name",
    "count_written",
    "name_files",
    "save",
    "write_table",
    "write_view",
]

_ENDINGS = {"jsonl": (".json", ".txt"), "parquet": (".parquet",)}
"""How Spark ends the files it writes."""
_JSON = {
    "ignoreNullFields": "false",
    # As Spark writes them, but with the microseconds that it cuts off, and in UTC: the offsets of other zones had
    # seconds once, which no pattern writes under every setting of the session.
    "timeZone": "UTC",
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}
_MAPPING = {"delta.columnMapping.mode": "name"}


def save(
    df: DataFrame, folder: str, *, filetype: str, output_kwargs: Mapping[str, Any] | None = None
) -> None:
    """Add documents to a folder as ``parquet``, ``jsonl``, ``delta`` or ``text``, lines as they are."""
    options: dict[str, Any] = {}
    if filetype == "jsonl":
        options |= _JSON
    elif filetype == "delta":
        options |= _mapping(df)
    writer = df.write.mode("append").options(**{**options, **(output_kwargs or {})})
    writer.format("json" if filetype == "jsonl" else filetype).save(spark_location(folder))


def _mapping(df: DataFrame) -> dict[str, str]:
    return _MAPPING if NAMES_TO_MAP.search("".join(nested_names(df.schema))) else {}


def count_written(spark: SparkSession, folder: str, *, filetype: str) -> int:
    """Count the documents that were written, by footers, lines or Delta's log."""
    if filetype == "parquet" and is_local(folder):
        return sum(footer.num_rows for footer in parquet_footers(list_files(folder)))
    if filetype == "jsonl":
        return int(spark.read.text(spark_path(folder)).count())
    path = spark_location(folder) if filetype == "delta" else spark_path(folder)
    return int(spark.read.format(filetype).load(path).count())


def name_files(folder: str, *, filetype: str, extension: str | None = None) -> None:
    """Give written files the ending asked for; JSON lines end in ``.jsonl`` by default."""
    wanted = extension or {"jsonl": "jsonl"}.get(filetype)
    if wanted is None:
        return
    fs, inner = filesystem(folder)
    for path in fs.ls(inner, detail=False):
        name = path.rsplit("/", 1)[-1]
        for written in _ENDINGS.get(filetype, ()):
            head, ending, codec = name.rpartition(written)
            if ending and not name.startswith(("_", ".")):
                move(f"{folder}/{name}", f"{folder}/{head}.{wanted.lstrip('.')}{codec}")
                if fs.exists(checksum := f"{inner}/.{name}.crc"):  # Hadoop's, for the old name
                    fs.rm_file(checksum)


def check_balance(read: int, removed: int, written: int) -> None:
    """Check that no document was lost or doubled.

    Raises:
        RuntimeError: with the counts.
    """
    if read - removed != written:
        raise RuntimeError(
            f"counts do not balance: {read} read - {removed} removed is not {written} written; nothing was "
            "published. Did the input change meanwhile?"
        )


def write_table(
    spark: SparkSession,
    df: DataFrame,
    name: str,
    *,
    expected: tuple[int, int],
    replace: bool,
    output_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write a Delta table of the catalog; one commit publishes it, and is taken back when counts do not balance.

    Args:
        spark: a session with Delta.
        df: documents.
        name: quoted name.
        expected: rows read, rows removed.
        replace: replace a table of that name.
        output_kwargs: options for Spark's writer.

    Raises:
        InputError: the folder of a table that is not there holds something, and ``replace`` is not asked.
        RuntimeError: counts that do not balance.
    """
    there = spark.catalog.tableExists(name)
    before = spark.sql(f"DESCRIBE HISTORY {name} LIMIT 1").first() if there else None
    options = {**_mapping(df), "overwriteSchema": "true", **(output_kwargs or {})}
    writer = df.write.format("delta").options(**options).mode("overwrite" if replace else "error")
    try:
        writer.saveAsTable(name)
    except Exception as error:  # its class differs between classic and Connect
        if replace or "DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION" not in str(error):
            raise
        place = re.search(r"location \('(.+?)'\)", str(error))
        raise InputError(
            f"the catalog has no table {name}, but its folder {place[1] if place else ''} is not empty, as a "
            "killed run leaves it: overwrite it (output_mode 'overwrite', a command: --overwrite) if nobody needs "
            "it, or name another table"
        ) from error
    try:
        check_balance(*expected, int(spark.table(name).count()))
    except RuntimeError:
        if before is None:
            spark.sql(f"DROP TABLE {name}")
        else:
            spark.sql(f"RESTORE TABLE {name} TO VERSION AS OF {before['version']}")
        raise


def check_no_table(spark: SparkSession, output: Location, *, filetype: str) -> None:
    """Check that an output which is a folder is not meant as a table: ``schema.table`` of a schema that is there.

    Raises:
        InputError: it reads like one.
    """
    if not is_table_name(output) or len(split_name(output)) == 1:
        return
    schema, is_there = quote_name(split_name(output)[:-1]), False
    with contextlib.suppress(Exception):  # an unknown catalog; its class differs between classic and Connect
        is_there = spark.catalog.databaseExists(schema)
    if is_there:
        raise InputError(
            f"{filetype} is written to a folder, and {output} names a table of schema {schema}: give a path, "
            f'such as ./{output}, or output_filetype "delta" for a table'
        )


def check_schema(spark: SparkSession, name: str) -> None:
    """Check that the schema of a quoted name is there; Spark would tell when all was read.

    Raises:
        InputError: it is not.
    """
    schema = quote_name(split_name(name)[:-1])
    try:
        is_there = not schema or spark.catalog.databaseExists(schema)
    except Exception as error:  # an unknown catalog; its class differs between classic and Connect
        raise InputError(f"cannot look for the schema {schema}: {first_line(error)}") from error
    if not is_there:
        raise InputError(
            f"no schema {schema} in this session's catalog: CREATE SCHEMA {schema}, or name another output"
        )


def check_view_name(spark: SparkSession, name: str) -> None:
    """Check that a name is free for a view, or names one.

    Raises:
        InputError: it names a table.
    """
    if not table_exists(spark, name):
        return
    kind = spark.sql(f"DESCRIBE TABLE EXTENDED {name}").where("col_name = 'Type'").collect()
    if kind and str(kind[-1]["data_type"]).upper() != "VIEW":
        raise InputError(f"{name} is a table, which no view replaces: choose another name for the view")


def write_view(
    spark: SparkSession, query: str, name: str, *, expected: tuple[int, int], replace: bool
) -> None:
    """Create a view after its query has been counted.

    Args:
        spark: the session whose catalog holds the view.
        query: what it shows.
        name: quoted name.
        expected: rows read, rows removed.
        replace: replace a view of that name.

    Raises:
        InputError: no right to create it, or a view that lasts over one that ends with the session.
    """
    check_balance(*expected, int(spark.sql(query).count()))
    try:
        spark.sql(f"CREATE {'OR REPLACE ' if replace else ''}VIEW {name} AS {query}")
    except Exception as error:  # its class differs between classic and Connect
        raise InputError(f"could not create the view {name}: {first_line(error)}") from error
