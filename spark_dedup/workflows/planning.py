"""What a job says before it starts: what it would read and write, how large it is, where it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spark_dedup.ids.splits import on_gpu
from spark_dedup.session import describe_device
from spark_dedup.settings import conf_of
from spark_dedup.workflows.inputs import JobInput
from spark_dedup.workflows.result import WorkflowResult

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["plan_of", "plugin_computes"]


def plan_of(
    spark: SparkSession,
    name: str,
    found: JobInput,
    *,
    work: Mapping[str, Any],
    device: str,
    writes: Sequence[str],
    settings: Mapping[str, Any],
) -> WorkflowResult:
    """Return the plan of a job.

    Args:
        spark: the session.
        name: the job's name.
        found: its input, looked at.
        work: what it would do: sizes of shuffles, numbers of multiplications.
        device: as the job was given it.
        writes: folders and files.
        settings: arguments and Spark settings that bear on the size of a task.
    """
    where = describe_device(device, master=conf_of(spark, "spark.master", "local"))
    if plugin_computes(spark):
        where = "gpu, as the session has the RAPIDS plugin"
    return WorkflowResult(
        f"{name} (plan)",
        {
            "input": str(found.source),
            "files": len(found.files) or None,
            "bytes": found.num_bytes or None,
            "rows": found.num_rows,
            **work,
            "device": where,
            "writes": ", ".join(writes),
            "settings": ", ".join(f"{key}={value}" for key, value in settings.items()) or None,
        },
    )


def plugin_computes(spark: SparkSession) -> bool:
    """Return whether RAPIDS runs the queries of a session, and does not only explain them."""
    return on_gpu(spark) and conf_of(spark, "spark.rapids.sql.mode").lower() != "explainonly"
