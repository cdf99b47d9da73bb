"""Exact deduplication against its floor and its peers: ``python -m benchmarks.exact``.

One run measures everything, the candidates in turn, so that a machine whose speed drifts does not favour one of
them. What counts are the ratios of medians. ``--peer-python`` names a Python with NeMo Curator 1.4 to compare the
removal with it; everything else needs the development environment only.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.corpus import make_corpus
from spark_dedup import (
    ExactDeduplicationWorkflow,
    TextDuplicatesRemovalWorkflow,
    build_session,
    identify_exact,
)

HERE = Path(__file__).parent


def timed(candidates, rounds):
    """Seconds of each candidate, in turn, after one round that does not count."""
    seconds = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, work in candidates.items():
            started = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}, seconds


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return str(folder)


def candidates(spark, docs, work):
    from pyspark.sql import functions as F

    def read():
        return spark.read.parquet(str(docs))

    def floor():
        read().select(F.md5("text")).write.format("noop").mode("overwrite").save()

    def identify(**options):
        return ExactDeduplicationWorkflow(
            output_path=fresh(work / "ids"), input_path=str(docs), **options
        ).run(spark)

    def plan_only(**options):
        rows = identify_exact(read(), id_field="id", **options).select("id")
        rows.write.mode("overwrite").parquet(str(work / "plan"))

    def dedup(hash_method="md5", **options):
        identify(assign_id=False, id_field="id", hash_method=hash_method)
        TextDuplicatesRemovalWorkflow(
            input_path=str(docs), ids_to_remove_path=str(work / "ids" / "ExactDuplicateIds"), id_field="id",
            duplicate_id_field="id", output_path=fresh(work / "kept"), **options,
        ).run(spark)  # fmt: skip

    return {
        "floor: scan + md5": floor,
        "identify_exact + write (plan)": plan_only,
        "identify, id column": lambda: identify(assign_id=False, id_field="id"),
        "identify, generated ids": lambda: identify(),
        "Spark dropDuplicates + write": lambda: (
            read().dropDuplicates(["text"]).write.mode("overwrite").parquet(str(work / "dropped"))
        ),
        "identify + remove + write": lambda: dedup(),
        "identify + delta-clone": lambda: dedup(output_filetype="delta-clone"),
        "identify_exact + write (plan), xxhash64": lambda: plan_only(hash_method="xxhash64"),
        "identify, id column, xxhash64": lambda: identify(
            assign_id=False, id_field="id", hash_method="xxhash64"
        ),
        "identify + remove + write, xxhash64": lambda: dedup("xxhash64"),
        "identify + delta-clone, xxhash64": lambda: dedup("xxhash64", output_filetype="delta-clone"),
        "DuckDB identify": lambda: duckdb_identify(docs, work),
    }


def duckdb_identify(docs, work):
    """The quickest form we found: a hash aggregate that keeps ids in lists, then unnests all but the first."""
    import duckdb

    with duckdb.connect(config={"threads": 2}) as db:
        db.sql(
            f"""COPY (SELECT unnest(list_sort(list(id))[2:]) AS id FROM read_parquet('{docs}/*.parquet')
            GROUP BY md5(coalesce(text, '')) HAVING count(*) > 1)
            TO '{work}/duck.parquet' (FORMAT parquet)"""
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_500_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--peer-python", help="Python with NeMo Curator 1.4")
    parser.add_argument("--only", nargs="*", help="words of the candidates to run")
    parser.add_argument(
        "--curve", nargs="*", type=float, help="millions of small documents; measures only that"
    )
    parser.add_argument(
        "--skew", type=float, help="millions of equal texts, with a million others; only that"
    )
    parser.add_argument("--start-up", action="store_true", help="ten rows by the command line; only that")
    parser.add_argument("--mean-chars", type=int, default=560, help="of the curve's documents")
    parser.add_argument("--heap", default="1g", help="of the curve's processes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(args)
    if args.curve:
        return curve(args)
    if args.skew:
        return skew(args)
    if args.start_up:
        return start_up(args)
    docs = make_corpus(args.data, args.documents)
    work = args.data / "work"
    spark = build_session("benchmarks", device="cpu", conf={"spark.driver.memory": "8g"})
    chosen = candidates(spark, docs, work)
    if args.only:
        chosen = {k: v for k, v in chosen.items() if k.startswith("floor") or any(w in k for w in args.only)}
    medians, seconds = timed(chosen, args.rounds)
    floor = medians["floor: scan + md5"]
    print(f"{args.documents:,} documents, medians of {args.rounds}")
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.2f} - {max(seconds[name]):.2f}"
        print(f"| {name} | {median:.2f} s | {spread} | {median / floor:.2f} |")
    if args.peer_python:
        ours = removal_seconds(spark, docs, work, args.rounds)
        theirs = peer_removal_seconds(args.peer_python, docs, work, args.rounds)
        print(f"| NeMo Curator removal ÷ ours | {theirs:.2f} s ÷ {ours:.2f} s | {theirs / ours:.2f} |")
    spark.stop()


def curve(args):
    """Cost and memory against the number of documents: a process each, small documents."""
    print("| documents | identify, generated ids | per million | peak memory of all processes |")
    for millions in args.curve:
        docs = make_corpus(args.data, int(millions * 1e6), mean_chars=args.mean_chars)
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.exact", "--one", str(docs), "--data", str(args.data),
             "--heap", args.heap],
            capture_output=True, text=True, check=True, cwd=HERE.parent,
        )  # fmt: skip
        seconds, peak = map(float, ran.stdout.split()[-2:])
        print(
            f"| {millions:g} M | {seconds:.1f} s | {seconds / millions:.2f} s | {peak / 2**30:.2f} GiB |",
            flush=True,
        )


def skew(args):
    """One text repeated millions of times, against as many distinct texts of that length."""
    from pyspark.sql import functions as F

    spark = build_session("benchmarks", device="cpu", conf={"spark.driver.memory": "4g"})
    equal, count = int(args.skew * 1e6), int((args.skew + 1) * 1e6)
    number = F.format_string("%0200d", F.col("id"))
    kinds = {"skewed": F.when(F.col("id") < equal, F.lit("0" * 200)).otherwise(number), "distinct": number}
    docs = {name: fresh(args.data / "work" / name) for name in kinds}
    for name, text in kinds.items():
        spark.range(0, count, 1, 16).select("id", text.alias("text")).write.parquet(docs[name])
    out = args.data / "work" / "skew"

    def run(name):
        job = ExactDeduplicationWorkflow(
            output_path=fresh(out), input_path=docs[name], assign_id=False, id_field="id"
        )
        return job.run(spark)["num_duplicates"]

    found = {name: run(name) for name in kinds}
    medians, _ = timed({name: lambda name=name: run(name) for name in kinds}, args.rounds)
    for name, median in medians.items():
        print(f"| {name}, {count:,} documents | {found[name]:,} to remove | {median:.2f} s |")
    spark.stop()


def start_up(args):
    """Seconds of ``spark-dedup exact`` on ten rows, as a process, from its start to its end."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    docs = Path(fresh(args.data / "work" / "ten"))
    docs.mkdir(parents=True)
    pq.write_table(pa.table({"text": [str(i % 7) for i in range(10)]}), docs / "0.parquet")
    out = args.data / "work" / "ten-out"
    command = [sys.executable, "-m", "spark_dedup.cli", "exact", "--input", str(docs), "--output"]

    def run():
        subprocess.run([*command, fresh(out)], check=True, capture_output=True)

    median = timed({"ten rows": run}, args.rounds)[0]["ten rows"]
    print(f"| spark-dedup exact, ten rows | {median:.1f} s |")


def one(args):
    """Print seconds of the second run, and the peak of resident memory of this process and its children."""
    import threading

    import psutil

    peak, done = [0], threading.Event()

    def watch():
        me = psutil.Process()
        while not done.wait(0.2):
            held = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    held += process.memory_info().rss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], held)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    spark = build_session("benchmarks", device="cpu", conf={"spark.driver.memory": args.heap})
    for _ in range(2):
        started = time.perf_counter()
        ExactDeduplicationWorkflow(output_path=fresh(args.data / "work" / "one"), input_path=args.one).run(
            spark
        )
        seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    print(seconds, peak[0])


def removal_seconds(spark, docs, work, rounds):
    """Removal with the ids that ``identify, generated ids`` found, as the peer does it."""
    ExactDeduplicationWorkflow(output_path=fresh(work / "ids"), input_path=str(docs)).run(spark)

    def remove():
        TextDuplicatesRemovalWorkflow(
            input_path=str(docs), ids_to_remove_path=str(work / "ids" / "ExactDuplicateIds"),
            duplicate_id_field="_curator_dedup_id", id_generator_path=str(work / "ids" / "exact_id_generator.json"),
            output_path=fresh(work / "kept"),
        ).run(spark)  # fmt: skip

    return timed({"remove": remove}, rounds)[0]["remove"]


def peer_removal_seconds(python, docs, work, rounds):
    """Its own Python finds its own commands, such as ray, beside itself."""
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        [python, HERE / "peer_removal.py", docs, work, str(rounds)],
        stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PATH": path},
    )  # fmt: skip
    return json.loads(ran.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
