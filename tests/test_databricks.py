"""The Databricks bundle, as far as it can be checked without Databricks."""

import hashlib
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions

from spark_dedup import ExactDeduplicationWorkflow
from spark_dedup.removal import passes

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "conf" / "databricks"


def pin():
    pins = json.loads((ROOT / "jars" / "jars.json").read_text("utf-8"))
    return pins["spark"]["4.0"]["rapids"][0]


def test_settings_equal_those_explained_in_conf():
    lines = (ROOT / "conf" / "spark-databricks.conf").read_text("utf-8").splitlines()
    explained = dict(line.split(None, 1) for line in lines if line.strip() and not line.startswith("#"))
    bundle = (BUNDLE / "databricks.yml").read_text("utf-8")
    assert dict(re.findall(r'^ +(spark\.[\w.]+): "(.*)"$', bundle, re.MULTILINE)) == explained


def test_jar_is_the_pinned_one():
    _, artifact, version = pin()["coordinate"].split(":")
    assert f"{artifact}-{version}.jar" in (BUNDLE / "databricks.yml").read_text("utf-8")
    assert pin()["sha256"] in (BUNDLE / "init-rapids.sh").read_text("utf-8")


def test_entry_point_exists():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    entries = re.findall(r"entry_point: (\S+)", (BUNDLE / "databricks.yml").read_text("utf-8"))
    assert entries
    assert set(entries) <= set(scripts)


def run_script(script, jar, target):
    environment = {**os.environ, "RAPIDS_JAR": str(jar), "RAPIDS_TARGET": str(target)}
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)


def test_init_script_takes_the_pinned_jar_only(tmp_path):
    jar, target = tmp_path / "my plugin.jar", tmp_path / "jars"
    target.mkdir()
    jar.write_bytes(b"plugin")
    refused = run_script(BUNDLE / "init-rapids.sh", jar, target)
    assert refused.returncode == 1
    assert "pinned is" in refused.stderr
    assert not list(target.iterdir())
    # The jar is a gigabyte: the script is given another pin instead.
    script = tmp_path / "init.sh"
    text = (BUNDLE / "init-rapids.sh").read_text("utf-8")
    script.write_text(text.replace(pin()["sha256"], hashlib.sha256(b"plugin").hexdigest()))
    assert run_script(script, jar, target).returncode == 0
    assert (target / "my plugin.jar").read_bytes() == b"plugin"
    assert "cannot read" in run_script(script, tmp_path / "none.jar", target).stderr


@pytest.mark.parametrize("id_field", [None, "id"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_unity_catalog_tells_files_as_hidden_columns_only(spark, tmp_path, monkeypatch, kind, id_field):
    texts = {"a b%": ["x", "y", "x"], "é=1": ["z", "y"]}
    (tmp_path / "in").mkdir()
    for name, column in texts.items():
        rows = [{"id": 10 * len(name) + place, "text": text} for place, text in enumerate(column)]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / f"{name}.parquet")
        else:
            (tmp_path / "in" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    monkeypatch.setattr(passes, "IDS_PER_PASS", 1)

    def kept(out):
        job = ExactDeduplicationWorkflow(
            input_path=tmp_path / "in", output_path=tmp_path / out, input_filetype=kind, perform_removal=True,
            id_field=id_field, assign_id=id_field is None,
        )  # fmt: skip
        assert job.run(spark)["num_duplicates"] == 2
        found = spark.read.format(kind.replace("jsonl", "json")).load(str(tmp_path / out / "deduplicated"))
        return sorted(found.collect(), key=lambda row: row["text"])

    usual = kept("usual")
    for name in ("input_file_name", "input_file_block_start"):
        monkeypatch.setattr(functions, name, lambda name=name: functions.expr(f"{name}_is_not_supported()"))
    assert kept("unity") == usual
    assert [row["text"] for row in usual] == ["x", "y", "z"]
