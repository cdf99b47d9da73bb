"""What a job returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError
from spark_dedup.paths import Location

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_dedup.report import Report

__all__ = ["WorkflowResult"]


@dataclass(frozen=True)
class WorkflowResult:
    """The outcome of a job.

    Attributes:
        workflow_name: name of the job.
        metadata: counts, seconds and paths; ``result["key"]`` reads them.
        aliases: older names of metadata keys, read the same way.
    """

    workflow_name: str
    metadata: dict[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        """Return one metadata value by its key or an older name of it."""
        return self.metadata[self.aliases.get(key, key) if key not in self.metadata else key]

    def __contains__(self, key: str) -> bool:
        """Return whether ``key`` can be read."""
        return key in self.metadata or self.aliases.get(key) in self.metadata

    def get(self, key: str, default: Any = None) -> Any:
        """Return one metadata value, or ``default``."""
        return self[key] if key in self else default  # noqa: SIM401 - __getitem__ knows the older names

    def report(
        self, path: Location | None = None, spark: SparkSession | None = None, **options: Any
    ) -> Report:
        """Make the report of this run from its ledger: shown in a notebook, written where a path is given.

        Args:
            path: HTML file to write.
            spark: a session; the active one by default.
            options: as ``spark_dedup.report.make_report`` takes them.

        Raises:
            InputError: the run has no ledger.
        """
        from spark_dedup.report import make_report
        from spark_dedup.session import active_or_build

        if self.get("ledger") is None:
            raise InputError("a report is made from the ledger: run the job with ledger=")
        made = make_report(active_or_build(spark), ledger=self["ledger"], run_id=self["run_id"], **options)
        if path is not None:
            made.save(path)
        return made

    def __repr__(self) -> str:
        width = max((len(key) for key in self.metadata), default=0)
        rows = [f"  {key:<{width}}  {_readable(value)}" for key, value in self.metadata.items()]
        return "\n".join([self.workflow_name, *rows])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(key)}</th>"
            f"<td style='text-align:right'>{escape(_readable(value))}</td></tr>"
            for key, value in self.metadata.items()
        )
        return f"<table><caption>{escape(self.workflow_name)}</caption>{rows}</table>"


def _readable(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return str(value)
