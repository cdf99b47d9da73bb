"""Array helpers that follow the data: NumPy arrays stay on the host, CuPy arrays on the device."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

Array = Any
"""A ``numpy.ndarray`` or a ``cupy.ndarray``."""

_CACHE_BYTES = 1 << 20
"""Size of the temporary that a blocked kernel keeps: about one core's L2 cache."""


def array_module(*arrays: Array) -> ModuleType:
    """Return the module (``numpy`` or ``cupy``) that the arrays belong to.

    CuPy wins when the arrays are mixed; anything that is not a CuPy array counts as NumPy.
    """
    for array in arrays:
        if type(array).__module__.partition(".")[0] == "cupy":
            import cupy

            module: ModuleType = cupy
            return module
    return np


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """Return the array as NumPy's, copied from the device when it lies there."""
    host: np.ndarray[Any, Any] = array.get() if hasattr(array, "get") else np.asarray(array)
    return host


def block_rows(row_bytes: int, n_rows: int) -> int:
    """Return how many rows of ``row_bytes`` bytes a cache-sized block holds, from 64 up to ``n_rows``."""
    return max(1, min(n_rows, max(64, _CACHE_BYTES // max(1, row_bytes))))


def row_norms(x: Array) -> Array:
    """L2 length of every row.

    Squares are summed in float64, so that a row of float32 neither overflows nor underflows, and row by
    row, so that the result does not depend on the other rows.

    Args:
        x: (n, dim) float array.

    Returns:
        (n,) float64.
    """
    xp = array_module(x)
    n, dim = x.shape
    norms = xp.empty(n, dtype=xp.float64)
    step = block_rows(8 * dim, n)
    for start in range(0, n, step):
        block = x[start : start + step].astype(xp.float64)
        norms[start : start + step] = xp.sqrt(xp.einsum("ij,ij->i", block, block))
    return norms


def normalise(x: Array, norms: Array | None = None) -> Array:
    """Scale every row to unit L2 length.

    Args:
        x: (n, dim) float array, rows finite and not zero.
        norms: (n,) the rows' lengths, when they are known already.

    Returns:
        (n, dim) float32, each element rounded once from float64.
    """
    xp = array_module(x)
    n, dim = x.shape
    scale = row_norms(x) if norms is None else norms
    unit = xp.empty((n, dim), dtype=xp.float32)
    step = block_rows(8 * dim, n)
    for start in range(0, n, step):
        block = x[start : start + step].astype(xp.float64)
        block /= scale[start : start + step, None]
        unit[start : start + step] = block
    return unit
