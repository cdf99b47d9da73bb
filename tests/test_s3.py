"""Jobs on ``s3a://`` by Spark's S3 client and s3fs, against a server on this machine.

Runs where moto and s3fs can be imported and ``SPARK_DEDUP_S3_JARS`` names two jars, separated by commas: hadoop-aws
and the bundle of the AWS SDK that it asks for.
"""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sessions import child_environment

JARS = os.environ.get("SPARK_DEDUP_S3_JARS")
BOTH = """
import json, sys
from spark_dedup import ExactDeduplicationWorkflow, TextDuplicatesRemovalWorkflow, build_session

jars, endpoint, place = sys.argv[1:]
spark = build_session("s3", device="cpu", master="local[2]", conf={
    "spark.driver.memory": "2g",
    "spark.driver.extraClassPath": jars.replace(",", ":"),
    "spark.sql.shuffle.partitions": "4",
    "spark.hadoop.fs.s3a.endpoint": endpoint,
    "spark.hadoop.fs.s3a.endpoint.region": "us-east-1",
    "spark.hadoop.fs.s3a.access.key": "key",
    "spark.hadoop.fs.s3a.secret.key": "secret",
    "spark.hadoop.fs.s3a.path.style.access": "true",
})

def rows(df):
    return sorted(map(str, df.collect()))

found = {}
for root in (place, "s3a://bucket/a b"):
    matched = ExactDeduplicationWorkflow(
        input_path=f"{root}/docs", output_path=f"{root}/exact", perform_removal=True).run(spark)
    removed = TextDuplicatesRemovalWorkflow(
        input_path=f"{root}/docs", ids_to_remove_path=f"{root}/exact/ExactDuplicateIds",
        output_path=f"{root}/kept", duplicate_id_field="_curator_dedup_id",
        registry=f"{root}/exact/id_registry", output_filetype="delta").run(spark)
    found[root] = [
        matched["num_duplicates"], removed["num_documents_written"],
        rows(spark.read.parquet(f"{root}/exact/ExactDuplicateIds")),
        rows(spark.read.parquet(f"{root}/exact/deduplicated")),
        rows(spark.read.format("delta").load(f"{root}/kept")),
    ]
print("found", json.dumps(list(found.values())))
"""


@pytest.fixture
def server():
    """Address of an S3 server with a bucket, and the means to fill it."""
    if JARS is None:
        pytest.skip("SPARK_DEDUP_S3_JARS names no jars of hadoop-aws and the AWS SDK's bundle")
    pytest.importorskip("s3fs", reason="s3fs is absent")
    moto = pytest.importorskip("moto.server", reason="moto[server] is absent")
    import boto3

    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    endpoint = "http://{}:{}".format(*running.get_host_and_port())
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    yield endpoint, client
    running.stop()


def test_jobs_on_s3_find_what_they_find_on_a_disk(tmp_path, server):
    endpoint, client = server
    names = ["a.parquet", "sub folder/b%20.parquet", "sub folder/ü=1.parquet"]
    for name in names:
        place = tmp_path / "docs" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        texts = [f"text {i % 7} of {name if i % 2 else ''}" for i in range(20)]
        pq.write_table(pa.table({"text": texts, "n": range(20)}), place)
        client.upload_file(str(place), "bucket", f"a b/docs/{name}")
    alone = {name: value for name, value in child_environment().items() if not name.startswith("AWS_")}
    ran = subprocess.run(
        [sys.executable, "-c", BOTH, JARS, endpoint, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**alone, "AWS_EC2_METADATA_DISABLED": "true"},
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    last = next(line for line in ran.stdout.splitlines() if line.startswith("found "))
    disk, store = json.loads(last.removeprefix("found "))
    # In each file ten texts under one name, seven of them different; the other ten are the same in all files.
    assert disk[:2] == [60 - 7 - 3 * 7, 7 + 3 * 7]
    assert store == disk
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="bucket")["Contents"]]
    assert not [key for key in keys if ".tmp" in key or ".lock" in key]
