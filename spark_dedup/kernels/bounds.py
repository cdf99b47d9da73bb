"""Lloyd's labels without most of the multiplications: distances that cannot have become the least are not taken.

The triangle inequality bounds them, as in Elkan's *Using the Triangle Inequality to Accelerate k-Means* (2003), but
for blocks of alike rows instead of single ones: one bound for a block and a centroid, 1/256 of Elkan's memory or
less, and what is left to compute stays a matrix product. The labels are those of :func:`nearest`, to the last tie.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spark_dedup.kernels.arrays import row_norms
from spark_dedup.kernels.kmeans import moved_sums, nearest, rounding

__all__ = ["Labels", "Reorder"]

Matrix = NDArray[np.float32]
Reorder = Callable[[Matrix, NDArray[np.intp]], Matrix]

_SETTLED = 0.08
"""Share of rows that may still move when bounds are begun: before, centroids move too far for any to hold."""
_WORTH = 0.85
"""Share of all distances above which to bound them costs more than it spares."""
_PAUSE = 4
"""Iterations without bounds after one in which they were not worth it."""
_BLOCK = 256
_MOST = 1024
"""Rows of a block, at least and at most: larger blocks have few centroids that are far from all of their rows."""
_CHUNK = 1024
_GATHERED = 1 << 14
_SLACK = 1e-6
"""Above the rounding of a bound in float32 when it is moved."""


class Labels:
    """The nearest centroid of every row, from iteration to iteration.

    Args:
        x: (n, dim) float32 unit rows.
        reorder: copies rows of ``x`` in a given order; it may put them on disk.
    """

    def __init__(self, x: Matrix, reorder: Reorder | None = None) -> None:
        self._x = x
        self._reorder = reorder or (lambda rows, order: rows[order])
        self._labels: NDArray[np.int32] | None = None
        self._bounds: _Bounds | None = None
        self._pause = 0
        self._has_looked = False

    def update(self, centroids: Matrix) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Label all rows anew.

        Args:
            centroids: (K, dim) float32.

        Returns:
            As :func:`moved_sums`: the change of sums and counts, and how many rows moved.
        """
        before = self._labels
        if self._bounds is not None and before is not None and not self._pause:
            found, share = self._bounds.labels(self._x, before, centroids)
            # The first look is always at everything.
            if self._has_looked and share > _WORTH:
                self._pause = _PAUSE
                self._bounds.forget()
            self._has_looked = not self._pause
        else:
            found = nearest(self._x, centroids)
            self._pause = max(0, self._pause - 1)
        change: tuple[NDArray[np.int64], NDArray[np.int64], int]
        change = moved_sums(self._x, before, found, len(centroids))
        self._labels = found
        block = max(_BLOCK, 16 * len(centroids) // max(1, self._x.shape[1]))
        if (
            self._bounds is None
            and change[2] < _SETTLED * len(found)
            and block <= _MOST
            and len(centroids) > 1
        ):
            order = np.argsort(_places(centroids)[found], kind="stable")
            self._x = self._reorder(self._x, order)
            self._labels = found[order]
            self._bounds = _Bounds(self._x, centroids, block)
        return change


class _Bounds:
    """Lower bounds of ``d(x, c) - reach(x)`` over the rows x of a block that do not belong to c.

    ``reach`` is an upper bound of the distance to the own centroid. It is taken anew in every iteration, so that
    bounds need to follow only the centroids' moves and the largest change of reach in a block.
    """

    def __init__(self, x: Matrix, centroids: Matrix, block: int) -> None:
        self._block = block
        self._squares = (row_norms(x) ** 2).astype(np.float32)
        self._reach = np.zeros(len(x), np.float32)
        self._gap = np.full((-(-len(x) // block), len(centroids)), -np.inf, np.float32)
        self._centroids = centroids.copy()
        self._taken = 0

    def forget(self) -> None:
        """Let every distance be taken the next time."""
        self._gap.fill(-np.inf)

    def labels(
        self, x: Matrix, before: NDArray[np.int32], centroids: Matrix
    ) -> tuple[NDArray[np.int32], float]:
        """Return the nearest centroids of the rows, and the share of the distances that were taken for it.

        Args:
            x: the rows.
            before: labels of the rows under the last centroids that were labelled by, here or elsewhere.
            centroids: (K, dim) float32.
        """
        self._taken = 0
        lengths = row_norms(centroids)
        half = (0.5 * lengths**2).astype(np.float32)
        margin = rounding(x.shape[1], float(lengths.max(initial=0)))
        moves = row_norms(centroids.astype(np.float64) - self._centroids).astype(np.float32)
        self._centroids = centroids.copy()
        contested = [np.empty(0, np.intp)]
        chunk = max(1, _CHUNK // self._block) * self._block
        for start in range(0, len(x), chunk):
            contested += self._look(x, before, centroids, half, margin, moves, start, start + chunk)
        rows = np.concatenate(contested)
        found = before.copy()
        for start in range(0, len(rows), _GATHERED):
            some = rows[start : start + _GATHERED]
            found[some] = nearest(x[some], centroids)
        moved = rows[found[rows] != before[rows]]
        # The centroid that a row left is near to it, and must be looked at again.
        self._gap[moved // self._block, before[moved]] = -np.inf
        return found, self._taken / self._gap.size

    def _look(
        self,
        x: Matrix,
        before: NDArray[np.int32],
        centroids: Matrix,
        half: Matrix,
        margin: float,
        moves: Matrix,
        start: int,
        stop: int,
    ) -> list[NDArray[np.intp]]:
        """Bring the bounds of some rows up to date; return the rows that may have another centroid now."""
        label = before[start:stop]
        own = np.einsum("ij,ij->i", x[start:stop], centroids[label]) - half[label]
        error = np.float32(margin + _SLACK)
        reach = np.sqrt(np.maximum(0, self._squares[start:stop] - 2 * own + error))
        first = np.arange(0, len(label), self._block)
        grown = np.maximum.reduceat(reach - self._reach[start:stop], first)
        self._reach[start:stop] = reach
        gap = self._gap[start // self._block : -(-stop // self._block)]
        gap -= moves
        gap -= (grown + np.float32(_SLACK))[:, None]
        contested = []
        for number, begin in enumerate(first.tolist()):
            near = np.flatnonzero(gap[number] <= 0)
            if not len(near):
                continue
            part = slice(begin, min(begin + self._block, len(label)))
            block = x[start + part.start : start + part.stop]
            every = 4 * len(near) > 3 * len(centroids)
            if every:
                near = np.arange(len(centroids))
            score = block @ (centroids if every else centroids[near]).T
            score -= half[near]
            self._taken += len(near)
            place = np.searchsorted(near, label[part])
            place[place == len(near)] = 0
            mine = np.flatnonzero(near[place] == label[part])
            score[mine, place[mine]] = -np.inf
            close = np.flatnonzero(score.max(axis=1) >= own[part] - np.float32(margin))
            if len(close):
                contested.append(close + (start + part.start))
            score *= -2
            score += (self._squares[start:stop][part] - error)[:, None]
            np.sqrt(np.maximum(score, 0, out=score), out=score)
            score -= reach[part, None]
            gap[number, near] = score.min(axis=0)
        return contested


def _places(centroids: Matrix) -> NDArray[np.intp]:
    """Return a place for each centroid, those side by side that lie around the same few of them."""
    count = len(centroids)
    seeds = centroids[:: max(1, int(np.sqrt(count)))]
    group = nearest(centroids, np.ascontiguousarray(seeds))
    places = np.empty(count, np.intp)
    places[np.argsort(group, kind="stable")] = np.arange(count)
    return places
