import pytest

from spark_dedup import java, runtime, session
from spark_dedup.errors import InputError
from spark_dedup.ids.splits import on_gpu
from spark_dedup.session import build_session, conf_of, require_delta, resolve_device, task_slots


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


class Untold:
    """A session whose conf tells nothing, as that of Databricks' serverless compute."""

    class conf:  # noqa: N801
        @staticmethod
        def get(key, default=None):
            raise RuntimeError(f"[CONFIG_NOT_AVAILABLE] Configuration {key} is not available.")


def test_a_setting_that_a_session_does_not_tell_is_its_default(spark, monkeypatch):
    assert conf_of(Untold(), "spark.plugins") == ""
    assert conf_of(Untold(), "spark.plugins", "none") == "none"
    assert conf_of(spark, "spark.sql.shuffle.partitions") == "4"
    assert conf_of(spark, "spark.no.such.setting", "none") == "none"
    assert not on_gpu(Untold())
    with pytest.raises(InputError, match="no Delta"):
        require_delta(Untold())
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "client.4.1")
    require_delta(Untold())


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
