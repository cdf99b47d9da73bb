"""Exact deduplication as one job: ids, groups of equal hash, the ids to remove, and their removal if asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError, named_errors
from spark_dedup.exact import Keep, check_hash_method, keep_order
from spark_dedup.ids.registry import others_registered
from spark_dedup.ids.splits import cut_alike
from spark_dedup.limits import check_limits
from spark_dedup.listing import Named
from spark_dedup.outputs import exclusive
from spark_dedup.paths import Location, normalise_path
from spark_dedup.rules import check_source_rules
from spark_dedup.session import active_or_build
from spark_dedup.settings import parquet_as_it_is, settings
from spark_dedup.workflows.arguments import check_compression, check_count, check_size, session_with
from spark_dedup.workflows.exact_inputs import (
    DEFAULT_BLOCKSIZE,
    GENERATOR_FILE,
    IDS_FOLDER,
    OWNED,
    REMOVED_FOLDER,
    Documents,
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
    record,
    remove,
    safety_stop,
)
from spark_dedup.workflows.inputs import at_version, check_unchanged, table_version
from spark_dedup.workflows.planning import plan_of
from spark_dedup.workflows.result import WorkflowResult
from spark_dedup.workflows.steps import Steps, fingerprint, steps_of

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
        perform_removal: also write the documents that remain; those of tables as parquet.
        total_nparts: partitions of the shuffle; by default Spark's.
        rmm_pool_size: GPU memory pool in bytes (``spark.rapids.memory.gpu.allocSize``).
        spill_memory_limit: host memory for spilling in bytes (``spark.rapids.memory.host.spillStorageSize``).
        registry: where the id registry lies; default ``{output_path}/id_registry``.
        keep: order-by columns that choose the survivor, as ``[("quality", "desc"), "date"]``; default smallest id.
        verify: compare the texts themselves inside each hash group.
        hash_method: ``"md5"``, or ``"xxhash64"``, which is faster and can be forged; see :func:`identify_exact`.
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
    hash_method: str = "md5"
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
        check_count("identification_batchsize", self.identification_batchsize)
        if self.total_nparts is not None:
            check_count("total_nparts", self.total_nparts)
        keep_order(self.keep)
        check_hash_method(self.hash_method)
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
        options = at_version(
            session, input_of(self), filetype=self.input_filetype, read_kwargs=self.read_kwargs
        )
        metadata = replace(self, read_kwargs=options)._do_all(session, began)
        return WorkflowResult("exact_deduplication", {"total_time": time.monotonic() - started, **metadata})

    def _do_all(self, session: SparkSession, began: datetime) -> dict[str, Any]:
        output = normalise_path(self.output_path)
        with ExitStack() as held:
            held.enter_context(named_errors())
            held.enter_context(parquet_as_it_is(session))
            held.enter_context(cut_alike(session, self.input_filetype))
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
            metadata = self._do(session, steps, found, output, began)
            steps.close()  # before what a rerun would need goes: a job killed in between is finished
            forget_rows(output)
        return metadata

    def _do(
        self, spark: SparkSession, steps: Steps, found: Documents, output: str, began: datetime
    ) -> dict[str, Any]:
        """Do the steps that are not finished yet; return what all of them recorded."""
        identified = steps.result("identify")
        if identified is None:
            identified = identify(self, spark, found, output)
            self._check_unchanged(found)
            wrote = [IDS_FOLDER, GENERATOR_FILE] if self.assign_id else [IDS_FOLDER]
            steps.finish("identify", identified, wrote=wrote)
        metadata: dict[str, Any] = {**identified, "output_path": output}
        stop = safety_stop(self, spark, output, identified)
        if self.ledger is not None:
            recorded = steps.result("ledger")
            if recorded is None:
                recorded = record(self, spark, self.ledger, output, identified, began, stop)
                if stop is None:
                    steps.finish("ledger", recorded)
            metadata |= recorded
        if stop is not None:
            raise stop
        if self.perform_removal:
            removed = steps.result("remove")
            if removed is None:
                self._check_unchanged(found, or_more=True)
                removed = remove(self, spark, output)
                self._check_unchanged(found)
                steps.finish("remove", removed, wrote=[REMOVED_FOLDER])
            metadata |= removed
        return metadata

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
            session,
            "exact_deduplication",
            found,
            # Shuffled are two longs, an id, the md5's 32 digits where rows are kept, and Spark's row header.
            work={
                "shuffle_bytes": found.num_rows
                and found.num_rows * (80 if keeps_rows(self) and self.hash_method == "md5" else 40)
            },
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
            "hash_method",
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
            "version": table_version(
                spark, input_of(self), filetype=self.input_filetype, read_kwargs=self.read_kwargs
            ),
        }

    def _check_unchanged(self, found: Documents, *, or_more: bool = False) -> None:
        extensions = self.input_file_extensions
        check_unchanged(found, filetype=self.input_filetype, extensions=extensions, or_more=or_more)
