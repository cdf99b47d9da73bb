"""Lists of ids to remove, as jobs write them: one column, each id once, sorted within a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spark_dedup.exact import FIRST_OF_GROUP, ids_and_groups
from spark_dedup.footers import parquet_footers
from spark_dedup.listing import list_files
from spark_dedup.outputs import staged
from spark_dedup.paths import delete, exists, move, spark_location
from spark_dedup.tables import col

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["write_ids"]


def write_ids(
    rows: DataFrame, ids: DataFrame, folder: str, *, write_kwargs: Mapping[str, Any] | None = None
) -> tuple[int, int]:
    """Write the ids to remove; return how many, and of how many groups, by the footers of what was written.

    The first of each group goes to files of its own, so that their rows count the groups.

    Args:
        rows: ``duplicate_rows``.
        ids: the id column of the documents, for its name and type.
        folder: where the list is published, in place of an old one.
        write_kwargs: options for Spark's writer.
    """
    name = ids.columns[0]
    listed = ids_and_groups(rows, id_field=name).sortWithinPartitions(FIRST_OF_GROUP, col(name))
    with staged(folder, mode="overwrite") as aside:
        writer = listed.write.options(**(write_kwargs or {})).partitionBy(FIRST_OF_GROUP)
        writer.parquet(spark_location(f"{aside}/split"))
        counts = {}
        for first in ("true", "false"):
            part = f"{aside}/split/{FIRST_OF_GROUP}={first}"
            files = list_files(part) if exists(part) else []
            counts[first] = sum(footer.num_rows for footer in parquet_footers(files))
            for file in files:
                move(file.path, f"{aside}/{_flat_name(file.path, first)}")
        delete(f"{aside}/split")
        if not any(counts.values()):
            empty = ids.sparkSession.createDataFrame([], ids.schema).coalesce(1)
            empty.write.mode("overwrite").parquet(spark_location(aside))
    return sum(counts.values()), counts["true"]


def _flat_name(path: str, first: str) -> str:
    stem, ending = path.rsplit("/", 1)[1].split(".", 1)
    return f"{stem}-{'a' if first == 'true' else 'b'}.{ending}"
