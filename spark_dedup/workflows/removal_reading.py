"""How the removal job reads its documents, with the ids they bring or with those that a registry knows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spark_dedup.datasets import read_files
from spark_dedup.errors import UnknownBatchError
from spark_dedup.ids import jsonl
from spark_dedup.ids.assign import Documents, documents
from spark_dedup.ids.files import FileRange, match_urls
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.listing import FileInfo, Named
from spark_dedup.names import is_table_name
from spark_dedup.partitions import base_of
from spark_dedup.paths import normalise_path
from spark_dedup.removal import passes
from spark_dedup.sources import find_source
from spark_dedup.tables import col
from spark_dedup.workflows.inputs import read_input
from spark_dedup.workflows.removal_arguments import columns_of, fields_of, ids_are_made, is_grouped
from spark_dedup.workflows.removal_inputs import RemovalInput, keeps_lines

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

    from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

__all__ = ["documents_of", "located_ids", "ranges_of", "registry_of"]


def documents_of(
    job: TextDuplicatesRemovalWorkflow,
    spark: SparkSession,
    found: RemovalInput,
    files: Sequence[FileInfo] | None = None,
) -> DataFrame:
    """Return the documents with their id column, of all files or of some; JSON lines that are kept, as lines."""
    source, base = _named(job, found, files)
    if ids_are_made(job):
        return _made(job, spark, found, source, base).df
    if keeps_lines(job, found):
        return _lines(job, spark, found, source)
    if files is None:
        return found.df
    return read_input(
        spark,
        source,
        filetype=job.input_filetype,
        columns=columns_of(job),
        read_kwargs={**(job.input_kwargs or {}), **base},
        extensions=job.input_file_extensions,
        on_bad_lines=job.on_bad_lines,
        schema=_schema(found),
        parts=found.parts,
    )[0]


def ranges_of(
    job: TextDuplicatesRemovalWorkflow,
    spark: SparkSession,
    found: RemovalInput,
    files: Sequence[FileInfo] | None = None,
) -> list[FileRange] | None:
    """Return the id range of each file, or of some, where ids are made on the way and each is a document's."""
    if not ids_are_made(job):
        return None
    made = _made(job, spark, found, *_named(job, found, files))
    return None if made.num_skipped else made.files


def located_ids(
    job: TextDuplicatesRemovalWorkflow,
    spark: SparkSession,
    found: RemovalInput,
    docs: DataFrame,
    listed: DataFrame,
    *,
    files: Sequence[FileInfo] | None,
) -> tuple[DataFrame, dict[str, str]] | None:
    """Return listed ids with what stands for their file, and that of each path; None where no file is told.

    Args:
        job: the job.
        spark: its session.
        found: the input.
        docs: its documents.
        listed: the list of ids.
        files: those that ``docs`` is read from; None stands for all.
    """
    ranges = ranges_of(job, spark, found, files)
    if ranges is not None:
        keys = {path: f"{number:08}" for number, path in enumerate(sorted(r.path for r in ranges))}
        near, field = registry_of(job), job.duplicate_id_field
        return passes.locate_by_range(listed, ranges, keys, duplicate_id_field=field, near=near), keys
    ids = passes.locate(docs.select(col(job.id_field)), listed, **fields_of(job))
    if ids is None:
        return None
    return ids, match_urls(docs.inputFiles(), [file.path for file in files or found.files])


def registry_of(job: TextDuplicatesRemovalWorkflow) -> str | None:
    """Return the registry as it is told, but for a path, which is made absolute."""
    if job.registry is None:
        return None
    return str(job.registry) if is_table_name(job.registry) else normalise_path(job.registry)


def _named(
    job: TextDuplicatesRemovalWorkflow, found: RemovalInput, files: Sequence[FileInfo] | None
) -> tuple[Named, Mapping[str, str]]:
    """Return how a reader is told of the files, or of all, and the options by which it knows their root."""
    if files is None:
        return job.input_path, {}
    return [file.path for file in files], base_of(files, found.source.names)


def _lines(
    job: TextDuplicatesRemovalWorkflow, spark: SparkSession, found: RemovalInput, named: Named
) -> DataFrame:
    """Return JSON lines with their ids, without those that are malformed and may be left out."""
    from pyspark.sql import functions as F

    extensions = job.input_file_extensions
    source = find_source(spark, named, filetype="jsonl", extensions=extensions)
    text = read_files(spark.read, source, "jsonl", extensions, as_text=True)
    rows = jsonl.lines(text)
    if job.on_bad_lines == "skip":
        rows = rows.where(F.col(jsonl.BAD).isNull())
    own = jsonl.parsed(F.col(jsonl.LINE), found.df.schema[job.id_field]).getField(job.id_field)
    return rows.select(jsonl.LINE, own.alias(job.id_field))


def _schema(found: RemovalInput) -> StructType | None:
    return found.df.schema if found.source.kind == "files" else None


def _made(
    job: TextDuplicatesRemovalWorkflow,
    spark: SparkSession,
    found: RemovalInput,
    source: Named,
    base: Mapping[str, str] | None = None,
) -> Documents:
    """Return documents whose ids the registry knows; ``base`` is what ``base_of`` gives for some of the files."""
    ids: IdGenerator | IdRegistry
    if job.id_generator_path is not None:
        ids = IdGenerator.from_disk(str(job.id_generator_path), job.id_generator_storage_options)
    else:
        assert job.registry is not None
        ids = IdRegistry.open(spark, job.registry)

    def read(blocksize: int | str | None, files_per_partition: int | None) -> Documents:
        return documents(
            spark,
            source,
            filetype=job.input_filetype,
            registry=ids,
            columns=job.input_fields,
            on_bad_lines=job.on_bad_lines,
            read_kwargs={**(job.input_kwargs or {}), **(base or {})},
            extensions=job.input_file_extensions,
            register_new=False,
            blocksize=blocksize,
            files_per_partition=files_per_partition,
            schema=_schema(found),
            parts=found.parts,
            rows=found.rows,
            as_lines=keeps_lines(job, found),
        )

    try:
        return read(job.input_blocksize, job.input_files_per_partition)
    except UnknownBatchError:
        if not is_grouped(job):
            raise
        # Ids made here are one batch a file, however the job is told to group them.
        with contextlib.suppress(UnknownBatchError):
            return read(None, None)
        raise
