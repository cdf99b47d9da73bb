"""Starting centroids: draws that depend on a row's key alone, and weighted k-means++ on few candidates."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from spark_dedup.kernels.arrays import Array, array_module

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MASK = (1 << 64) - 1


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


def plus_plus(
    points: NDArray[np.float32], weights: NDArray[np.float64], n_clusters: int, seed: int
) -> NDArray[np.float32]:
    """Choose ``n_clusters`` of weighted points by greedy k-means++ (Arthur and Vassilvitskii, 2007).

    Each step draws ``2 + log K`` points by weight times squared distance, and keeps the one that lowers
    the sum of these most, as scikit-learn does.

    Args:
        points: (m, dim), distinct, m >= n_clusters.
        weights: (m,) how many rows each stands for.
        n_clusters: K.
        seed: random state.

    Returns:
        (K, dim) float32.
    """
    rng = np.random.default_rng(seed)
    p = points.astype(np.float64)
    squares = np.einsum("ij,ij->i", p, p)
    trials = 2 + int(math.log(n_clusters))
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
