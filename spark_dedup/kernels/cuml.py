"""k-means by cuML on this process's GPU, alone or with other processes over NCCL.

Every name that is taken from cuML, RAFT, NCCL and CuPy stands in one table, with the arguments it is called
with. The code can call nothing else, and a test binds each entry to the installed libraries' signatures, so a
renamed argument is found on a machine without a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_dedup.kernels.arrays import Array

Calls = Callable[..., Any]
"""Calls an entry of :data:`CALLS` by name; tests put NumPy in its place."""


@dataclass(frozen=True)
class Call:
    """A library function: where it is found, how many positional arguments it gets, which keywords."""

    module: str
    name: str
    positional: int = 0
    keywords: tuple[str, ...] = ()


_KMEANS = ("n_clusters", "max_iter", "tol", "random_state", "init", "n_init", "max_samples_per_batch",
           "device_buffer_samples")  # fmt: skip

CALLS = {
    "device_count": Call("cupy.cuda.runtime", "getDeviceCount"),
    "set_device": Call("cupy.cuda.runtime", "setDevice", 1),
    "memory": Call("cupy.cuda.runtime", "memGetInfo"),
    "to_device": Call("cupy", "asarray", 1),
    "to_host": Call("cupy", "asnumpy", 1),
    "kmeans": Call("cuml.cluster", "KMeans", 0, _KMEANS),
    "kmeans_fit": Call("cuml.cluster", "KMeans.fit", 2),
    "kmeans_mg": Call("cuml.cluster.kmeans_mg", "KMeansMG", 0, ("handle", *_KMEANS)),
    "kmeans_mg_fit": Call("cuml.cluster.kmeans_mg", "KMeansMG.fit", 2),
    "handle": Call("pylibraft.common", "Handle", 0, ("n_streams",)),
    "nccl": Call("raft_dask.common.nccl", "nccl"),
    "nccl_unique_id": Call("raft_dask.common.nccl", "nccl.get_unique_id"),
    "nccl_init": Call("raft_dask.common.nccl", "nccl.init", 4),
    "nccl_destroy": Call("raft_dask.common.nccl", "nccl.destroy", 1),
    "nccl_abort": Call("raft_dask.common.nccl", "nccl.abort", 1),
    "inject": Call("raft_dask.common.comms_utils", "inject_comms_on_handle_coll_only", 5),
}

_DEVICE_SHARE = 0.6
"""Share of the free device memory that rows may take; centroids, distances and labels need the rest."""


@dataclass(frozen=True, eq=False)
class DeviceFit:
    """Centroids (K, dim) float32 on the host, iterations, and this process's own inertia and rows per cluster."""

    centroids: NDArray[np.float32]
    n_iter: int
    inertia: float
    sizes: NDArray[np.int64]


def resolve(entry: Call) -> Any:
    """Return the object that an entry names."""
    found: Any = importlib.import_module(entry.module)
    for part in entry.name.split("."):
        found = getattr(found, part)
    return found


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    """Call an entry of :data:`CALLS`, with the arguments the table says and no others."""
    entry = CALLS[name]
    if len(args) != entry.positional or set(kwargs) != set(entry.keywords):
        raise TypeError(f"{name} is called otherwise than the table of calls says: {len(args)}, {[*kwargs]}")
    return resolve(entry)(*args, **kwargs)


def place(
    x: NDArray[np.float32], n_clusters: int, max_samples_per_batch: int, calls: Calls
) -> tuple[Array, int]:
    """Bring rows to the device when they fit, else leave them to be streamed.

    Returns:
        The rows, on the device or the host, and the rows per batch to stream (0 on the device).
    """
    free, _ = calls("memory")
    work = 4 * n_clusters * (max_samples_per_batch + 4 * x.shape[1])
    room = int(_DEVICE_SHARE * max(0, free - work))
    if x.nbytes <= room:
        return calls("to_device", x), 0
    return x, max(1024, room // (4 * 4 * x.shape[1]))


@contextmanager
def communicator(rank: int, size: int, share: Callable[[Any], Any], calls: Calls) -> Iterator[Any]:
    """Join the processes' GPUs in a NCCL communicator; aborted when the block fails, else destroyed.

    Args:
        rank: this process.
        size: number of processes.
        share: returns the first process's value in all of them.
        calls: see :data:`Calls`.

    Yields:
        A RAFT handle that carries the communicator.
    """
    unique_id = share(calls("nccl_unique_id") if rank == 0 else None)
    nccl = calls("nccl")
    calls("nccl_init", nccl, size, unique_id, rank)
    handle = calls("handle", n_streams=0)
    try:
        calls("inject", handle, nccl, size, rank, True)
        yield handle
    except BaseException:
        calls("nccl_abort", nccl)
        raise
    calls("nccl_destroy", nccl)


def fit(
    x: Array,
    start: NDArray[np.float32],
    *,
    handle: Any | None,
    max_iter: int,
    tol: float,
    random_state: int,
    max_samples_per_batch: int,
    buffer: int,
    calls: Calls,
) -> DeviceFit:
    """Run Lloyd's iterations from ``start``.

    Args:
        x: (n, dim) float32 rows of this process, on the device or the host.
        start: (K, dim) float32.
        handle: from :func:`communicator`, or None for this process alone.
        max_iter: most iterations.
        tol: bound on the sum of squared movements; cuML does not scale it by the data's variance.
        random_state: seed; cuML asks for one even where nothing is drawn.
        max_samples_per_batch: rows whose distances are held at once.
        buffer: rows per batch when ``x`` stays on the host, else 0.
        calls: see :data:`Calls`.
    """
    options = {
        "n_clusters": len(start), "max_iter": max_iter, "tol": tol, "random_state": random_state,
        "init": calls("to_device", start), "n_init": 1, "max_samples_per_batch": max_samples_per_batch,
        "device_buffer_samples": buffer,
    }  # fmt: skip
    if handle is None:
        model = calls("kmeans", **options)
        calls("kmeans_fit", model, x)
    else:
        model = calls("kmeans_mg", handle=handle, **options)
        calls("kmeans_mg_fit", model, [x])
    labels = calls("to_host", model.labels_)
    sizes = np.bincount(labels, minlength=len(start)).astype(np.int64)
    centroids = np.ascontiguousarray(calls("to_host", model.cluster_centers_), np.float32)
    return DeviceFit(centroids, int(model.n_iter_), float(model.inertia_), sizes)
