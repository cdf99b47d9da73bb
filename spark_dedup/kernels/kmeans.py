"""Lloyd's k-means on unit rows: nearest centroids, distances, exact sums, new centroids.

Two choices make a fit independent of how rows are spread over tasks and of their order, bit for bit:

- A matrix product rounds an element differently at another place of a block, so a row whose two best
  centroids lie within that rounding is settled in float64, row by row.
- Sums are kept in fixed point (int64, steps of 2**-30): integer addition has no order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from spark_dedup.kernels.arrays import Array, array_module, block_rows, row_norms, to_host

SCALE = 2.0**30
"""Fixed-point steps per unit: a unit row's elements fit int32, and 2**33 rows of them int64."""

_EPSILON = 2.0**-23
_SETTLE_PAIRS = 4096


def nearest(x: Array, centroids: Array) -> Array:
    """Return the nearest centroid of every row, ties to the smallest number.

    Works in blocks that stay in the cache; no (n, K) matrix is made. Distances are compared as
    ``x·c - ‖c‖²/2``, which is largest where ‖x - c‖ is smallest.

    Args:
        x: (n, dim) float32 rows.
        centroids: (K, dim) float32.

    Returns:
        (n,) int32.
    """
    xp = array_module(x, centroids)
    n, n_clusters = len(x), len(centroids)
    half = _half_squares(centroids)
    margin = rounding(x.shape[1], float(row_norms(centroids).max()))
    labels = xp.empty(n, dtype=xp.int32)
    step = block_rows(4 * n_clusters, n)
    scores = xp.empty((step, n_clusters), dtype=xp.float32)
    places = xp.arange(step)
    for start in range(0, n, step):
        block = xp.asarray(x[start : start + step])
        score, place = scores[: len(block)], places[: len(block)]
        xp.matmul(block, centroids.T, out=score)
        score -= half
        best = score.argmax(axis=1)
        value = score[place, best]
        score[place, best] = -xp.inf
        close = xp.flatnonzero(score.max(axis=1) >= value - margin)
        if len(close):
            score[close, best[close]] = value[close]
            rival = score[close] >= (value[close] - margin)[:, None]
            best[close] = _settle(block[close], centroids, rival)
        labels[start : start + step] = best
    return labels


def assign(x: Array, centroids: Array) -> tuple[Array, Array, Array]:
    """Return the nearest centroid of every row with the l2 and the cosine distance to it.

    Distances are taken from the differences, not from ``‖x‖² - 2 x·c + ‖c‖²``, whose rounding is of the
    size of small distances.

    Args:
        x: (n, dim) float32 unit rows.
        centroids: (K, dim) float32.

    Returns:
        (n,) int32 labels, (n,) float32 ‖x - c‖, and (n,) float32 1 - x·c / ‖c‖ (1 where c is zero).
    """
    xp = array_module(x, centroids)
    n, dim = x.shape
    labels = nearest(x, centroids)
    l2 = xp.empty(n, dtype=xp.float32)
    cosine = xp.empty(n, dtype=xp.float32)
    lengths = row_norms(centroids)
    lengths[lengths == 0] = xp.inf
    step = block_rows(16 * dim, n)
    for start in range(0, n, step):
        part = slice(start, start + step)
        block = xp.asarray(x[part]).astype(xp.float64)
        nearby = centroids[labels[part]].astype(xp.float64)
        cosine[part] = 1 - xp.einsum("ij,ij->i", block, nearby) / lengths[labels[part]]
        l2[part] = row_norms(block - nearby)
    return labels, l2, cosine


def label_sums(x: Array, labels: Array, n_clusters: int, rows: Array | None = None) -> tuple[Array, Array]:
    """Sum the rows of every label exactly.

    Args:
        x: (n, dim) float32, no element above 1.
        labels: (n,) int32 below ``n_clusters``.
        n_clusters: K.
        rows: (m,) numbers of the rows that count; all when None.

    Returns:
        (K, dim) int64 sums in steps of 2**-30, and (K,) int64 counts.
    """
    xp = array_module(x, labels)
    chosen = labels if rows is None else labels[rows]
    order = xp.argsort(chosen, kind="stable")
    ordered = chosen[order]
    if rows is not None:
        order = rows[order]
    counts = xp.bincount(chosen, minlength=n_clusters).astype(xp.int64)
    sums = xp.zeros((n_clusters, x.shape[1]), dtype=xp.int64)
    step = 4 * block_rows(8 * x.shape[1], max(1, len(order)))
    for start in range(0, len(order), step):
        part = ordered[start : start + step]
        fixed = (xp.asarray(x[order[start : start + step]]) * xp.float32(SCALE)).astype(xp.int32)
        edges = (xp.flatnonzero(part[1:] != part[:-1]) + 1).tolist()
        firsts = [0, *edges]
        names = part[xp.asarray(firsts)].tolist()
        for name, first, last in zip(names, firsts, [*edges, len(part)], strict=True):
            sums[name] += fixed[first:last].sum(axis=0, dtype=xp.int64)
    return sums, counts


def moved_sums(x: Array, old: Array | None, new: Array, n_clusters: int) -> tuple[Array, Array, int]:
    """Return by how much sums and counts change between two labellings, and how many rows moved.

    Exact like :func:`label_sums`, so changes add up without drift; only rows that moved are read.

    Args:
        x: (n, dim) float32.
        old: (n,) int32 labels before, or None where nothing has been counted yet.
        new: (n,) int32 labels after.
        n_clusters: K.

    Returns:
        (K, dim) int64, (K,) int64, number of rows that moved.
    """
    xp = array_module(x, new)
    if old is None:
        sums, counts = label_sums(x, new, n_clusters)
        return sums, counts, len(new)
    rows = xp.flatnonzero(old != new)
    sums, counts = label_sums(x, new, n_clusters, rows)
    before, gone = label_sums(x, old, n_clusters, rows)
    sums -= before
    counts -= gone
    return sums, counts, len(rows)


@dataclass(frozen=True)
class Totals:
    """Sums over all rows under one labelling.

    Attributes:
        sums: (K, dim) int64, fixed point.
        counts: (K,) int64.
        squares: sum of ‖x‖² over all rows.
    """

    sums: Array
    counts: Array
    squares: float

    def centroids(self, previous: Array) -> Array:
        """(K, dim) float32 means; a cluster without rows keeps its ``previous`` centroid."""
        xp = array_module(self.sums)
        filled = self.counts > 0
        means = previous.astype(xp.float32)
        means[filled] = self.sums[filled] / (self.counts[filled][:, None] * SCALE)
        return means

    def inertia(self, centroids: Array) -> float:
        """Sum of squared distances of all rows to the centroids of their labels: Σ‖x‖² - 2 Σ c·s + Σ n‖c‖²."""
        xp = array_module(self.sums)
        c = centroids.astype(xp.float64)
        cross = float((c * self.sums).sum()) / SCALE
        own = float((row_norms(centroids) ** 2 * self.counts).sum())
        return max(0.0, self.squares - 2 * cross + own)

    def mean_variance(self) -> float:
        """Variance of the data's columns, averaged; scikit-learn multiplies ``tol`` by it."""
        n = int(self.counts.sum())
        mean = self.sums.sum(axis=0) / (SCALE * n)
        return max(0.0, self.squares / n - float((mean**2).sum())) / int(self.sums.shape[1])


def _half_squares(centroids: Array) -> Array:
    """(K,) float32 ‖c‖²/2, infinite for a centroid equal to an earlier one, which then never wins."""
    xp = array_module(centroids)
    half = (0.5 * row_norms(centroids) ** 2).astype(xp.float32)
    # On the host: CuPy sorts rows one comparison, and so one wait for the device, at a time.
    _, first = np.unique(to_host(centroids), axis=0, return_index=True)
    repeated = xp.ones(len(centroids), dtype=bool)
    repeated[xp.asarray(first)] = False
    half[repeated] = xp.inf
    return half


def rounding(dim: int, length: float) -> float:
    """Generous bound on twice the float32 rounding of a score: a unit row against a centroid of that length."""
    return 2 * _EPSILON * (length * (16 + math.sqrt(dim)) + length**2)


def _settle(rows: Array, centroids: Array, rival: Array) -> Array:
    """Return the nearest of each row's rivals by float64 scores, ties to the smallest number.

    Args:
        rows: (m, dim) float32.
        centroids: (K, dim) float32.
        rival: (m, K) bool, at least one per row.

    Returns:
        (m,) int64.
    """
    xp = array_module(rows)
    row, candidate = xp.nonzero(rival)
    score = xp.empty(len(row), dtype=xp.float64)
    for start in range(0, len(row), _SETTLE_PAIRS):
        part = slice(start, start + _SETTLE_PAIRS)
        a = rows[row[part]].astype(xp.float64)
        c = centroids[candidate[part]].astype(xp.float64)
        score[part] = xp.einsum("ij,ij->i", a, c) - 0.5 * xp.einsum("ij,ij->i", c, c)
    # Stable: among equal scores of a row the candidates stay in ascending order.
    order = xp.argsort(-score, kind="stable")
    order = order[xp.argsort(row[order], kind="stable")]
    ordered = row[order]
    first = xp.concatenate([xp.ones(1, dtype=bool), ordered[1:] != ordered[:-1]])
    return candidate[order][first]
