"""Documents without their duplicates: an anti join that moves ids to the documents, never documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.tables import as_compared, col, require_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["check_id_types", "count_documents", "count_listed", "how_to_match", "remove_duplicates"]

_INTEGERS = ("tinyint", "smallint", "int", "bigint")
_LISTED = "__spark_dedup_listed"


def remove_duplicates(
    df: DataFrame,
    duplicates: DataFrame,
    *,
    id_field: str,
    duplicate_id_field: str = "id",
    broadcast: bool = True,
) -> DataFrame:
    """Keep the rows whose id is not listed; all columns, and the order of rows within a partition, stay.

    The list is broadcast, so it must fit an executor. ``TextDuplicatesRemovalWorkflow`` takes longer ones of files
    and of Delta tables without moving documents.

    Args:
        df: documents.
        duplicates: ids to remove; repeated and unknown ids do no harm, rows with a null id are kept, and of
            documents that share a listed id all go.
        id_field: id column of ``df``. Where it or the list's is a CHAR, blanks at the end do not count, as in SQL.
        duplicate_id_field: id column of ``duplicates``.
        broadcast: False shuffles documents and list, which may then have any length; rows change their order.

    Raises:
        InputError: a missing column, or id types that cannot match.
    """
    from pyspark.sql import functions as F

    check_id_types(df, duplicates, id_field=id_field, duplicate_id_field=duplicate_id_field)
    key = as_compared((df, id_field), (duplicates, duplicate_id_field))
    listed = duplicates.select(key(col(duplicate_id_field)).alias(_LISTED)).hint(_hint(not broadcast))
    return df.join(listed, key(col(id_field)) == F.col(_LISTED), "left_anti")


def count_listed(
    df: DataFrame, duplicates: DataFrame, *, id_field: str, duplicate_id_field: str, is_long: bool = False
) -> int:
    """Count the rows whose id is listed; of the documents only the id column is read.

    A list that ``is_long`` is not broadcast: ids are shuffled.
    """
    from pyspark.sql import functions as F

    key = as_compared((df, id_field), (duplicates, duplicate_id_field))
    listed = duplicates.select(key(col(duplicate_id_field)).alias(_LISTED)).hint(_hint(is_long))
    found = df.select(col(id_field)).join(listed, key(col(id_field)) == F.col(_LISTED), "left_semi")
    return int(found.count())


def count_documents(
    df: DataFrame, duplicates: DataFrame, *, id_field: str, duplicate_id_field: str, is_long: bool = False
) -> tuple[int, int]:
    """Count all rows, and those whose id is listed, in one scan of the id column; as ``count_listed``."""
    from pyspark.sql import functions as F

    key = as_compared((df, id_field), (duplicates, duplicate_id_field))
    listed = duplicates.select(key(col(duplicate_id_field)).alias(_LISTED)).distinct().hint(_hint(is_long))
    marked = df.select(col(id_field)).join(listed, key(col(id_field)) == F.col(_LISTED), "left")
    row = marked.agg(F.count(F.lit(1)), F.count(_LISTED)).first()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def _hint(is_long: bool) -> str:
    return "merge" if is_long else "broadcast"


def check_id_types(df: DataFrame, duplicates: DataFrame, *, id_field: str, duplicate_id_field: str) -> None:
    """Check that documents and list have their id columns, of types that compare without a cast of meaning.

    Raises:
        InputError: naming both columns and types.
    """
    require_columns(df, [id_field], where="the documents")
    require_columns(duplicates, [duplicate_id_field], where="the list of duplicate ids (duplicate_id_field)")
    own = df.schema[id_field].dataType.simpleString()
    listed = duplicates.schema[duplicate_id_field].dataType.simpleString()
    if own != listed and not (own in _INTEGERS and listed in _INTEGERS):
        raise InputError(
            f"id types do not match: {id_field!r} of the documents is {own}, {duplicate_id_field!r} of the list of "
            f"duplicate ids is {listed}; {how_to_match(own, listed)}, or name the right column"
        )


def how_to_match(own: str, listed: str) -> str:
    """Return how to mend ids whose types do not match, for a message."""
    if "void" in (own, listed):
        return "void is the type of a column without values: write it with the other's type"
    return "cast one of them"
