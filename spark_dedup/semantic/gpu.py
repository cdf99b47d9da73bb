"""k-means on the executors' GPUs: a barrier stage with one task per GPU, which cuML and NCCL run.

Starts are drawn as on the CPU, by the same kernels on the device, so both devices begin alike. What
follows is cuML's: it adds in float32, so its centroids are close to the CPU's, not equal.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spark_dedup.errors import InputError
from spark_dedup.kernels import cuml
from spark_dedup.kernels.arrays import Array
from spark_dedup.kernels.kmeans import Totals, label_sums
from spark_dedup.semantic.lloyd import Fit
from spark_dedup.semantic.peers import Peers
from spark_dedup.session import barrier_slots, count_executors, is_connect, resolve_device
from spark_dedup.settings import conf_of

if TYPE_CHECKING:
    from pyspark.resource.profile import ResourceProfile
    from pyspark.sql import SparkSession

    from spark_dedup.semantic.fit import FitOptions
    from spark_dedup.semantic.resident import Resident

logger = logging.getLogger(__name__)

Start = Callable[[Array], NDArray[np.float32] | None]
"""Gives first centroids for rows, at the root."""


def fit_device(spark: SparkSession, device: str) -> str:
    """Settle where a fit runs: ``"cpu"`` or ``"gpu"``.

    Raises:
        InputError: ``"gpu"`` is asked for, and this local machine has no GPU or no cuML.
    """
    master = conf_of(spark, "spark.master", "local")
    resolved = resolve_device(device, master=master)
    if resolved == "gpu" and master.startswith("local") and importlib.util.find_spec("cuml") is None:
        if device == "gpu":
            raise InputError("device='gpu' needs cuML: pip install 'spark-dedup[gpu]'")
        logger.info(
            "this machine has a GPU, but no cuML (pip install 'spark-dedup[gpu]'): k-means runs on CPU"
        )
        return "cpu"
    return resolved


def gpu_tasks(spark: SparkSession) -> tuple[int, ResourceProfile | None]:
    """Return how many GPUs a stage can use, and the resource profile that gives each task one of them.

    A cluster says how many tasks share a GPU (``spark.task.resource.gpu.amount``); a local session says
    nothing, and there the driver's own GPUs are counted. 0 where no barrier stage can run.

    Raises:
        InputError: tasks share a GPU on Spark 3.5, which cannot give the tasks of one stage more.
    """
    share = float(conf_of(spark, "spark.task.resource.gpu.amount", "0"))
    slots = barrier_slots(spark)
    if share <= 0:
        return min(slots, max(1, _own_gpus())), None
    # There may be fewer cores than tasks that could share a GPU, so this is the least there can be.
    count = math.ceil(slots * share - 1e-9)
    if is_connect(spark):
        return min(slots, count), None
    each = int(conf_of(spark, "spark.executor.resource.gpu.amount", "1"))
    count = min(slots, max(count, each * count_executors(spark)))
    if share == 1:
        return count, None
    import pyspark

    # Before 4.0 mapInArrow takes no profile, and two tasks of a fit cannot have one GPU.
    if int(pyspark.__version__.split(".")[0]) < 4:
        raise InputError(
            f"where tasks share a GPU, k-means needs Spark 4.0 or newer, this is {pyspark.__version__}: set "
            "spark.task.resource.gpu.amount=1, or device='cpu'"
        )
    from pyspark.resource.profile import ResourceProfileBuilder
    from pyspark.resource.requests import TaskResourceRequests

    return count, ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource("gpu", 1)).build


def _own_gpus() -> int:
    """Count this machine's GPUs that a process may see."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    return min(count, sum(name.strip() not in ("", "-1") for name in visible.split(",")))


def fit_runs(
    data: Resident, starts: Iterable[Start], peers: Peers, options: FitOptions
) -> Iterator[Fit | None]:
    """Fit this task's rows from each start, together with the other tasks.

    Args:
        data: this task's rows.
        starts: each is given rows (on the device, where they fit) and gives (K, dim) at the root.
        peers: the tasks, one per GPU.
        options: parameters.

    Yields:
        A fit at the root, None elsewhere.
    """
    calls = options.calls
    use_device(peers.rank, calls)
    x, buffer = cuml.place(data.x, options.n_clusters, options.max_samples_per_batch, calls)
    tol = peers.from_root(_tolerance(data, peers, options.tol))
    join = (
        nullcontext()
        if peers.size == 1
        else cuml.communicator(peers.rank, peers.size, peers.from_root, calls)
    )
    with join as handle:
        for run, start in enumerate(starts):
            part = cuml.fit(
                x, peers.from_root(start(x)), handle=handle, max_iter=options.max_iter, tol=tol,
                random_state=options.random_state + run, buffer=buffer,
                max_samples_per_batch=options.max_samples_per_batch, calls=calls,
            )  # fmt: skip
            parts = list(peers.gather((part.inertia, part.sizes)))
            inertia, sizes = sum(p[0] for p in parts), np.sum([p[1] for p in parts], axis=0)
            yield Fit(part.centroids, inertia, part.n_iter, sizes, ()) if parts else None


def use_device(rank: int, calls: cuml.Calls) -> None:
    """Take the GPU that Spark gave this task, else one by rank."""
    from pyspark import TaskContext

    context = TaskContext.get()
    resources = context.resources() if context else {}
    given = int(resources["gpu"].addresses[0]) if "gpu" in resources else rank
    # Where the cluster shows a process its own GPU only, that one is number 0 whatever its address.
    calls("set_device", given % calls("device_count"))


def _tolerance(data: Resident, peers: Peers, tol: float) -> float | None:
    """``tol`` times the mean variance of all rows, at the root: cuML does not scale it itself."""
    labels = np.zeros(len(data.x), np.int32)
    parts = list(peers.gather((*label_sums(data.x, labels, 1), data.squares)))
    if not parts:
        return None
    sums, counts, squares = (sum(p[i] for p in parts) for i in range(3))
    return tol * Totals(sums, counts, squares).mean_variance()
