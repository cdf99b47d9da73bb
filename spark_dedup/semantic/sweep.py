"""What each threshold would remove, from one pass over the stored similarities."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, IntegerType, StructField, StructType

from spark_dedup.errors import InputError
from spark_dedup.paths import normalise_path, write_whole
from spark_dedup.semantic.identify import SCORE_TOLERANCE, above_threshold, check_eps, is_match
from spark_dedup.tables import col, require_columns
from spark_dedup.workers import in_worker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["Sweep", "SweepRow", "sweep"]

DEFAULT_EPS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)

_STEPS = 10_000
"""Similarities are counted in steps of 1/10,000: a histogram of at most 20,001 bins, whatever the rows."""


@dataclass(frozen=True)
class SweepRow:
    """What one threshold does: records removed and kept, and the share removed."""

    eps: float
    removed: int
    kept: int
    fraction: float


@dataclass(frozen=True)
class SamplePair:
    """A pair near a threshold; ``side`` is ``"above"`` (removed at ``eps``) or ``"below"``."""

    eps: float
    side: str
    id: Any
    max_id: Any
    score: float


@dataclass(frozen=True, eq=False)
class Sweep:
    """Thresholds and what they do.

    Attributes:
        num_documents: records compared.
        rows: one per threshold.
        samples: pairs just above and just below each threshold, nearest first.
        steps: (n,) int64 ascending, ``eps`` in steps of 1/10,000 from which records are removed.
        counts: (n,) int64 records first removed at each step.
    """

    num_documents: int
    rows: tuple[SweepRow, ...]
    samples: tuple[SamplePair, ...]
    steps: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def table(self) -> str:
        """The thresholds as text."""
        lines = [f"{'eps':>8}  {'removed':>12}  {'kept':>12}  {'fraction':>8}"]
        lines += [f"{r.eps:>8g}  {r.removed:>12,}  {r.kept:>12,}  {r.fraction:>8.2%}" for r in self.rows]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table

    def eps_for(self, fraction: float) -> float:
        """Return the largest ``eps``, to 1/10,000, that removes at most this share of the records.

        Raises:
            InputError: a share outside [0, 1], or one below what ``eps = 0`` removes.
        """
        if not 0 <= fraction <= 1:
            raise InputError(f"the fraction to remove must be between 0 and 1, not {fraction!r}")
        too_many = np.cumsum(self.counts) > fraction * self.num_documents + 1e-9
        if not too_many.any():
            return (_STEPS - 1) / _STEPS
        first = int(self.steps[int(np.argmax(too_many))])
        if first == 0:
            raise InputError(
                f"exact copies alone are more than {fraction:.2%} of the records: no eps removes so few"
            )
        return min(first - 1, _STEPS - 1) / _STEPS

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the share removed against ``eps``, over the distribution of similarities; needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise InputError("the plot needs matplotlib: pip install 'spark-dedup[demo]'") from error
        figure = Figure(figsize=(8, 6), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=[2, 1])
        steps = np.clip(self.steps, 0, _STEPS)
        total = max(1, self.num_documents)
        upper.step(steps / _STEPS, np.cumsum(self.counts) / total, where="post", color="#1f77b4")
        upper.plot([r.eps for r in self.rows], [r.fraction for r in self.rows], "o", color="#d62728")
        upper.set(
            xlabel="eps", ylabel="share removed", title=f"{self.num_documents:,} records", ylim=(0, None)
        )
        upper.set_xlim(0, max([r.eps for r in self.rows], default=1) * 1.1 or 1)
        lower.hist(1 - self.steps / _STEPS, bins=100, weights=self.counts, color="#7f7f7f")
        for row in self.rows:
            lower.axvline(1 - row.eps, color="#d62728", linewidth=0.6)
        lower.set(xlabel="largest similarity to an earlier record", ylabel="records")
        drawn, place = io.BytesIO(), os.fspath(path)
        ending = os.path.splitext(place)[1]
        figure.savefig(drawn, format=ending[1:] or "png")
        write_whole(normalise_path(place if ending else f"{place}.png"), drawn.getvalue())


def sweep(
    pairs: DataFrame, *, eps: Sequence[float] = DEFAULT_EPS, samples: int = 3, id_field: str = "id"
) -> Sweep:
    """Count what each threshold removes, and show pairs near it. Three small jobs over the stored similarities.

    Args:
        pairs: ``id``, ``max_id`` and ``cosine_sim_score`` as
            :func:`~spark_dedup.semantic.pairwise.pairwise_similarity` gives them, written or cached.
        eps: thresholds, each in [0, 1).
        samples: pairs to show on either side of each threshold.
        id_field: name of the id column.

    Raises:
        InputError: a threshold out of range, none at all, or a missing column.
    """
    thresholds = sorted({check_eps(e) for e in eps})
    if not thresholds:
        raise InputError("give at least one eps")
    require_columns(pairs, [id_field, "max_id", "cosine_sim_score"], where="the pairs")
    counted = pairs.agg(
        F.count(F.lit(1)).alias("n"),
        *[F.count_if(above_threshold(e, id_field=id_field)).alias(f"r{i}") for i, e in enumerate(thresholds)],
    ).first()
    assert counted is not None
    total = int(counted["n"])
    rows = tuple(
        SweepRow(
            e, int(counted[f"r{i}"]), total - int(counted[f"r{i}"]), int(counted[f"r{i}"]) / max(1, total)
        )
        for i, e in enumerate(thresholds)
    )
    matched = pairs.filter(is_match(id_field)).select(
        col(id_field).alias("id"), col("max_id"), col("cosine_sim_score").cast("double").alias("score")
    )
    step = F.greatest(F.ceil((1 - F.col("score") - SCORE_TOLERANCE) * _STEPS), F.lit(0)).cast("int")
    bins = sorted(
        (r.step, r.n) for r in matched.groupBy(step.alias("step")).agg(F.count("*").alias("n")).collect()
    )
    return Sweep(
        total,
        rows,
        _samples(matched, thresholds, samples) if samples else (),
        np.array([s for s, _ in bins], dtype=np.int64),
        np.array([n for _, n in bins], dtype=np.int64),
    )


def _samples(matched: DataFrame, thresholds: Sequence[float], count: int) -> tuple[SamplePair, ...]:
    """Find the pairs nearest to each threshold: every task keeps a few, the driver the nearest of those."""
    fields = matched.schema
    schema = StructType([StructField("at", IntegerType()), StructField("gap", DoubleType()), *fields.fields])
    found = matched.mapInArrow(in_worker(_nearest(thresholds, count)), schema).collect()
    chosen = []
    for i, eps in enumerate(thresholds):
        for side, sign in (("above", 1), ("below", -1)):
            near = sorted(
                (r for r in found if r.at == i and (r.gap >= 0) == (sign > 0)),
                key=lambda r: (abs(r.gap), str(r.id)),
            )
            chosen += [SamplePair(eps, side, r.id, r.max_id, r.score) for r in near[:count]]
    return tuple(chosen)


def _nearest(
    thresholds: Sequence[float], count: int
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    limits = [1 - e - SCORE_TOLERANCE for e in thresholds]

    def keep(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        kept: dict[tuple[int, bool], pa.Table] = {}
        for batch in batches:
            score = batch.column("score").to_numpy(zero_copy_only=False)
            for at, limit in enumerate(limits):
                for above in (True, False):
                    rows = np.flatnonzero((score >= limit) == above)
                    near = rows[np.argsort(np.abs(score[rows] - limit), kind="stable")[:count]]
                    part = pa.Table.from_batches([batch.take(pa.array(near))])
                    part = part.add_column(0, "gap", pa.array(score[near] - limit))
                    part = part.add_column(0, "at", pa.array(np.full(len(near), at, np.int32)))
                    before = kept.get((at, above))
                    both = part if before is None else pa.concat_tables([before, part])
                    order = np.argsort(np.abs(both["gap"].to_numpy()), kind="stable")[:count]
                    kept[at, above] = both.take(pa.array(order))
        for table in kept.values():
            yield from table.combine_chunks().to_batches()

    return keep
