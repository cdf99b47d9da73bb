"""Largest cosine similarity of every row to the rows before it: blocked, and the same however it is blocked.

Matrix products find the candidates; their rounding depends on the shapes multiplied, by about 1e-7. Every
winner is therefore scored again by a float64 dot product of its two rows alone, rounded once to float32, and
so are the other candidates when they lie within the products' rounding of the winner. Scores, and ties
between equal scores (the earliest row wins), then do not depend on the blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from spark_dedup.kernels.arrays import Array, array_module, block_rows

__all__ = [
    "NO_MATCH",
    "Best",
    "best_among",
    "best_earlier",
    "dot_rows",
    "first_occurrences",
    "nearest_rows",
    "pairs_above",
]

NO_MATCH = -1
"""Index of the match of a row that has none; its score is minus infinity."""

_MAX_RIVALS = 16
"""Distinct candidates of a row that are scored again; with more, the largest product is taken as it is."""

_STRIPS = 8
"""A tile of the triangle is multiplied in this many strips, so that little above the diagonal is wasted."""


class Best(NamedTuple):
    """For each row, the largest similarity found and where.

    Attributes:
        score: (n,) float32 in [-1, 1], or minus infinity without a match.
        index: (n,) int64 position of the matched row, or ``NO_MATCH``.
    """

    score: Array
    index: Array


def best_earlier(x: Array, *, tile: int = 1024) -> Best:
    """Find each row's most similar earlier row: the maximum over the strict lower triangle of ``x @ x.T``.

    Args:
        x: (n, dim) float32 unit rows, in rank order.
        tile: rows multiplied at once; the product held is at most ``tile / 8`` x ``tile``.

    Returns:
        Scores and positions in ``x``; equal scores go to the earliest row. The first row has no match.
    """
    xp = array_module(x)
    n = x.shape[0]
    best = _nothing(xp, n)
    step = max(1, min(tile // _STRIPS, n))
    buffer = xp.empty(min(step, n) * min(tile, n), dtype=xp.float32)
    not_earlier = xp.arange(step)[None, :] >= xp.arange(step)[:, None]
    barred = xp.where(not_earlier, -xp.inf, 0).astype(xp.float32)  # adding it is quicker than a mask
    for start in range(0, n, step):
        stop = min(start + step, n)
        for left in range(0, stop, tile):
            right = min(left + tile, stop)
            product = _product(xp, x[start:stop], x[left:right], buffer)
            if right > start:
                # Tiles begin at multiples of tile, which may fall inside the strip when tile < 8.
                first = max(start, left)
                product[:, first - left :] += barred[: stop - start, first - start : right - start]
            _improve(best, start, stop, x[start:stop], x[left:right], product, left)
    return best


def best_among(x: Array, earlier: Array, *, tile: int = 1024, floor: Array | None = None) -> Best:
    """Find each row's most similar row of ``earlier``, all of which rank before all of ``x``.

    Args:
        x: (n, dim) float32 unit rows.
        earlier: (m, dim) float32 unit rows, in rank order.
        tile: rows of either side multiplied at once.
        floor: (n,) float32 scores already found; only a larger one counts as a match.

    Returns:
        Scores and positions in ``earlier``; equal scores go to the earliest row.
    """
    xp = array_module(x)
    n, m = x.shape[0], earlier.shape[0]
    best = _nothing(xp, n)
    if floor is not None:
        best.score[:] = floor
    buffer = xp.empty(min(tile, n) * min(tile, m), dtype=xp.float32)
    for start in range(0, n, tile):
        stop = min(start + tile, n)
        for left in range(0, m, tile):
            right = min(left + tile, m)
            product = _product(xp, x[start:stop], earlier[left:right], buffer)
            _improve(best, start, stop, x[start:stop], earlier[left:right], product, left)
    if floor is not None:
        best.score[best.index == NO_MATCH] = -xp.inf
    return best


def nearest_rows(x: Array, others: Array, count: int, *, tile: int = 1024) -> Array:
    """Find the ``count`` rows of ``others`` nearest to each row in Euclidean distance, nearest first.

    Args:
        x: (n, dim) float32.
        others: (m, dim) float32, ``count <= m``.
        count: how many to find.
        tile: rows multiplied at once.

    Returns:
        (n, count) int64 positions in ``others``; equal distances go to the lower position.
    """
    xp = array_module(x)
    n = x.shape[0]
    half_squares = xp.einsum("ij,ij->i", others, others) / 2
    found = xp.empty((n, count), dtype=xp.int64)
    for start in range(0, n, tile):
        stop = min(start + tile, n)
        closeness = x[start:stop] @ others.T - half_squares
        rows = xp.arange(stop - start)
        for place in range(count):
            column = closeness.argmax(axis=1)
            found[start:stop, place] = column
            closeness[rows, column] = -xp.inf
    return found


def pairs_above(x: Array, others: Array, threshold: float) -> tuple[Array, Array, Array]:
    """Find every pair of rows whose similarity is at least ``threshold``.

    Args:
        x: (n, dim) float32 unit rows; the product with all of ``others`` is held at once.
        others: (m, dim) float32 unit rows.
        threshold: smallest similarity.

    Returns:
        Positions in ``x`` and in ``others`` and the float32 similarities, in row order.
    """
    xp = array_module(x)
    product = x @ others.T
    row, column = xp.nonzero(product >= threshold)
    return row, column, product[row, column]


def first_occurrences(x: Array) -> Array:
    """Mark the rows that are not bitwise copies of an earlier row.

    Rows are told apart by a 64-bit key of their bits, so that two different rows pass for copies with a
    probability of 2**-64 per pair; callers compare near-identical rows only.

    Args:
        x: (n, dim) float32.

    Returns:
        (n,) bool.
    """
    xp = array_module(x)
    n, dim = x.shape
    weights = np.random.default_rng(0).integers(1, 1 << 63, size=dim, dtype=np.uint64) * 2 + 1
    bits = xp.ascontiguousarray(x).view(xp.uint32).astype(xp.uint64)
    keys = (bits * xp.asarray(weights)[None, :]).sum(axis=1)
    _, first = xp.unique(keys, return_index=True)
    mark = xp.zeros(n, dtype=bool)
    mark[first] = True
    return mark


def dot_rows(a: Array, b: Array) -> Array:
    """Dot product of each row of ``a`` with the same row of ``b``, summed in float64, as float32 in [-1, 1]."""
    xp = array_module(a)
    n, dim = a.shape
    out = xp.empty(n, dtype=xp.float32)
    step = block_rows(16 * dim, n)
    for start in range(0, n, step):
        part = slice(start, start + step)
        out[part] = xp.einsum("ij,ij->i", a[part].astype(xp.float64), b[part].astype(xp.float64))
    return xp.clip(out, -1, 1)


def _nothing(xp: Any, n: int) -> Best:
    return Best(xp.full(n, -xp.inf, dtype=xp.float32), xp.full(n, NO_MATCH, dtype=xp.int64))


def _product(xp: Any, a: Array, b: Array, buffer: Array) -> Array:
    """Multiply into the front of the buffer: a fresh array each time would cost its page faults."""
    shape = (a.shape[0], b.shape[0])
    return xp.matmul(a, b.T, out=buffer[: shape[0] * shape[1]].reshape(shape))


def _slack(dim: int) -> float:
    """Twice the rounding of a float32 product of two unit rows, with a wide margin over its random walk."""
    return float(4 * np.finfo(np.float32).eps * np.sqrt(dim))


def _improve(best: Best, start: int, stop: int, x: Array, others: Array, product: Array, offset: int) -> None:
    """Raise ``best[start:stop]`` where ``others``, whose first row is at ``offset``, has a larger score.

    ``product`` is ``x @ others.T``, minus infinity where a pair does not count; it is used up.
    """
    xp = array_module(x)
    known = best.score[start:stop]
    index = product.argmax(axis=1)
    top = product[xp.arange(len(index)), index]
    rows = xp.flatnonzero((top >= known - _slack(x.shape[1])) & (top > -xp.inf))
    if not rows.size:
        return
    if rows.size < top.size:
        x, product, index, top = x[rows], product[rows], index[rows], top[rows]
    score, index = _exact_best(x, others, product, index, top)
    better = score > known[rows]
    at = start + rows[better]
    best.score[at] = score[better]
    best.index[at] = index[better] + offset


def _exact_best(x: Array, others: Array, product: Array, index: Array, top: Array) -> tuple[Array, Array]:
    """Return the exact largest score per row, and the earliest row that has it.

    ``index`` is where the largest product of each row stands, ``top`` that product.
    """
    xp = array_module(x)
    rows = xp.arange(x.shape[0])
    product[rows, index] = -xp.inf
    least = top - _slack(x.shape[1])
    crowded = xp.flatnonzero(product.max(axis=1) >= least)
    product[rows, index] = top
    score = dot_rows(x, others[index])
    if crowded.size:
        rivals = _rivals(others, product[crowded], least[crowded])
        row, column = xp.nonzero(rivals)
        exact = xp.full(rivals.shape, -xp.inf, dtype=xp.float32)
        exact[row, column] = dot_rows(x[crowded[row]], others[column])
        index[crowded] = exact.argmax(axis=1)
        score[crowded] = exact.max(axis=1)
    return score, index


def _rivals(others: Array, product: Array, least: Array) -> Array:
    """Mark the candidates of each row: products of at least ``least``, copies of earlier rows left out."""
    xp = array_module(product)
    rivals = product >= least[:, None]
    if int(rivals.sum(axis=1).max()) <= _MAX_RIVALS:
        return rivals
    rivals &= first_occurrences(others)[None, :]
    wide = xp.flatnonzero(rivals.sum(axis=1) > _MAX_RIVALS)
    if wide.size:
        largest = xp.where(rivals[wide], product[wide], -xp.inf).argmax(axis=1)
        rivals[wide] = False
        rivals[wide, largest] = True
    return rivals
