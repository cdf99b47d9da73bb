"""Exact deduplication as one job: ids, md5 groups, the ids to remove, and their removal where asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from typing import TYPE_CHECKING, Any

from spark_dedup.datasets import FileInfo, Named, list_files, parquet_footers, read_dataset
from spark_dedup.errors import InputError
from spark_dedup.exact import (
    FIRST_OF_GROUP,
    Keep,
    check_text,
    duplicate_rows,
    ids_and_groups,
    keep_order,
    ledger_rows,
)
from spark_dedup.ids.assign import documents
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.outputs import check_output, exclusive, staged
from spark_dedup.paths import Location, delete, exists, move, normalise_path
from spark_dedup.session import active_or_build, job_progress, resolve_device, settings
from spark_dedup.tables import ID, col, require_columns
from spark_dedup.workflows.inputs import (
    JobInput,
    check_unique_ids,
    inspect_input,
    parse_bytes,
    split_settings,
)
from spark_dedup.workflows.result import WorkflowResult
from spark_dedup.workflows.steps import Steps, fingerprint

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["ExactDeduplicationWorkflow"]

logger = logging.getLogger(__name__)

IDS_FOLDER = "ExactDuplicateIds"
GENERATOR_FILE = "exact_id_generator.json"
REMOVED_FOLDER = "deduplicated"
_DEFAULT_BLOCKSIZE = "2GiB"


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
        parse_bytes(self.input_blocksize)

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
        session = active_or_build(spark, device=self.device)
        output = normalise_path(self.output_path)
        with ExitStack() as held:
            found = self._inspect(session, output)
            held.enter_context(exclusive(output))
            held.enter_context(settings(session, self._settings(), reason="ExactDeduplicationWorkflow"))
            steps = Steps(
                output,
                fingerprint(self._identity(), found.files),
                owned=[IDS_FOLDER, REMOVED_FOLDER, GENERATOR_FILE],
                mode=self.output_mode,
            )
            identified = steps.result("identify") or steps.finish(
                "identify", self._identify(session, found, output)
            )
            metadata: dict[str, Any] = {"total_time": 0.0, **identified, "output_path": output}
            if self.ledger is not None:
                self._write_ledger(session, output, identified, began)
            if self.perform_removal:
                removed = steps.result("remove")
                metadata |= (
                    removed if removed is not None else steps.finish("remove", self._remove(session, output))
                )
            steps.close()
        delete(f"{output}/.ledger_rows")
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
                "device": resolve_device(self.device),
                "writes": ", ".join(writes),
                "settings": ", ".join(f"{k}={v}" for k, v in self._settings().items()) or None,
            },
        )

    @property
    def _id(self) -> str:
        return self.id_field if self.id_field is not None else ID

    def _identity(self) -> dict[str, Any]:
        """Return what decides the result, beside the input's files."""
        names = ("input_filetype", "assign_id", "id_field", "text_field", "verify", "on_bad_lines", "ledger")
        identity = {name: getattr(self, name) for name in names}
        return {
            **identity,
            "keep": keep_order(self.keep),
            "input": str(self.input_path),
            "registry": self._registry(),
        }

    def _registry(self) -> str | None:
        if not self.assign_id:
            return None
        return str(
            self.registry if self.registry is not None else f"{normalise_path(self.output_path)}/id_registry"
        )

    def _settings(self) -> dict[str, str]:
        wanted: dict[str, str] = {}
        if self.input_blocksize != _DEFAULT_BLOCKSIZE or self.identification_batchsize != 1:
            wanted |= split_settings(parse_bytes(self.input_blocksize) * self.identification_batchsize)
        if self.rmm_pool_size not in (None, "auto"):
            wanted["spark.rapids.memory.gpu.allocSize"] = str(self.rmm_pool_size)
        if self.spill_memory_limit not in (None, "auto"):
            wanted["spark.rapids.memory.host.spillStorageSize"] = str(self.spill_memory_limit)
        return wanted

    def _columns(self) -> list[str]:
        return list(dict.fromkeys([self.text_field, *(name for name, _ in keep_order(self.keep))]))

    def _inspect(self, spark: SparkSession, output: str) -> JobInput:
        own = [] if self.id_field is None else [self.id_field]
        found = inspect_input(
            spark,
            self.input_path,
            filetype=self.input_filetype,
            extensions=self.input_file_extensions,
            columns=[*self._columns(), *own],
        )
        check_output(output, inputs=found.paths, mode="overwrite")
        if exists(output) and not exists(f"{output}/"):
            raise FileExistsError(f"output {output} is a file: choose a folder")
        df = self._read(spark)
        check_text(df, self.text_field)
        require_columns(df, [*self._columns(), *own], where=str(found.source))
        if self.id_field is not None:
            with job_progress(spark, "checking that ids are unique"):
                num_rows = check_unique_ids(spark, df, self.id_field)
            return JobInput(found.source, found.files, num_rows)
        return found

    def _read(self, spark: SparkSession) -> DataFrame:
        return read_dataset(
            spark,
            self.input_path,  # type: ignore[arg-type]  # settled in __post_init__
            filetype=self.input_filetype,
            read_kwargs=self.read_kwargs,
            extensions=self.input_file_extensions,
        )

    def _identify(self, spark: SparkSession, found: JobInput, output: str) -> dict[str, Any]:
        started = time.monotonic()
        generator_path = None
        if self.assign_id:
            registry = IdRegistry.open(spark, self._registry() or "")
            with job_progress(spark, "registering ids"):
                read = documents(
                    spark,
                    self.input_path,  # type: ignore[arg-type]
                    filetype=self.input_filetype,
                    registry=registry,
                    columns=self._columns(),
                    on_bad_lines=self.on_bad_lines,
                    read_kwargs=self.read_kwargs,
                    extensions=self.input_file_extensions,
                )
            df, num_documents = read.df, read.num_ids - read.num_skipped
            generator_path = f"{output}/{GENERATOR_FILE}"
            registry.to_disk(generator_path)
        else:
            df, num_documents = self._read(spark), found.num_rows or 0
        rows = duplicate_rows(
            df,
            text_field=self.text_field,
            id_field=self._id,
            keep=self.keep,
            verify=self.verify,
            n_partitions=self.total_nparts,
        )
        if self.ledger is not None:
            rows = self._keep_rows(spark, rows, output)
        num_duplicates, num_groups = self._write_ids(spark, rows, df, f"{output}/{IDS_FOLDER}")
        return {
            "identification_time": time.monotonic() - started,
            "num_documents": num_documents,
            "num_duplicates": num_duplicates,
            "num_groups": num_groups,
            "id_generator_path": generator_path,
        }

    def _keep_rows(self, spark: SparkSession, rows: DataFrame, output: str) -> DataFrame:
        """Write the full rows once, for the ids and the ledger both."""
        kept = f"{output}/.ledger_rows"
        with job_progress(spark, "grouping equal texts"):
            rows.write.mode("overwrite").parquet(kept)
        return spark.read.parquet(kept)

    def _write_ids(self, spark: SparkSession, rows: DataFrame, df: DataFrame, folder: str) -> tuple[int, int]:
        """Write the ids to remove; return how many, and of how many groups, by the footers of what was written."""
        listed = ids_and_groups(rows, id_field=self._id)
        with staged(folder, mode="overwrite") as aside, job_progress(spark, "writing duplicate ids"):
            writer = listed.sortWithinPartitions(FIRST_OF_GROUP, col(self._id)).write.partitionBy(
                FIRST_OF_GROUP
            )
            writer.options(**(self.write_kwargs or {})).parquet(f"{aside}/split")
            counts = {}
            for first in ("true", "false"):
                files = _written(f"{aside}/split/{FIRST_OF_GROUP}={first}")
                counts[first] = sum(footer.num_rows for footer in parquet_footers(files))
                for file in files:
                    move(file.path, f"{aside}/{_flat_name(file.path, first)}")
            if not any(counts.values()):
                empty = df.select(col(self._id)).schema
                spark.createDataFrame([], empty).coalesce(1).write.mode("overwrite").parquet(aside)
            delete(f"{aside}/split")
        return sum(counts.values()), counts["true"]

    def _write_ledger(
        self, spark: SparkSession, output: str, identified: Mapping[str, Any], began: datetime
    ) -> None:
        from spark_dedup.ledger import Run, describe_input, input_version, write_run

        run = Run(
            method="exact",
            input=describe_input(self.input_path),  # type: ignore[arg-type]
            input_version=input_version(spark, self.input_path, filetype=self.input_filetype),
            id_field=self._id,
            num_documents=identified["num_documents"],
            num_groups=identified["num_groups"],
            num_duplicates=identified["num_duplicates"],
            started_at=began,
            registry=self._registry(),
            parameters={"text_field": self.text_field, "keep": keep_order(self.keep), "verify": self.verify},
            times={"identification_time": identified["identification_time"]},
            device=resolve_device(self.device),
        )
        with job_progress(spark, "writing the ledger"):
            rows = spark.read.parquet(f"{output}/.ledger_rows")
            write_run(spark, self.ledger or "", run, ledger_rows(rows))

    def _remove(self, spark: SparkSession, output: str) -> dict[str, Any]:
        from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

        done = TextDuplicatesRemovalWorkflow(
            input_path=self.input_path,  # type: ignore[arg-type]
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


def _written(folder: str) -> list[FileInfo]:
    return list_files(folder) if exists(folder) else []


def _flat_name(path: str | PathLike[str], first: str) -> str:
    stem, ending = str(path).rsplit("/", 1)[1].split(".", 1)
    return f"{stem}-{'a' if first == 'true' else 'b'}.{ending}"
