"""How the removal job reads its documents, with the ids they bring or with those that a registry knows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spark_dedup.datasets import find_source, read_files
from spark_dedup.ids import jsonl
from spark_dedup.ids.assign import Documents, documents
from spark_dedup.ids.files import FileRange
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.listing import FileInfo, Named
from spark_dedup.partitions import base_of
from spark_dedup.workflows.inputs import read_input
from spark_dedup.workflows.removal_arguments import columns_of, ids_are_made, is_grouped
from spark_dedup.workflows.removal_inputs import RemovalInput, keeps_lines

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

    from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

__all__ = ["documents_of", "ranges_of"]


def documents_of(
    job: TextDuplicatesRemovalWorkflow,
    spark: SparkSession,
    found: RemovalInput,
    files: Sequence[FileInfo] | None = None,
) -> DataFrame:
    """Return the documents with their id column, of all files or of some; JSON lines that are kept, as lines."""
    source = job.input_path if files is None else [file.path for file in files]
    base = {} if files is None else base_of(files, found.source.names)
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
    job: TextDuplicatesRemovalWorkflow, spark: SparkSession, found: RemovalInput
) -> list[FileRange] | None:
    """Return the id range of each file where ids are made on the way, else None."""
    return _made(job, spark, found, job.input_path).files if ids_are_made(job) else None


def _lines(
    job: TextDuplicatesRemovalWorkflow, spark: SparkSession, found: RemovalInput, named: Named
) -> DataFrame:
    """Return JSON lines with their ids, without those that are malformed and may be left out."""
    from pyspark.sql import functions as F

    source = find_source(spark, named, filetype="jsonl")
    text = read_files(spark.read, source, "jsonl", job.input_file_extensions, as_text=True)
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
    except KeyError:
        if not is_grouped(job):
            raise
        # Ids made here are one batch a file, however the job is told to group them.
        with contextlib.suppress(KeyError):
            return read(None, None)
        raise
