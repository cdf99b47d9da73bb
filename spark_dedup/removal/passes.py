"""A list of ids of any size: the documents' files are taken in passes whose share of the list fits an executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spark_dedup.tables import as_compared, col, file_and_start

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["IDS_PER_PASS", "IDS_TO_BROADCAST", "Pass", "locate", "plan_passes"]

IDS_PER_PASS = 4_000_000
"""About 200 MB as a broadcast hash table of bigints."""
IDS_TO_BROADCAST = 20_000_000
"""About 1 GB; where passes are impossible, a longer list is joined by shuffling documents too."""


@dataclass(frozen=True)
class Pass:
    """Files that are read together, and the URLs that bound their part of the located ids."""

    paths: tuple[str, ...]
    first_url: str
    last_url: str

    def ids(self, located: DataFrame) -> DataFrame:
        """Return the listed ids that lie in these files."""
        from pyspark.sql import functions as F

        return located.where(F.col("file").between(self.first_url, self.last_url)).select("id")


def locate(ids: DataFrame, listed: DataFrame, *, id_field: str, duplicate_id_field: str) -> DataFrame | None:
    """Return (id, file) of the listed ids that the documents hold; ids are shuffled, documents are not.

    None where the session does not tell the file of a row, as Unity Catalog of ids that are made on the way.

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


def plan_passes(
    urls: Mapping[str, str],
    listed_per_url: Mapping[str, int],
    *,
    ids_per_pass: int = IDS_PER_PASS,
) -> list[Pass]:
    """Group all files, in order of URL, so that no pass has more listed ids than allowed or one file's.

    Args:
        urls: path of each file → its URL as Spark spells it.
        listed_per_url: number of listed ids in a file, where there are any.
        ids_per_pass: most ids of one pass.
    """
    passes: list[list[tuple[str, str]]] = [[]]
    held = 0
    for url, path in sorted((url, path) for path, url in urls.items()):
        count = listed_per_url.get(url, 0)
        if passes[-1] and held + count > ids_per_pass:
            passes.append([])
            held = 0
        passes[-1].append((url, path))
        held += count
    return [_pass(members) for members in passes if members]


def _pass(members: Sequence[tuple[str, str]]) -> Pass:
    return Pass(tuple(path for _, path in members), members[0][0], members[-1][0])
