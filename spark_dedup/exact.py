"""Exact duplicates: equal hash of the text, one survivor per group, all in Spark SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.tables import col, require_columns

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

__all__ = [
    "FIRST_OF_GROUP",
    "Keep",
    "apply_sources",
    "check_hash_method",
    "check_orderable",
    "check_text",
    "duplicate_rows",
    "identify_exact",
    "ids_and_groups",
    "ledger_rows",
]

Keep = str | Sequence[str | tuple[str, str]]
"""Columns that choose the survivor: ``"date"``, or ``[("quality", "desc"), "date"]``."""

FIRST_OF_GROUP = "__spark_dedup_first"
_CONTENT, _KEY, _KEY_2, _ID, _PLACE, _SURVIVOR, _NEXT = (
    f"__spark_dedup_{name}" for name in ("content", "key", "key_2", "id", "place", "survivor", "next")
)
_HASH_METHODS = ("md5", "xxhash64")


def identify_exact(
    df: DataFrame,
    *,
    text_field: str = "text",
    id_field: str,
    keep: Keep | None = None,
    verify: bool = False,
    hash_method: str = "md5",
) -> DataFrame:
    """Find the rows whose text equals that of another row, but for one survivor of each group.

    Rows are hashed where they lie; only id, hash and the ``keep`` columns are shuffled. The hash is taken of the
    UTF-8 bytes as they are; a null text counts as an empty one.

    Args:
        df: documents; ``id_field`` must be unique and not null, which jobs check and this does not: of rows that
            share an id one may be listed and another survive, and removal takes both; a null id is never removed.
        text_field: string column.
        id_field: column of any orderable type.
        keep: order-by columns that choose the survivor, nulls and NaN last; ties, and the default, go to the
            smallest id.
        verify: compare the texts themselves inside each hash group. The texts are then shuffled too.
        hash_method: ``"md5"``, or ``"xxhash64"``: 128 bits as well, by two seeds, in three quarters of the time,
            for texts whose authors have no reason to forge equal hashes.

    Returns:
        Ledger rows, one for each row to remove: id, matched_id, kept_id (``id_field``'s type; both the survivor),
        group_id (the hash, 32 hex digits), method ``"exact"``, score 1.0.

    Raises:
        InputError: a missing column, a text that is no string, or an id or ``keep`` column without an order.
    """
    return ledger_rows(
        duplicate_rows(
            df, text_field=text_field, id_field=id_field, keep=keep, verify=verify, hash_method=hash_method
        )
    )


def ledger_rows(rows: DataFrame, *, protected: Sequence[str] = ()) -> DataFrame:
    """Return ``duplicate_rows`` as ledger rows, with their sources where they have them.

    Where all copies are dropped, a survivor is one only if its source is ``protected``; else ``kept_id`` is null.
    """
    from pyspark.sql import functions as F

    matched = kept = F.col(_SURVIVOR)
    kept_source = F.col("kept_source")
    if _NEXT in rows.columns:
        stays = kept_source.isin(list(protected)) if protected else F.lit(False)
        matched = F.when(F.col(_ID) == F.col(_SURVIVOR), F.col(_NEXT)).otherwise(F.col(_SURVIVOR))
        kept, kept_source = F.when(stays, kept), F.when(stays, kept_source)
    sources = [F.col("source"), kept_source.alias("kept_source")] if "source" in rows.columns else []
    return rows.select(
        F.col(_ID).alias("id"),
        matched.alias("matched_id"),
        kept.alias("kept_id"),
        _group_id(rows).alias("group_id"),
        F.lit("exact").alias("method"),
        F.lit(1.0).cast("double").alias("score"),
        *sources,
    )


def apply_sources(
    rows: DataFrame, df: DataFrame, *, id_field: str, source_field: str, protected: Sequence[str] = ()
) -> DataFrame:
    """Add ``source`` and ``kept_source`` to ``duplicate_rows``, and leave out those of protected sources."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    from spark_dedup.rules import protect, with_sources

    named = with_sources(rows, df, id_field=id_field, source_field=source_field, columns=(_ID, _SURVIVOR))
    if not protected:
        return named
    # A group is counted by its second place, so the places are given anew among the rows that are left.
    place = F.row_number().over(Window.partitionBy(_KEY, _KEY_2, _SURVIVOR).orderBy(_PLACE)) + 1
    return protect(named, protected).withColumn(_PLACE, place)


def duplicate_rows(
    df: DataFrame,
    *,
    text_field: str,
    id_field: str,
    keep: Keep | None = None,
    verify: bool = False,
    hash_method: str = "md5",
    n_partitions: int | None = None,
    drop_all_copies: bool = False,
) -> DataFrame:
    """Return the rows to remove with hash, survivor and place in the group (int, 2 for the first after it).

    With ``drop_all_copies`` the survivors are among them, at place 1.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    order = keep_order(keep)
    check_hash_method(hash_method)
    check_text(df, text_field)
    check_orderable(df, id_field=id_field, keep=keep)
    keys = [f"__spark_dedup_keep_{i}" for i in range(len(order))]
    text = F.coalesce(col(text_field), F.lit(""))
    hashed = df.select(
        col(id_field).alias(_ID),
        (F.md5(text.cast("binary")) if hash_method == "md5" else text).alias(_CONTENT),
        *[_or_null(df, name).alias(key) for (name, _), key in zip(order, keys, strict=True)],
        *([text.alias("__spark_dedup_text")] if verify else []),
    )
    keyed = _with_keys(hashed)
    if hash_method != "md5":
        keyed = keyed.drop(_CONTENT)
    # Partitioned here, not by the window: its own exchange would hold the unhashed rows back in one stage.
    spread = (
        keyed.repartition(n_partitions, _KEY, _KEY_2) if n_partitions else keyed.repartition(_KEY, _KEY_2)
    )
    by = [
        F.col(key).desc_nulls_last() if descending else F.col(key).asc_nulls_last()
        for key, (_, descending) in zip(keys, order, strict=True)
    ]
    group = [_KEY, _KEY_2, *(["__spark_dedup_text"] if verify else [])]
    ordered = Window.partitionBy(*group).orderBy(*by, F.col(_ID).asc())
    # A running frame streams a group of any size; a whole-group frame would have to hold it.
    running = ordered.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    placed = spread.withColumn(_PLACE, F.row_number().over(ordered)).withColumn(
        _SURVIVOR, F.first(_ID).over(running)
    )
    if not drop_all_copies:
        return placed.where(F.col(_PLACE) > 1)
    followed = placed.withColumn(_NEXT, F.lead(_ID).over(ordered))
    return followed.where((F.col(_PLACE) > 1) | F.col(_NEXT).isNotNull())


def _or_null(df: DataFrame, name: str) -> Column:
    """Return a column with NaN, which to Spark is greater than any number, as null."""
    from pyspark.sql import functions as F

    is_float = df.schema[name].dataType.typeName() in ("float", "double")
    return F.when(~F.isnan(col(name)), col(name)) if is_float else col(name)


def _with_keys(rows: DataFrame) -> DataFrame:
    """Add two longs that stand for the content, md5 or text: they are shuffled and sorted quicker than 32 digits.

    One alone would be equal by chance in a corpus of billions.
    """
    from pyspark.sql import functions as F

    other_seed = F.lit(1)
    return rows.select("*", F.xxhash64(_CONTENT).alias(_KEY), F.xxhash64(other_seed, _CONTENT).alias(_KEY_2))


def _group_id(rows: DataFrame) -> Column:
    """Return the hash as 32 hex digits."""
    from pyspark.sql import functions as F

    if _CONTENT in rows.columns:
        return F.col(_CONTENT)
    return F.concat(*(F.lpad(F.lower(F.hex(name)), 16, "0") for name in (_KEY, _KEY_2)))


def ids_and_groups(rows: DataFrame, *, id_field: str) -> DataFrame:
    """Return the ids of ``duplicate_rows`` under their own name, and whether each is its group's first to remove.

    The second column counts the groups: each has exactly one such row.
    """
    from pyspark.sql import functions as F

    return rows.select(F.col(_ID).alias(id_field), (F.col(_PLACE) == 2).alias(FIRST_OF_GROUP))


def check_hash_method(method: str) -> None:
    """Check the name of a hash.

    Raises:
        InputError: with the names there are.
    """
    if method not in _HASH_METHODS:
        raise InputError(f"hash_method must be one of {', '.join(_HASH_METHODS)}, not {method!r}")


def keep_order(keep: Keep | None) -> list[tuple[str, bool]]:
    """Return ``keep`` as (column, descending) pairs.

    Raises:
        InputError: for a direction other than ``asc`` and ``desc``.
    """
    if keep is None:
        return []
    pairs = [
        (k, "asc") if isinstance(k, str) else tuple(k) for k in ([keep] if isinstance(keep, str) else keep)
    ]
    for pair in pairs:
        if len(pair) != 2 or str(pair[1]).lower() not in ("asc", "desc"):
            raise InputError(f"keep takes columns or (column, 'asc'|'desc') pairs, not {pair!r}")
    return [(str(name), str(direction).lower() == "desc") for name, direction in pairs]


def check_orderable(df: DataFrame, *, id_field: str | None, keep: Keep | None) -> None:
    """Check that the id column and those of ``keep`` are there and can be ordered.

    Raises:
        InputError: with the columns there are, or the type that has no order.
    """
    named = {name: "keep" for name, _ in keep_order(keep)}
    if id_field is not None:
        named[id_field] = "id_field"
    require_columns(df, list(named), where="the documents")
    for name, argument in named.items():
        kind = df.schema[name].dataType
        if not _has_order(kind):
            raise InputError(
                f"{argument} column {name!r} is {kind.simpleString()}, which has no order: name another column"
            )


def _has_order(kind: DataType) -> bool:
    if kind.typeName() in ("map", "variant", "interval"):
        return False
    inner = [kind.elementType] if hasattr(kind, "elementType") else []
    return all(map(_has_order, [*inner, *(field.dataType for field in getattr(kind, "fields", []))]))


def check_text(df: DataFrame, text_field: str, *, argument: str = "text_field") -> None:
    """Check that the text, which ``argument`` named, is there and is a string.

    Raises:
        InputError: with the columns there are, or the text's type.
    """
    require_columns(df, [text_field], where="the documents")
    found = df.schema[text_field].dataType.simpleString()
    if found != "string":
        raise InputError(
            f"text column {text_field!r} is {found}, not string: name another with {argument}, or cast it"
        )
