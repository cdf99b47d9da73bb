"""Settings for the plugin: known to the very jar that is pinned, and good for starting a session with it."""

import re
import zipfile
from pathlib import Path

import pyspark
import pytest

from spark_dedup import runtime

pytestmark = pytest.mark.rapids

ROOT = Path(__file__).parents[2]
KEY = re.compile(rb"spark\.rapids(?:\.\w+)+")
SHIMS = ("spark411", "spark412", "spark413", "spark400", "spark404", "spark400db173")


@pytest.fixture(scope="module")
def plugin_jar():
    return runtime.fetch_jars(pyspark.__version__, ["rapids"])[0]


def known_keys(jar, shim):
    """Keys in the constant pool of the plugin's registry of settings, RapidsConf."""
    with zipfile.ZipFile(jar) as archive:
        code = archive.read(f"{shim}/com/nvidia/spark/rapids/RapidsConf$.class")
    return {key.decode() for key in KEY.findall(code)}


def used_keys():
    """Every key of the plugin that this repository names, with the files that do."""
    used = {}
    folders = {"spark_dedup": "*.py", "conf": "*", "notebooks": "*.ipynb"}
    paths = [p for folder, pattern in folders.items() for p in (ROOT / folder).rglob(pattern)]
    for path in [*paths, ROOT / "README.md"]:
        if path.is_file() and "__pycache__" not in path.parts:
            for key in KEY.findall(path.read_bytes()):
                used.setdefault(key.decode(), set()).add(path.name)
    return used


@pytest.mark.parametrize("shim", SHIMS)
def test_the_plugin_knows_every_key_that_we_name(plugin_jar, shim):
    known = known_keys(plugin_jar, shim)
    assert {"spark.rapids.sql.enabled", "spark.rapids.sql.mode"} <= known
    assert "spark.rapids.sql.noSuchKey" not in known
    used = used_keys()
    assert {"spark-gpu.conf", "spark-databricks.conf"} <= set().union(*used.values())
    assert not {key: sorted(files) for key, files in used.items() if key not in known}


def test_the_pins_list_the_patch_versions_that_the_plugin_supports(plugin_jar):
    with zipfile.ZipFile(plugin_jar) as archive:
        listed = archive.read("META-INF/services/com.nvidia.spark.rapids.SparkShimServiceProvider").decode()
    shims = set(re.findall(r"\bspark(\d)(\d)(\d)\.", listed))
    for line in ("4.1", "4.0"):
        supported = sorted(".".join(shim) for shim in shims if ".".join(shim[:2]) == line)
        assert runtime.spark_line(line)["rapids_spark"] == supported


def test_build_session_sets_what_the_plugin_needs(spark, plugin_jar):
    assert spark.conf.get("spark.plugins") == "com.nvidia.spark.SQLPlugin"
    assert spark.conf.get("spark.driver.extraClassPath") == str(plugin_jar)
    assert "DeltaSparkSessionExtension" in spark.conf.get("spark.sql.extensions")


JOB = """
import json
from pyspark.sql import SparkSession, functions as F
spark = SparkSession.builder.getOrCreate()
spark.range(100).selectExpr("id", "array(cast(id as float)) e").cache().write.parquet({out!r})
docs = spark.read.parquet({out!r}).cache()
print("RESULT " + json.dumps({{"n": docs.count(), "conf": dict(spark.sparkContext.getConf().getAll())}}))
"""


def test_a_real_spark_submit_starts_with_the_gpu_file(plugin_jar, tmp_path):
    from test_conf import settings, submit

    job = tmp_path / "job.py"
    job.write_text(JOB.format(out=str(tmp_path / "out")))
    changed = {
        "spark.driver.extraClassPath": str(plugin_jar),
        "spark.executor.extraClassPath": str(plugin_jar),
        "spark.jars": ",".join(map(str, runtime.fetch_jars(pyspark.__version__))),
        "spark.rapids.sql.mode": "explainOnly",
        "spark.driver.memory": "2g",
    }
    result = submit("spark-gpu.conf", job, **changed)
    assert result["n"] == 100
    given = {k: v for k, v in settings("spark-gpu.conf").items() if k not in changed}
    got = {k: result["conf"].get(k) for k in given}
    # The plugin adds its own extension to the list.
    assert got.pop("spark.sql.extensions").startswith(given.pop("spark.sql.extensions"))
    assert got == given
