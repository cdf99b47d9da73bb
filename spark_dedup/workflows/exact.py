"""Exact deduplication as one job: ids, md5 groups, the ids to remove, and their removal where asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from spark_dedup.datasets import Named, is_table_name
from spark_dedup.errors import InputError
from spark_dedup.exact import (
    Keep,
    apply_sources,
    check_text,
    duplicate_rows,
    keep_order,
    ledger_rows,
)
from spark_dedup.ids.assign import documents
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.outputs import check_apart, check_output, exclusive
from spark_dedup.paths import Location, delete, normalise_path, spark_path
from spark_dedup.rules import (
    SOURCE_RANK,
    SafetyStopError,
    check_limits,
    count_by_source,
    over_a_limit,
    with_source_rank,
)
from spark_dedup.session import active_or_build, describe_device, job_progress, resolve_device, settings
from spark_dedup.tables import ID, col, require_columns
from spark_dedup.workflows.id_lists import write_ids
from spark_dedup.workflows.inputs import (
    JobInput,
    check_size,
    check_unique_ids,
    inspect_input,
    read_input,
    session_with,
    split_settings,
    table_version,
)
from spark_dedup.workflows.result import WorkflowResult
from spark_dedup.workflows.steps import fingerprint, refuse_finished, steps_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["ExactDeduplicationWorkflow"]

logger = logging.getLogger(__name__)

IDS_FOLDER = "ExactDuplicateIds"
GENERATOR_FILE = "exact_id_generator.json"
REMOVED_FOLDER = "deduplicated"
OWNED = (IDS_FOLDER, REMOVED_FOLDER, GENERATOR_FILE)
_LEDGER_ROWS = ".ledger_rows"
_DEFAULT_BLOCKSIZE = "2GiB"


@dataclass(frozen=True)
class _Documents(JobInput):
    """An input that was looked at, with its documents as they are."""

    df: DataFrame = field(kw_only=True)


@dataclass(kw_only=True)
class ExactDeduplicationWorkflow:
    """Find documents whose text is equal, and write the ids of all but one of each group.

    Written below ``output_path``: ``ExactDuplicateIds/*.parquet`` (one column, each id to remove once, sorted in a
    file), ``exact_id_generator.json`` and ``id_registry`` when ids are assigned, ``deduplicated`` when
    ``perform_removal``. A killed job is run again with the same arguments and goes on after its last finished step.

    Args:
        output_path: folder for the results.
        input_path: path, paths, Delta path or table name.
        input_filetype: ``parquet``, ``jsonl`` or ``delta``.
        input_blocksize: largest piece of input for one task; other than the default it sets
            ``spark.sql.files.maxPartitionBytes``.
        identification_batchsize: pieces for one task; multiplies the above.
        input_file_extensions: endings of files to take instead of the filetype's own.
        read_kwargs: options for Spark's reader.
        write_kwargs: options for Spark's writer.
        assign_id: give ids (``_curator_dedup_id``) from the registry; else ``id_field`` is used.
        id_field: column of unique ids, with ``assign_id=False``.
        text_field: string column.
        perform_removal: also write the documents that remain.
        total_nparts: partitions of the shuffle; by default Spark's.
        rmm_pool_size: GPU memory pool in bytes (``spark.rapids.memory.gpu.allocSize``).
        spill_memory_limit: host memory for spilling in bytes (``spark.rapids.memory.host.spillStorageSize``).
        registry: where the id registry lies; default ``{output_path}/id_registry``.
        keep: order-by columns that choose the survivor, as ``[("quality", "desc"), "date"]``; default smallest id.
        verify: compare the texts themselves inside each hash group.
        on_bad_lines: ``"error"`` or ``"skip"`` malformed JSON lines.
        output_mode: ``"error"`` or ``"overwrite"`` a finished output.
        ledger: folder or schema of a ledger that gets this run.
        source_field: column that names each document's source, for the ledger and the rules below.
        source_priority: sources whose copies stay first, before ``keep``.
        protected_sources: sources that lose nothing: their copies stay, and stand for those of others.
        max_removed_fraction: stop before removing when more of the input than this is duplicates; a mapping limits
            single sources, ``"*"`` the whole.
        max_cluster_fraction: stop before removing when one group holds more of the input than this.
        device: ``auto``, ``cpu`` or ``gpu``; for the session that ``run`` builds when it is given none.

    Raises:
        InputError: arguments that contradict each other.
    """

    output_path: Location
    input_path: Named | None = None
    input_filetype: str = "parquet"
    input_blocksize: int | str = _DEFAULT_BLOCKSIZE
    identification_batchsize: int = 1
    input_file_extensions: Sequence[str] | None = None
    read_kwargs: Mapping[str, Any] | None = None
    write_kwargs: Mapping[str, Any] | None = None
    assign_id: bool = True
    id_field: str | None = None
    text_field: str = "text"
    perform_removal: bool = False
    total_nparts: int | None = None
    rmm_pool_size: int | str | None = "auto"
    spill_memory_limit: int | str | None = "auto"
    registry: Location | None = None
    keep: Keep | None = None
    verify: bool = False
    on_bad_lines: str = "error"
    output_mode: str = "error"
    ledger: Location | None = None
    source_field: str | None = None
    source_priority: Sequence[str] = ()
    protected_sources: Sequence[str] = ()
    max_removed_fraction: float | Mapping[str, float] | None = None
    max_cluster_fraction: float | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.assign_id and self.id_field is None:
            raise InputError("id_field must be provided if assign_id is False")
        if self.assign_id and self.id_field is not None:
            raise InputError("id_field must be None if assign_id is True")
        if self.input_path is None:
            raise InputError("input_path is missing: name the documents to deduplicate")
        if self.output_mode not in ("error", "overwrite"):
            raise InputError(f'output_mode must be "error" or "overwrite", not {self.output_mode!r}')
        if self.identification_batchsize < 1 or (self.total_nparts is not None and self.total_nparts < 1):
            raise InputError("identification_batchsize and total_nparts must be 1 or more")
        keep_order(self.keep)
        check_size(self.input_blocksize)
        check_limits(self.max_removed_fraction, self.max_cluster_fraction)
        by_source = isinstance(self.max_removed_fraction, Mapping)
        if (self.source_priority or self.protected_sources or by_source) and self.source_field is None:
            raise InputError("rules by source need source_field")

    def run(self, spark: SparkSession | None = None) -> WorkflowResult:
        """Run the job.

        Args:
            spark: any session, classic or Connect; without one the active one is used, or one is built.

        Returns:
            metadata: ``total_time``, ``identification_time``, ``num_duplicates``, ``num_groups``,
            ``num_documents``, ``id_generator_path``, ``output_path``; with removal also ``removal_time``,
            ``num_duplicates_removed`` and ``num_documents_written``.

        Raises:
            InputError: input that cannot be worked with; nothing is written then.
            FileNotFoundError: no such input. FileExistsError: the output is finished already.
        """
        started, began = time.monotonic(), datetime.now(UTC)
        session = session_with(
            spark, self._startup(), device=self.device, reason="ExactDeduplicationWorkflow"
        )
        output = normalise_path(self.output_path)
        with ExitStack() as held:
            found = self._inspect(session, output)
            held.enter_context(exclusive(output))
            held.enter_context(settings(session, self._settings(), reason="ExactDeduplicationWorkflow"))
            digest = fingerprint(self._identity(session), found.files)
            steps = held.enter_context(
                steps_of(output, digest, owned=OWNED, beside=["id_registry"], mode=self.output_mode)
            )
            identified = steps.result("identify")
            if identified is None:
                wrote = [IDS_FOLDER, GENERATOR_FILE] if self.assign_id else [IDS_FOLDER]
                identified = steps.finish("identify", self._identify(session, found, output), wrote=wrote)
            metadata: dict[str, Any] = {"total_time": 0.0, **identified, "output_path": output}
            stop = self._over_a_limit(session, output, identified)
            if self.ledger is not None:
                recorded = steps.result("ledger")
                if recorded is None:
                    recorded = self._write_ledger(session, output, identified, began, stop)
                    if stop is None:
                        steps.finish("ledger", recorded)
                metadata |= recorded
            if stop is not None:
                raise stop
            if self.perform_removal:
                removed = steps.result("remove")
                if removed is None:
                    removed = steps.finish("remove", self._remove(session, output), wrote=[REMOVED_FOLDER])
                metadata |= removed
            delete(f"{output}/{_LEDGER_ROWS}")
            steps.close()
        metadata["total_time"] = time.monotonic() - started
        return WorkflowResult("exact_deduplication", metadata)

    def plan(self, spark: SparkSession | None = None) -> WorkflowResult:
        """Say what would be read and written, and how large it is, and touch nothing."""
        session = active_or_build(spark, device=self.device)
        output = normalise_path(self.output_path)
        found = self._inspect(session, output)
        rows = found.num_rows
        writes = [f"{output}/{IDS_FOLDER}"]
        writes += [f"{output}/{GENERATOR_FILE}"] if self.assign_id else []
        writes += [f"{output}/{REMOVED_FOLDER}"] if self.perform_removal else []
        return WorkflowResult(
            "exact_deduplication (plan)",
            {
                "input": str(found.source),
                "files": len(found.files) or None,
                "bytes": found.num_bytes or None,
                "rows": rows,
                # A row is shuffled as 32 hex digits, an id, and Spark's row header.
                "shuffle_bytes": rows * 64 if rows is not None else None,
                "device": describe_device(self.device),
                "writes": ", ".join(writes),
                "settings": ", ".join(f"{k}={v}" for k, v in (self._settings() | self._startup()).items())
                or None,
            },
        )

    @property
    def _id(self) -> str:
        return self.id_field if self.id_field is not None else ID

    def _identity(self, spark: SparkSession) -> dict[str, Any]:
        """Return what decides the result, beside the input's files."""
        names = (
            "input_filetype",
            "assign_id",
            "id_field",
            "text_field",
            "verify",
            "on_bad_lines",
            "read_kwargs",
        )
        return {
            **{name: getattr(self, name) for name in names},
            "ledger": None if self.ledger is None else str(self.ledger),
            "rows_are_kept": self._keeps_rows,
            "sources": [self.source_field, *self.source_priority, None, *self.protected_sources],
            "keep": keep_order(self.keep),
            "input": str(self.input_path),
            "registry": self._registry(),
            "version": table_version(spark, self._input, filetype=self.input_filetype),
        }

    def _registry(self) -> str | None:
        if not self.assign_id:
            return None
        return str(
            self.registry if self.registry is not None else f"{normalise_path(self.output_path)}/id_registry"
        )

    def _settings(self) -> dict[str, str]:
        if self.input_blocksize == _DEFAULT_BLOCKSIZE and self.identification_batchsize == 1:
            return {}
        return split_settings(check_size(self.input_blocksize) * self.identification_batchsize)

    def _startup(self) -> dict[str, str]:
        """Return settings that a session takes only when it starts."""
        asked = {
            "spark.rapids.memory.gpu.allocSize": self.rmm_pool_size,
            "spark.rapids.memory.host.spillStorageSize": self.spill_memory_limit,
        }
        return {key: str(value) for key, value in asked.items() if value not in (None, "auto")}

    @property
    def _input(self) -> Named:
        assert self.input_path is not None  # settled in __post_init__
        return self.input_path

    @property
    def _keeps_rows(self) -> bool:
        return (self.ledger, self.max_cluster_fraction, self.source_field) != (None, None, None)

    def _columns(self) -> list[str]:
        source = [] if self.source_field is None else [self.source_field]
        return list(dict.fromkeys([self.text_field, *(name for name, _ in keep_order(self.keep)), *source]))

    def _inspect(self, spark: SparkSession, output: str) -> _Documents:
        own = [] if self.id_field is None else [self.id_field]
        wanted = list(dict.fromkeys([*self._columns(), *own]))
        found = inspect_input(
            spark,
            self._input,
            filetype=self.input_filetype,
            extensions=self.input_file_extensions,
            columns=wanted,
        )
        check_apart(output, found.paths, may_hold=True)
        for name in (IDS_FOLDER, REMOVED_FOLDER):
            check_output(f"{output}/{name}", inputs=found.paths, mode="overwrite")
        registry = self._registry()
        if registry is not None and not is_table_name(registry):
            check_apart(normalise_path(registry), found.paths, may_hold=True)
        refuse_finished(output, owned=OWNED, mode=self.output_mode)
        df, num_rows = read_input(
            spark,
            self._input,
            filetype=self.input_filetype,
            read_kwargs=self.read_kwargs,
            extensions=self.input_file_extensions,
            on_bad_lines=self.on_bad_lines,
            check_lines=not self.assign_id,  # making ids looks for them as well
        )
        check_text(df, self.text_field)
        require_columns(df, wanted, where=str(found.source))
        if self.id_field is not None:
            with job_progress(spark, "checking that ids are unique"):
                num_rows = check_unique_ids(spark, df, self.id_field)
        elif found.source.kind == "files":
            num_rows = found.num_rows
        return _Documents(found.source, found.files, num_rows, found.paths, df=df)

    def _identify(self, spark: SparkSession, found: _Documents, output: str) -> dict[str, Any]:
        started = time.monotonic()
        generator_path = None
        df, num_documents = found.df, found.num_rows or 0
        if self.assign_id:
            registry = IdRegistry.open(spark, self._registry() or "")
            with job_progress(spark, "registering ids"):
                read = documents(
                    spark,
                    self._input,
                    filetype=self.input_filetype,
                    registry=registry,
                    columns=self._columns(),
                    on_bad_lines=self.on_bad_lines,
                    read_kwargs=self.read_kwargs,
                    extensions=self.input_file_extensions,
                    schema=df.schema if found.source.kind == "files" else None,
                )
            # The ids of a Delta table count the rows that deletion vectors hide, too.
            in_table = found.source.kind != "files"
            num_documents = df.count() if in_table else read.num_ids - read.num_skipped
            df = read.df
            generator_path = f"{output}/{GENERATOR_FILE}"
            registry.to_disk(generator_path)
        by_source: dict[str, int] = {}
        keep: list[str | tuple[str, str]] = [
            (name, "desc" if descending else "asc") for name, descending in keep_order(self.keep)
        ]
        if self.source_field is not None:
            by_source = count_by_source(df, source_field=self.source_field)
            df = with_source_rank(
                df,
                source_field=self.source_field,
                priority=self.source_priority,
                protected=self.protected_sources,
            )
            keep = [SOURCE_RANK, *keep]
        rows = duplicate_rows(
            df,
            text_field=self.text_field,
            id_field=self._id,
            keep=keep or None,
            verify=self.verify,
            n_partitions=self.total_nparts,
        )
        if self.source_field is not None:
            rows = apply_sources(
                rows, df, id_field=self._id, source_field=self.source_field, protected=self.protected_sources
            )
        if self._keeps_rows:
            rows = self._keep_rows(spark, rows, output)
        folder = f"{output}/{IDS_FOLDER}"
        with job_progress(spark, "writing duplicate ids"):
            num_duplicates, num_groups = write_ids(
                rows, df.select(col(self._id)), folder, write_kwargs=self.write_kwargs
            )
        return {
            "identification_time": time.monotonic() - started,
            "num_documents": num_documents,
            "num_duplicates": num_duplicates,
            "num_groups": num_groups,
            "id_generator_path": generator_path,
            **({"documents_by_source": by_source} if by_source else {}),
        }

    def _keep_rows(self, spark: SparkSession, rows: DataFrame, output: str) -> DataFrame:
        """Write the full rows once, for the ids and the ledger both."""
        kept = f"{output}/{_LEDGER_ROWS}"
        with job_progress(spark, "grouping equal texts"):
            rows.write.mode("overwrite").parquet(kept)
        return spark.read.parquet(spark_path(kept))

    def _kept_rows(self, spark: SparkSession, output: str) -> DataFrame:
        return ledger_rows(spark.read.parquet(spark_path(f"{output}/{_LEDGER_ROWS}")))

    def _over_a_limit(
        self, spark: SparkSession, output: str, identified: Mapping[str, Any]
    ) -> SafetyStopError | None:
        """Return why nothing may be removed, or None. The ids, and the run in the ledger, stay for review."""
        return over_a_limit(
            self._kept_rows(spark, output) if self._keeps_rows else None,
            num_documents=identified["num_documents"],
            num_duplicates=identified["num_duplicates"],
            max_removed_fraction=self.max_removed_fraction,
            max_cluster_fraction=self.max_cluster_fraction,
            documents_by_source=identified.get("documents_by_source"),
        )

    def _write_ledger(
        self,
        spark: SparkSession,
        output: str,
        identified: Mapping[str, Any],
        began: datetime,
        stop: SafetyStopError | None,
    ) -> dict[str, Any]:
        from spark_dedup.ledger import DONE, STOPPED, Run, describe_input, input_version, write_run

        run = Run(
            method="exact",
            input=describe_input(self._input),
            input_version=input_version(spark, self._input, filetype=self.input_filetype),
            id_field=self._id,
            num_documents=identified["num_documents"],
            num_groups=identified["num_groups"],
            num_duplicates=identified["num_duplicates"],
            started_at=began,
            registry=self._registry(),
            parameters={
                "text_field": self.text_field,
                "input_filetype": self.input_filetype,
                "keep": keep_order(self.keep),
                "verify": self.verify,
                "source_field": self.source_field,
                "source_priority": list(self.source_priority),
                "protected_sources": list(self.protected_sources),
                "max_removed_fraction": self.max_removed_fraction,
                "max_cluster_fraction": self.max_cluster_fraction,
            },
            documents_by_source=identified.get("documents_by_source") or {},
            status=DONE if stop is None else STOPPED,
            message=None if stop is None else str(stop),
            times={"identification_time": identified["identification_time"]},
            device=resolve_device(self.device),
        )
        with job_progress(spark, "writing the ledger"):
            ledger = write_run(spark, self.ledger or "", run, self._kept_rows(spark, output))
        return {"ledger": ledger.location, "run_id": run.run_id}

    def _remove(self, spark: SparkSession, output: str) -> dict[str, Any]:
        from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

        done = TextDuplicatesRemovalWorkflow(
            input_path=self._input,
            ids_to_remove_path=f"{output}/{IDS_FOLDER}",
            output_path=f"{output}/{REMOVED_FOLDER}",
            input_filetype=self.input_filetype,
            id_field=self._id,
            duplicate_id_field=self._id,
            input_file_extensions=self.input_file_extensions,
            input_kwargs=self.read_kwargs,
            registry=self._registry(),
            output_filetype="parquet" if self.input_filetype == "delta" else self.input_filetype,
            output_mode="overwrite",
            on_bad_lines=self.on_bad_lines,
        ).run(spark)
        keys = ("num_duplicates_removed", "num_documents_written")
        return {"removal_time": done["total_time"], **{key: done[key] for key in keys}}
