"""k-means over rows that stay where they are: every task of a stage runs these, the root decides.

Only the root compares numbers and chooses; the others do as told. So tasks cannot drift apart, even on
machines whose arithmetic differs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_dedup.kernels.arrays import Array, array_module, to_host
from spark_dedup.kernels.bounds import Labels, Reorder
from spark_dedup.kernels.kmeans import Totals, assign
from spark_dedup.kernels.seeding import choose, draw, uniform
from spark_dedup.semantic.peers import Peers

logger = logging.getLogger(__name__)

Matrix = NDArray[np.float32]
Keys = NDArray[np.int64]

ROUNDS = 3
"""Rounds of k-means||; its authors find few rounds enough once oversampling is at least 2 K."""

_RANDOM_STREAM, _FIRST_STREAM, _ROUND_STREAM = 1, 2, 16


@dataclass(frozen=True)
class Iteration:
    """One line of progress: iterations count from 1."""

    number: int
    inertia: float
    moved: int
    seconds: float


@dataclass(frozen=True)
class Fit:
    """Centroids (K, dim) float32, inertia, iterations done, rows per cluster (K,) and their history."""

    centroids: Matrix
    inertia: float
    n_iter: int
    sizes: NDArray[np.int64]
    history: tuple[Iteration, ...]


def lloyd(
    x: Matrix,
    start: Matrix | None,
    peers: Peers,
    *,
    squares: float,
    max_iter: int,
    tol: float,
    report: Callable[[Iteration], None],
    reorder: Reorder | None = None,
) -> Fit | None:
    """Lloyd's iterations until no row moves, centroids move little, or ``max_iter``.

    Stops as scikit-learn does: when no label changed, or when the squared distances by which centroids moved
    sum up to at most ``tol`` times the mean variance of the columns. A cluster that loses all its rows keeps
    its centroid (scikit-learn would move it to a far row).

    Args:
        x: (n, dim) this task's unit rows.
        start: (K, dim) first centroids, at the root.
        peers: the tasks.
        squares: sum of squared row lengths over all tasks, at the root.
        max_iter: most iterations.
        tol: as above.
        report: called at the root after every iteration.
        reorder: as :class:`Labels` takes it.

    Returns:
        The fit at the root, None elsewhere.
    """
    state, centroids = "go", start
    labels = Labels(x, reorder)
    totals: Totals | None = None
    history: list[Iteration] = []
    tolerance = 0.0
    began = time.monotonic()
    while True:
        state, centroids = peers.from_root((state, centroids))
        if state == "stop":
            break
        assert centroids is not None
        moved, totals = _add_up(peers.gather(labels.update(centroids)), totals, squares)
        if state == "last":
            break
        if totals is None:
            continue
        if not history:
            tolerance = tol * totals.mean_variance()
        history.append(
            Iteration(len(history) + 1, totals.inertia(centroids), moved, time.monotonic() - began)
        )
        report(history[-1])
        means = totals.centroids(centroids)
        shift = float(((means - centroids).astype(np.float64) ** 2).sum())
        centroids = means
        if moved == 0:
            state = "stop"
        elif shift <= tolerance or len(history) == max_iter:
            state = "last"
    if totals is None:
        return None
    assert centroids is not None
    return Fit(centroids, totals.inertia(centroids), len(history), totals.counts, tuple(history))


def random_start(x: Array, keys: Keys, peers: Peers, *, n_clusters: int, seed: int) -> Matrix | None:
    """Return the rows with the ``n_clusters`` smallest draws, at the root; None elsewhere.

    Args:
        x: (n, dim) this task's rows, on the host or a GPU.
        keys: (n,) the rows' keys, on the host.
        peers: the tasks.
        n_clusters: number of rows to return, at most those of all tasks.
        seed: random state.
    """
    draws = draw(keys, seed, _RANDOM_STREAM)
    smallest = np.sort(np.partition(draws, n_clusters)[:n_clusters] if len(draws) > n_clusters else draws)
    offered = list(peers.gather(smallest))
    limit = peers.from_root(np.sort(np.concatenate(offered))[n_clusters - 1] if offered else None)
    rows = np.flatnonzero(draws <= limit)
    found = list(peers.gather((draws[rows], _rows(x, rows))))
    if not found:
        return None
    order = np.argsort(np.concatenate([d for d, _ in found]), kind="stable")[:n_clusters]
    rows_found: Matrix = np.concatenate([r for _, r in found])
    return rows_found[order]


def parallel_start(
    x: Array, keys: Keys, peers: Peers, *, n_clusters: int, oversampling_factor: float, seed: int
) -> Matrix | None:
    """k-means|| (Bahmani et al., Scalable k-means++, 2012): few rounds of many draws, then k-means++ on these.

    A row's draw depends on its key alone, so the candidates do not depend on how rows are spread.

    Args:
        x: (n, dim) this task's rows, on the host or a GPU.
        keys: (n,) the rows' keys, on the host.
        peers: the tasks.
        n_clusters: K.
        oversampling_factor: rows that a round draws, on average, over K.
        seed: random state.

    Returns:
        (K, dim) at the root, None elsewhere.
    """
    fresh = peers.from_root(random_start(x, keys, peers, n_clusters=1, seed=seed + _FIRST_STREAM))
    candidates = [fresh]
    count = 1
    owner, squared = _distances(x, fresh)
    for turn in range(ROUNDS):
        cost = peers.from_root(sum(peers.gather(float(squared.sum()))))
        if cost <= 0:
            break
        chance = oversampling_factor * n_clusters * squared / cost
        rows = np.flatnonzero(uniform(keys, seed, _ROUND_STREAM + turn) < chance)
        picked = list(peers.gather(_rows(x, rows)))
        fresh = peers.from_root(np.unique(np.concatenate(picked), axis=0) if picked else None)
        if not len(fresh):
            continue
        candidates.append(fresh)
        label, distance = _distances(x, fresh)
        closer = distance < squared
        owner[closer] = label[closer] + count
        squared[closer] = distance[closer]
        count += len(fresh)
    counted = list(peers.gather(np.bincount(owner, minlength=count)))
    spare = random_start(x, keys, peers, n_clusters=n_clusters, seed=seed)
    if spare is None:
        return None
    return _reduce(np.concatenate(candidates), np.sum(counted, axis=0), spare, n_clusters, seed)


def _rows(x: Array, rows: NDArray[np.intp]) -> Matrix:
    """Return some rows on the host."""
    chosen: Matrix = to_host(x[array_module(x).asarray(rows)])
    return chosen


def _distances(x: Array, centroids: Matrix) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the nearest centroid of every row and the squared distance to it, on the host."""
    labels, l2, _ = assign(x, array_module(x).asarray(centroids))
    return to_host(labels), to_host(l2).astype(np.float64) ** 2


def _reduce(points: Matrix, weights: NDArray[np.int64], spare: Matrix, n_clusters: int, seed: int) -> Matrix:
    """Bring weighted candidates down to ``n_clusters``; too few are filled up with ``spare`` rows."""
    distinct, first = np.unique(points, axis=0, return_index=True)
    weight = weights[first].astype(np.float64)
    if len(distinct) >= n_clusters:
        return choose(distinct, weight, n_clusters, seed)
    joined = np.concatenate([distinct, spare])
    _, first = np.unique(joined, axis=0, return_index=True)
    repeated = np.setdiff1d(np.arange(len(joined)), first)
    order = np.concatenate([np.sort(first), repeated])
    filled: Matrix = joined[order]
    return filled[:n_clusters]


def _add_up(changes: Any, totals: Totals | None, squares: float) -> tuple[int, Totals | None]:
    """Add the tasks' changes of sums and counts to the totals; at the root only, elsewhere there are none."""
    moved = 0
    for sums, counts, rows in changes:
        moved += rows
        totals = Totals(
            sums if totals is None else totals.sums + sums,
            counts if totals is None else totals.counts + counts,
            squares,
        )
    return moved, totals
