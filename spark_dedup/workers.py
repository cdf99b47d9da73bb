"""What every Python task of ours does first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING
from zipimport import zipimporter

from spark_dedup.stores import adopt, spark_settings

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BatchFunction", "in_worker"]

BatchFunction = Callable[[Iterable["pa.RecordBatch"]], Iterator["pa.RecordBatch"]]


def in_worker(work: BatchFunction) -> BatchFunction:
    """Wrap a function for ``mapInArrow``; its task reaches the stores that this process does."""
    settings = dict(spark_settings())

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        _forget_archives()
        adopt(settings)
        yield from work(batches)

    return run


def _forget_archives() -> None:
    """Drop the import system's readers of archives; the next import makes them again, from a cache.

    Spark puts its own jar and zip files on a worker's path and invalidates all import caches before every task.
    Python 3.10 and 3.11 then read the directories of the archives anew: 0.3 s of each task (CPython issue 103200).
    """
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimporter):
            del sys.path_importer_cache[path]
