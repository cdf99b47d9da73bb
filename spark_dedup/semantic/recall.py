"""What an audit found, and how sure it is of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["Audit", "AuditRow", "MissedPair", "ratio_interval"]


@dataclass(frozen=True)
class AuditRow:
    """The recall at one threshold and one number of probed clusters.

    Attributes:
        eps: threshold.
        n_probe: clusters each record is compared in.
        recall: estimated share of the true pairs that are compared; NaN when the sample has none.
        low: lower end of the confidence interval.
        high: upper end.
        pairs: true pairs of the sampled records.
        found: those of them that are compared.
        cost: multiplications of the pairwise step, relative to ``n_probe = 1``.
    """

    eps: float
    n_probe: int
    recall: float
    low: float
    high: float
    pairs: int
    found: int
    cost: float


@dataclass(frozen=True)
class MissedPair:
    """A true pair that no common cluster holds, with ``n_probe = 1``; ids as strings."""

    eps: float
    id: str
    other_id: str
    score: float


@dataclass(frozen=True)
class Audit:
    """The outcome of :func:`spark_dedup.semantic.audit.audit_recall`.

    Attributes:
        rows: one per threshold and number of probed clusters.
        missed: most similar pairs that were missed.
        sample_size: records in the sample.
        num_documents: records in all.
        confidence: of the intervals.
    """

    rows: tuple[AuditRow, ...]
    missed: tuple[MissedPair, ...]
    sample_size: int
    num_documents: int
    confidence: float

    @property
    def table(self) -> str:
        """The estimates as text."""
        interval = f"{self.confidence:.0%} interval"
        lines = [f"{'eps':>8}  {'n_probe':>7}  {'recall':>7}  {interval:>16}  {'pairs':>9}  {'cost':>6}"]
        for r in self.rows:
            span = f"{r.low:.3f} - {r.high:.3f}"
            lines.append(
                f"{r.eps:>8g}  {r.n_probe:>7}  {r.recall:>7.3f}  {span:>16}  {r.pairs:>9,}  {r.cost:>5.2f}x"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table


def ratio_interval(
    found: NDArray[np.int64], true: NDArray[np.int64], *, population: int, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Estimate a share of pairs from a simple random sample of records, with a confidence interval.

    Pairs are not independent: a record with a hundred copies brings a hundred of them, found or missed together.
    The records are what was drawn, so the variance is that of the ratio estimator over records (Cochran, Sampling
    Techniques, 6.4), with the finite population correction. The interval is Wilson's, at the number of independent
    draws that would have this variance (Korn and Graubard 1998), and at most the number of records that have pairs:
    unlike the normal interval it stays inside [0, 1] and does not vanish when all pairs are found.

    Args:
        found: (n,) pairs found of each sampled record.
        true: (n,) all its pairs.
        population: records that were sampled from.
        confidence: of the interval.

    Returns:
        Estimate, lower and upper end; NaN, 0 and 1 without pairs.
    """
    n, total = len(true), int(true.sum())
    if not total:
        return math.nan, 0.0, 1.0
    recall = float(found.sum() / total)
    if n >= population:
        return recall, recall, recall
    effective = float(np.count_nonzero(true))
    unseen = 1 - n / population
    if n > 1:
        residual = found - recall * true
        variance = unseen * float((residual**2).sum()) / (n - 1) / n / (total / n) ** 2
        if variance > 0 and 0 < recall < 1:
            effective = min(effective / unseen, recall * (1 - recall) / variance)
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    centre = (recall + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2 * recall * (1 - recall) / effective + z2**2 / (4 * effective**2)) / (
        1 + z2 / effective
    )
    # At the ends the formula gives 0 and 1 but for rounding, which must not shut the true share out.
    low = 0.0 if recall == 0 else max(0.0, centre - half)
    return recall, low, 1.0 if recall == 1 else min(1.0, centre + half)
