"""Pairwise similarity: kernel speed, skew, memory, and what the clustering finds.

    python -m benchmarks.pairwise kernel  [--rows 16000] [--dim 384]
    python -m benchmarks.pairwise skew    [--rows 200000] [--dim 384] [--share 0.3] [--rounds 3]
    python -m benchmarks.pairwise memory  [--sizes 50000 200000 1000000] [--dim 32]
    python -m benchmarks.pairwise recall  --embeddings FOLDER [--clusters 50 200 500] [--probes 3] [--sample 1000]

`kernel` needs no Spark. `skew` compares one cluster that holds a share of all rows with even clusters of as many
multiplications. `memory` runs one cluster of growing size and reports the largest resident set of a Python worker.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in a task

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from spark_dedup.kernels.similarity import best_among, best_earlier
from spark_dedup.semantic.embeddings import from_matrix

EPS = (0.05, 0.1, 0.2)


def unit(rows, dim, seed=0):
    x = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def best_of(work, rounds=5):
    """Least processor seconds: one thread, so the same as wall time, but blind to what else the machine does."""
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def kernel(rows, dim, tiles=(1024, 2048)):
    """Share of this machine's sgemm rate, of one thread; only pairs that are wanted count as work."""
    a, b = unit(4096, dim), unit(4096, dim, 1)
    out = np.empty((4096, 4096), np.float32)
    found = []
    for size in (1000, rows // 4, rows):
        x = unit(size, dim)
        for tile in tiles:
            peak = 2 * 4096**2 * dim / best_of(lambda: np.matmul(a, b.T, out=out), 3)
            rate = size * (size - 1) * dim / best_of(lambda x=x, t=tile: best_earlier(x, tile=t), 3)
            found.append(
                {"what": "triangle", "rows": size, "tile": tile, "gflops": rate / 1e9, "share": rate / peak}
            )
    x, earlier = unit(rows // 2, dim), unit(rows // 2, dim, 1)
    for tile in tiles:
        peak = 2 * 4096**2 * dim / best_of(lambda: np.matmul(a, b.T, out=out), 3)
        rate = 2 * len(x) * len(earlier) * dim / best_of(lambda t=tile: best_among(x, earlier, tile=t), 3)
        found.append(
            {"what": "block", "rows": rows // 2, "tile": tile, "gflops": rate / 1e9, "share": rate / peak}
        )
    return found


def write_clusters(folder, sizes, dim, files=8):
    """Write an assigned data set: rows in random order, clusters of the given sizes."""
    rng = np.random.default_rng(0)
    cluster = rng.permutation(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
    distance = rng.random(len(cluster), dtype=np.float32)
    for i, part in enumerate(np.array_split(np.arange(len(cluster)), files)):
        columns = {"id": part, "embeddings": from_matrix(unit(len(part), dim, i)), "centroid": cluster[part]}
        table = pa.table({**columns, "cosine_dist_to_cent": distance[part]})
        pq.write_table(table, Path(folder) / f"part-{i}.parquet", compression="none")


def processor_seconds():
    """Processor time of this process and of all that it started: the JVM and the Python workers."""
    me, total = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        # Without what this process waited for: benchmarks wait for nothing that they measure.
        total += times.user + times.system + (times.children_user + times.children_system) * (process != me)
    return total


def run_pairwise(spark, folder, **kwargs):
    from spark_dedup import pairwise_similarity

    started, before = time.perf_counter(), processor_seconds()
    pairs = pairwise_similarity(spark.read.parquet(str(folder)), **kwargs)
    pairs.write.mode("overwrite").format("noop").save()
    return time.perf_counter() - started, processor_seconds() - before


def skew(rows, dim, share, rounds):
    """One cluster with a share of all rows against even clusters with as many multiplications."""
    large = int(rows * share)
    rest = np.full(199, (rows - large) // 199)
    skewed = np.array([rows - rest.sum(), *rest])
    pairs = (skewed.astype(float) ** 2).sum() / 2
    count = round(rows**2 / 2 / pairs)
    even = np.full(count, rows // count)
    with tempfile.TemporaryDirectory() as folder:
        spark = session()
        seconds, processor = {"skewed": [], "even": []}, {"skewed": [], "even": []}
        for name, sizes in (("skewed", skewed), ("even", even)):
            os.mkdir(f"{folder}/{name}")
            write_clusters(f"{folder}/{name}", sizes, dim)
        for number in range(rounds + 1):
            for name, times in seconds.items():
                wall, used = run_pairwise(spark, f"{folder}/{name}")
                if number:
                    times.append(wall)
                    processor[name].append(used)
        spark.stop()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    used = {name: statistics.median(times) for name, times in processor.items()}
    return {
        **medians,
        "processor": used,
        "processor_ratio": used["skewed"] / used["even"],
        "pairs": {"skewed": pairs, "even": (even.astype(float) ** 2).sum() / 2},
        "largest": int(skewed[0]),
        "even_clusters": count,
        "ratio": medians["skewed"] / medians["even"],
    }


def memory(sizes, dim):
    """Largest resident set of a Python worker while one cluster is compared."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            spark = session()
            write_clusters(folder, np.array([size]), dim)
            peak, stop = [0], threading.Event()
            watcher = threading.Thread(target=watch_workers, args=(peak, stop))
            watcher.start()
            seconds, _ = run_pairwise(spark, folder)
            stop.set()
            watcher.join()
            spark.stop()
        found.append({"rows": size, "dim": dim, "worker_mib": peak[0] / 2**20, "seconds": seconds})
    return found


def watch_workers(peak, stop):
    me = psutil.Process()
    while not stop.wait(0.2):
        for process in me.children(recursive=True):
            try:
                if "pyspark" in " ".join(process.cmdline()) and "java" not in process.name():
                    peak[0] = max(peak[0], process.memory_info().rss)
            except psutil.Error:
                continue


def recall(folder, clusters, probes, sample):
    """Share of all true pairs that the clusters hold, by brute force, beside the audit's estimate."""
    from spark_dedup import assign_clusters, fit_kmeans
    from spark_dedup.semantic.audit import audit_recall

    spark = session()
    df = spark.read.parquet(str(folder))
    found = []
    for count in clusters:
        model = fit_kmeans(df, n_clusters=count, id_field="id")
        with tempfile.TemporaryDirectory() as kept:
            assign_clusters(df, model).write.mode("overwrite").parquet(kept)
            assigned = spark.read.parquet(kept)
            table = assigned.orderBy("id").toArrow()
            x = np.stack(table["embeddings"].to_numpy())
            first, second = true_pairs(x, max(EPS))
            order = np.argsort(
                -2 * x @ model.centroids.T + (model.centroids**2).sum(axis=1), axis=1, kind="stable"
            )[:, :probes]
            audit = audit_recall(
                assigned, eps=EPS, n_probe=probes, centroids=model.centroids, sample_size=sample, missed=3
            )
        score = np.einsum("ij,ij->i", x[first].astype(float), x[second].astype(float))
        for row in audit.rows:
            true = score >= 1 - row.eps - 1e-6
            mine, theirs = order[first, : row.n_probe], order[second, : row.n_probe]
            together = (mine[:, :, None] == theirs[:, None, :]).any(axis=(1, 2))
            found.append(
                {
                    "clusters": count, "eps": row.eps, "n_probe": row.n_probe, "true_pairs": int(true.sum()),
                    "found": float(together[true].mean()), "estimate": row.recall, "low": row.low, "high": row.high,
                    "sampled_pairs": row.pairs, "cost": row.cost,
                }
            )  # fmt: skip
    spark.stop()
    return found


def true_pairs(x, eps, block=2048):
    """Every pair of at least ``1 - eps``, by brute force."""
    firsts, seconds = [], []
    for start in range(0, len(x), block):
        row, column = np.nonzero(x[start : start + block] @ x.T >= 1 - eps - 1e-5)
        later = column > row + start
        firsts.append(row[later] + start)
        seconds.append(column[later])
    return np.concatenate(firsts), np.concatenate(seconds)


def session():
    from spark_dedup import build_session

    # Spark's fast parquet reader does not know the encoding of embeddings written as split byte streams.
    conf = {"spark.driver.memory": "3g", "spark.sql.parquet.enableVectorizedReader": "false"}
    return build_session("bench", device="cpu", master="local[2]", conf=conf)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["kernel", "skew", "memory", "recall"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dim", type=int)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 200_000, 1_000_000])
    parser.add_argument("--embeddings")
    parser.add_argument("--clusters", type=int, nargs="+", default=[50, 200, 500])
    parser.add_argument("--probes", type=int, default=3)
    parser.add_argument("--sample", type=int, default=1000)
    given = parser.parse_args()
    if given.what == "kernel":
        result = kernel(given.rows or 16_000, given.dim or 384)
    elif given.what == "skew":
        result = skew(given.rows or 200_000, given.dim or 384, given.share, given.rounds)
    elif given.what == "memory":
        result = memory(given.sizes, given.dim or 32)
    else:
        result = recall(given.embeddings, given.clusters, given.probes, given.sample)
    for row in result if isinstance(result, list) else [result]:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
