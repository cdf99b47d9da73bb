"""A list of ids of any size: the documents' files are taken in passes whose share of the list fits an executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from spark_dedup.ids.files import FileRange
from spark_dedup.ids.splits import small_table
from spark_dedup.tables import as_compared, col, file_and_start

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["IDS_PER_PASS", "IDS_TO_BROADCAST", "Pass", "locate", "locate_by_range", "plan_passes"]

IDS_PER_PASS = 4_000_000
"""About 200 MB as a broadcast hash table of bigints."""
IDS_TO_BROADCAST = 20_000_000
"""About 1 GB; where passes are impossible, a longer list is joined by shuffling documents too."""


@dataclass(frozen=True)
class Pass:
    """Files that are read together, and the keys of files that bound their part of the located ids."""

    paths: tuple[str, ...]
    first: str
    last: str

    def ids(self, located: DataFrame) -> DataFrame:
        """Return the listed ids that lie in these files."""
        from pyspark.sql import functions as F

        return located.where(F.col("file").between(self.first, self.last)).select("id")


def locate(ids: DataFrame, listed: DataFrame, *, id_field: str, duplicate_id_field: str) -> DataFrame | None:
    """Return (id, file) of the listed ids that the documents hold; ids are shuffled, documents are not.

    None where the session does not tell the file of a row, as Unity Catalog of files that are read by parts.

    Args:
        ids: the documents' id column, straight from their scan.
        listed: the list of ids to remove.
        id_field: id column of ``ids``.
        duplicate_id_field: id column of ``listed``.
    """
    from pyspark.sql import functions as F

    try:
        placed = ids.select(col(id_field).alias("id"), file_and_start(ids)[0].alias("file"))
        placed.columns  # noqa: B018 - a Connect session looks only now
    except Exception:  # its class differs between classic and Connect
        return None
    key = as_compared((ids, id_field), (listed, duplicate_id_field))
    wanted = listed.select(key(col(duplicate_id_field)).alias("listed")).hint("merge")
    found = placed.join(wanted, key(F.col("id")) == F.col("listed"), "left_semi")
    return found.repartitionByRange("file").sortWithinPartitions("file")


def locate_by_range(
    listed: DataFrame,
    ranges: Sequence[FileRange],
    keys: Mapping[str, str],
    *,
    duplicate_id_field: str,
    near: str | None,
) -> DataFrame:
    """Return (id, file) of the listed ids where ids count up through the files: no document is read.

    Args:
        listed: the list of ids to remove.
        ranges: which ids each file has.
        keys: path of each file → what stands for it.
        duplicate_id_field: id column of ``listed``.
        near: as :func:`small_table` takes it.
    """
    from pyspark.sql import functions as F

    filled = [r for r in ranges if r.count]
    # An id is compared with the files whose ids share its upper bits: few, where these stand for about a file.
    shift = max(1, sum(r.count for r in filled) // max(1, len(filled))).bit_length() - 1
    rows = [
        (bucket, r.first_id, r.first_id + r.count - 1, keys[r.path])
        for r in filled
        for bucket in range(r.first_id >> shift, ((r.first_id + r.count - 1) >> shift) + 1)
    ]
    numbers = [(name, pa.int64()) for name in ("bucket", "low", "high")]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    table = pa.table(columns, schema=pa.schema([*numbers, ("file", pa.string())]))
    wanted = listed.select(col(duplicate_id_field).cast("bigint").alias("id")).distinct()
    is_in = (F.shiftright("id", shift) == F.col("bucket")) & F.col("id").between(F.col("low"), F.col("high"))
    found = wanted.join(F.broadcast(small_table(listed.sparkSession, table, near)), is_in).select(
        "id", "file"
    )
    return found.repartitionByRange("file").sortWithinPartitions("file")


def plan_passes(
    keys: Mapping[str, str],
    listed_per_key: Mapping[str, int],
    *,
    ids_per_pass: int = IDS_PER_PASS,
) -> list[Pass]:
    """Group all files, in order of their keys, so that no pass has more listed ids than allowed or one file's.

    Args:
        keys: path of each file → what stands for it, such as its URL as Spark spells it.
        listed_per_key: number of listed ids in a file, where there are any.
        ids_per_pass: most ids of one pass.
    """
    passes: list[list[tuple[str, str]]] = [[]]
    held = 0
    for key, path in sorted((key, path) for path, key in keys.items()):
        count = listed_per_key.get(key, 0)
        if passes[-1] and held + count > ids_per_pass:
            passes.append([])
            held = 0
        passes[-1].append((key, path))
        held += count
    return [_pass(members) for members in passes if members]


def _pass(members: Sequence[tuple[str, str]]) -> Pass:
    return Pass(tuple(path for _, path in members), members[0][0], members[-1][0])
