"""What a job says before it starts: what it would read and write, how large it is, where it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spark_dedup.session import describe_device
from spark_dedup.workflows.inputs import JobInput
from spark_dedup.workflows.result import WorkflowResult

__all__ = ["plan_of"]


def plan_of(
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
        name: the job's name.
        found: its input, looked at.
        work: what it would do: sizes of shuffles, numbers of multiplications.
        device: as the job was given it.
        writes: folders and files.
        settings: arguments and Spark settings that bear on the size of a task.
    """
    return WorkflowResult(
        f"{name} (plan)",
        {
            "input": str(found.source),
            "files": len(found.files) or None,
            "bytes": found.num_bytes or None,
            "rows": found.num_rows,
            **work,
            "device": describe_device(device),
            "writes": ", ".join(writes),
            "settings": ", ".join(f"{key}={value}" for key, value in settings.items()) or None,
        },
    )
