"""Who survives, and when to stop: rules by source and length, safety limits, and the check of survivors.

Rules are order-by columns for ``keep`` and expressions on ledger rows: ids and sources are shuffled, texts never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.tables import col, require_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = [
    "SOURCE_RANK",
    "TEXT_LENGTH",
    "WHOLE",
    "SafetyStopError",
    "check_group_sizes",
    "check_limits",
    "check_removed",
    "check_survivors",
    "count_by_source",
    "drop_all_copies",
    "over_a_limit",
    "protect",
    "with_source_rank",
    "with_sources",
    "with_text_length",
]

SOURCE_RANK = "_source_rank"
TEXT_LENGTH = "_text_length"
WHOLE = "*"
"""Key of the whole dataset among limits by source."""


class SafetyStopError(InputError):
    """A job met a safety limit: nothing was removed, and what was found is kept for review."""


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
    from pyspark.sql import functions as F

    require_columns(df, [source_field], where="the documents")
    order = [*protected, *(source for source in priority if source not in protected)]
    source = col(source_field).cast("string")
    rank = F.lit(len(order))
    for place, name in reversed(list(enumerate(order))):
        rank = F.when(source == F.lit(name), F.lit(0 if name in protected else place)).otherwise(rank)
    return df.withColumn(SOURCE_RANK, rank)


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


def drop_all_copies(rows: DataFrame) -> DataFrame:
    """Remove the survivors too: no copy of a duplicated record stays. ``kept_id`` is null in every row then."""
    from pyspark.sql import functions as F

    last = [F.first(name).alias(name) for name in ("group_id", "method")]
    survivors = rows.groupBy(F.col("kept_id").alias("id")).agg(
        F.min("id").alias("matched_id"),
        *last,
        F.max("score").alias("score"),
        *([F.first("kept_source").alias("source")] if "kept_source" in rows.columns else []),
    )
    nobody = F.lit(None).cast(rows.schema["kept_id"].dataType)
    both = rows.drop("kept_source").unionByName(survivors.withColumn("kept_id", nobody))
    no_source = F.lit(None).cast("string")
    both = both.withColumn("kept_id", nobody)
    return both.withColumn("kept_source", no_source) if "kept_source" in rows.columns else both


def count_by_source(documents: DataFrame, *, source_field: str) -> dict[str, int]:
    """Count documents by source; a null source counts as the empty one."""
    from pyspark.sql import functions as F

    require_columns(documents, [source_field], where="the documents")
    source = F.coalesce(col(source_field).cast("string"), F.lit(""))
    return {row[0]: row[1] for row in documents.groupBy(source).count().collect()}


def check_survivors(rows: DataFrame) -> None:
    """Check that every record is removed at most once and that no survivor is removed: one pass over ids.

    Raises:
        RuntimeError: naming up to five ids. It is a fault of the matcher, never of the input.
    """
    from pyspark.sql import functions as F

    removed = rows.select(F.col("id").alias("key"), F.lit(1).alias("removed"), F.lit(0).alias("kept"))
    kept = rows.select(F.col("kept_id").alias("key"), F.lit(0).alias("removed"), F.lit(1).alias("kept"))
    counted = (
        removed.unionByName(kept.where(F.col("key").isNotNull()).distinct())
        .groupBy("key")
        .agg(F.sum("removed").alias("removed"), F.sum("kept").alias("kept"))
    )
    wrong = counted.where((F.col("removed") > 1) | ((F.col("removed") > 0) & (F.col("kept") > 0)))
    bad = wrong.limit(5).collect()
    if bad:
        named = ", ".join(f"{row['key']} ({_fault(row['removed'])})" for row in bad)
        raise RuntimeError(f"the groups have not exactly one survivor each: {named}")


def check_removed(
    rows: DataFrame,
    *,
    num_documents: int,
    max_removed_fraction: float | Mapping[str, float],
    documents_by_source: Mapping[str, int] | None = None,
) -> None:
    """Stop when more would be removed than allowed.

    Args:
        rows: ledger rows; with ``source`` where limits by source are given.
        num_documents: records of the input.
        max_removed_fraction: limit for the whole, or limits by source; ``"*"`` is the whole.
        documents_by_source: records of the input by source.

    Raises:
        SafetyStopError: naming the source, or the whole, and both fractions.
        InputError: a limit outside [0, 1], or for a source that is unknown.
    """
    from pyspark.sql import functions as F

    given = max_removed_fraction
    limits = dict(given) if isinstance(given, Mapping) else {WHOLE: float(given)}
    totals = {**(documents_by_source or {}), WHOLE: num_documents}
    for name, limit in limits.items():
        if not 0 <= limit <= 1:
            raise InputError(f"max_removed_fraction must lie in [0, 1], not {limit}")
        if name not in totals:
            known = ", ".join(sorted(totals))
            raise InputError(f"max_removed_fraction names the source {name!r}, which is not one of: {known}")
    removed = {WHOLE: 0}
    if set(limits) - {WHOLE}:
        require_columns(rows, ["source"], where="the ledger rows (see with_sources)")
        by_source = rows.groupBy(F.coalesce(F.col("source"), F.lit(""))).count().collect()
        removed |= {row[0]: row[1] for row in by_source}
        removed[WHOLE] = sum(removed.values())
    else:
        removed[WHOLE] = rows.count()
    for name, limit in limits.items():
        where = "the input" if name == WHOLE else f"source {name!r}"
        _check_share(where, removed.get(name, 0), totals[name], limit)


def check_limits(
    max_removed_fraction: float | Mapping[str, float] | None, max_cluster_fraction: float | None
) -> None:
    """Check that limits are fractions.

    Raises:
        InputError: a limit outside [0, 1].
    """
    removed = (
        max_removed_fraction.values() if isinstance(max_removed_fraction, Mapping) else [max_removed_fraction]
    )
    for name, limits in (("max_removed_fraction", removed), ("max_cluster_fraction", [max_cluster_fraction])):
        for limit in limits:
            if limit is not None and not 0 <= limit <= 1:
                raise InputError(f"{name} must lie in [0, 1], not {limit}")


def over_a_limit(
    rows: DataFrame | None,
    *,
    num_documents: int,
    num_duplicates: int,
    max_removed_fraction: float | Mapping[str, float] | None = None,
    max_cluster_fraction: float | None = None,
    documents_by_source: Mapping[str, int] | None = None,
) -> SafetyStopError | None:
    """Return why a job must stop, or None; ``rows`` are not needed for a single ``max_removed_fraction``."""
    try:
        if isinstance(max_removed_fraction, Mapping) and rows is not None:
            check_removed(
                rows,
                num_documents=num_documents,
                max_removed_fraction=max_removed_fraction,
                documents_by_source=documents_by_source,
            )
        elif isinstance(max_removed_fraction, float | int):
            _check_share("the input", num_duplicates, num_documents, max_removed_fraction)
        if max_cluster_fraction is not None and rows is not None:
            check_group_sizes(rows, num_documents=num_documents, max_cluster_fraction=max_cluster_fraction)
    except SafetyStopError as stop:
        return stop
    return None


def _check_share(where: str, found: int, total: int, limit: float) -> None:
    if total and found / total > limit:
        raise SafetyStopError(
            f"stopped before removing: {found:,} of {total:,} records of {where} ({found / total:.1%}) "
            f"are duplicates, over max_removed_fraction={limit:g}. Review what was found, or raise the limit"
        )


def check_group_sizes(rows: DataFrame, *, num_documents: int, max_cluster_fraction: float) -> None:
    """Stop when one group of duplicates holds more of the input than allowed.

    Raises:
        SafetyStopError: naming the group, its survivor and its size.
        InputError: a limit outside [0, 1].
    """
    from pyspark.sql import functions as F

    check_limits(None, max_cluster_fraction)
    sizes = rows.groupBy("group_id", "kept_id").agg((F.count(F.lit(1)) + 1).alias("size"))
    largest = sizes.orderBy(F.col("size").desc(), "group_id", "kept_id").first()
    if largest is not None and num_documents and largest["size"] / num_documents > max_cluster_fraction:
        share = largest["size"] / num_documents
        raise SafetyStopError(
            f"stopped before removing: group {largest['group_id']} with survivor {largest['kept_id']} holds "
            f"{largest['size']:,} of {num_documents:,} records ({share:.1%}), over max_cluster_fraction="
            f"{max_cluster_fraction:g}. Look at its texts: boilerplate and error pages look like this"
        )


def _fault(removed: int) -> str:
    return f"removed {removed} times" if removed > 1 else "survivor and removed"
