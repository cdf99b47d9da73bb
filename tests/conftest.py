"""One Spark session for all tests of a worker, small shuffles, no UI."""

import contextlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from spark_4 import OLD

from spark_dedup.session import build_session

# Tests are many short jobs in young JVMs: the second compiler and parallel collectors cost more than they give.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

TEST_CONF = {
    "spark.sql.shuffle.partitions": "4",  # test data is tiny: more partitions are only overhead
    "spark.default.parallelism": "2",
    "spark.driver.memory": "2g",
    "spark.sql.adaptive.coalescePartitions.parallelismFirst": "true",
    "spark.databricks.delta.snapshotPartitions": "1",
}


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    """Session with Delta: classic and local, or as ``SPARK_DEDUP_TEST_MASTER`` says, a master or ``connect``."""
    master = os.environ.get("SPARK_DEDUP_TEST_MASTER", "local[2]")
    warehouse = tmp_path_factory.mktemp("warehouse")
    if master == "connect":
        session = _connect_session(warehouse)
    else:
        conf = {**TEST_CONF, "spark.sql.warehouse.dir": str(warehouse)}
        session = build_session("tests", device="cpu", master=master, conf=conf)
    yield session
    session.stop()


def _connect_session(folder):
    with contextlib.chdir(folder):
        return runpy.run_path(str(Path(__file__).parent / "connect_prelude.py"))["spark"]


@pytest.fixture
def views(spark):
    """Names of views to drop again."""
    made = []
    yield made
    for name in made:
        spark.sql(f"DROP VIEW IF EXISTS {name}")


@pytest.fixture(params=["executors", "files"])
def held(request, monkeypatch):
    """Where rows are held between steps; in files where a session refuses to hold them."""
    if request.param == "files":
        monkeypatch.setattr("spark_dedup.held._has_checkpoints", lambda _: False)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real data, kept beside the checkout and never committed."""
    folder = Path(os.environ.get("SPARK_DEDUP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder}")
    return folder


@pytest.fixture(scope="session")
def run_connect(tmp_path_factory):
    """Run a Python snippet with `spark` bound to a Spark Connect session, in a process of its own.

    A process has either a classic or a Connect session. The snippet asserts; its stdout is returned.
    """
    if OLD:
        pytest.skip("a Connect server of its own port (DefaultChannelBuilder) needs Spark 4.0 or newer")
    folder = tmp_path_factory.mktemp("connect")

    def run(snippet: str) -> str:
        script = folder / "snippet.py"
        script.write_text((Path(__file__).parent / "connect_prelude.py").read_text() + snippet)
        ran = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, timeout=300, cwd=folder
        )
        assert ran.returncode == 0, ran.stderr[-4000:]
        return ran.stdout

    return run


@pytest.fixture
def store():
    """A store that copies and deletes where others rename: fsspec's memory, as object stores do."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()  # one for the whole process
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
