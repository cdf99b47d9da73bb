"""A run, as the ledger keeps it: what ran on what, by which ids, and what it found."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import spark_dedup
from spark_dedup.ledger_tables import RUN_COLUMNS
from spark_dedup.listing import list_files
from spark_dedup.names import is_table_name, quote_name, split_name
from spark_dedup.paths import normalise_path
from spark_dedup.sources import delta_version, find_source

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["DONE", "STOPPED", "Run", "describe_input", "input_version", "run_row"]

DONE, STOPPED = "done", "stopped"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of ``runs``; the columns' comments in ``RUN_COLUMNS`` explain each field."""

    method: str
    input: str
    id_field: str
    num_documents: int
    num_groups: int
    num_duplicates: int
    started_at: datetime
    input_version: str | None = None
    registry: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    documents_by_source: Mapping[str, int] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"
    status: str = DONE
    message: str | None = None
    run_id: str = field(init=False)
    """The same for the same work on the same data, so that a repeated run replaces itself."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_id", _run_id(self))


def _run_id(run: Run) -> str:
    """Return ``method-hash`` of what ran on what, by which ids; random where the input's version is unknown."""
    if run.input_version is None:
        return f"{run.method}-{uuid.uuid4().hex[:16]}"
    ids, version = [run.id_field, run.registry], spark_dedup.__version__
    work = [run.method, run.input, run.input_version, ids, _texts(run.parameters), version]
    digest = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
    return f"{run.method}-{digest[:16]}"


def describe_input(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> str:
    """Return the spelling of a dataset in ``runs.input``: a table name, an absolute path, or a JSON list."""
    if isinstance(source, str | os.PathLike):
        return quote_name(split_name(str(source))) if is_table_name(source) else normalise_path(source)
    paths = [normalise_path(path) for path in source]
    return paths[0] if len(paths) == 1 else json.dumps(paths)


def input_version(
    spark: SparkSession,
    source: Any,
    *,
    filetype: str = "parquet",
    extensions: Sequence[str] | None = None,
    read_kwargs: Mapping[str, Any] | None = None,
) -> str | None:
    """Return the version of a dataset: ``delta:N``, ``files:COUNT:HASH``, or None for other tables."""
    found = find_source(spark, source, filetype=filetype, extensions=extensions)
    if found.kind != "files":
        return delta_version(spark, found, read_kwargs)
    files = list_files(list(found.names), filetype=filetype, extensions=extensions)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.modified_ms}\n".encode())
    return f"files:{len(files)}:{digest.hexdigest()[:16]}"


def run_row(spark: SparkSession, run: Run) -> DataFrame:
    """Return the row of ``runs`` for a run that is finished now."""
    values = {
        **{name: getattr(run, name, None) for name in RUN_COLUMNS},
        "finished_at": datetime.now(UTC),
        "parameters": _texts(run.parameters),
        "documents_by_source": dict(run.documents_by_source),
        "times": {k: float(v) for k, v in run.times.items()},
        "library_version": spark_dedup.__version__,
    }
    schema = ", ".join(f"{name} {kind}" for name, (kind, _) in RUN_COLUMNS.items())
    return spark.createDataFrame([tuple(values[name] for name in RUN_COLUMNS)], schema)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in sorted(values.items())}
