"""Removal without a copy: a shallow clone with deletion vectors, or a view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.tables import col, quote

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dedup.datasets import Source

__all__ = ["clone_without", "create_view_without"]


def clone_without(
    spark: SparkSession,
    source: Source,
    duplicates: DataFrame,
    target: str,
    *,
    id_field: str,
    duplicate_id_field: str,
) -> tuple[int, int]:
    """Clone a dataset to the folder ``target`` and hide the listed rows behind deletion vectors.

    The source is untouched, and no data file is written: the clone's log points to the source's files.

    Args:
        spark: a session with Delta.
        source: Delta path, table, or one folder of parquet files.
        duplicates: list of ids.
        target: folder of the clone.
        id_field: id column of the source.
        duplicate_id_field: id column of ``duplicates``.

    Returns:
        Rows before, rows removed.

    Raises:
        InputError: for a source that cannot be cloned.
    """
    if len(source.names) != 1:
        raise InputError(
            "delta-clone takes one folder or table, not several paths: remove from each on its own"
        )
    clone = f"delta.{quote(target)}"
    spark.sql(f"CREATE TABLE {clone} SHALLOW CLONE {relation(source)}")
    spark.sql(f"ALTER TABLE {clone} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
    before = spark.table(clone).count()
    listed = "__spark_dedup_listed"
    duplicates.select(col(duplicate_id_field).alias("id")).distinct().createOrReplaceTempView(listed)
    try:
        spark.sql(
            f"MERGE INTO {clone} AS t USING {listed} AS d ON t.{quote(id_field)} = d.id WHEN MATCHED THEN DELETE"
        )
    finally:
        spark.catalog.dropTempView(listed)
    return before, before - spark.table(clone).count()


def create_view_without(
    spark: SparkSession,
    source: Source,
    duplicates: Source,
    view: str,
    columns: list[str],
    *,
    id_field: str,
    duplicate_id_field: str,
    replace: bool,
) -> tuple[int, int]:
    """Create a view of the documents whose id is not listed; it follows both as they change.

    Args:
        spark: the session whose catalog holds the view.
        source: the documents.
        duplicates: the list of ids.
        view: name of the view.
        columns: the columns it shows.
        id_field: id column of the documents.
        duplicate_id_field: id column of the list.
        replace: replace a view of that name.

    Returns:
        Rows of the documents, rows removed, both counted once now.
    """
    shown = ", ".join(f"d.{quote(name)}" for name in columns)
    query = (
        f"SELECT {shown} FROM {relation(source)} AS d LEFT ANTI JOIN {relation(duplicates)} AS r "
        f"ON d.{quote(id_field)} = r.{quote(duplicate_id_field)}"
    )
    remaining = spark.sql(query).count()
    spark.sql(f"CREATE {'OR REPLACE ' if replace else ''}VIEW {view} AS {query}")
    total = spark.table(relation(source)).count()
    return total, total - remaining


def relation(source: Source) -> str:
    """Return a dataset as SQL names it in FROM.

    Raises:
        InputError: for several paths, which SQL cannot name at once.
    """
    if source.kind == "table":
        return source.names[0]
    if len(source.names) != 1:
        raise InputError("SQL names one path at a time: make a table of them first")
    return f"{'delta' if source.kind == 'delta' else 'parquet'}.{quote(source.names[0])}"
