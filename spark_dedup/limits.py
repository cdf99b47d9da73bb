"""When a job stops before it removes: limits on what is removed, of all or of a source, and on one group's size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.tables import require_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = [
    "SafetyStopError",
    "check_group_sizes",
    "check_limits",
    "check_removed",
    "over_a_limit",
]

_WHOLE = "*"
"""Key of the whole dataset among limits by source."""


class SafetyStopError(InputError):
    """A job met a safety limit: nothing was removed, and what was found is kept for review."""


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

    check_limits(max_removed_fraction, None)
    given = max_removed_fraction
    limits = dict(given) if isinstance(given, Mapping) else {_WHOLE: float(given)}
    totals = {**(documents_by_source or {}), _WHOLE: num_documents}
    unknown = [name for name in limits if name not in totals]
    if unknown:
        known = ", ".join(sorted(totals))
        raise InputError(
            f"max_removed_fraction names the source {unknown[0]!r}, which is not one of: {known}"
        )
    if set(limits) - {_WHOLE}:
        require_columns(rows, ["source"], where="the ledger rows (see with_sources)")
        by_source = rows.groupBy(F.coalesce(F.col("source"), F.lit(""))).count().collect()
        removed = {row[0]: row[1] for row in by_source}
        removed[_WHOLE] = sum(removed.values())
    else:
        removed = {_WHOLE: int(rows.count())}
    for name, limit in limits.items():
        where = "the input" if name == _WHOLE else f"source {name!r}"
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
    largest_cluster: int | None = None,
) -> SafetyStopError | None:
    """Return why a job must stop, or None.

    Args:
        rows: ledger rows; not needed for a single ``max_removed_fraction``, nor with ``largest_cluster``.
        num_documents: records of the input.
        num_duplicates: records to remove.
        max_removed_fraction: as ``check_removed`` takes it.
        max_cluster_fraction: limit for the largest group of ``rows``, or for the largest cluster.
        documents_by_source: as ``check_removed`` takes it.
        largest_cluster: records of the largest k-means cluster, where there are clusters.
    """
    try:
        if max_cluster_fraction is not None and largest_cluster is not None:
            _check_cluster(largest_cluster, num_documents, max_cluster_fraction)
            max_cluster_fraction = None
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
    survivor = F.col("kept_id").isNotNull().cast("int")
    sizes = rows.groupBy("group_id", "kept_id").agg((F.count(F.lit(1)) + F.first(survivor)).alias("size"))
    largest = sizes.orderBy(F.col("size").desc(), "group_id", "kept_id").first()
    if largest is not None and num_documents and largest["size"] / num_documents > max_cluster_fraction:
        share = largest["size"] / num_documents
        survivor_named = "" if largest["kept_id"] is None else f" with survivor {largest['kept_id']}"
        raise SafetyStopError(
            f"stopped before removing: group {largest['group_id']}{survivor_named} holds "
            f"{largest['size']:,} of {num_documents:,} records ({share:.1%}), over max_cluster_fraction="
            f"{max_cluster_fraction:g}. Look at its texts: boilerplate and error pages look like this"
        )


def _check_cluster(largest: int, total: int, limit: float) -> None:
    if total and largest / total > limit:
        raise SafetyStopError(
            f"stopped before removing: the largest cluster holds {largest:,} of {total:,} records "
            f"({largest / total:.1%}), over max_cluster_fraction={limit:g}. Look at its records, ask for more "
            "clusters, or raise the limit"
        )
