"""How a job's run comes into its ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from spark_dedup.ledger import write_run
from spark_dedup.ledger_runs import DONE, STOPPED, Run, describe_input, input_version
from spark_dedup.limits import SafetyStopError
from spark_dedup.listing import Named
from spark_dedup.paths import Location
from spark_dedup.progress import job_progress
from spark_dedup.workflows.planning import plugin_computes

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["record_run"]


def record_run(
    spark: SparkSession,
    ledger: Location,
    rows: DataFrame,
    *,
    method: str,
    source: Named,
    filetype: str,
    id_field: str,
    metadata: Mapping[str, Any],
    began: datetime,
    stop: SafetyStopError | None,
    parameters: Mapping[str, Any],
    device: str,
    registry: str | None = None,
    extensions: Sequence[str] | None = None,
    read_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a run and its rows; return ``ledger`` and ``run_id`` for the job's result.

    Args:
        spark: a session with Delta.
        ledger: folder or schema.
        rows: ledger rows.
        method: ``exact`` or ``semantic``.
        source: the job's input.
        filetype: of the input.
        id_field: column of ids in the input.
        metadata: the job's counts, its times (``…_time``) and, where sources are known, ``documents_by_source``.
        began: when the job began.
        stop: why nothing may be removed, where that is so.
        parameters: what decides the rows, beside the input.
        device: as the job was given it.
        registry: the id registry that gave the ids.
        extensions: endings of the input's files, when they are not the filetype's own.
        read_kwargs: options of the input's reader, which may ask for an older version.
    """
    version = input_version(spark, source, filetype=filetype, extensions=extensions, read_kwargs=read_kwargs)
    run = Run(
        method=method,
        input=describe_input(source),
        input_version=version,
        id_field=id_field,
        num_documents=metadata["num_documents"],
        num_groups=metadata["num_groups"],
        num_duplicates=metadata["num_duplicates"],
        started_at=began,
        registry=registry,
        parameters=parameters,
        documents_by_source=metadata.get("documents_by_source") or {},
        # The job as a whole is not finished yet.
        times={
            name: value for name, value in metadata.items() if name.endswith("_time") and name != "total_time"
        },
        device=_device_of(spark, method, device),
        status=DONE if stop is None else STOPPED,
        message=None if stop is None else str(stop),
    )
    with job_progress(spark, "writing the ledger"):
        written = write_run(spark, ledger, run, rows)
    return {"ledger": written.location, "run_id": run.run_id}


def _device_of(spark: SparkSession, method: str, device: str) -> str:
    """Return where a run was computed: by Spark, and k-means and pairwise also by the tasks' own means."""
    if plugin_computes(spark):
        return "gpu"
    if method != "semantic":
        return "cpu"
    from spark_dedup.semantic.gpu import fit_device

    return fit_device(spark, device)
