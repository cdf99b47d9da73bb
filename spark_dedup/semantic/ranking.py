"""The order of the records in a cluster: of two that are alike, the earlier one stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pyspark.sql import functions as F

from spark_dedup.errors import InputError
from spark_dedup.tables import col

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

__all__ = [
    "COSINE_DIST_TO_CENT_COL",
    "DISTANCES",
    "L2_DIST_TO_CENT_COL",
    "OrderKey",
    "RankingStrategy",
    "check_ranking",
    "check_seed",
    "order_keys",
    "precedes",
    "rank_order",
    "require_order",
    "require_ranking",
]

L2_DIST_TO_CENT_COL = "l2_dist_to_cent"
COSINE_DIST_TO_CENT_COL = "cosine_dist_to_cent"

DISTANCES = {"cosine": COSINE_DIST_TO_CENT_COL, "l2": L2_DIST_TO_CENT_COL}
_KEEP = ("hard", "easy", "random")
_STRATEGIES = ("sort", "random")


def check_seed(seed: Any, name: str = "random_state") -> int:
    """Return a seed as a plain int, which Spark hashes as one wherever it came from.

    Raises:
        InputError: it is no whole number from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 1 << 63:
        raise InputError(f"{name} must be a whole number from 0 to 2**63 - 1, not {seed!r}")
    return int(seed)


class RankingStrategy:
    """How the records of a cluster are ranked; ties are always broken by the id, ascending.

    A record without a value (null or NaN) ranks after all that have one, in either direction, so that the
    record with the fuller metadata stays.

    Args:
        metadata_cols: columns to sort by, most important first; not used by ``"random"``.
        ascending: one direction for all columns, or one for each.
        strategy: ``"sort"``, or ``"random"`` for a seeded hash of the id.
        random_seed: seed of ``"random"``.

    Raises:
        InputError: an unknown strategy, no columns to sort by, or as many directions as there are not columns.
    """

    def __init__(
        self,
        metadata_cols: Sequence[str],
        ascending: bool | Sequence[bool] = True,
        strategy: str = "sort",
        random_seed: int = 42,
    ) -> None:
        if strategy not in _STRATEGIES:
            raise InputError(f"Invalid strategy: {strategy}. Supported: 'sort', 'random'")
        self.metadata_cols = [metadata_cols] if isinstance(metadata_cols, str) else list(metadata_cols)
        directions = [ascending] * len(self.metadata_cols) if isinstance(ascending, bool) else list(ascending)
        if len(directions) != len(self.metadata_cols):
            raise InputError(
                f"Length of ascending ({len(directions)}) must match metadata_cols ({len(self.metadata_cols)})"
            )
        if strategy == "sort" and not self.metadata_cols:
            raise InputError("strategy 'sort' needs at least one column in metadata_cols")
        self.ascending = directions
        self.strategy = strategy
        self.random_seed = check_seed(random_seed, "random_seed")

    @classmethod
    def metadata_based(
        cls, metadata_cols: Sequence[str], ascending: bool | Sequence[bool] = True, random_seed: int = 42
    ) -> RankingStrategy:
        """Rank by columns."""
        return cls(metadata_cols, ascending, "sort", random_seed)

    @classmethod
    def random(cls, random_seed: int = 42) -> RankingStrategy:
        """Rank by a hash of the id and a seed: random, and the same on every run."""
        return cls([], True, "random", random_seed)

    def __repr__(self) -> str:
        if self.strategy == "random":
            return f"RankingStrategy.random(random_seed={self.random_seed})"
        return f"RankingStrategy.metadata_based({self.metadata_cols!r}, ascending={self.ascending!r})"


@dataclass(frozen=True)
class OrderKey:
    """One column to rank by.

    Attributes:
        column: an orderable expression.
        ascending: its direction; null ranks last in both.
    """

    column: Column
    ascending: bool


def check_ranking(which_to_keep: str, distance_metric: str) -> None:
    """Raise ``InputError`` for an unknown word."""
    if which_to_keep not in _KEEP:
        raise InputError(f"which_to_keep must be 'hard', 'easy' or 'random', not {which_to_keep!r}")
    if distance_metric not in DISTANCES:
        raise InputError(f"distance_metric must be 'cosine' or 'l2', not {distance_metric!r}")


def order_keys(
    df: DataFrame,
    *,
    id_field: str,
    which_to_keep: str = "hard",
    distance_metric: str = "cosine",
    ranking_strategy: RankingStrategy | None = None,
    random_seed: int = 42,
) -> list[OrderKey]:
    """Return the columns that rank the records of ``df``, the id last: a total order where ids are unique.

    Args:
        df: records with their ids and the columns to rank by.
        id_field: name of the id column.
        which_to_keep: ``"hard"`` ranks the farthest from the centroid first, ``"easy"`` the nearest,
            ``"random"`` by a seeded hash of the id.
        distance_metric: ``"cosine"`` or ``"l2"``: the distance used by ``"hard"`` and ``"easy"``.
        ranking_strategy: wins over ``which_to_keep``.
        random_seed: seed of ``which_to_keep="random"``.

    Raises:
        InputError: an unknown word, or a column that ``df`` lacks.
    """
    check_ranking(which_to_keep, distance_metric)
    by_id = OrderKey(col(id_field), True)
    if ranking_strategy is None and which_to_keep == "random":
        ranking_strategy = RankingStrategy.random(random_seed)
    if ranking_strategy is None:
        distance = DISTANCES[distance_metric]
        require_ranking(df, [id_field, distance])
        ascending = which_to_keep == "easy"
        return [OrderKey(col(distance), ascending), OrderKey(col(id_field), ascending)]
    if ranking_strategy.strategy == "random":
        require_ranking(df, [id_field])
        return [OrderKey(F.xxhash64(F.lit(ranking_strategy.random_seed), col(id_field)), True), by_id]
    require_ranking(df, [id_field, *ranking_strategy.metadata_cols])
    types = {f.name: f.dataType.typeName() for f in df.schema.fields}
    keys = []
    for name, ascending in zip(ranking_strategy.metadata_cols, ranking_strategy.ascending, strict=True):
        value = col(name)
        if types[name] in ("float", "double"):
            value = F.when(~F.isnan(value), value)
        keys.append(OrderKey(value, ascending))
    return [*keys, by_id]


def rank_order(keys: Sequence[str], ascending: Sequence[bool]) -> list[Column]:
    """Return the sort order of columns that hold the key values; null ranks last in either direction."""
    directed = zip(keys, ascending, strict=True)
    return [F.col(k).asc_nulls_last() if up else F.col(k).desc_nulls_last() for k, up in directed]


def precedes(left: Sequence[Column], right: Sequence[Column], ascending: Sequence[bool]) -> Column:
    """Return whether the record with the key values ``left`` ranks before the one with ``right``."""
    before = F.lit(False)
    for a, b, up in reversed(list(zip(left, right, ascending, strict=True))):
        smaller = (a < b) if up else (a > b)
        strict = F.coalesce(smaller, a.isNotNull() & b.isNull())
        before = strict | (a.eqNullSafe(b) & before)
    return before


def require_ranking(
    df: DataFrame, names: Sequence[str], *, where: str = "the assigned records; they have"
) -> None:
    """Check that ``df`` has the columns that rank.

    Raises:
        InputError: naming those that are absent, ``where`` they were looked for, and those that exist.
    """
    missing = [name for name in names if name not in df.columns]
    if missing:
        raise InputError(f"Required columns {missing} not found in {where} {', '.join(df.columns)}")


def require_order(df: DataFrame, names: Sequence[str]) -> None:
    """Check that Spark can sort by columns of ``df``.

    Raises:
        InputError: naming the first that it cannot sort by, such as a map.
    """
    for name in names:
        try:
            # Not orderBy, whose columns a Connect session takes for known and does not analyse.
            df.select(F.sort_array(F.array(col(name)))).columns  # noqa: B018
        except Exception as error:  # its class differs between classic and Connect
            kind = dict(df.dtypes)[name]
            raise InputError(f"column '{name}' has type {kind}, which has no order to rank by") from error
