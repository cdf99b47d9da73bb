"""Removal of listed documents as one job; documents are read once and never shuffled."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_dedup.datasets import Named, is_table_name, list_files, parquet_footers, read_dataset
from spark_dedup.errors import InputError
from spark_dedup.ids.assign import documents
from spark_dedup.ids.files import match_urls
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.outputs import check_output, exclusive, staged
from spark_dedup.paths import Location, delete, exists, is_local, move, normalise_path, spark_path
from spark_dedup.removal.delta import clone_without, create_view_without
from spark_dedup.removal.passes import IDS_PER_PASS, locate, plan_passes
from spark_dedup.removal.text import check_id_types, count_listed, remove_duplicates
from spark_dedup.session import active_or_build, job_progress, require_delta, settings
from spark_dedup.tables import ID, col, require_columns
from spark_dedup.workflows.inputs import JobInput, inspect_input, parse_bytes, split_settings
from spark_dedup.workflows.result import WorkflowResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["TextDuplicatesRemovalWorkflow"]

logger = logging.getLogger(__name__)

OUTPUT_TYPES = ("parquet", "jsonl", "delta", "view", "delta-clone")
OUTPUT_MODES = ("error", "overwrite", "ignore")


@dataclass(kw_only=True)
class TextDuplicatesRemovalWorkflow:
    """Write, or show, the documents whose id is not listed.

    Row order inside a file, every column, its type and nested structure survive. Counts must balance - read minus
    removed equals written - or the job fails and publishes nothing.

    Args:
        input_path: path, paths, Delta path or table name of the documents.
        ids_to_remove_path: parquet files or a table with the ids to remove.
        output_path: folder; a table name for ``delta`` and ``view``.
        input_filetype: ``parquet``, ``jsonl`` or ``delta``.
        input_fields: columns to read; all when None.
        id_field: id column. ``_curator_dedup_id`` is made from the registry when one is named.
        input_files_per_partition: how the documents' files were grouped when Curator gave the ids.
        input_blocksize: likewise by size; it also bounds the piece of input for one task.
        input_file_extensions: endings of files to take instead of the filetype's own.
        input_task_limit: read only this many files.
        input_kwargs: options for Spark's reader.
        duplicate_id_field: id column of the list.
        duplicate_id_read_kwargs: options for reading the list.
        id_generator_path: JSON that ``to_disk`` wrote, here or in Curator.
        id_generator_storage_options: for reaching it.
        output_file_extension: ending of the files written; default ``parquet`` or ``jsonl``.
        output_filetype: ``parquet``, ``jsonl``, ``delta``, ``view`` (nothing is copied: a SQL view named
            ``output_path``) or ``delta-clone`` (a shallow clone whose deletion vectors hide the duplicates).
        output_kwargs: options for Spark's writer.
        output_fields: columns to write; all when None.
        output_mode: ``error`` (default), ``overwrite`` or ``ignore`` (an existing output is left as it is).
        drop_id_field: leave the id column out.
        registry: where the id registry lies, instead of ``id_generator_path``.
        on_bad_lines: ``"error"`` or ``"skip"`` malformed JSON lines.
        input_id_field: Curator's name for ``id_field``.
        ids_to_remove_duplicate_id_field: Curator's name for ``duplicate_id_field``.
        device: ``auto``, ``cpu`` or ``gpu``; for the session that ``run`` builds when it is given none.

    Raises:
        InputError: arguments that contradict each other.
    """

    input_path: Named
    ids_to_remove_path: Named
    output_path: Location
    input_filetype: str = "parquet"
    input_fields: Sequence[str] | None = None
    id_field: str = ID
    input_files_per_partition: int | None = None
    input_blocksize: int | str | None = None
    input_file_extensions: Sequence[str] | None = None
    input_task_limit: int | None = None
    input_kwargs: Mapping[str, Any] | None = None
    duplicate_id_field: str = "id"
    duplicate_id_read_kwargs: Mapping[str, Any] | None = None
    id_generator_path: Location | None = None
    id_generator_storage_options: Mapping[str, Any] | None = None
    output_file_extension: str | None = None
    output_filetype: str = "parquet"
    output_kwargs: Mapping[str, Any] | None = None
    output_fields: Sequence[str] | None = None
    output_mode: str | None = None
    drop_id_field: bool = False
    registry: Location | None = None
    on_bad_lines: str = "error"
    input_id_field: str | None = None
    ids_to_remove_duplicate_id_field: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        self.id_field = self.input_id_field or self.id_field
        self.duplicate_id_field = self.ids_to_remove_duplicate_id_field or self.duplicate_id_field
        self.output_mode = self.output_mode or "error"
        if self.output_filetype not in OUTPUT_TYPES:
            raise InputError(
                f"output_filetype must be {', '.join(OUTPUT_TYPES)}, not {self.output_filetype!r}"
            )
        if self.output_mode not in OUTPUT_MODES:
            raise InputError(
                f"output_mode must be one of {', '.join(OUTPUT_MODES)}, not {self.output_mode!r}"
            )
        if self.drop_id_field and self.output_fields is not None and self.id_field in self.output_fields:
            raise InputError(f"Cannot drop id_field '{self.id_field}' when it is included in output_fields.")
        if self.registry is not None and self.id_generator_path is not None:
            raise InputError("registry and id_generator_path both give ids: name one of them")
        if self.input_task_limit is not None and self.input_task_limit < 1:
            raise InputError("input_task_limit must be 1 or more")
        if self.input_blocksize is not None:
            parse_bytes(self.input_blocksize)

    def run(self, spark: SparkSession | None = None) -> WorkflowResult:
        """Run the job.

        Args:
            spark: any session, classic or Connect; without one the active one is used, or one is built.

        Returns:
            metadata: ``total_time``, ``num_duplicates_removed`` (rows really dropped), ``num_documents_written``,
            ``num_documents``, ``output_path``.

        Raises:
            InputError: input that cannot be worked with; nothing is written then.
            FileNotFoundError: no such input. FileExistsError: the output exists.
            KeyError: the id registry does not know a file.
        """
        started = time.monotonic()
        session = active_or_build(spark, device=self.device)
        if self._is_there(session) and self.output_mode == "ignore":
            logger.info("output %s exists and is left as it is", self.output_path)
            return self._result(started, read=0, removed=0)
        found = self._inspect(session)
        with ExitStack() as held:
            if not self._names_table():
                held.enter_context(exclusive(self.output_path))
            wanted = split_settings(self.input_blocksize)
            held.enter_context(settings(session, wanted, reason="TextDuplicatesRemovalWorkflow"))
            read, removed = self._write(session, found)
        return self._result(started, read=read, removed=removed)

    def plan(self, spark: SparkSession | None = None) -> WorkflowResult:
        """Say what would be read and written, and how large it is, and touch nothing."""
        session = active_or_build(spark, device=self.device)
        found = self._inspect(session)
        return WorkflowResult(
            "text_duplicates_removal (plan)",
            {
                "input": str(found.source),
                "files": len(found.files) or None,
                "bytes": found.num_bytes or None,
                "rows": found.num_rows,
                "ids_listed": self._listed(session).count(),
                "writes": f"{self.output_path} ({self.output_filetype})",
            },
        )

    def _result(self, started: float, *, read: int, removed: int) -> WorkflowResult:
        return WorkflowResult(
            "text_duplicates_removal",
            {
                "total_time": time.monotonic() - started,
                "num_duplicates_removed": removed,
                "num_documents_written": read - removed,
                "num_documents": read,
                "output_path": str(self.output_path),
            },
        )

    def _names_table(self) -> bool:
        return self.output_filetype == "view" or (
            self.output_filetype == "delta"
            and is_table_name(self.output_path)
            and "/" not in str(self.output_path)
        )

    def _is_there(self, spark: SparkSession) -> bool:
        if self._names_table():
            return bool(spark.catalog.tableExists(str(self.output_path)))
        return exists(normalise_path(self.output_path))

    def _inspect(self, spark: SparkSession) -> JobInput:
        if self._is_there(spark) and self.output_mode == "error":
            raise FileExistsError(
                f"output {self.output_path} exists: choose another one, or output_mode 'overwrite' or 'ignore'"
            )
        found = inspect_input(
            spark,
            self.input_path,
            filetype=self.input_filetype,
            extensions=self.input_file_extensions,
            columns=self.input_fields,
        )
        if not self._names_table():
            check_output(self.output_path, inputs=found.paths, mode="overwrite")
        if self.output_filetype == "delta-clone":
            require_delta(spark)
        df = self._read(spark)
        if self._ids_are_made():
            if self.output_filetype in ("view", "delta-clone"):
                raise InputError(
                    f"output_filetype {self.output_filetype!r} shows the files as they are, so the ids must be "
                    "one of their columns: write parquet with assigned ids first, or name id_field"
                )
            type_probe = df.select(col(df.columns[0]).cast("bigint").alias(ID)) if df.columns else df
            check_id_types(
                type_probe, self._listed(spark), id_field=ID, duplicate_id_field=self.duplicate_id_field
            )
        else:
            check_id_types(
                df, self._listed(spark), id_field=self.id_field, duplicate_id_field=self.duplicate_id_field
            )
        wanted = [name for name in self.output_fields or [] if name != ID]
        require_columns(df, wanted, where=str(found.source))
        return found

    def _ids_are_made(self) -> bool:
        return self.registry is not None or self.id_generator_path is not None

    def _read(self, spark: SparkSession, paths: Sequence[str] | None = None) -> DataFrame:
        return read_dataset(
            spark,
            self.input_path if paths is None else paths,
            filetype=self.input_filetype,
            columns=self.input_fields,
            read_kwargs=self.input_kwargs,
            extensions=self.input_file_extensions,
        )

    def _listed(self, spark: SparkSession) -> DataFrame:
        return read_dataset(spark, self.ids_to_remove_path, read_kwargs=self.duplicate_id_read_kwargs)

    def _documents(self, spark: SparkSession, paths: Sequence[str] | None = None) -> DataFrame:
        """Return the documents with their id column, of all files or of some."""
        if not self._ids_are_made():
            return self._read(spark, paths)
        ids: IdGenerator | IdRegistry
        if self.id_generator_path is not None:
            ids = IdGenerator.from_disk(str(self.id_generator_path), self.id_generator_storage_options)
        else:
            ids = IdRegistry.open(spark, self.registry or "")
        return documents(
            spark,
            self.input_path if paths is None else paths,
            filetype=self.input_filetype,
            registry=ids,
            columns=self.input_fields,
            on_bad_lines=self.on_bad_lines,
            read_kwargs=self.input_kwargs,
            extensions=self.input_file_extensions,
            register_new=False,
            blocksize=self.input_blocksize,
            files_per_partition=self.input_files_per_partition,
        ).df

    def _write(self, spark: SparkSession, found: JobInput) -> tuple[int, int]:
        """Write or show what remains; return rows read and rows removed."""
        listed = self._listed(spark)
        fields = {"id_field": self.id_field, "duplicate_id_field": self.duplicate_id_field}
        overwrite = self.output_mode == "overwrite"
        if self.output_filetype == "view":
            duplicates = inspect_input(spark, self.ids_to_remove_path, filetype="parquet").source
            columns = self._output_columns(self._read(spark))
            with job_progress(spark, "creating the view"):
                return create_view_without(
                    spark,
                    found.source,
                    duplicates,
                    str(self.output_path),
                    columns,
                    replace=overwrite,
                    **fields,
                )
        if self._names_table():
            return self._write_table(spark, listed)
        with staged(self.output_path, mode="overwrite" if overwrite else "error") as aside:
            if self.output_filetype == "delta-clone":
                with job_progress(spark, "hiding duplicates in a clone"):
                    return clone_without(spark, found.source, listed, aside, **fields)
            read, removed = self._write_files(spark, found, listed, aside)
            written = self._count_written(spark, aside)
            if read - removed != written:
                raise RuntimeError(
                    f"counts do not balance: {read} read - {removed} removed is not {written} written; nothing was "
                    "published. Did the input change meanwhile?"
                )
            self._name_files(aside)
        return read, removed

    def _write_files(
        self, spark: SparkSession, found: JobInput, listed: DataFrame, aside: str
    ) -> tuple[int, int]:
        paths = (
            [file.path for file in found.files[: self.input_task_limit]] if self.input_task_limit else None
        )
        docs = self._documents(spark, paths)
        fields = {"id_field": self.id_field, "duplicate_id_field": self.duplicate_id_field}
        grouped = self.input_files_per_partition is not None or self.input_blocksize is not None
        with job_progress(spark, "counting listed documents"):
            if found.source.kind == "files" and not grouped and listed.count() > IDS_PER_PASS:
                return self._write_passes(spark, found, docs, listed, aside)
            removed = count_listed(docs, listed, **fields)
        read = found.num_rows if found.num_rows is not None and paths is None else docs.count()
        kept = remove_duplicates(docs, listed, **fields)
        with job_progress(spark, "writing the documents that remain"):
            self._save(kept, aside)
        return read, removed

    def _write_passes(
        self, spark: SparkSession, found: JobInput, docs: DataFrame, listed: DataFrame, aside: str
    ) -> tuple[int, int]:
        """Write in passes over groups of files, each with its own part of a list that is too long to broadcast."""
        from pyspark.sql import functions as F

        files = found.files[: self.input_task_limit]
        located_at = f"{aside}.located"
        try:
            ids = docs.select(col(self.id_field))
            found_ids = locate(
                ids, listed, id_field=self.id_field, duplicate_id_field=self.duplicate_id_field
            )
            found_ids.write.mode("overwrite").parquet(located_at)
            located = spark.read.parquet(located_at)
            counts = {
                row["file"]: row["n"]
                for row in located.groupBy("file").agg(F.count("*").alias("n")).collect()
            }
            urls = match_urls(docs.inputFiles(), [file.path for file in files])
            passes = plan_passes(urls, counts)
            for number, part in enumerate(passes, 1):
                with job_progress(
                    spark, f"writing the documents that remain, pass {number} of {len(passes)}"
                ):
                    docs = self._documents(spark, part.paths)
                    kept = remove_duplicates(docs, part.ids(located), id_field=self.id_field)
                    self._save(kept, aside)
        finally:
            delete(located_at)
        read = found.num_rows if found.num_rows is not None and not self.input_task_limit else None
        return (self._documents(spark).count() if read is None else read), sum(counts.values())

    def _write_table(self, spark: SparkSession, listed: DataFrame) -> tuple[int, int]:
        """Write a Delta table of the catalog; its commit is the publishing."""
        docs = self._documents(spark)
        kept = remove_duplicates(
            docs, listed, id_field=self.id_field, duplicate_id_field=self.duplicate_id_field
        )
        writer = kept.select(*[col(name) for name in self._output_columns(kept)]).write.format("delta")
        name = str(self.output_path)
        with job_progress(spark, f"writing {name}"):
            writer.options(**(self.output_kwargs or {})).mode("overwrite").saveAsTable(name)
        read = docs.count()
        return read, read - spark.table(name).count()

    def _output_columns(self, df: DataFrame) -> list[str]:
        columns = list(self.output_fields) if self.output_fields is not None else list(df.columns)
        return [name for name in columns if not (self.drop_id_field and name == self.id_field)]

    def _save(self, kept: DataFrame, folder: str) -> None:
        writer = kept.select(*[col(name) for name in self._output_columns(kept)]).write.mode("append")
        if self.output_filetype == "jsonl":
            writer = writer.option("ignoreNullFields", "false")
        writer = writer.options(**(self.output_kwargs or {}))
        writer.format("json" if self.output_filetype == "jsonl" else self.output_filetype).save(folder)

    def _count_written(self, spark: SparkSession, folder: str) -> int:
        if self.output_filetype == "parquet" and is_local(folder):
            return sum(footer.num_rows for footer in parquet_footers(list_files(folder)))
        if self.output_filetype == "jsonl":
            return spark.read.text(spark_path(folder)).count()
        return spark.read.format(self.output_filetype).load(spark_path(folder)).count()

    def _name_files(self, folder: str) -> None:
        """Give the files the ending asked for; Spark ends JSON lines with ``.json``."""
        wanted = self.output_file_extension or {"jsonl": "jsonl"}.get(self.output_filetype)
        written = {"jsonl": ".json", "parquet": ".parquet"}.get(self.output_filetype)
        if wanted is None or written is None:
            return
        for file in list_files(folder, filetype="jsonl" if written == ".json" else "parquet"):
            head, tail = file.path.rsplit(written, 1)
            move(file.path, f"{head}.{wanted.lstrip('.')}{tail}")
