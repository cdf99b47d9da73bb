"""The id registry's Delta table through Spark SQL: for table names, Spark Connect and remote stores.

Ids are given out by one ``INSERT … SELECT`` that reads the maximum and writes in the same statement. Delta's
optimistic commit then refuses it when another writer was first; reading the maximum beforehand would overlap.
On a local disk and on S3 Delta refuses inside one JVM only, so there the table is held while it is written.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from spark_dedup.errors import HeldError, InputError, first_line
from spark_dedup.ids.batches import Batch
from spark_dedup.ids.rows import COLUMNS, LOOKUP, TABLE_SETTINGS, Entry, as_frame, check_layout, rows_of
from spark_dedup.ids.turns import TURN_FILE
from spark_dedup.outputs import exclusive
from spark_dedup.paths import exists, is_local, spark_location

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["SparkLog"]

CREATE_PATIENCE_S, HOLD_PATIENCE_S = 120.0, 5.0
CONFLICTS = ("DELTA_CONCURRENT", "io.delta.exceptions.", "ConcurrentModificationException")
ABSENT = ("TABLE_OR_VIEW_NOT_FOUND", "PATH_NOT_FOUND", "DELTA_TABLE_NOT_FOUND", "DELTA_PATH_DOES_NOT_EXIST",
          "DELTA_MISSING_DELTA_TABLE", "DELTA_SCHEMA_NOT_SET", "is not a Delta table")  # fmt: skip


class SparkLog:
    """Registry rows in a Delta table that Spark names. Not thread-safe.

    Args:
        spark: a session with Delta.
        table: the table in SQL: a quoted name, or ``delta.`path```.
        location: the table in messages.
        initial: rows of the first version of a table that is created.
        folder: the table's folder, where it lies on this machine's disks or on S3.
    """

    def __init__(
        self, spark: SparkSession, table: str, location: str, *, initial: pa.Table, folder: str | None = None
    ) -> None:
        self.location = location
        self.lock_file = Path(folder) / TURN_FILE if folder and is_local(folder) else None
        self._folder = folder
        self.created = False
        self._spark = spark
        self._table = table
        columns = self._columns()
        if columns is None:
            with ExitStack() as held:
                if folder is not None:
                    # A place that cannot be written here is the server's, or HDFS; if not, creating it fails too.
                    with suppress(PermissionError):
                        held.enter_context(exclusive(folder, patience_s=CREATE_PATIENCE_S))
                self._create(initial)
        check_layout(columns or self._columns() or [], location)

    def _columns(self) -> list[str] | None:
        """Return the table's columns, None when there is no table."""
        try:
            return list(self._spark.table(self._table).columns)
        except Exception as error:
            if any(word in str(error) for word in ABSENT):
                return None
            raise

    def _create(self, initial: pa.Table) -> None:
        settings = ", ".join(f"'{key}' = '{value}'" for key, value in TABLE_SETTINGS.items())
        with self._view(initial) as rows:
            try:
                self._spark.sql(
                    f"CREATE TABLE {self._table} USING delta TBLPROPERTIES ({settings}) AS SELECT * FROM {rows}"
                ).collect()
                self.created = True
            except Exception as error:
                # Else another process made it in the meantime.
                if self._columns() is None and not self._complete(initial):
                    why = first_line(error)
                    raise InputError(f"the id registry {self.location} cannot be created: {why}") from error

    def _complete(self, initial: pa.Table) -> bool:
        """Make a table where a killed process began it, and say whether there was such a place.

        A log without a commit is no table to Delta, and yet CREATE TABLE says that the table exists.
        """
        if self._table == self.location or not exists(f"{self.location}/_delta_log"):
            return False
        writer = as_frame(self._spark, initial).coalesce(1).write.format("delta").options(**TABLE_SETTINGS)
        writer.mode("error").save(spark_location(self.location))
        self.created = True
        return True

    @contextmanager
    def _view(self, rows: pa.Table) -> Iterator[str]:
        name = f"spark_dedup_{uuid.uuid4().hex}"
        as_frame(self._spark, rows).createOrReplaceTempView(name)
        try:
            yield name
        finally:
            self._spark.catalog.dropTempView(name)

    def next_id(self) -> int:
        """Return the first id not given out."""
        row = self._spark.sql(f"SELECT max(max_id) + 1 FROM {self._table}").first()
        return int(row[0]) if row else 0

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return what is registered under the keys, as of now."""
        with self._view(pa.table({"key": pa.array(keys, pa.string())})) as asked:
            return self._entries(f"LEFT SEMI JOIN {asked} a ON t.key = a.key")

    def _entries(self, condition: str) -> dict[str, Entry]:
        names = ", ".join(f"t.{name}" for name in LOOKUP)
        rows = self._spark.sql(f"SELECT {names} FROM {self._table} t {condition}").collect()
        return {row["key"]: Entry(**row.asDict()) for row in rows}

    def ranges(self) -> pa.Table:
        """Return key, min_id and max_id of every batch, the origin row included."""
        rows = self._spark.sql(f"SELECT key, min_id, max_id FROM {self._table}").collect()
        columns = [[row[i] for row in rows] for i in range(3)]
        return pa.table(columns, schema=pa.schema([COLUMNS.field(n) for n in ("key", "min_id", "max_id")]))

    def append(self, batches: Sequence[Batch], keys: Sequence[str], token: str) -> dict[str, Entry] | None:
        """Register batches in one statement, all or, when one is known by now, none.

        Returns:
            The new entries, or None when another writer was first: look the keys up again.
        """
        with ExitStack() as held:
            # The folder may be another machine's, or lie on HDFS: then Delta's own commits are safe.
            if self._folder is not None and exists(f"{self._folder}/_delta_log"):
                try:
                    held.enter_context(exclusive(f"{self._folder}/_commit", patience_s=HOLD_PATIENCE_S))
                except HeldError:
                    return None
            if not self._insert(batches, keys, token):
                return None
        return self._entries(f"WHERE t.commit_token = '{token}'") or None

    def _insert(self, batches: Sequence[Batch], keys: Sequence[str], token: str) -> bool:
        """Run the statement; return whether it ended, with or without rows."""
        names = ", ".join(COLUMNS.names)
        values = ", ".join(
            f"n.next + b.{c}" if c in ("min_id", "max_id") else f"b.{c}" for c in COLUMNS.names
        )
        with self._view(rows_of(batches, keys, token, first=0)) as new:
            try:
                self._spark.sql(
                    f"INSERT INTO {self._table} ({names}) SELECT {values} FROM {new} b CROSS JOIN ("
                    f"SELECT max(t.max_id) + 1 AS next, count(k.key) AS known FROM {self._table} t "
                    f"LEFT JOIN {new} k ON t.key = k.key) n WHERE n.known = 0"
                ).collect()
            except Exception as error:
                if any(word in str(error) for word in CONFLICTS):
                    return False
                raise
        return True

    def table(self, spark: SparkSession) -> DataFrame:
        """Return the table as it is now."""
        return spark.table(self._table)
