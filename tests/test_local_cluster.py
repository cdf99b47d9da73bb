"""All steps on two executors: processes with a folder, an environment and Python workers of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark

JOBS = """
import json
import pyarrow.parquet as pq
from spark_dedup import (
    ExactDeduplicationWorkflow, IdRegistry, SemanticDeduplicationWorkflow, build_session, read_documents,
)
from spark_dedup.session import barrier_slots, count_executors

spark = build_session("two executors", device="cpu", master="local-cluster[2,1,1024]", conf={
    "spark.driver.memory": "1g",
    "spark.sql.shuffle.partitions": "4",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
})
spark.range(2).count()  # both are there
found = {"executors": count_executors(spark), "slots": barrier_slots(spark)}
exact = ExactDeduplicationWorkflow(input_path="docs", output_path="exact", perform_removal=True).run(spark)
found["exact"] = [exact["num_documents"], exact["num_duplicates"], exact["num_duplicates_removed"]]
registry = IdRegistry.open(spark, "exact/id_registry")
docs = read_documents(spark, "docs", registry=registry)
found["ids"] = sorted((row._curator_dedup_id, row.text) for row in docs.collect())
found["next_id"] = registry.next_id
semantic = SemanticDeduplicationWorkflow(
    input_path="embeddings", output_path="semantic", n_clusters=3, eps=0.01, perform_removal=True
).run(spark)
found["semantic"] = [semantic["num_documents"], semantic["num_duplicates"]]
found["kept"] = sorted(pq.read_table("semantic/deduplicated")["id"].to_pylist())
print(json.dumps(found))
spark.stop()
"""


def spark_home(folder):
    """Make a home for Spark whose own folders are links: executors of a local cluster work below it."""
    folder.mkdir()
    for entry in Path(os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent).iterdir():
        if entry.is_dir() and entry.name != "work":
            (folder / entry.name).symlink_to(entry)
    return folder


def test_ids_exact_removal_and_semantic(tmp_path):
    for name in ("docs", "embeddings"):
        (tmp_path / name).mkdir()
    texts = [f"text {number % 40} of {part // 2}" for part in range(4) for number in range(50)]
    for part in range(4):
        table = pa.table({"text": texts[50 * part : 50 * part + 50]})
        pq.write_table(table, tmp_path / "docs" / f"{part}.parquet")
    firsts = [number for number, text in enumerate(texts) if text not in texts[:number]]
    rng = np.random.default_rng(7)
    vectors = np.repeat(np.eye(3, 32), 20, axis=0) + rng.normal(0, 0.1, (60, 32))
    vectors = np.concatenate([vectors, vectors[::10]])  # 0, 10 … 50 again as 60 … 65
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = np.argwhere(np.triu(unit @ unit.T >= 0.99, 1)).tolist()
    assert alike == [[10 * number, 60 + number] for number in range(6)]
    for part in range(3):
        ids = range(22 * part, 22 * part + 22)
        table = pa.table({"id": ids, "embeddings": vectors[ids].tolist()})
        pq.write_table(table, tmp_path / "embeddings" / f"{part}.parquet")

    (tmp_path / "jobs.py").write_text(JOBS)
    home = spark_home(tmp_path / "spark")
    ran = subprocess.run(
        [sys.executable, "jobs.py"], capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "SPARK_HOME": str(home)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert (found["executors"], found["slots"]) == (2, 2)
    assert found["exact"] == [200, 120, 120]
    assert found["ids"] == [[number, text] for number, text in enumerate(texts)]
    assert found["next_id"] == 200
    rest = pq.read_table(tmp_path / "exact" / "deduplicated").to_pylist()
    assert sorted((row["_curator_dedup_id"], row["text"]) for row in rest) == [(n, texts[n]) for n in firsts]
    # Of equal distances the larger id ranks first and stays.
    assert found["semantic"] == [66, 6]
    assert found["kept"] == [number for number in range(66) if number % 10 or number >= 60]
    logs = [log.read_text() for log in (home / "work").glob("*/*/stderr")]
    assert len(logs) == 2
    assert not any("exchanging through the driver" in log for log in logs)
