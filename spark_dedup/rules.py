"""Who survives: rules by source and length, and the check of survivors. The safety limits can be named here too.

Rules are order-by columns for ``keep`` and expressions on ledger rows: ids and sources are shuffled, texts never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.limits import SafetyStopError, check_group_sizes, check_removed
from spark_dedup.tables import col, id_text, require_columns

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, Row

__all__ = [
    "SOURCE_RANK",
    "TEXT_LENGTH",
    "SafetyStopError",
    "check_group_sizes",
    "check_removed",
    "check_source_rules",
    "check_survivors",
    "count_by_source",
    "drop_all_copies",
    "protect",
    "source_rank",
    "with_source_rank",
    "with_sources",
    "with_text_length",
]

SOURCE_RANK = "_source_rank"
TEXT_LENGTH = "_text_length"


def with_source_rank(
    df: DataFrame, *, source_field: str, priority: Sequence[str] = (), protected: Sequence[str] = ()
) -> DataFrame:
    """Add ``_source_rank``, for ``keep=["_source_rank", …]``: protected sources, then ``priority``, then the rest.

    Args:
        df: documents.
        source_field: column that names each document's source.
        priority: sources, the one to keep first.
        protected: sources that win over all others; ``protect`` keeps their other copies too.
    """
    require_columns(df, [source_field], where="the documents")
    return df.withColumn(SOURCE_RANK, source_rank(source_field, priority=priority, protected=protected))


def source_rank(source_field: str, *, priority: Sequence[str] = (), protected: Sequence[str] = ()) -> Column:
    """Return the place of a record's source (int): 0 is kept first."""
    from pyspark.sql import functions as F

    order = [*protected, *(source for source in priority if source not in protected)]
    source = col(source_field).cast("string")
    rank = F.lit(len(order))
    for place, name in reversed(list(enumerate(order))):
        rank = F.when(source == F.lit(name), F.lit(0 if name in protected else place)).otherwise(rank)
    return rank


def with_text_length(df: DataFrame, *, text_field: str) -> DataFrame:
    """Add ``_text_length`` (characters, 0 for null), for ``keep=[("_text_length", "desc")]``: the longest stays."""
    from pyspark.sql import functions as F

    require_columns(df, [text_field], where="the documents")
    return df.withColumn(TEXT_LENGTH, F.coalesce(F.length(col(text_field)), F.lit(0)))


def with_sources(
    rows: DataFrame,
    documents: DataFrame,
    *,
    id_field: str,
    source_field: str,
    columns: tuple[str, str] = ("id", "kept_id"),
) -> DataFrame:
    """Add ``source`` and ``kept_source`` (string) to ledger rows, by two joins on the ids in ``columns``."""
    from pyspark.sql import functions as F

    require_columns(documents, [id_field, source_field], where="the documents")
    source = col(source_field).cast("string")
    removed = documents.select(col(id_field).alias("__removed"), source.alias("source"))
    kept = documents.select(col(id_field).alias("__kept"), source.alias("kept_source"))
    return (
        rows.drop("source", "kept_source")
        .join(removed, col(columns[0]) == F.col("__removed"), how="left")
        .join(kept, col(columns[1]) == F.col("__kept"), how="left")
        .drop("__removed", "__kept")
    )


def protect(rows: DataFrame, protected: Sequence[str]) -> DataFrame:
    """Leave out ledger rows that would remove a record of a protected source; ``rows`` have ``source``."""
    from pyspark.sql import functions as F

    require_columns(rows, ["source"], where="the ledger rows (see with_sources)")
    return rows.where(F.col("source").isNull() | ~F.col("source").isin(list(protected)))


def drop_all_copies(rows: DataFrame, *, protected: Sequence[str] = ()) -> DataFrame:
    """Remove the survivors too, but for those of protected sources.

    Where a survivor goes, ``kept_id`` and ``kept_source`` are null. ``group_id`` then has to tell its group from
    others: the md5 of an exact group does; the centroid of a semantic one holds many, so the id of the survivor
    that was is added to it, as in ``7:42``.

    Args:
        rows: ledger rows; with ``kept_source`` where sources are protected.
        protected: sources that lose nothing. Their survivors stay, and stand for the records removed.
    """
    from pyspark.sql import functions as F

    require_columns(rows, ["kept_source"] if protected else [], where="the ledger rows (see with_sources)")
    stays = (
        F.coalesce(F.col("kept_source").isin(list(protected)), F.lit(False)) if protected else F.lit(False)
    )
    named = F.concat_ws(":", "group_id", id_text(rows, "kept_id"))
    group = F.when(stays | (F.col("method") == "exact"), F.col("group_id")).otherwise(named)
    first = rows.withColumn("__stays", stays).withColumn("group_id", group)
    # The record that matched the survivor best stands as what the survivor matched.
    best = F.min(F.struct((-F.col("score")).alias("below"), F.col("id")))
    survivors = (
        first.where(~F.col("__stays") & F.col("matched_id").eqNullSafe(F.col("kept_id")))
        .groupBy("kept_id")
        .agg(
            best.alias("__best"),
            *[F.min(name).alias(name) for name in ("group_id", "method")],
            *([F.first("kept_source").alias("source")] if "kept_source" in rows.columns else []),
        )
        .withColumns(
            {"id": F.col("kept_id"), "matched_id": F.col("__best.id"), "score": -F.col("__best.below")}
        )
        .withColumn("__stays", F.lit(False))
        .drop("__best")
    )
    both = first.unionByName(survivors, allowMissingColumns=True)
    gone = [name for name in ("kept_id", "kept_source") if name in rows.columns]
    return both.select(
        [F.when(F.col("__stays"), col(n)).alias(n) if n in gone else col(n) for n in rows.columns]
    )


def count_by_source(documents: DataFrame, *, source_field: str) -> dict[str, int]:
    """Count documents by source; a null source counts as the empty one."""
    from pyspark.sql import functions as F

    require_columns(documents, [source_field], where="the documents")
    source = F.coalesce(col(source_field).cast("string"), F.lit(""))
    return {row[0]: row[1] for row in documents.groupBy(source).count().collect()}


def check_survivors(rows: DataFrame, *, drop_all: bool = False) -> None:
    """Check that every record is removed at most once, and has a survivor that stays: one pass over ids.

    Args:
        rows: ledger rows.
        drop_all: the survivors may be removed too, as ``drop_all_copies`` does; ``kept_id`` may be null then.

    Raises:
        RuntimeError: naming up to five ids. It is a fault of the matcher, never of the input.
    """
    from pyspark.sql import functions as F

    lost = F.lit(False) if drop_all else F.col("kept_id").isNull()
    removed = rows.select(
        F.col("id").alias("key"), F.lit(1).alias("removed"), F.lit(0).alias("kept"), lost.alias("lost")
    )
    kept = rows.where(F.col("kept_id").isNotNull()).select(F.col("kept_id").alias("key")).distinct()
    kept = kept.select("key", F.lit(0).alias("removed"), F.lit(1).alias("kept"), F.lit(False).alias("lost"))
    counted = (
        removed.unionByName(kept)
        .groupBy("key")
        .agg(F.sum("removed").alias("removed"), F.sum("kept").alias("kept"), F.max("lost").alias("lost"))
    )
    wrong = counted.where(
        (F.col("removed") > 1) | ((F.col("removed") > 0) & (F.col("kept") > 0)) | F.col("lost")
    )
    bad = wrong.limit(5).collect()
    if bad:
        named = ", ".join(f"{row['key']} ({_fault(row)})" for row in bad)
        raise RuntimeError(f"the groups have not exactly one survivor each: {named}")


def check_source_rules(
    source_field: str | None,
    *,
    priority: Sequence[str],
    protected: Sequence[str],
    max_removed_fraction: float | Mapping[str, float] | None,
) -> None:
    """Check that rules by source are lists, and come with the column that names the sources.

    Raises:
        InputError: a rule without ``source_field``, or a single text where a list is wanted.
    """
    for name, sources in (("source_priority", priority), ("protected_sources", protected)):
        if isinstance(sources, str):
            raise InputError(f"{name} takes a list of sources: write [{sources!r}], not {sources!r}")
    by_source = isinstance(max_removed_fraction, Mapping)
    if (priority or protected or by_source) and source_field is None:
        raise InputError("rules by source need source_field")


def _fault(row: Row) -> str:
    if row["removed"] > 1:
        return f"removed {row['removed']} times"
    return "survivor and removed" if row["kept"] else "without a survivor"
