"""What one task of the k-means stage does, from its Arrow batches to the one row of the result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_dedup.errors import InputError
from spark_dedup.kernels import cuml
from spark_dedup.kernels.arrays import Array
from spark_dedup.semantic import gpu
from spark_dedup.semantic.embeddings import EmbeddingCheck
from spark_dedup.semantic.lloyd import Fit, lloyd, parallel_start, random_start
from spark_dedup.semantic.peers import Peers
from spark_dedup.semantic.progress import Reporter
from spark_dedup.semantic.resident import Resident, collect_rows, reordered

RESULT_SCHEMA = "summary string, centroids binary, sizes binary"


@dataclass(frozen=True, eq=False)
class FitOptions:
    """What a task of the fit needs to know."""

    n_clusters: int
    dim: int
    max_iter: int
    tol: float
    random_state: int
    init: str | NDArray[np.float32]
    n_init: int
    oversampling_factor: float
    max_samples_per_batch: int
    max_points_per_centroid: int | None
    drop_invalid: bool
    device: str = "cpu"
    calls: cuml.Calls = cuml.call


def fit_task(
    batches: Iterable[pa.RecordBatch], peers: Peers, options: FitOptions, reporter: Reporter
) -> Iterator[pa.RecordBatch]:
    """One task's part of the fit; the root gives one row, the others none."""
    try:
        data = collect_rows(batches, options.dim)
    except Exception as error:
        _agree(peers, error)
        raise
    checks = _agree(peers, data.check)
    check = sum(checks[1:], checks[0]) if checks else data.check
    usable = check.rows - check.invalid
    enough = usable >= options.n_clusters and (options.drop_invalid or not check.invalid)
    enough, usable = peers.from_root((enough, usable))
    best: Fit | None = None
    if enough:
        cap = (options.max_points_per_centroid or usable) * options.n_clusters
        if cap < usable:
            data = _capped(data, cap / usable, peers, options)
        starts = [partial(_start, data.keys, peers, options, run) for run in range(options.n_init)]
        fits = gpu.fit_runs if options.device == "gpu" else partial(_fit_runs, reporter)
        for fit in fits(data, starts, peers, options):
            if fit is not None and (best is None or fit.inertia < best.inertia):
                best = fit
    if peers.rank == 0:
        yield _result(check, best)


def _capped(data: Resident, fraction: float, peers: Peers, options: FitOptions) -> Resident:
    """Draw a share of the rows; all of them where chance left fewer than there are clusters."""
    drawn = data.capped(fraction, options.random_state)
    enough = sum(peers.gather(len(drawn.keys))) >= options.n_clusters
    return drawn if peers.from_root(enough) else data


def _agree(peers: Peers, found: EmbeddingCheck | Exception) -> list[EmbeddingCheck]:
    """Return what all tasks found, at the root; where one failed, all raise its error.

    Spark shows the error of the task that it hears of first, which else might be one that lost its peers.
    """
    if isinstance(found, Exception) and not isinstance(found, InputError):
        found = RuntimeError(
            f"task {peers.rank} cannot read its rows: {found!r}"
        )  # its own class may not travel
    all_found = list(peers.gather(found))
    error = peers.from_root(next((one for one in all_found if isinstance(one, Exception)), None))
    if error is not None:
        raise error
    return [one for one in all_found if isinstance(one, EmbeddingCheck)]


def _fit_runs(
    reporter: Reporter, data: Resident, starts: Iterable[gpu.Start], peers: Peers, options: FitOptions
) -> Iterator[Fit | None]:
    squares = sum(peers.gather(data.squares))
    for start in starts:
        yield lloyd(
            data.x, start(data.x), peers, squares=squares,
            max_iter=options.max_iter, tol=options.tol, report=reporter.report, reorder=reordered,
        )  # fmt: skip


def _start(
    keys: NDArray[np.int64], peers: Peers, options: FitOptions, run: int, x: Array
) -> NDArray[np.float32] | None:
    seed = options.random_state + run
    if not isinstance(options.init, str):
        return options.init
    if options.init == "random":
        return random_start(x, keys, peers, n_clusters=options.n_clusters, seed=seed)
    return parallel_start(
        x,
        keys,
        peers,
        n_clusters=options.n_clusters,
        oversampling_factor=options.oversampling_factor,
        seed=seed,
    )


def _result(check: EmbeddingCheck, fit: Fit | None) -> pa.RecordBatch:
    summary: dict[str, Any] = {"rows": check.rows, "counts": check.counts, "examples": check.examples}
    centroids, sizes = b"", b""
    if fit is not None:
        history = [asdict(entry) for entry in fit.history]
        summary |= {"inertia": fit.inertia, "n_iter": fit.n_iter, "history": history}
        centroids, sizes = fit.centroids.tobytes(), fit.sizes.tobytes()
    columns = [pa.array([json.dumps(summary)]), pa.array([centroids]), pa.array([sizes])]
    return pa.RecordBatch.from_arrays(columns, ["summary", "centroids", "sizes"])
