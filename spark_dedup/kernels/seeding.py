"""Starting centroids: draws that depend on a row's key alone, and weighted k-means++ on candidates."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from spark_dedup.kernels.arrays import Array, array_module
from spark_dedup.kernels.kmeans import assign

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MASK = (1 << 64) - 1

UNDIVIDED, CLUSTERS_PER_PART = 2048, 512
"""Most clusters whose starts are chosen from all points at once; of more, about how many in each part."""

_POINTS_PER_PART = 64


def draw(keys: Array, seed: int, stream: int) -> Array:
    """Return 64 random bits per key: the same for a key wherever and whenever its row is met.

    SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014) of the key, offset
    by seed and stream.

    Args:
        keys: (n,) int64 or uint64.
        seed: the caller's random state.
        stream: number of the draw; streams are independent of each other.

    Returns:
        (n,) uint64.
    """
    xp = array_module(keys)
    offset = _mix_int(_mix_int(seed & _MASK) + stream)
    z = keys.astype(xp.uint64) ^ xp.uint64(offset)
    z = z + xp.uint64(_GOLDEN)
    for shift, factor in _MIX:
        z = (z ^ (z >> xp.uint64(shift))) * xp.uint64(factor)
    return z ^ (z >> xp.uint64(31))


def uniform(keys: Array, seed: int, stream: int) -> Array:
    """Return a float64 in [0, 1) per key, from the upper 53 bits of :func:`draw`."""
    xp = array_module(keys)
    return (draw(keys, seed, stream) >> xp.uint64(11)).astype(xp.float64) * 2.0**-53


def choose(
    points: NDArray[np.float32], weights: NDArray[np.float64], n_clusters: int, seed: int
) -> NDArray[np.float32]:
    """Choose ``n_clusters`` of weighted points by greedy k-means++, of many clusters part by part.

    All at once takes K·m distances for K clusters of m points. Many clusters are chosen in parts of the points, a
    few hundred in each: a part has a share of K by its cost, the sum of weight times squared distance.

    Args:
        points: (m, dim), distinct, m >= n_clusters.
        weights: (m,) how many rows each stands for.
        n_clusters: K.
        seed: random state.

    Returns:
        (K, dim) float32.
    """
    return _choose(points, weights, n_clusters, seed, trials=2 + int(math.log(n_clusters)))


def _choose(
    points: NDArray[np.float32], weights: NDArray[np.float64], n_clusters: int, seed: int, *, trials: int
) -> NDArray[np.float32]:
    counted = weights > 0
    if n_clusters <= UNDIVIDED or np.count_nonzero(counted) < n_clusters:
        return plus_plus(points, weights, n_clusters, seed, trials=trials)
    points, weights = points[counted], weights[counted]
    n_parts = -(-n_clusters // CLUSTERS_PER_PART)
    step = max(1, len(points) // (_POINTS_PER_PART * n_parts))
    middles = plus_plus(points[::step], weights[::step], n_parts, seed, trials=trials)
    labels, l2, _ = assign(points, middles)
    cost = np.bincount(labels, weights * l2.astype(np.float64) ** 2, minlength=n_parts).astype(np.float64)
    sizes = np.bincount(labels, minlength=n_parts)
    parts = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    shares = _shares(cost, sizes, n_clusters).tolist()
    chosen = [
        _choose(points[part], weights[part], share, seed + number, trials=trials)
        for number, (part, share) in enumerate(zip(parts, shares, strict=True), 1)
        if share
    ]
    return np.concatenate(chosen)


def _shares(cost: NDArray[np.float64], limits: NDArray[np.intp], total: int) -> NDArray[np.intp]:
    """Divide ``total`` by ``cost``: at least one for a part that has points, at most ``limits``."""
    shares = np.minimum(limits, 1)
    while left := total - int(shares.sum()):
        free = limits - shares
        weight = np.where(free > 0, cost, 0.0)
        if not weight.any():
            weight = free.astype(np.float64)
        more = np.minimum(free, (left * (weight / weight.sum())).astype(np.intp))
        if not more.any():
            more[np.argsort(-weight, kind="stable")[:left]] = 1
            more = np.minimum(more, free)
        shares = shares + more
    return shares


def plus_plus(
    points: NDArray[np.float32], weights: NDArray[np.float64], n_clusters: int, seed: int, *, trials: int
) -> NDArray[np.float32]:
    """Choose ``n_clusters`` of weighted points by greedy k-means++ (Arthur and Vassilvitskii, 2007).

    Each step draws ``trials`` points by weight times squared distance, and keeps the one that lowers the sum of
    these most, as scikit-learn does with ``2 + log K``.

    Args:
        points: (m, dim), distinct, m >= n_clusters.
        weights: (m,) how many rows each stands for.
        n_clusters: K.
        seed: random state.
        trials: points to draw in a step.

    Returns:
        (K, dim) float32.
    """
    rng = np.random.default_rng(seed)
    p = points.astype(np.float64)
    squares = np.einsum("ij,ij->i", p, p)
    chosen = [int(rng.choice(len(p), p=weights / weights.sum()))]
    distance = _squared(p, squares, chosen)[0]
    while len(chosen) < n_clusters:
        potential = np.cumsum(weights * distance)
        if potential[-1] <= 0:
            # Points with weight are all taken; the rest are equally good.
            free = np.setdiff1d(np.arange(len(p)), chosen)
            chosen += free[: n_clusters - len(chosen)].tolist()
            break
        drawn = np.searchsorted(potential, rng.random(trials) * potential[-1], side="right")
        drawn = np.minimum(drawn, len(p) - 1)
        nearer = np.minimum(_squared(p, squares, drawn), distance)
        best = int((nearer @ weights).argmin())
        distance = nearer[best]
        distance[drawn[best]] = 0
        chosen.append(int(drawn[best]))
    return points[chosen]


def _squared(
    p: NDArray[np.float64], squares: NDArray[np.float64], rows: list[int] | NDArray[np.intp]
) -> NDArray[np.float64]:
    """(len(rows), m) squared distances from the points ``rows`` to all points."""
    distance = squares + squares[rows][:, None] - 2 * (p[rows] @ p.T)
    return np.maximum(distance, 0)


def _mix_int(value: int) -> int:
    z = (value + _GOLDEN) & _MASK
    for shift, factor in _MIX:
        z = ((z ^ (z >> shift)) * factor) & _MASK
    return z ^ (z >> 31)
