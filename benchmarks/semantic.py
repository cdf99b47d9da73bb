"""The whole semantic job against a plain script of the same steps: ``python -m benchmarks.semantic``.

The plain script reads the same parquet files into one matrix, clusters with faiss (scikit-learn's Lloyd where
faiss is not installed) from the same start for as many iterations, compares inside clusters with NumPy, and writes
the same three results. Times are medians of runs in turn, in a warm Spark session; processor seconds are those of
all processes, and say more than wall time where the machine has other work.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.kmeans import make_data, write
from benchmarks.pairwise import processor_seconds
from spark_dedup import SemanticDeduplicationWorkflow, build_session
from spark_dedup.kernels.kmeans import assign
from spark_dedup.kernels.similarity import best_earlier
from spark_dedup.semantic.embeddings import from_matrix
from spark_dedup.semantic.lloyd import lloyd
from spark_dedup.semantic.peers import Alone
from spark_dedup.semantic.resident import blas_threads, reordered


def plain_fit(x, start, iterations):
    """Return centroids, with faiss where it is installed."""
    try:
        import faiss
    except ImportError:
        from sklearn.cluster import KMeans

        fitted = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(
            x
        )
        return fitted.cluster_centers_.astype(np.float32)
    dim, count = x.shape[1], len(start)
    fit = faiss.Kmeans(
        dim, count, niter=iterations, max_points_per_centroid=1 << 30, min_points_per_centroid=1
    )
    fit.train(x, init_centroids=start)
    return fit.centroids


def plain(source, out, start, iterations, eps):
    """The same steps in one process."""
    table = ds.dataset(source).to_table()
    ids = table["id"].to_numpy()
    x = table["embeddings"].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = plain_fit(x, start, iterations)
    label = np.empty(len(x), np.int64)
    for begin in range(0, len(x), 4096):
        label[begin : begin + 4096] = ((means**2).sum(axis=1) - 2 * x[begin : begin + 4096] @ means.T).argmin(
            axis=1
        )
    l2 = np.linalg.norm(x - means[label], axis=1)
    cosine = 1 - np.einsum("ij,ij->i", x, means[label]) / np.linalg.norm(means, axis=1)[label]
    order = np.lexsort((-ids, -cosine, label))
    removed, pairs = [], []
    for rows in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        folder = Path(out) / "kmeans_results" / f"centroid={label[rows[0]]}"
        folder.mkdir(parents=True)
        distances = {"l2_dist_to_cent": l2[rows], "cosine_dist_to_cent": cosine[rows]}
        block = x[rows]
        pq.write_table(
            pa.table({"id": ids[rows], "embeddings": from_matrix(block), **distances}), folder / "0.parquet"
        )
        score, match = compare(block)
        pairs.append((ids[rows], ids[rows][match], score))
        removed.append(ids[rows][score >= 1 - eps])
    names = ("id", "max_id", "cosine_sim_score")
    for name, columns in (
        ("pairwise_results", dict(zip(names, map(np.concatenate, zip(*pairs, strict=True)), strict=True))),
        ("duplicates", {"id": np.sort(np.concatenate(removed))}),
    ):
        (Path(out) / name).mkdir()
        pq.write_table(pa.table(columns), Path(out) / name / "0.parquet")
    return sum(map(len, removed))


def compare(block, step=1024):
    """Largest similarity to an earlier row, in plain NumPy."""
    score, match = np.zeros(len(block), np.float32), np.zeros(len(block), np.int64)
    for begin in range(0, len(block), step):
        end = min(begin + step, len(block))
        similar = block[begin:end] @ block[:end].T
        similar[np.arange(end)[None, :] >= np.arange(begin, end)[:, None]] = -2
        match[begin:end] = similar.argmax(axis=1)
        score[begin:end] = similar.max(axis=1)
    if len(block):
        score[0], match[0] = 0, 0
    return score, match


def kernel_seconds(x, start, iterations):
    """Seconds of the job's own kernels alone, in one thread: the fit with its bounds, assignment, pairs."""
    with blas_threads(1):
        began = time.process_time()
        fitted = lloyd(
            x, start, Alone(), squares=float((x.astype(np.float64) ** 2).sum()), max_iter=iterations, tol=0,
            report=lambda _: None, reorder=reordered,
        )  # fmt: skip
        label = assign(x, fitted.centroids)[0]
        for cluster in range(len(start)):
            best_earlier(np.ascontiguousarray(x[label == cluster]))
        return time.process_time() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    x = make_data(given.rows, given.dim)
    start = x[np.random.default_rng(1).choice(len(x), given.clusters, replace=False)]
    spark = build_session(
        "bench", device="cpu", master=f"local[{given.cores}]", conf={"spark.driver.memory": "4g"}
    )
    names = ("ours", "plain", "kmeans", "pairwise", "ours_processor", "plain_processor")
    seconds = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        source = f"{folder}/in"
        os.mkdir(source)
        write(x, source)
        for number in range(given.rounds + 1):
            for name in ("ours", "plain"):
                shutil.rmtree(f"{folder}/out", ignore_errors=True)
                started, before = time.perf_counter(), processor_seconds()
                if name == "ours":
                    job = SemanticDeduplicationWorkflow(
                        source, f"{folder}/out", given.clusters, init=start, max_iter=given.iterations, tol=0,
                        eps=given.eps,
                    )  # fmt: skip
                    ran = job.run(spark)
                    removed = ran["num_duplicates"]
                else:
                    removed = plain(source, f"{folder}/out", start, given.iterations, given.eps)
                took, used = time.perf_counter() - started, processor_seconds() - before
                shown = {
                    "round": number,
                    "what": name,
                    "seconds": took,
                    "processor": used,
                    "removed": removed,
                }
                print(json.dumps(shown), flush=True)
                if number:
                    seconds[name].append(took)
                    seconds[f"{name}_processor"].append(used)
                    if name == "ours":
                        seconds["kmeans"].append(ran["kmeans_time"])
                        seconds["pairwise"].append(ran["pairwise_time"])
    spark.stop()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    kernels = kernel_seconds(x, start, given.iterations) / given.cores
    ratio = medians["ours"] / medians["plain"]
    overhead = (medians["ours"] - kernels) / kernels
    processor_ratio = medians["ours_processor"] / medians["plain_processor"]
    shown = {"ratio": ratio, "processor_ratio": processor_ratio, "kernels": kernels, "overhead": overhead}
    print(json.dumps({**medians, **shown}))


if __name__ == "__main__":
    main()
