"""Documents with ids: the first id of a row's file plus the row's place in it. No shuffle, no sort."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from spark_dedup.datasets import read_dataset, read_files
from spark_dedup.errors import InputError
from spark_dedup.ids import jsonl
from spark_dedup.ids.counting import CountRows, count_parquet
from spark_dedup.ids.curator import group_files
from spark_dedup.ids.files import FileRange, file_ranges, has_row_index, match_urls, table_files, url_of
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.ids.numbering import number_by_row_index, number_by_split
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.ids.splits import count_splits, on_gpu, rows_by_url
from spark_dedup.listing import FileInfo, list_files
from spark_dedup.partitions import are_partitioned, partition_values
from spark_dedup.parts import Parts
from spark_dedup.settings import VECTORIZED, conf_of, reader_options
from spark_dedup.sources import Source, find_source
from spark_dedup.tables import ID, col, require_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

    from spark_dedup.paths import Location

__all__ = ["Documents", "documents", "read_documents"]

logger = logging.getLogger(__name__)

RangesBy = Callable[[IdRegistry | IdGenerator, CountRows], list[FileRange]]


@dataclass(frozen=True)
class Documents:
    """Documents with ids, and what was learnt on the way.

    Attributes:
        df: the documents, the id last.
        files: id range of each file.
        num_ids: ids of all files; rows of ``df``, but for skipped lines and deleted rows of a Delta table.
        num_skipped: malformed lines that ``df`` leaves out.
    """

    df: DataFrame
    files: list[FileRange]
    num_ids: int
    num_skipped: int = 0


@dataclass(frozen=True)
class _Input:
    """Files, the columns to read of them, and who gives them ids.

    Attributes:
        spark: the session.
        source: what the user named.
        files: the files there.
        columns: columns to read beside the id; all when None.
        registry: a registry, or where one lies or shall be made.
        ranges_by: returns the files' ranges, by an open registry and what counts the rows of files.
    """

    spark: SparkSession
    source: Source
    files: list[FileInfo]
    columns: Sequence[str] | None
    registry: IdRegistry | IdGenerator | Location
    ranges_by: RangesBy


def read_documents(
    spark: SparkSession,
    path: Location | Sequence[Location],
    *,
    filetype: str = "parquet",
    registry: IdRegistry | IdGenerator | Location,
    columns: Sequence[str] | None = None,
    on_bad_lines: str = "error",
    read_kwargs: Mapping[str, Any] | None = None,
    extensions: Sequence[str] | None = None,
) -> DataFrame:
    """Read documents with their ids, registering files that are new.

    An id is the first id of the row's file plus the row's place in the file, so how files are cut, grouped and
    ordered, how many there are and how often they are read changes no id. A file that changed since it was
    registered is an error. Rows of a Delta table have the ids of their places in its data files, deleted rows
    included: they last until a command such as OPTIMIZE or UPDATE moves the rows to new files.

    On the driver: listing, looking at files (parquet by footers; JSON lines by one job) and one registry commit. In
    tasks: the scan and a broadcast join with one row per file or split; nothing is shuffled. With RAPIDS the plan
    stays on the GPU; for that one more job counts the rows of each split.

    Args:
        spark: the session.
        path: a path, paths, a Delta path or a table name.
        filetype: ``parquet`` or ``jsonl`` (``.jsonl``, ``.json``, also ``.gz``).
        registry: a registry, where one lies or shall be made, or an ``IdGenerator``.
        columns: columns to read beside the id; all when None.
        on_bad_lines: ``"error"``, or ``"skip"`` to leave malformed JSON lines out: they are counted, logged, and
            keep their places, so the ids of other lines do not depend on this.
        read_kwargs: options for Spark's reader.
        extensions: endings of files to take instead of the filetype's own.

    Returns:
        The columns and ``_curator_dedup_id`` (bigint). A column of that name in the files is not trusted but
        replaced, with a warning.

    Raises:
        InputError: a truncated file, another schema, an absent column, one packed as this session does not read,
            malformed lines; names files and lines, and makes no registry.
        StaleBatchError: files changed since they were registered.
        MissingInputError: no such path, or no files.
    """
    return documents(
        spark,
        path,
        filetype=filetype,
        registry=registry,
        columns=columns,
        on_bad_lines=on_bad_lines,
        read_kwargs=read_kwargs,
        extensions=extensions,
    ).df


def documents(
    spark: SparkSession,
    path: Location | Sequence[Location],
    *,
    filetype: str,
    registry: IdRegistry | IdGenerator | Location,
    columns: Sequence[str] | None = None,
    on_bad_lines: str = "error",
    read_kwargs: Mapping[str, Any] | None = None,
    extensions: Sequence[str] | None = None,
    register_new: bool = True,
    blocksize: int | str | None = None,
    files_per_partition: int | None = None,
    schema: StructType | None = None,
    parts: Parts | None = None,
    rows: Mapping[FileInfo, int] | None = None,
    as_lines: bool = False,
    arrays: bool = True,
) -> Documents:
    """Do the work of ``read_documents``; say also what was found, and take Curator's batches.

    The arguments are the same but for ``register_new``, which, when False, makes a file that the registry does not
    know a ``KeyError``, ``blocksize`` and ``files_per_partition``, by which Curator batched the files, ``schema``,
    where that of the files is known already or must not depend on which of them are read, ``parts``, as for
    ``read_dataset``, ``rows`` of the parquet files, where a job has looked at them, ``as_lines``, with which JSON
    lines are a column ``jsonl.LINE`` as they stand, and ``arrays``: a line may be one of objects.
    """
    if on_bad_lines not in ("error", "skip"):
        raise InputError(f'on_bad_lines must be "error" or "skip", not {on_bad_lines!r}')
    source = find_source(spark, path, filetype=filetype, extensions=extensions)
    if source.kind != "files":
        df = read_dataset(spark, path, filetype=filetype, read_kwargs=read_kwargs)
        return _table_documents(spark, df, _kept(df.columns, columns, source), registry, register_new)
    files = list_files(path, filetype=filetype, extensions=extensions)
    groups = group_files(files, blocksize=blocksize, files_per_partition=files_per_partition)
    ranges_by = partial(file_ranges, groups, register_new=register_new)
    found = _Input(spark, source, files, columns, registry, ranges_by)
    if filetype == "jsonl":
        opened = jsonl.open_jsonl(
            spark, source, read_kwargs=read_kwargs, extensions=extensions, schema=schema
        )
        text = jsonl.as_text(spark, source, read_kwargs=read_kwargs, extensions=extensions)
        return _jsonl_documents(found, opened, text, on_bad_lines, as_lines=as_lines, arrays=arrays)
    reader = spark.read.options(**reader_options(read_kwargs))
    df = read_files(reader, source, filetype, extensions, schema=schema, parts=parts)
    return _parquet_documents(found, df, rows, nulls_fit=parts is not None)


def _table_documents(
    spark: SparkSession,
    df: DataFrame,
    kept: Sequence[str],
    registry: IdRegistry | IdGenerator | Location,
    register_new: bool,
) -> Documents:
    """Number a table's rows by their places in its data files, each of which is a batch of its own."""
    ids = _opened(spark, registry)
    ranges = file_ranges(table_files(df), ids, count_parquet, register_new=register_new)
    if has_row_index(df):
        urls = {r.path: url_of(r.path) for r in ranges}
        return _documents(number_by_row_index(spark, df, ranges, kept, urls), ranges)
    return _documents(number_by_split(spark, df, ranges, kept, count_splits(df), ids), ranges)


def _parquet_documents(
    found: _Input, df: DataFrame, rows: Mapping[FileInfo, int] | None, *, nulls_fit: bool
) -> Documents:
    spark, source, files = found.spark, found.source, found.files
    kept = _kept(df.columns, found.columns, source)
    in_folders = partition_values(files[0], source.names) if are_partitioned(files, source.names) else {}
    stored = [name for name in kept if name not in in_folders]
    fast = conf_of(spark, VECTORIZED, "true") == "true"
    count_rows = partial(count_parquet, columns=stored, nulls_fit=nulls_fit, shown=fast)
    if rows is None:  # files that the registry knows, too: they may be packed as this session does not read
        rows = dict(zip(files, count_rows(files), strict=True))
    ids = _opened(spark, found.registry)
    ranges = found.ranges_by(ids, partial(count_rows, known=rows))
    urls = match_urls(df.inputFiles(), [file.path for file in files])
    if on_gpu(spark) or not has_row_index(df):  # spark.sql.sources.useV1SourceList without parquet
        return _documents(number_by_split(spark, df, ranges, kept, count_splits(df), ids), ranges)
    return _documents(number_by_row_index(spark, df, ranges, kept, urls), ranges)


def _opened(spark: SparkSession, registry: IdRegistry | IdGenerator | Location) -> IdRegistry | IdGenerator:
    """Return the registry; opening one makes it, so this waits until the input is known to be sound."""
    return registry if isinstance(registry, IdRegistry | IdGenerator) else IdRegistry.open(spark, registry)


def _documents(df: DataFrame, ranges: list[FileRange], num_skipped: int = 0) -> Documents:
    return Documents(df, ranges, sum(r.count for r in ranges), num_skipped)


def _kept(there: Sequence[str], columns: Sequence[str] | None, source: Source) -> list[str]:
    """Return the columns to read, without an id column of old."""
    wanted = list(there if columns is None else columns)
    require_columns(there, [name for name in wanted if name != ID], where=str(source))
    if any(name.lower() == ID for name in there):
        logger.warning("%s has a column %s already: it is not trusted, but made anew", source, ID)
    return [name for name in wanted if name.lower() != ID]


def _jsonl_documents(
    found: _Input,
    opened: tuple[list[str], DataFrame, DataFrame],
    text: DataFrame | None,
    on_bad_lines: str,
    *,
    as_lines: bool,
    arrays: bool,
) -> Documents:
    """Count splits in one pass, which also finds malformed lines; register; read by split."""
    there, to_count, df = opened
    spark, source, files = found.spark, found.source, found.files
    # Without any columns, malformed lines may be why.
    kept = _kept(there, found.columns, source) if there else []
    splits, urls, skipped = jsonl.check_files(df, to_count, text, files, on_bad_lines, arrays=arrays)
    if not there:
        kept = _kept(there, found.columns, source)
    counts = rows_by_url(splits)
    ids = _opened(spark, found.registry)
    ranges = found.ranges_by(ids, lambda asked: [counts.get(urls[file.path], 0) for file in asked])
    bad = jsonl.bad_text()
    if as_lines and text is not None:
        df, kept, bad = jsonl.lines(text), [jsonl.LINE], col(jsonl.BAD)
    numbered = number_by_split(spark, df, ranges, kept, splits, ids, bad=bad if skipped else None)
    return _documents(numbered, ranges, skipped)
