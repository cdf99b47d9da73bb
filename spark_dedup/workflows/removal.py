"""Removal of listed documents as one job; documents are read once and never shuffled."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import named_errors
from spark_dedup.ids.splits import cut_alike
from spark_dedup.listing import Named
from spark_dedup.outputs import clear_killed, exclusive
from spark_dedup.paths import Location, normalise_path
from spark_dedup.session import active_or_build
from spark_dedup.settings import parquet_as_it_is, settings
from spark_dedup.tables import ID
from spark_dedup.workflows.arguments import split_settings
from spark_dedup.workflows.removal_arguments import check_arguments, names_table
from spark_dedup.workflows.removal_inputs import inspect, is_there, listed_ids
from spark_dedup.workflows.removal_writing import write
from spark_dedup.workflows.result import WorkflowResult

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["TextDuplicatesRemovalWorkflow"]

logger = logging.getLogger(__name__)


@dataclass
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
        id_field: id column. ``_curator_dedup_id`` is made from the registry when one is named. Where it or
            the list's is a CHAR, blanks at the end do not count, as in SQL.
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
        check_arguments(self)

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
        ignores = self.output_mode == "ignore"
        if ignores and is_there(self, session):
            logger.info("output %s exists and is left as it is", self.output_path)
            return self._result(started, read=0, removed=0)
        with ExitStack() as held:
            held.enter_context(named_errors())
            held.enter_context(parquet_as_it_is(session))
            held.enter_context(cut_alike(session, self.input_filetype))
            found = inspect(self, session)
            if not names_table(self):
                held.enter_context(exclusive(self.output_path))
                clear_killed(normalise_path(self.output_path))
                if ignores and is_there(self, session):  # by now: a killed run had moved it away
                    return self._result(started, read=0, removed=0)
            wanted = split_settings(self.input_blocksize)
            held.enter_context(settings(session, wanted, reason="TextDuplicatesRemovalWorkflow"))
            read, removed = write(self, session, found)
        return self._result(started, read=read, removed=removed)

    def plan(self, spark: SparkSession | None = None) -> WorkflowResult:
        """Say what would be read and written, and how large it is, and touch nothing."""
        session = active_or_build(spark, device=self.device)
        with parquet_as_it_is(session):
            found = inspect(self, session)
        return WorkflowResult(
            "text_duplicates_removal (plan)",
            {
                "input": str(found.source),
                "files": len(found.files) or None,
                "bytes": found.num_bytes or None,
                "rows": found.num_rows,
                "ids_listed": int(listed_ids(self, session).count()),
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
