"""Rows of the id registry's table: one per batch of files, never changed and never removed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from spark_dedup.errors import InputError
from spark_dedup.ids.batches import Batch, stale_error
from spark_dedup.paths import is_local
from spark_dedup.settings import conf_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = [
    "COLUMNS",
    "LOOKUP",
    "ORIGIN",
    "TABLE_SETTINGS",
    "Entry",
    "as_frame",
    "check_layout",
    "origin_rows",
    "raise_if_stale",
    "rows_of",
    "state_rows",
]

ORIGIN = "origin"
"""Key of a table's first row: an empty range that ends below the first id, so the maximum always exists."""

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("files", pa.list_(pa.string())),
        ("min_id", pa.int64()),
        ("max_id", pa.int64()),
        ("size", pa.int64()),
        ("modified_ms", pa.int64()),
        ("commit_token", pa.string()),
    ]
)
TABLE_SETTINGS = {
    "delta.appendOnly": "true",
    # Databricks defaults to a weaker level, under which two INSERT … SELECT max(…) may both succeed.
    "delta.isolationLevel": "Serializable",
}
LOOKUP = ("key", "min_id", "max_id", "size", "modified_ms")


@dataclass(frozen=True)
class Entry:
    """What the registry knows of a batch; size and time are None where nobody told them."""

    key: str
    min_id: int
    max_id: int
    size: int | None
    modified_ms: int | None

    @property
    def count(self) -> int:
        """Rows of the batch."""
        return self.max_id - self.min_id + 1


def origin_rows(first: int) -> pa.Table:
    """Return the row that a table starts with: the first id to give out is ``first``."""
    return pa.table([[ORIGIN], [[]], [first], [first - 1], [None], [None], [ORIGIN]], schema=COLUMNS)


def rows_of(batches: Sequence[Batch], keys: Sequence[str], token: str, *, first: int) -> pa.Table:
    """Return the rows of new batches, their ranges one after the other from ``first``."""
    starts = [first]
    for batch in batches:
        starts.append(starts[-1] + batch.count)
    return pa.table(
        [
            list(keys),
            [list(batch.files) for batch in batches],
            starts[:-1],
            [end - 1 for end in starts[1:]],
            [batch.size for batch in batches],
            [batch.modified_ms for batch in batches],
            [token] * len(batches),
        ],
        schema=COLUMNS,
    )


def state_rows(next_id: int, ranges: dict[str, tuple[int, int]], token: str) -> pa.Table:
    """Return the rows of an imported generator: it names keys only, so files, sizes and times are unknown."""
    n = len(ranges)
    first, last = [r[0] for r in ranges.values()], [r[1] for r in ranges.values()]
    nulls: list[None] = [None] * n
    imported = pa.table([list(ranges), nulls, first, last, nulls, nulls, [token] * n], schema=COLUMNS)
    return pa.concat_tables([origin_rows(next_id), imported])


def check_layout(columns: Sequence[str], where: str) -> None:
    """Check that a table is an id registry of this layout.

    Raises:
        InputError: naming the table, what it has and what it should have.
    """
    if sorted(columns) != sorted(COLUMNS.names):
        raise InputError(
            f"{where} is not an id registry of this layout: it has the columns {', '.join(columns)}, "
            f"not {', '.join(COLUMNS.names)}; name another place for the registry"
        )


def as_frame(spark: SparkSession, rows: pa.Table) -> DataFrame:
    """Return an Arrow table of the driver's as a DataFrame; Spark 3 takes none, nor 4 for batches of any length."""
    limit = int(conf_of(spark, "spark.sql.execution.arrow.maxRecordsPerBatch", "1"))
    if int(spark.version.split(".")[0]) >= 4 and limit > 0:
        return spark.createDataFrame(rows)
    types = {pa.string(): "string", pa.int64(): "bigint", pa.list_(pa.string()): "array<string>"}
    ddl = ", ".join(f"{field.name} {types[field.type]}" for field in rows.schema)
    return spark.createDataFrame([tuple(row.values()) for row in rows.to_pylist()], ddl)


def raise_if_stale(pairs: Iterable[tuple[Batch, Entry]]) -> None:
    """Check that batches are what the registry knows of them.

    Raises:
        StaleBatchError: naming those that are not, and how they differ.
    """
    stale = [change for batch, entry in pairs if (change := _changes(batch, entry))]
    if stale:
        raise stale_error(stale)


def _changes(batch: Batch, entry: Entry) -> str | None:
    """Say what changed of a batch since it was registered, as far as both tell; None when nothing did."""
    modified_ms = entry.modified_ms or None  # older registries say 0 where no time was told
    if modified_ms and batch.modified_ms and not all(map(is_local, batch.files)):
        # Some stores tell the milliseconds in a list of files, and leave them out where one is asked for.
        in_seconds = modified_ms // 1000 == batch.modified_ms // 1000
        if in_seconds and 0 in (modified_ms % 1000, batch.modified_ms % 1000):
            modified_ms = None
    told = [
        f"{then} {what} then, {now} now"
        for what, then, now in (
            ("rows", entry.count, batch.count),
            ("bytes", entry.size, batch.size),
            ("ms modification time", modified_ms, batch.modified_ms),
        )
        if then is not None and now is not None and then != now
    ]
    return f"{batch.name} ({'; '.join(told)})" if told else None
