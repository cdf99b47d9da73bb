"""From similarities to duplicates: a threshold, and for every duplicate the record that stands for it."""

from __future__ import annotations

import logging
from numbers import Real
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from spark_dedup.errors import InputError
from spark_dedup.held import Hold, on_executors
from spark_dedup.tables import col, id_text, require_columns

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

__all__ = [
    "SCORE_TOLERANCE",
    "above_threshold",
    "check_eps",
    "identify_semantic",
    "is_match",
    "resolve_chains",
]

logger = logging.getLogger(__name__)

SCORE_TOLERANCE = 1e-6
"""A similarity of exactly ``1 - eps`` counts although float32 may hold it a little lower."""


def check_eps(eps: float) -> float:
    """Return ``eps`` as a float.

    Raises:
        InputError: unless ``0 <= eps < 1``.
    """
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 0 <= eps < 1:
        raise InputError(f"eps must be at least 0 and less than 1, not {eps!r}")
    return float(eps)


def above_threshold(eps: float, *, id_field: str = "id") -> Column:
    """Return the condition on pairwise rows that makes a record a duplicate at ``eps``.

    A record without an earlier one to match is listed with its own id; it is never a duplicate, also where
    ``1 - eps`` is so small that its score of 0 would pass. Nor is one whose score is NaN.
    """
    threshold = F.lit(1.0 - check_eps(eps) - SCORE_TOLERANCE)
    return is_match(id_field) & (col("cosine_sim_score").cast("double") >= threshold)


def is_match(id_field: str = "id") -> Column:
    """Return the condition on pairwise rows that a record has another to match, and a score that is a number."""
    score = col("cosine_sim_score").cast("double")
    # To Spark NaN is greater than any number.
    return ~col("max_id").eqNullSafe(col(id_field)) & score.isNotNull() & ~F.isnan(score)


def identify_semantic(
    pairs: DataFrame,
    *,
    eps: float,
    id_field: str = "id",
    clusters: DataFrame | None = None,
    hold: Hold = on_executors,
) -> DataFrame:
    """Return the ledger rows of the duplicates at ``eps``: one for each record to remove.

    Many thresholds need one pairwise pass only: ``pairs`` holds the scores. They are read once, now. Chains are
    resolved by doubling, in about log2(longest chain) small jobs over the ids to remove.

    Args:
        pairs: ``id``, ``max_id`` and ``cosine_sim_score`` as
            :func:`~spark_dedup.semantic.pairwise.pairwise_similarity` gives them.
        eps: similarities of ``1 - eps`` and above are duplicates; ``0 <= eps < 1``.
        id_field: name of the id column in ``pairs`` and ``clusters``; unique, which jobs check and this does not: a
            repeated id is listed if one of its records is to be removed, and removal takes them all.
        clusters: all ids with their ``centroid``, for ``group_id``; not needed where ``pairs`` has that column.
        hold: keeps rows between steps; on the executors, unless another is given.

    Returns:
        ``id``, ``matched_id`` and ``kept_id`` in the type of the id, ``group_id`` and ``method`` as strings,
        ``score`` (double). ``group_id`` is the centroid of the kept record; of the removed one where only ``pairs``
        has it; without one known, the kept id.

    Raises:
        InputError: eps out of range, a missing column, matches that run in a circle, or a session that cannot hold
            rows on its executors.
    """
    check_eps(eps)
    require_columns(pairs, [id_field, "max_id", "cosine_sim_score"], where="the pairs")
    found = pairs.filter(above_threshold(eps, id_field=id_field)).select(
        col(id_field).alias("id"),
        col("max_id").alias("matched_id"),
        col("cosine_sim_score").cast("double").alias("score"),
        (col("centroid").cast("string") if "centroid" in pairs.columns else F.lit(None).cast("string")).alias(
            "group_id"
        ),
    )
    if clusters is not None:
        require_columns(clusters, [id_field, "centroid"], where="the clusters")
    # Of pairs that are computed anew, chains and rows could come from different ones.
    found = hold(found)
    rows = found.join(resolve_chains(found, hold), "id", "inner")
    if clusters is not None:
        # Of the survivor: matches that cross a cluster border (n_probe > 1) leave its group whole.
        known = clusters.select(
            col(id_field).alias("kept_id"), col("centroid").cast("string").alias("_cluster")
        )
        rows = rows.join(known, "kept_id", "left").withColumn("group_id", F.coalesce("_cluster", "group_id"))
    return rows.select(
        "id",
        "matched_id",
        "kept_id",
        F.coalesce("group_id", id_text(rows, "kept_id")).alias("group_id"),
        F.lit("semantic").alias("method"),
        "score",
    )


def resolve_chains(matches: DataFrame, hold: Hold) -> DataFrame:
    """Follow every match to a record that is not itself removed.

    A round replaces each pointer by its target's pointer, so that its reach doubles.

    Args:
        matches: ``id`` (unique) and ``matched_id`` of every record to remove.
        hold: keeps the state between rounds.

    Returns:
        ``id`` and ``kept_id``.

    Raises:
        InputError: the matches run in a circle.
    """
    state = hold(matches.select("id", F.col("matched_id").alias("kept_id")))
    before = None
    while True:
        step = state.select(F.col("id").alias("_at"), F.col("kept_id").alias("_next"))
        state = hold(
            state.join(step, F.col("kept_id") == F.col("_at"), "left").select(
                "id",
                F.coalesce("_next", "kept_id").alias("kept_id"),
                F.col("_at").isNotNull().alias("_moved"),
            )
        )
        moved = int(state.filter("_moved").count())
        logger.debug("chains: %d pointers moved", moved)
        if not moved:
            return state.select("id", "kept_id")
        # Some record of a chain lies between one reach and its double: fewer move every round, but in a circle.
        if moved == before:
            raise InputError(f"{moved} records match each other in a circle: the pairs have no ranking")
        before = moved
