"""What a report shows, fetched from the ledger: counts and a bounded number of groups, whatever the run's size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError
from spark_dedup.ledger import Ledger, find_run, read_duplicates
from spark_dedup.report.records import Record, Records
from spark_dedup.semantic.identify import is_match
from spark_dedup.sql import source_pairs_query

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["Doubt", "Figures", "Group", "collect_figures"]

MEMBERS = 4
BINS = 50
SOURCES = 200
EPS_GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)


@dataclass(frozen=True)
class Group:
    """A group of duplicates: its survivor, its size with the survivor, and some of its removed records."""

    group_id: str
    size: int
    kept: Record | None
    members: tuple[tuple[Record, float], ...]


@dataclass(frozen=True)
class Doubt:
    """A removal to look at twice, with the record it matched."""

    removed: Record
    matched: Record
    score: float


@dataclass
class Figures:
    """Everything a report shows."""

    run: dict[str, Any]
    sizes: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Group sizes in classes: smallest and largest size, groups, records."""
    largest: int = 0
    removed_by_source: list[tuple[str, int, int | None]] = field(default_factory=list)
    """Source, records removed, records of the input where known."""
    pairs: list[tuple[str, str, int, float | None]] = field(default_factory=list)
    """Source a, source b, records of a with a copy in b, their share of a."""
    scores: list[tuple[float, float, int]] = field(default_factory=list)
    """Similarity classes: from, to, records."""
    sweep: list[tuple[float, int]] = field(default_factory=list)
    """Threshold eps and records removed at it, ascending."""
    sweep_is_whole: bool = False
    """Whether thresholds looser than the run's own are known too."""
    groups: list[Group] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    shortest: list[tuple[Record, int]] = field(default_factory=list)
    """Exact runs: survivors with the shortest texts, and their groups' sizes."""
    note: str | None = None
    """Why records are not shown, where they are not."""


def collect_figures(
    spark: SparkSession,
    ledger: Ledger,
    run_id: str | None = None,
    *,
    documents: Any = None,
    id_field: str | None = None,
    text_field: str | None = None,
    image_field: str | None = None,
    filetype: str = "parquet",
    pairs: DataFrame | None = None,
    n_groups: int = 20,
) -> Figures:
    """Fetch a run's figures: rows are counted in Spark, what comes to the driver is bounded by ``n_groups``.

    Args:
        spark: a session with Delta.
        ledger: an open ledger.
        run_id: the newest good run by default.
        documents: path or table of the records; the run's own input by default.
        id_field: its id column; the run's own by default.
        text_field: its text column; the run's own by default.
        image_field: column of encoded images, shown instead of texts.
        filetype: of a ``documents`` path.
        pairs: pairwise results (``cosine_sim_score``), for thresholds looser than the run's own.
        n_groups: largest groups, and most doubtful removals, to show.

    Raises:
        InputError: no such run, or documents that lack a column that was named.
    """
    run = find_run(spark, ledger, run_id).asDict(recursive=True)
    rows = read_duplicates(spark, ledger, run["run_id"])
    groups = rows.groupBy("group_id", "kept_id").count()
    figures = Figures(run=run, sizes=_sizes(groups))
    figures.largest = max((high for _, high, _, _ in figures.sizes), default=0)
    figures.removed_by_source, figures.pairs = _sources(spark, rows, run)
    top = _largest(groups, rows, n_groups)
    scored = run["method"] != "exact"
    weak: list[Any] = []
    if scored:
        figures.scores, figures.sweep = _scores(rows, pairs)
        figures.sweep_is_whole = pairs is not None
        weak = rows.orderBy("score", "id").select("id", "matched_id", "score").limit(n_groups).collect()
    wanted = {r[name] for r in top for name in ("id", "kept_id")} | {r[i] for r in weak for i in (0, 1)}
    try:
        records = Records(
            spark,
            run,
            documents,
            id_field=id_field,
            text_field=text_field,
            image_field=image_field,
            filetype=filetype,
        )
        shortest = [] if scored or image_field else records.shortest(groups, n_groups)
        known = records.fetch((wanted | {key for key, _ in shortest}) - {None})
        figures.shortest = [(known.get(key, Record(str(key))), size) for key, size in shortest]
    except (InputError, FileNotFoundError) as error:
        if documents is not None:
            raise
        known, figures.note = {}, str(error)
    figures.groups = _shown(top, known)
    figures.doubts = [
        Doubt(known.get(r[0], Record(str(r[0]))), known.get(r[1], Record(str(r[1]))), r[2]) for r in weak
    ]
    return figures


def _sizes(groups: DataFrame) -> list[tuple[int, int, int, int]]:
    """Count groups by size: 2, 3, 4, then classes that double."""
    from pyspark.sql import functions as F

    size = F.col("count") + F.when(F.col("kept_id").isNull(), 0).otherwise(1)
    doubling = F.floor(F.log2(size - 1)).cast("int")  # 5-8 → 2, 9-16 → 3
    sized = groups.select(size.alias("size"), F.when(size <= 4, -size).otherwise(doubling).alias("class"))
    counted = sized.groupBy("class").agg(
        F.min("size"), F.max("size"), F.count(F.lit(1)), F.sum("size").cast("bigint")
    )
    return sorted(tuple(row)[1:] for row in counted.collect())


def _sources(
    spark: SparkSession, rows: DataFrame, run: dict[str, Any]
) -> tuple[list[tuple[str, int, int | None]], list[tuple[str, str, int, float | None]]]:
    from pyspark.sql import functions as F

    totals = run["documents_by_source"] or {}
    removed = rows.where(F.col("source").isNotNull()).groupBy("source").count()
    counts = {row[0]: row[1] for row in removed.orderBy(F.col("count").desc()).limit(SOURCES).collect()}
    if not counts:
        return [], []
    named = list(dict.fromkeys([*counts, *totals]))[:SOURCES]
    by_source = [(name, counts.get(name, 0), totals.get(name)) for name in named]
    rows.createOrReplaceTempView("__spark_dedup_report_rows")
    try:
        query = source_pairs_query("SELECT * FROM __spark_dedup_report_rows", "SELECT map('', 1L)")
        pairs = spark.sql(query).orderBy(F.col("num_records").desc()).limit(100).collect()
    finally:
        spark.catalog.dropTempView("__spark_dedup_report_rows")
    shares = [(r[0], r[1], r[2], r[2] / totals[r[0]] if totals.get(r[0]) else None) for r in pairs]
    return by_source, shares


def _scores(
    rows: DataFrame, pairs: DataFrame | None
) -> tuple[list[tuple[float, float, int]], list[tuple[float, int]]]:
    """Count similarities in classes, and the records removed at each threshold, in two passes."""
    from pyspark.sql import functions as F

    low, reach = 0.0, list(EPS_GRID)
    given = F.col("score") if pairs is None else F.col("cosine_sim_score")
    matched = rows if pairs is None else pairs.where(is_match())
    scores = matched.select(given.cast("double").alias("score"))
    # To Spark NaN is greater than any number; it removes nothing.
    scores = scores.where(F.col("score").isNotNull() & ~F.isnan("score"))
    if pairs is None:
        lowest = scores.agg(F.min("score")).first()
        low = min(float((lowest and lowest[0]) or 0.0), 0.999)
        reach = [eps for eps in EPS_GRID if 1 - eps >= low - 1e-6]
    step = (1.0 - low) / BINS
    place = F.least(F.greatest(F.floor((F.col("score") - low) / step), F.lit(0)), F.lit(BINS - 1)).cast("int")
    at_least = [
        F.sum((F.col("score") >= 1 - eps - 1e-6).cast("bigint")).alias(f"e{i}")
        for i, eps in enumerate(EPS_GRID)
    ]
    counts = {r[0]: r[1] for r in scores.groupBy(place.alias("bin")).count().collect()}
    swept = scores.agg(*at_least).first()
    bins = [(low + i * step, low + (i + 1) * step, counts.get(i, 0)) for i in range(BINS)]
    return bins, [(eps, int((swept and swept[i]) or 0)) for i, eps in enumerate(reach)]


def _largest(groups: DataFrame, rows: DataFrame, n_groups: int) -> list[Any]:
    """Return group_id, size, kept_id, id, score, source, kept_source of some members of the largest groups."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    top = groups.orderBy(F.col("count").desc(), "group_id", "kept_id").limit(n_groups)
    top = top.select(
        F.col("group_id").alias("g"), F.col("kept_id").alias("k"), F.col("count").alias("removed")
    )
    together = (F.col("group_id") == F.col("g")) & F.col("kept_id").eqNullSafe(F.col("k"))
    place = F.row_number().over(Window.partitionBy("group_id", "kept_id").orderBy("score", "id"))
    members = (
        rows.join(F.broadcast(top), together).withColumn("place", place).where(F.col("place") <= MEMBERS)
    )
    names = ["group_id", "removed", "kept_id", "id", "score", "source", "kept_source"]
    return members.orderBy(F.col("removed").desc(), "group_id", "kept_id", "place").select(*names).collect()


def _shown(top: list[Any], known: dict[Any, Record]) -> list[Group]:
    from itertools import groupby

    def record(key: Any, source: str | None) -> Record:
        found = known.get(key, Record(str(key)))
        return found if source is None else Record(**{**found.__dict__, "source": source})

    groups = []
    for (group_id, kept_id), part in groupby(top, key=lambda r: (r["group_id"], r["kept_id"])):
        members = list(part)
        kept = None if kept_id is None else record(kept_id, members[0]["kept_source"])
        groups.append(
            Group(
                group_id,
                members[0]["removed"] + (kept is not None),
                kept,
                tuple((record(m["id"], m["source"]), m["score"]) for m in members),
            )
        )
    return groups
