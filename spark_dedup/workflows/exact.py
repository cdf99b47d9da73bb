"""Exact deduplication as one job: ids, md5 groups, the ids to remove, and their removal where asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError
from spark_dedup.exact import Keep, keep_order
from spark_dedup.ids.registry import others_registered
from spark_dedup.limits import SafetyStopError, check_limits, over_a_limit
from spark_dedup.listing import Named
from spark_dedup.outputs import exclusive
from spark_dedup.paths import Location, normalise_path
from spark_dedup.rules import check_source_rules
from spark_dedup.session import active_or_build
from spark_dedup.settings import parquet_as_it_is, settings
from spark_dedup.workflows.exact_inputs import (
    DEFAULT_BLOCKSIZE,
    GENERATOR_FILE,
    IDS_FOLDER,
    OWNED,
    REMOVED_FOLDER,
    Documents,
    id_of,
    input_of,
    inspect,
    registry_of,
    running_settings,
    startup_settings,
)
from spark_dedup.workflows.exact_matching import (
    LEDGER_ROWS,
    forget_rows,
    identify,
    keeps_rows,
    kept_rows,
)
from spark_dedup.workflows.inputs import (
    check_compression,
    check_size,
    check_unchanged,
    session_with,
    table_version,
)
from spark_dedup.workflows.planning import plan_of
from spark_dedup.workflows.recording import record_run
from spark_dedup.workflows.result import WorkflowResult
from spark_dedup.workflows.steps import fingerprint, steps_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["ExactDeduplicationWorkflow"]


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
        drop_all_copies: remove the survivors too, but for those of protected sources.
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
    input_blocksize: int | str = DEFAULT_BLOCKSIZE
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
    drop_all_copies: bool = False
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
        for name in ("identification_batchsize", "total_nparts"):
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and (value is not None or name != "total_nparts"):
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        keep_order(self.keep)
        check_size(self.input_blocksize)
        for size in (self.rmm_pool_size, self.spill_memory_limit):
            if size not in (None, "auto"):
                check_size(size)
        check_compression(self.write_kwargs, argument="write_kwargs")
        check_limits(self.max_removed_fraction, self.max_cluster_fraction)
        check_source_rules(
            self.source_field,
            priority=self.source_priority,
            protected=self.protected_sources,
            max_removed_fraction=self.max_removed_fraction,
        )

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
            MissingInputError: no such input. FileExistsError: the output is finished already.
        """
        started, began = time.monotonic(), datetime.now(UTC)
        session = session_with(
            spark, startup_settings(self), device=self.device, reason="ExactDeduplicationWorkflow"
        )
        output = normalise_path(self.output_path)
        with ExitStack() as held:
            held.enter_context(parquet_as_it_is(session))
            found = inspect(self, session, output)
            held.enter_context(exclusive(output))
            held.enter_context(settings(session, running_settings(self), reason="ExactDeduplicationWorkflow"))
            digest = fingerprint(self._identity(session), found.files)
            steps = held.enter_context(
                steps_of(
                    output,
                    digest,
                    owned=OWNED,
                    beside=["id_registry", LEDGER_ROWS],
                    mode=self.output_mode,
                    shared=lambda path: others_registered(session, path, [file.path for file in found.files]),
                )
            )
            identified = steps.result("identify")
            if identified is None:
                wrote = [IDS_FOLDER, GENERATOR_FILE] if self.assign_id else [IDS_FOLDER]
                identified = identify(self, session, found, output)
                self._check_unchanged(found)
                steps.finish("identify", identified, wrote=wrote)
            metadata: dict[str, Any] = {"total_time": 0.0, **identified, "output_path": output}
            stop = self._over_a_limit(session, output, identified)
            if self.ledger is not None:
                recorded = steps.result("ledger")
                if recorded is None:
                    recorded = self._record(session, self.ledger, output, identified, began, stop)
                    if stop is None:
                        steps.finish("ledger", recorded)
                metadata |= recorded
            if stop is not None:
                raise stop
            if self.perform_removal:
                removed = steps.result("remove")
                if removed is None:
                    self._check_unchanged(found, or_more=True)
                    removed = self._remove(session, output)
                    self._check_unchanged(found)
                    steps.finish("remove", removed, wrote=[REMOVED_FOLDER])
                metadata |= removed
            steps.close()  # before what a rerun would need goes: a job killed in between is finished
            forget_rows(output)
        metadata["total_time"] = time.monotonic() - started
        return WorkflowResult("exact_deduplication", metadata)

    def plan(self, spark: SparkSession | None = None) -> WorkflowResult:
        """Say what would be read and written, and how large it is, and touch nothing."""
        session = active_or_build(spark, device=self.device)
        output = normalise_path(self.output_path)
        with parquet_as_it_is(session):
            found = inspect(self, session, output)
        writes = [f"{output}/{IDS_FOLDER}"]
        writes += [f"{output}/{GENERATOR_FILE}"] if self.assign_id else []
        writes += [f"{output}/{REMOVED_FOLDER}"] if self.perform_removal else []
        return plan_of(
            "exact_deduplication",
            found,
            # A row is shuffled as 32 hex digits, an id, and Spark's row header.
            work={"shuffle_bytes": None if found.num_rows is None else found.num_rows * 64},
            device=self.device,
            writes=writes,
            settings=running_settings(self) | startup_settings(self),
        )

    def _identity(self, spark: SparkSession) -> dict[str, Any]:
        """Return what decides the result, beside the input's files."""
        names = (
            "input_filetype",
            "assign_id",
            "id_field",
            "text_field",
            "verify",
            "drop_all_copies",
            "on_bad_lines",
            "read_kwargs",
        )
        return {
            **{name: getattr(self, name) for name in names},
            "ledger": None if self.ledger is None else str(self.ledger),
            "rows_are_kept": keeps_rows(self),
            "sources": [self.source_field, *self.source_priority, None, *self.protected_sources],
            "keep": keep_order(self.keep),
            "input": str(self.input_path),
            "registry": registry_of(self),
            "version": table_version(spark, input_of(self), filetype=self.input_filetype),
        }

    def _check_unchanged(self, found: Documents, *, or_more: bool = False) -> None:
        extensions = self.input_file_extensions
        check_unchanged(found, filetype=self.input_filetype, extensions=extensions, or_more=or_more)

    def _over_a_limit(
        self, spark: SparkSession, output: str, identified: Mapping[str, Any]
    ) -> SafetyStopError | None:
        """Return why nothing may be removed, or None. The ids, and the run in the ledger, stay for review."""
        return over_a_limit(
            kept_rows(self, spark, output) if keeps_rows(self) else None,
            num_documents=identified["num_documents"],
            num_duplicates=identified["num_duplicates"],
            max_removed_fraction=self.max_removed_fraction,
            max_cluster_fraction=self.max_cluster_fraction,
            documents_by_source=identified.get("documents_by_source"),
        )

    def _record(
        self,
        spark: SparkSession,
        ledger: Location,
        output: str,
        identified: Mapping[str, Any],
        began: datetime,
        stop: SafetyStopError | None,
    ) -> dict[str, Any]:
        return record_run(
            spark,
            ledger,
            kept_rows(self, spark, output),
            method="exact",
            source=input_of(self),
            filetype=self.input_filetype,
            id_field=id_of(self),
            metadata=identified,
            began=began,
            stop=stop,
            parameters={
                "text_field": self.text_field,
                "input_filetype": self.input_filetype,
                "keep": keep_order(self.keep),
                "verify": self.verify,
                "source_field": self.source_field,
                "source_priority": list(self.source_priority),
                "protected_sources": list(self.protected_sources),
                "drop_all_copies": self.drop_all_copies,
                "max_removed_fraction": self.max_removed_fraction,
                "max_cluster_fraction": self.max_cluster_fraction,
            },
            device=self.device,
            registry=registry_of(self),
            extensions=self.input_file_extensions,
        )

    def _remove(self, spark: SparkSession, output: str) -> dict[str, Any]:
        from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

        done = TextDuplicatesRemovalWorkflow(
            input_path=input_of(self),
            ids_to_remove_path=f"{output}/{IDS_FOLDER}",
            output_path=f"{output}/{REMOVED_FOLDER}",
            input_filetype=self.input_filetype,
            id_field=id_of(self),
            duplicate_id_field=id_of(self),
            input_file_extensions=self.input_file_extensions,
            input_kwargs=self.read_kwargs,
            registry=registry_of(self),
            output_filetype="parquet" if self.input_filetype == "delta" else self.input_filetype,
            output_mode="overwrite",
            on_bad_lines=self.on_bad_lines,
        ).run(spark)
        keys = ("num_duplicates_removed", "num_documents_written")
        return {"removal_time": done["total_time"], **{key: done[key] for key in keys}}
