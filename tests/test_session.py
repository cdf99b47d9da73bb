import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from pyspark.sql import SparkSession
from sessions import needs_classic

from spark_dedup import java, runtime, session
from spark_dedup.errors import InputError
from spark_dedup.ids.splits import on_gpu
from spark_dedup.session import (
    active_or_build,
    build_session,
    require_delta,
    resolve_device,
    session_key,
    task_slots,
)
from spark_dedup.settings import VECTORIZED, change, conf_of, parquet_as_it_is, settings
from spark_dedup.workflows import recording
from spark_dedup.workflows.planning import plan_of


def test_delta_round_trip(spark, tmp_path):
    spark.range(3).write.format("delta").save(str(tmp_path / "t"))
    assert spark.read.format("delta").load(str(tmp_path / "t")).count() == 3


def test_gpu_without_gpu_fails_before_the_jvm(monkeypatch):
    monkeypatch.setattr("spark_dedup.runtime.has_gpu", lambda: False)
    monkeypatch.setattr(
        "spark_dedup.runtime.ensure_pyspark", lambda: pytest.fail("the JVM was about to start")
    )
    with pytest.raises(InputError, match="nvidia-smi finds no GPU"):
        build_session(device="gpu")


def test_unknown_device():
    with pytest.raises(InputError, match="auto, cpu, gpu"):
        resolve_device("tpu")


def telling(conf):
    """A session that tells these settings."""
    return types.SimpleNamespace(
        conf=types.SimpleNamespace(get=lambda key, default=None: conf.get(key, default))
    )


PLUGIN = {"spark.plugins": "com.nvidia.spark.SQLPlugin"}


@pytest.mark.parametrize(
    ("conf", "device", "exact", "semantic", "plan"),
    [
        ({"spark.master": "yarn"}, "gpu", "cpu", "gpu", "gpu, as asked for"),
        ({"spark.master": "yarn"}, "auto", "cpu", "cpu", "cpu, as a cluster has GPUs only where"),
        ({"spark.master": "yarn", **PLUGIN}, "gpu", "gpu", "gpu", "gpu, as the session"),
        ({"spark.master": "k8s://h", **PLUGIN}, "auto", "gpu", "gpu", "gpu, as the session"),
        ({"spark.master": "local[2]"}, "auto", "cpu", "cpu", "cpu, as nvidia-smi finds no GPU"),
        ({**PLUGIN, "spark.rapids.sql.mode": "explainOnly"}, "auto", "cpu", "cpu", "cpu, as nvidia-smi"),
    ],
)
def test_the_device_is_the_sessions(monkeypatch, conf, device, exact, semantic, plan):
    """The driver of a cluster needs no GPU of its own."""
    monkeypatch.setattr("spark_dedup.runtime.has_gpu", lambda: False)
    session = telling(conf)
    assert [recording._device_of(session, method, device) for method in ("exact", "semantic")] == [
        exact,
        semantic,
    ]
    found = types.SimpleNamespace(source="docs", files=[], num_bytes=0, num_rows=None)
    result = plan_of(session, "job", found, work={}, device=device, writes=[], settings={})
    assert result["device"].startswith(plan)


@needs_classic("master of its own")
@pytest.mark.parametrize("master", ["yarn", "local[2]"])
def test_a_given_session_says_whether_this_machine_needs_a_gpu(spark, monkeypatch, master):
    """A job submitted to a cluster is not asked for a GPU of its driver, one that is local is."""
    monkeypatch.setattr("spark_dedup.runtime.has_gpu", lambda: False)
    monkeypatch.setattr(session, "_session_is_given", lambda: True)
    monkeypatch.setattr(session, "conf_of", lambda spark, key, default="": master)
    if master == "yarn":
        assert build_session(device="gpu").range(3).count() == 3
    else:
        with pytest.raises(InputError, match="nvidia-smi finds no GPU"):
            build_session(device="gpu")


class Untold:
    """A session whose conf tells nothing, as that of Databricks' serverless compute."""

    class conf:  # noqa: N801
        @staticmethod
        def get(key, default=None):
            raise RuntimeError(f"[CONFIG_NOT_AVAILABLE] Configuration {key} is not available.")


def test_a_setting_that_a_session_does_not_tell_is_its_default(spark):
    assert conf_of(Untold(), "spark.plugins") == ""
    assert conf_of(Untold(), "spark.plugins", "none") == "none"
    spark.conf.set("spark.tests.told", "4")
    assert conf_of(spark, "spark.tests.told") == "4"
    spark.conf.unset("spark.tests.told")
    assert conf_of(spark, "spark.tests.told") == ""
    assert conf_of(spark, "spark.no.such.setting", "none") == "none"
    assert not on_gpu(Untold())


def test_delta_is_asked_for_but_of_databricks(monkeypatch):
    told = {}
    session = telling(told)
    with pytest.raises(InputError, match="no Delta"):
        require_delta(session)
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "client.4.1")
    require_delta(session)
    monkeypatch.delenv("DATABRICKS_RUNTIME_VERSION")
    require_delta(Untold())
    told["spark.databricks.clusterUsageTags.sparkVersion"] = "17.3.x-scala2.13"
    require_delta(session)


def test_far_dates_are_of_todays_calendar_unless_a_session_says_otherwise(spark):
    """Spark 3.5 fails at them by default, Spark 4 does not."""
    read, write = (f"spark.sql.parquet.datetimeRebaseModeIn{what}" for what in ("Read", "Write"))
    before = spark.conf.get(read)
    spark.conf.set(write, "LEGACY")
    try:
        with parquet_as_it_is(spark):
            assert (spark.conf.get(read, None), spark.conf.get(write)) == ("CORRECTED", "LEGACY")
        assert (spark.conf.get(read), spark.conf.get(read, None)) == (before, None)
    finally:
        spark.conf.unset(write)


def test_settings_of_an_interrupted_start_are_put_back(spark, monkeypatch):
    """A cell is stopped while the first of its settings are applied; the session goes on."""
    real, names = type(spark.conf).set, ("spark.sql.shuffle.partitions", "spark.sql.files.maxPartitionBytes")
    before = [spark.conf.get(name) for name in names]

    def stopped(conf, key, value):
        real(conf, key, value)
        if value == "77":
            raise KeyboardInterrupt

    wanted = dict(zip(names, ("33", "77"), strict=True))
    with monkeypatch.context() as patched:
        patched.setattr(type(spark.conf), "set", stopped)
        with pytest.raises(KeyboardInterrupt), settings(spark, wanted):
            pytest.fail("the start was stopped")
    assert [spark.conf.get(name) for name in names] == before


def test_jobs_in_threads_of_one_session_end_in_any_order(spark):
    """The first to end takes no setting from the other, and the last puts back what was before them all."""
    name = "spark.sql.parquet.outputTimestampType"
    other = SparkSession.builder.getOrCreate()  # another handle of the session
    before = spark.conf.get(name, None)
    first, second = settings(spark, {name: "TIMESTAMP_MICROS"}), settings(other, {name: "TIMESTAMP_MILLIS"})
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert spark.conf.get(name) == "TIMESTAMP_MILLIS"
    with settings(spark, {name: "INT96"}):
        pass
    assert spark.conf.get(name) == "TIMESTAMP_MILLIS"
    second.__exit__(None, None, None)
    assert spark.conf.get(name, None) == before


def test_what_a_job_needs_stays_when_another_ends(spark):
    """Else the reader that a job asked for would be gone in the middle of its scans."""
    before = spark.conf.get(VECTORIZED)
    with parquet_as_it_is(spark):
        with parquet_as_it_is(spark):
            change(spark, VECTORIZED, "false")
        assert spark.conf.get(VECTORIZED) == "false"
    assert spark.conf.get(VECTORIZED) == before


def test_a_job_in_a_thread_of_a_pool_takes_the_session_as_it_is(spark):
    names = ("spark.sql.shuffle.partitions", "spark.sql.files.maxPartitionBytes")
    spark.conf.set(names[1], "77m")
    before = [spark.conf.get(name) for name in names]
    try:
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(active_or_build, None).result()
        assert session_key(taken) == session_key(spark)
        assert [spark.conf.get(name) for name in names] == before
    finally:
        spark.conf.unset(names[1])


def test_task_slots(spark):
    assert task_slots(spark) == 2


def test_connect_session_reads_and_writes_delta(run_connect):
    out = run_connect("""
from spark_dedup.session import is_connect, require_delta, task_slots
assert is_connect(spark)
require_delta(spark)
spark.range(3).write.format("delta").save("t")
print(spark.read.format("delta").load("t").count(), task_slots(spark))
""")
    assert out.split() == ["3", "2"]


def test_a_process_that_ends_with_its_job_may_compile_quickly(monkeypatch):
    monkeypatch.setattr(java, "_PROCESS_OPTIONS", [])
    before = _local_options()
    java.compile_quickly()
    assert "TieredStopAtLevel" not in before
    assert "-XX:TieredStopAtLevel=1" in _local_options()


def _local_options():
    found = session._local_settings(runtime.ensure_pyspark(), "cpu", None, runtime.ensure_java())
    return found["spark.driver.extraJavaOptions"]
