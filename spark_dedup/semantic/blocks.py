"""The plan of the pairwise job: clusters cut into blocks, blocks into units of work, units onto tasks.

All of it is native Spark on one row per cluster or block, so neither the driver nor any task holds more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pyspark.sql import Window
from pyspark.sql import functions as F

from spark_dedup.kernels.hashing import murmur3_ints
from spark_dedup.semantic.ranking import precedes, rank_order

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

__all__ = ["TASKS_PER_SLOT", "of_one_block", "plan_units", "slot_keys", "spread"]

MIN_BATCHES, MAX_BATCHES = 4, 16
"""A block has this many batches of rows: fewer ship a row too often, more need too much memory."""

TASKS_PER_SLOT = 4
_UNITS_PER_SLOT = 2


def spread(
    rows: DataFrame,
    *,
    cluster: str,
    keys: Sequence[str],
    ascending: Sequence[bool],
    batch: int,
    slots: int,
    ranked: DataFrame | None = None,
) -> DataFrame:
    """Send every row to the units of work that need it, each unit's rows together and in rank order.

    Block ``b`` of a cluster is one unit: its rows are the queries, and the rows of blocks ``0 … b - 1`` are
    the targets that rank before them.

    Args:
        rows: records with the columns ``cluster`` (int) and ``keys``, which rank them.
        cluster: name of the cluster column.
        keys: names of the ranking columns.
        ascending: direction of each.
        batch: rows multiplied at once; a block has 4 to 16 times as many.
        slots: tasks that run at once.
        ranked: the same records with ``cluster`` and ``keys`` alone, where these can be read for less.

    Returns:
        The rows with ``_unit`` (int) and ``_query`` (bool) added, sorted inside each partition by unit, queries
        first, then rank; the units with the most work are in the first partitions. A row that no unit takes, as
        its cluster is null or was not there when clusters were counted, has a null ``_unit``.
    """
    tasks = max(1, slots) * TASKS_PER_SLOT
    ranked = rows if ranked is None else ranked
    plan = plan_units(ranked, cluster=cluster, keys=keys, ascending=ascending, batch=batch, slots=slots)
    placed = rows.join(F.broadcast(plan), cluster, "left").withColumn(
        "_block", _block_of("_starts", keys, ascending)
    )
    sent = placed.withColumn(
        "_to", F.explode_outer(F.filter("_units", lambda u: u["block"] >= F.col("_block")))
    )
    slot_key = F.element_at(F.array(*[F.lit(int(k)) for k in slot_keys(tasks)]), F.col("_to.slot") + 1)
    order = [F.col("_unit"), F.col("_query").desc(), *rank_order(keys, ascending)]
    return (
        sent.withColumn("_unit", F.col("_to.unit"))
        .withColumn("_query", F.col("_to.block") == F.col("_block"))
        .withColumn("_slot_key", slot_key)
        .drop("_starts", "_units", "_block", "_to")
        .repartition(tasks, "_slot_key")
        .drop("_slot_key")
        .sortWithinPartitions(*order)
    )


def of_one_block(sizes: Mapping[int, int], *, batch: int, slots: int) -> set[int]:
    """Return the clusters that :func:`plan_units` would not cut, of those whose sizes are known."""
    share = sum(n * n / 2 for n in sizes.values()) / (_UNITS_PER_SLOT * max(1, slots))

    def block_rows(n: int) -> int:
        return max(MIN_BATCHES * batch, min(MAX_BATCHES * batch, math.ceil(share / n)))

    return {cluster for cluster, n in sizes.items() if n and n <= block_rows(n)}


def plan_units(
    rows: DataFrame, *, cluster: str, keys: Sequence[str], ascending: Sequence[bool], batch: int, slots: int
) -> DataFrame:
    """Cut the clusters into units of work and place the units.

    Returns:
        One row per cluster: the cluster, ``_starts`` (array of the key values that begin the second and later
        blocks; null for one block) and ``_units`` (array of structs of block, unit and slot).
    """
    everything = Window.partitionBy(F.lit(0))
    pairs = F.col("_n").cast("double") * F.col("_n") / 2
    share = F.sum(pairs).over(everything) / F.lit(_UNITS_PER_SLOT * max(1, slots))
    wanted = F.ceil(share / F.col("_n"))
    block_rows = F.greatest(F.lit(MIN_BATCHES * batch), F.least(F.lit(MAX_BATCHES * batch), wanted))
    sizes = (
        rows.groupBy(cluster)
        .agg(F.count(F.lit(1)).alias("_n"))
        .withColumn("_block_rows", block_rows.cast("long"))
    )
    units = _place(sizes, cluster, max(1, slots) * TASKS_PER_SLOT)
    return units.join(_block_starts(rows, sizes, cluster, keys, ascending), cluster, "left")


def _place(sizes: DataFrame, cluster: str, tasks: int) -> DataFrame:
    """Number the units by falling work and deal them to the tasks there and back, as one deals cards."""
    blocks = F.sequence(F.lit(0), F.ceil(F.col("_n") / F.col("_block_rows")).cast("int") - 1)
    begin = F.col("_block") * F.col("_block_rows")
    width = F.least(F.col("_block_rows"), F.col("_n") - begin).cast("double")
    by_work = Window.partitionBy(F.lit(0)).orderBy(F.col("_work").desc(), F.col(cluster), F.col("_block"))
    number = F.row_number().over(by_work) - 1
    turn = F.col("_unit") % (2 * tasks)
    slot = F.when(turn < tasks, turn).otherwise(2 * tasks - 1 - turn)
    return (
        sizes.withColumn("_block", F.explode(blocks))
        .withColumn("_work", width * (begin + width / 2))
        .withColumn("_unit", number)
        .withColumn(
            "_to", F.struct(F.col("_block").alias("block"), F.col("_unit").alias("unit"), slot.alias("slot"))
        )
        .groupBy(cluster)
        .agg(F.collect_list("_to").alias("_units"))
    )


def _block_starts(
    rows: DataFrame, sizes: DataFrame, cluster: str, keys: Sequence[str], ascending: Sequence[bool]
) -> DataFrame:
    """Find the first record of every later block. Only clusters of several blocks are sorted, without vectors."""
    large = sizes.filter(F.col("_n") > F.col("_block_rows")).select(cluster, "_block_rows")
    place = F.row_number().over(Window.partitionBy(cluster).orderBy(*rank_order(keys, ascending))) - 1
    return (
        rows.select(cluster, *keys)
        .join(F.broadcast(large), cluster, "inner")
        .withColumn("_place", place)
        .filter((F.col("_place") > 0) & (F.col("_place") % F.col("_block_rows") == 0))
        .groupBy(cluster)
        .agg(F.collect_list(F.struct(*keys)).alias("_starts"))
    )


def _block_of(starts: str, keys: Sequence[str], ascending: Sequence[bool]) -> Column:
    """Return the number of block starts that do not rank after the row."""
    mine = [F.col(k) for k in keys]
    begun = F.filter(starts, lambda s: ~precedes(mine, [s[k] for k in keys], ascending))
    return F.when(F.col(starts).isNull(), F.lit(0)).otherwise(F.size(begun))


def slot_keys(count: int) -> list[int]:
    """Return for each of ``count`` partitions the smallest integer that Spark's hash partitioning puts there.

    Spark has no portable way to name a partition before 4.1; its hash, Murmur3 of seed 42 modulo the number of
    partitions, is fixed.
    """
    found: dict[int, int] = {}
    start, chunk = 0, 64 * count
    while len(found) < count:
        candidates = np.arange(start, start + chunk, dtype=np.uint32)
        places = murmur3_ints(candidates).astype(np.int32).astype(np.int64) % count
        for place, first in zip(*np.unique(places, return_index=True), strict=True):
            found.setdefault(int(place), int(candidates[first]))
        start += chunk
    return [found[place] for place in range(count)]
