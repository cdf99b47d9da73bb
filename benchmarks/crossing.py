"""Embeddings from Spark to Python: array or packed binary, Arrow or pandas: ``python -m benchmarks.crossing``.

A k-means iteration that is a Spark job of its own would pay the cached figure each time; rows that stay in their
tasks pay once. Every variant gives a task its rows as one float32 matrix per batch and adds them up. Medians of
runs in turn, in a warm session.
"""

import argparse
import statistics
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyspark import StorageLevel

from benchmarks.kmeans import make_data, write
from spark_dedup import build_session
from spark_dedup.kernels.kmeans import label_sums, nearest
from spark_dedup.semantic.embeddings import packed_matrix, to_matrix
from spark_dedup.workers import in_worker


def pack(source, target):
    """Write the embeddings of parquet files packed as binary."""
    for number, fragment in enumerate(ds.dataset(source).get_fragments()):
        table = fragment.to_table()
        values = table["embeddings"].combine_chunks()
        packed = packed_matrix(to_matrix(values, len(values[0])))
        pq.write_table(pa.table({"id": table["id"], "embeddings": packed}), f"{target}/{number}.parquet")


def by_arrow(dim):
    def add(batches):
        total = 0.0
        for batch in batches:
            total += float(to_matrix(batch.column(0), dim).sum())
        yield pa.record_batch([pa.array([total])], ["total"])

    return in_worker(add)


def by_pandas(dim):
    def add(frames):
        import pandas as pd

        total = 0.0
        for frame in frames:
            values = frame["embeddings"].to_numpy()
            if len(values) and isinstance(values[0], bytes):
                values = [np.frombuffer(value, np.float32) for value in values]
            total += float(np.stack(values).sum()) if len(values) else 0.0
        yield pd.DataFrame({"total": [total]})

    return in_worker(add)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    x = make_data(given.rows, given.dim)
    spark = build_session("crossing", device="cpu", conf={"spark.driver.memory": "8g"})
    with tempfile.TemporaryDirectory() as arrays, tempfile.TemporaryDirectory() as binaries:
        write(x, arrays)
        pack(arrays, binaries)
        variants = {}
        for kind, folder in (("array<float>", arrays), ("binary", binaries)):
            df = spark.read.parquet(folder).select("embeddings")
            cached = df.persist(StorageLevel.MEMORY_ONLY)
            cached.count()
            fresh = spark.read.schema(df.schema).parquet(folder).where("true")
            for name, source in (("parquet", fresh), ("cache", cached), ("shuffle", fresh.repartition(8))):
                variants[kind, name, "Arrow"] = source.mapInArrow(by_arrow(given.dim), "total double")
                variants[kind, name, "pandas"] = source.mapInPandas(by_pandas(given.dim), "total double")
        seconds = {name: [] for name in variants}
        for number in range(given.rounds + 1):
            for name, result in variants.items():
                started = time.perf_counter()
                total = sum(row.total for row in result.collect())
                assert abs(total - float(x.sum(dtype=np.float64))) < 1e-3 * given.rows
                if number:
                    seconds[name].append(time.perf_counter() - started)
    cores = spark.sparkContext.defaultParallelism
    spark.stop()
    print("| embeddings | from | by Arrow | by pandas |")
    for kind, name in dict.fromkeys((kind, name) for kind, name, _ in seconds):
        one, other = (statistics.median(seconds[kind, name, by]) for by in ("Arrow", "pandas"))
        print(f"| {kind} | {name} | {one:.2f} s | {other:.2f} s |")
    resident = []
    centroids = x[: given.clusters].copy()
    for _ in range(given.rounds):
        started = time.process_time()
        label_sums(x, nearest(x, centroids), len(centroids))
        resident.append((time.process_time() - started) / cores)
    print(
        f"| an iteration on resident rows, K = {given.clusters} | | {statistics.median(resident):.2f} s | |"
    )


if __name__ == "__main__":
    main()
