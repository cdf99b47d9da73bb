"""The settings files of conf/: explained, free of keys that Spark does not know, good for a real spark-submit."""

import json
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest
from sessions import child_environment, needs_classic

from spark_dedup import runtime

CONF = Path(__file__).parents[1] / "conf"
FILES = ["spark-cpu.conf", "spark-gpu.conf", "spark-databricks.conf"]
# A catalog's key is made of its name, so no list has it.
EXTENSIONS = ("spark.sql.catalog.spark_catalog",)

JOB = """
import json, sys
from spark_dedup.session import build_session
from spark_dedup.exact import identify_exact
from spark_dedup.ids import IdRegistry

spark = build_session()
registry = IdRegistry.open(spark, sys.argv[1])
assert registry.register_batch("a.parquet", 3) == 0
docs = spark.createDataFrame([(1, "x"), (2, "y"), (3, "x"), (4, None), (5, "")], "id bigint, text string")
docs.write.format("delta").save(sys.argv[1] + "_documents")
docs = spark.read.format("delta").load(sys.argv[1] + "_documents")
ids = sorted(row.id for row in identify_exact(docs, id_field="id").select("id").collect())
print("RESULT " + json.dumps({"ids": ids, "conf": dict(spark.sparkContext.getConf().getAll())}))
"""


def settings(name):
    """Parse a properties file as Spark does: key, blank, value; whole lines of comment."""
    lines = [line.strip() for line in (CONF / name).read_text("utf-8").splitlines()]
    pairs = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    assert len({key for key, _ in pairs}) == len(pairs), "a key stands twice"
    return dict(pairs)


def submit(properties, job, *args, **overrides):
    """Run a job by a real spark-submit, with values of the file overridden, and return what it printed."""
    runtime.ensure_java()
    command = [str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), "--master", "local[2]"]
    command += ["--properties-file", str(CONF / properties)]
    for key, value in overrides.items():
        command += ["--conf", f"{key}={value}"]
    environment = {
        **child_environment(),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }
    ran = subprocess.run(
        [*command, str(job), *map(str, args)], capture_output=True, text=True, timeout=600, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    line = next(line for line in ran.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.parametrize("name", FILES)
def test_every_setting_is_explained(name):
    blocks = (CONF / name).read_text("utf-8").split("\n\n")
    for block in blocks:
        lines = block.strip().splitlines()
        assert not lines or lines[0].startswith("#"), f"no reason stands before {lines[0]}"


@needs_classic("JVM to ask for the settings that Spark knows")
@pytest.mark.parametrize("name", FILES)
def test_spark_knows_each_sql_key(name, spark):
    registry = getattr(getattr(spark._jvm, "org.apache.spark.sql.internal.SQLConf$"), "MODULE$")
    known = registry.containsConfigKey
    assert known("spark.sql.shuffle.partitions")
    assert not known("spark.sql.shuffle.partitionz")
    assert not [
        k for k in settings(name) if k.startswith("spark.sql.") and k not in EXTENSIONS and not known(k)
    ]


def test_the_cpu_file_names_the_pinned_delta():
    pins = runtime.spark_line("4.1")["delta"]
    assert settings("spark-cpu.conf")["spark.jars.packages"] == pins[0]["coordinate"]


def test_the_gpu_file_names_the_pinned_jars():
    line = runtime.spark_line("4.1")
    names = {
        group: [":".join(pin["coordinate"].split(":")[1:]).replace(":", "-") + ".jar" for pin in line[group]]
        for group in ("delta", "rapids")
    }
    found = settings("spark-gpu.conf")
    assert [Path(p).name for p in found["spark.jars"].split(",")] == names["delta"]
    assert [Path(found["spark.driver.extraClassPath"]).name] == names["rapids"]
    assert found["spark.executor.extraClassPath"] == found["spark.driver.extraClassPath"]
    assert names["rapids"][0] in (CONF / "spark-databricks.conf").read_text("utf-8")


def test_a_real_spark_submit_runs_with_the_cpu_file(tmp_path):
    job = tmp_path / "job.py"
    job.write_text(JOB)
    changed = {
        # The same jar without a network; the coordinate itself is checked above.
        "spark.jars.packages": "",
        "spark.jars": ",".join(map(str, runtime.fetch_jars(pyspark.__version__))),
        "spark.driver.memory": "1g",
        "spark.sql.shuffle.partitions": "4",
    }
    result = submit("spark-cpu.conf", job, tmp_path / "registry", **changed)
    assert result["ids"] == [3, 5]
    given = {k: v for k, v in settings("spark-cpu.conf").items() if k not in changed}
    assert {k: result["conf"].get(k) for k in given} == given
