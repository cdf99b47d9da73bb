"""Rows that stay with their task for the whole fit, and the frame around the work done on them."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_dedup.kernels.arrays import row_norms
from spark_dedup.kernels.seeding import uniform
from spark_dedup.semantic.embeddings import EmbeddingCheck, check_of, unit_matrix
from spark_dedup.semantic.peers import Alone, Meeting, Peers, connect_meanwhile, threads_per_task

logger = logging.getLogger(__name__)

Matrix = NDArray[np.float32]

_CAP_STREAM = 3
_COPY_ROWS = 1 << 14


@dataclass(frozen=True)
class Resident:
    """One task's share of the data.

    Attributes:
        x: (n, dim) float32 unit rows, mapped from an unnamed local file: the system may page them out, and
            they vanish with the task.
        keys: (n,) int64, one per row, alike wherever the row is met.
        check: what was found while reading.
        squares: sum of the squared lengths of the rows.
    """

    x: Matrix
    keys: NDArray[np.int64]
    check: EmbeddingCheck
    squares: float

    def capped(self, fraction: float, seed: int) -> Resident:
        """Keep the rows whose draw is below ``fraction``."""
        kept = uniform(self.keys, seed, _CAP_STREAM) < fraction
        parts = range(0, len(kept), _COPY_ROWS)
        squares = 0.0
        with _local_file() as file:
            for start in parts:
                some = self.x[start : start + _COPY_ROWS][kept[start : start + _COPY_ROWS]]
                squares += _squares(some)
                file.write(some.data)
            return Resident(_mapped(file, self.x.shape[1]), self.keys[kept], self.check, squares)


def collect_rows(batches: Iterable[pa.RecordBatch], dim: int) -> Resident:
    """Read columns ``key`` (long), ``id`` (string) and ``e`` (embedding) to the end; unit rows go to a local file.

    Memory is that of one batch and of the keys.
    """
    check = EmbeddingCheck(dim)
    keys = [np.empty(0, np.int64)]
    squares = 0.0
    with _local_file() as file:
        for batch in batches:
            unit, codes = unit_matrix(batch.column("e"), dim)
            check += check_of(codes, dim, batch.column("id"))
            keys.append(batch.column("key").to_numpy(zero_copy_only=False)[codes == 0].astype(np.int64))
            squares += _squares(unit)
            file.write(unit.data)
        return Resident(_mapped(file, dim), np.concatenate(keys), check, squares)


def reordered(x: Matrix, order: NDArray[np.intp]) -> Matrix:
    """Return the rows in another order, in a local file of their own."""
    with _local_file() as file:
        for start in range(0, len(order), _COPY_ROWS):
            file.write(x[order[start : start + _COPY_ROWS]].data)
        return _mapped(file, x.shape[1])


def _squares(x: Matrix) -> float:
    """Sum of the squared lengths of some rows."""
    return float((row_norms(x) ** 2).sum())


def staged(work: Callable[[Iterable[pa.RecordBatch], Peers], Iterator[pa.RecordBatch]]) -> Any:
    """Wrap ``work`` for ``mapInArrow``: connect the tasks of the stage and share the cores among them."""
    meeting = Meeting.arrange()

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import BarrierTaskContext, TaskContext

        context = TaskContext.get()
        if not isinstance(context, BarrierTaskContext):
            with blas_threads(os.cpu_count() or 1):
                yield from work(batches, Alone())
            return
        with connect_meanwhile(context, meeting) as peers, blas_threads(threads_per_task(context)):
            yield from work(batches, peers)

    return run


def blas_threads(count: int) -> AbstractContextManager[object]:
    """Limit matrix products to ``count`` threads inside the block."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # Spark's own OMP_NUM_THREADS holds then: the cores of a task
        return contextlib.nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(count, user_api="blas")
    return limits


def _local_file() -> IO[bytes]:
    """Return an unnamed file on Spark's local disk."""
    folders = [
        folder for folder in os.environ.get("SPARK_LOCAL_DIRS", "").split(",") if os.path.isdir(folder)
    ]
    return tempfile.TemporaryFile(dir=folders[0] if folders else None, prefix="spark-dedup-")


def _mapped(file: IO[bytes], dim: int) -> Matrix:
    file.flush()
    size = os.fstat(file.fileno()).st_size
    if not size:
        return np.empty((0, dim), np.float32)
    return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.float32).reshape(-1, dim)
