"""k-means fit against scikit-learn's Lloyd and Spark MLlib: same data, same start, same iterations.

    python benchmarks/kmeans.py [--rows 100000] [--dim 384] [--clusters 500] [--iterations 20] [--repeat 3]
                                [--mllib] [--cap 64 256] [--no-sklearn]

Times are medians, in a warm Spark session. Ours reads parquet: by its tasks, as the jobs do, and by Spark, as for
any DataFrame; scikit-learn has its matrix in memory.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from spark_dedup.kernels.kmeans import assign
from spark_dedup.listing import list_files
from spark_dedup.semantic.embedding_files import find_embedding_files
from spark_dedup.semantic.embeddings import from_matrix
from spark_dedup.semantic.kmeans import fit_kmeans
from spark_dedup.session import build_session


def make_data(rows, dim, seed=0):
    """Unit rows around 2,000 overlapping centres, so that Lloyd is still moving rows after 20 iterations."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2000, dim), dtype=np.float32)
    x = centres[rng.integers(0, len(centres), rows)] + 1.5 * rng.standard_normal(
        (rows, dim), dtype=np.float32
    )
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def write(x, folder, files=8):
    for i, part in enumerate(np.array_split(np.arange(len(x)), files)):
        table = pa.table({"id": part, "embeddings": from_matrix(x[part])})
        pq.write_table(table, Path(folder) / f"part-{i}.parquet", compression="zstd")


def cpu_seconds():
    """Processor time of this process, the JVM and the workers: steadier than the clock on a busy machine."""
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(p.cpu_times()[:2]) for p in tree if p.is_running())


def timed(work, repeat):
    clock, cpu, result = [], [], None
    for _ in range(repeat):
        began, used = time.perf_counter(), cpu_seconds()
        result = work()
        clock.append(time.perf_counter() - began)
        cpu.append(cpu_seconds() - used)
    return {"seconds": statistics.median(clock), "cpu_seconds": statistics.median(cpu)}, result


def run_sklearn(x, start, args):
    from sklearn.cluster import KMeans

    model = KMeans(
        len(start), init=start, n_init=1, max_iter=args.iterations, tol=0, algorithm="lloyd", copy_x=False
    )
    seconds, fitted = timed(lambda: model.fit(x), args.repeat)
    return {**seconds, "inertia": float(fitted.inertia_), "n_iter": fitted.n_iter_}


def run_ours(df, x, start, args, **options):
    seconds, model = timed(
        lambda: fit_kmeans(
            df, n_clusters=len(start), id_field="id", embedding_dim=start.shape[1], init=start,
            max_iter=args.iterations, tol=0, **options,
        ),
        args.repeat,
    )  # fmt: skip
    return {
        **seconds,
        # Of all rows, also where the fit saw some of them only.
        "inertia": float((assign(x, model.centroids)[1].astype(np.float64) ** 2).sum()),
        "n_iter": model.n_iter,
        "lloyd_seconds": model.history[-1].seconds,
    }


def run_mllib(df, start, args):
    """Spark MLlib cannot take a start in Python, so it draws its own at random; time is per equal iterations."""
    from pyspark.ml.clustering import KMeans
    from pyspark.ml.functions import array_to_vector

    vectors = df.select(array_to_vector(df.embeddings).alias("features")).cache()
    vectors.count()
    estimator = KMeans(k=len(start), maxIter=args.iterations, tol=0.0, initMode="random", seed=1)
    seconds, model = timed(lambda: estimator.fit(vectors), 1)
    return {**seconds, "inertia": model.summary.trainingCost, "n_iter": model.summary.numIter}


def main():
    parser = argparse.ArgumentParser()
    for name, value in (
        ("rows", 100_000),
        ("dim", 384),
        ("clusters", 500),
        ("iterations", 20),
        ("repeat", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cap", type=int, nargs="*", default=[])
    parser.add_argument("--mllib", action="store_true")
    parser.add_argument("--no-sklearn", action="store_true")
    args = parser.parse_args()
    x = make_data(args.rows, args.dim)
    start = x[: args.clusters].copy()
    with tempfile.TemporaryDirectory() as folder:
        write(x, folder)
        spark = build_session("bench", device="cpu", conf={"spark.driver.memory": "4g"})
        df = spark.read.parquet(folder)
        fit_kmeans(df.limit(2000), n_clusters=8, max_iter=2)  # warm
        files = find_embedding_files(df, list_files(folder), id_field="id", embedding_field="embeddings")
        found = {
            "ours": run_ours(df, x, start, args, files=files),
            "ours, read by Spark": run_ours(df, x, start, args),
        }
        for cap in args.cap:
            found[f"ours, {cap} points per centroid"] = run_ours(
                df, x, start, args, files=files, max_points_per_centroid=cap
            )
        if not args.no_sklearn:
            found["scikit-learn"] = run_sklearn(x, start, args)
            for name in ("seconds", "cpu_seconds"):
                found[f"ratio to scikit-learn, {name}"] = found["ours"][name] / found["scikit-learn"][name]
        if args.mllib:
            found["mllib"] = run_mllib(df, start, args)
            found["ratio of mllib"] = found["mllib"]["seconds"] / found["ours"]["seconds"]
        spark.stop()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
