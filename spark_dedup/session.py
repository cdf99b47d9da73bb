"""Build a Spark session or work with a user's own. Of a job's modules only this and ``hadoop`` touch the JVM."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_dedup import runtime
from spark_dedup.class_archive import archive_options
from spark_dedup.connect import await_server, named_silence
from spark_dedup.errors import InputError
from spark_dedup.hadoop import instantiated_session
from spark_dedup.java import java_options, joined, process_options
from spark_dedup.launch import java_stderr
from spark_dedup.paths import on_databricks
from spark_dedup.settings import conf_of

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

__all__ = [
    "active_or_build",
    "barrier_slots",
    "build_session",
    "count_executors",
    "describe_device",
    "is_connect",
    "job_context",
    "require_delta",
    "resolve_device",
    "session_key",
    "task_slots",
]

logger = logging.getLogger(__name__)

DELTA_CONF = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
DEVICES = ("auto", "cpu", "gpu")


def _is_local(master: str | None) -> bool:
    return master is None or master.startswith("local")


def resolve_device(device: str = "auto", *, master: str | None = None) -> str:
    """Settle the device once, before any JVM starts.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        master: Spark master; on a cluster the GPUs are the executors', so this machine is not asked.

    Returns:
        ``"cpu"`` or ``"gpu"``.

    Raises:
        InputError: for another word, or ``"gpu"`` on a local master without a GPU.
    """
    if device not in DEVICES:
        raise InputError(f"device must be one of {', '.join(DEVICES)}, not {device!r}")
    if device == "cpu":
        return "cpu"
    local = _is_local(master)
    if device == "gpu" and local and not runtime.has_gpu():
        raise InputError(
            'device="gpu", but nvidia-smi finds no GPU on this machine: use device="cpu" or "auto"'
        )
    if device == "auto":
        return "gpu" if local and runtime.has_gpu() else "cpu"
    return "gpu"


def describe_device(device: str = "auto", *, master: str | None = None) -> str:
    """Return the device that would be used under a master, and why."""
    resolved = resolve_device(device, master=master)
    if device != "auto":
        return f"{resolved}, as asked for"
    if not _is_local(master):
        return f'{resolved}, as a cluster has GPUs only where the session or device="gpu" says so'
    return f"{resolved}, as nvidia-smi finds {'a' if resolved == 'gpu' else 'no'} GPU on this machine"


def build_session(
    app_name: str = "spark-dedup",
    *,
    device: str = "auto",
    master: str | None = None,
    conf: Mapping[str, Any] | None = None,
) -> SparkSession:
    """Return a SparkSession with Delta and, on ``device="gpu"``, the RAPIDS plugin.

    Under ``spark-submit``, on Databricks and with ``SPARK_REMOTE`` set, the session belongs to that
    environment and only ``conf`` is applied. Otherwise a local session (``local[*]`` unless ``master`` says
    else) is made from pinned jars, which are fetched once, verified, and work offline after that.

    Args:
        app_name: name in the Spark UI.
        device: ``"auto"`` takes a GPU when this machine has one. Where the session belongs to its environment, that
            settles it, and ``"gpu"`` is only checked, of a local master.
        master: Spark master.
        conf: settings that win over ours.

    Raises:
        InputError: no Java, no Spark, no GPU where one is asked for, versions that do not work together, or a
            Spark Connect server that does not answer.
    """
    given = _session_is_given()
    resolved = resolve_device(device, master="given" if given else master)
    version = runtime.ensure_pyspark()
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    # pyspark repeats every error as JSON on stderr before raising it.
    logging.getLogger("DataFrameQueryContextLogger").setLevel(logging.CRITICAL)
    settings: dict[str, str] = {}
    if not given:
        java = runtime.ensure_java()
        settings = _local_settings(version, resolved, master, java)
    settings.update({k: str(v) for k, v in (conf or {}).items()})
    builder = SparkSession.builder.appName(app_name)
    for key, value in settings.items():
        builder = builder.config(key, value)
    await_server()
    with java_stderr(), named_silence():
        session: SparkSession = builder.getOrCreate()
    if given and not is_connect(session):
        resolve_device(device, master=conf_of(session, "spark.master", "local"))
    return session


def active_or_build(
    spark: SparkSession | None, *, device: str = "auto", conf: Mapping[str, Any] | None = None
) -> SparkSession:
    """Return the given session, else the process's own, else a new one, of ``device`` and with ``conf``."""
    if spark is not None:
        return spark
    runtime.ensure_pyspark()
    return _present_session() or build_session(device=device, conf=conf)


def _present_session() -> SparkSession | None:
    """Return the thread's active session, else the process's: threads of a pool have no active one."""
    from pyspark.sql import SparkSession

    return SparkSession.getActiveSession() or instantiated_session()


def _session_is_given() -> bool:
    return any(name in os.environ for name in runtime.GIVEN_SESSION)


def _local_settings(version: str, device: str, master: str | None, java: Path) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    runtime.check_versions(version, gpu=device == "gpu")
    jars = runtime.fetch_jars(version, ("delta", "rapids") if device == "gpu" else ("delta",))
    settings = {
        "spark.master": master or "local[*]",
        "spark.jars": ",".join(str(jar) for jar in jars),
        **DELTA_CONF,
        # Half of the machine for the JVM: Python workers and the page cache need the rest.
        "spark.driver.memory": f"{max(1, min(48, _total_memory_gib() // 2))}g",
        "spark.driver.extraJavaOptions": joined(
            [*java_options(), *process_options(), *archive_options(java)]
        ),
        # A few tasks of 128 MB would leave cores idle at the end of a stage.
        "spark.sql.files.maxPartitionBytes": "32m",
        # Enough for skew, few enough for small input; adaptive execution merges what is small.
        "spark.sql.shuffle.partitions": str(max(16, 4 * cores)),
        # Delta replays its log with 50 tasks by default: seconds of overhead on one machine.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(max(16, 4 * cores)),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.ui.showConsoleProgress": "false",
        "spark.ui.enabled": "false",
    }
    if device == "gpu":
        settings.update(_gpu_settings(jars))
    return settings


def _gpu_settings(jars: list[Path]) -> dict[str, str]:
    return {
        "spark.plugins": "com.nvidia.spark.SQLPlugin",
        "spark.driver.extraClassPath": str(next(jar for jar in jars if jar.name.startswith("rapids"))),
        "spark.rapids.sql.enabled": "true",
        # Its report on what runs on the CPU is for those who ask.
        "spark.rapids.sql.explain": "NONE",
        # A query that the plugin's planner breaks on runs on the CPU, instead of failing the job.
        "spark.rapids.sql.suppressPlanningFailure": "true",
        "spark.rapids.sql.concurrentGpuTasks": "2",
        "spark.rapids.memory.pinnedPool.size": "2g",
        "spark.sql.files.maxPartitionBytes": "512m",
    }


def _total_memory_gib() -> int:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 8
    limit = Path("/sys/fs/cgroup/memory.max")
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(limit.read_text("ascii")))
    return int(total) >> 30


def is_connect(spark: SparkSession) -> bool:
    """Return whether the session is a Spark Connect one, which has no JVM at hand."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def session_key(spark: SparkSession) -> str:
    """Return what tells sessions apart, and is the same for every handle of one."""
    handle: Any = spark
    return str(handle.session_id if is_connect(spark) else handle._jsparkSession.hashCode())


def require_delta(spark: SparkSession) -> None:
    """Check that the session can read and write Delta.

    Raises:
        InputError: with the settings to add.
    """
    # A client of a Databricks cluster, which is elsewhere, is told its version.
    if on_databricks() or conf_of(spark, "spark.databricks.clusterUsageTags.sparkVersion"):
        return
    try:
        extensions, catalog = (spark.conf.get(key, "") or "" for key in DELTA_CONF)
    except Exception:  # serverless compute, which has Delta, tells settings to nobody
        return
    if "DeltaSparkSessionExtension" in extensions and "DeltaCatalog" in catalog:
        return
    import pyspark

    coordinate = runtime.spark_line(pyspark.__version__)["delta"][0]["coordinate"]
    wanted = " ".join(f"--conf {key}={value}" for key, value in DELTA_CONF.items())
    raise InputError(
        f"this Spark session has no Delta: start it with --packages {coordinate} {wanted}, "
        "or use spark_dedup.build_session()"
    )


def task_slots(spark: SparkSession) -> int:
    """Return how many tasks the session can run at once, as far as it tells."""
    if not is_connect(spark):
        return int(spark.sparkContext.defaultParallelism)
    from pyspark.sql import functions as F

    # A range is cut into as many partitions as there are slots; Connect tells no other way.
    return max(1, int(spark.range(4096).select(F.spark_partition_id()).distinct().count()))


def barrier_slots(spark: SparkSession) -> int:
    """Return how many tasks a barrier stage may have; 0 where such a stage cannot run.

    Its tasks start together or not at all, so the default parallelism, which users set freely, is no answer.
    """
    if conf_of(spark, "spark.dynamicAllocation.enabled").lower() == "true":
        return 0
    if not is_connect(spark):
        context = spark.sparkContext._jsc.sc()
        profile = context.resourceProfileManager().defaultResourceProfile()
        return max(1, int(context.maxNumConcurrentTasks(profile)))
    slots = task_slots(spark)
    local = re.fullmatch(r"local(?:\[(\d+)(?:,\d+)?\])?", conf_of(spark, "spark.master"))
    return min(slots, int(local[1] or 1)) if local else slots


def count_executors(spark: SparkSession) -> int:
    """Count the executors of a classic session; the driver is on Spark's list as well."""
    return int(spark.sparkContext._jsc.sc().getExecutorMemoryStatus().size()) - 1


def job_context(spark: SparkSession) -> SparkContext | None:
    """Return what names and watches the jobs of a classic session; None on Spark Connect."""
    return None if is_connect(spark) else spark.sparkContext
