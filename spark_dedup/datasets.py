"""What a user names - a path, paths, a table - as DataFrames."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError, first_line
from spark_dedup.listing import FileInfo, Named, endings_of, list_files
from spark_dedup.partitions import are_partitioned, base_of
from spark_dedup.parts import Parts, read_parts
from spark_dedup.paths import normalise_path, spark_location, spark_path
from spark_dedup.settings import check_whole_tables, reader_options
from spark_dedup.sources import Source, find_source

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, DataFrameReader, SparkSession
    from pyspark.sql.types import StructType

__all__ = ["ANY_LENGTH", "read_dataset", "read_files"]

ANY_LENGTH = {"maxStringLen": str(2**31 - 1)}
"""By default Spark takes a line with a string of over 20 million characters for a row of nulls."""


def read_dataset(
    spark: SparkSession,
    source: Named,
    *,
    filetype: str = "parquet",
    columns: Sequence[str] | None = None,
    read_kwargs: Mapping[str, Any] | None = None,
    extensions: Sequence[str] | None = None,
    schema: StructType | None = None,
    parts: Parts | None = None,
) -> DataFrame:
    """Read a path, paths, a Delta path or a table.

    Folders are read recursively; folders named ``column=value`` give partition columns.

    Args:
        spark: the session.
        source: what to read.
        filetype: ``parquet``, ``jsonl`` or ``delta``; a Delta folder is recognised whatever is said.
        columns: top-level columns to keep, in this order.
        read_kwargs: options for Spark's reader.
        extensions: endings to take instead of the filetype's own.
        schema: schema of files, when it is known.
        parts: what has no type in which parquet files, from ``null_parts``; empty where nothing lacks it.

    Raises:
        MissingInputError, InputError: as ``find_source`` and ``list_files``; options or, where a table is read, a
            session's settings by which rows of damaged files are lost.
    """
    from spark_dedup.tables import col, require_columns

    found = find_source(spark, source, filetype=filetype, extensions=extensions)
    reader = spark.read.options(**reader_options(read_kwargs))
    if found.kind != "files":
        check_whole_tables(spark)
    if found.kind == "table":
        df = _table(reader, found.names[0])
    elif found.kind == "delta":
        df = reader.format("delta").load(spark_location(found.names[0]))
    else:
        df = read_files(reader, found, filetype, extensions, schema=schema, parts=parts)
    if columns is not None:
        require_columns(df, columns, where=str(found))
        df = df.select(*[col(name) for name in columns])
    return df


def _table(reader: DataFrameReader, name: str) -> DataFrame:
    try:
        df = reader.table(name)
        df.columns  # noqa: B018 - a Connect session looks for the table only now
    except Exception as error:
        raise InputError(f"cannot read the table or view {name}: {first_line(error)}") from error
    return df


def read_files(
    reader: DataFrameReader,
    source: Source,
    filetype: str,
    extensions: Sequence[str] | None = None,
    *,
    schema: StructType | None = None,
    parts: Parts | None = None,
    as_text: bool = False,
) -> DataFrame:
    """Read the files of a source with a reader that is set up: the same ones that ``list_files`` lists.

    ``schema`` and ``parts`` are as for ``read_dataset``. With ``as_text`` the files' lines are a column ``value``,
    blank ones included.
    """
    roots = list(source.names)
    files = list_files(roots, filetype=filetype, extensions=extensions)
    if parts:
        return read_parts(reader.options(**base_of(files, roots)), files, parts, schema)
    if schema is not None:
        reader = reader.schema(schema)
    folders = [root for root in roots if all(file.path != root for file in files)]
    if folders:
        _check_one_tree(files, folders)
    if folders and len(folders) < len(roots):
        reader = reader.options(**base_of(files, folders))
        roots = [file.path for file in files]  # no one filter fits folders and files both
    elif folders:
        reader = _over_folders(reader, files, roots, endings_of(filetype, extensions))
    paths = [spark_path(root) for root in roots]
    df: DataFrame
    with _named_failure(source, filetype):
        if as_text:
            df = reader.text(paths)
        else:
            df = reader.options(**ANY_LENGTH).json(paths) if filetype == "jsonl" else reader.parquet(*paths)
        df.columns  # noqa: B018 - a Connect session looks at the files only now
    if not all(file.path.isascii() for file in files):
        # In the locale C Java skips other names without a word.
        from spark_dedup.ids.files import match_urls

        match_urls(df.inputFiles(), [file.path for file in files])
    return df


def _over_folders(
    reader: DataFrameReader, files: Sequence[FileInfo], roots: Sequence[str], endings: Sequence[str]
) -> DataFrameReader:
    """Have a reader take the files of folders that end so, at any depth or by partition folders."""
    literal = [re.sub(r"([\\*?\[\]{},])", r"\\\1", ending) for ending in endings]
    reader = reader.option("pathGlobFilter", "*{" + ",".join(literal) + "}")
    return reader if are_partitioned(files, roots) else reader.option("recursiveFileLookup", "true")


def _check_one_tree(files: Sequence[FileInfo], folders: Sequence[str]) -> None:
    """Check that at most one of the folders has partition folders.

    Raises:
        InputError: naming them.
    """
    if len(folders) > 1 and are_partitioned(files, folders):
        raise InputError(
            f"{', '.join(folders)} each have partition folders (column=value), which cannot be read together: "
            "name the folder above them, or take them one by one"
        )


@contextlib.contextmanager
def _named_failure(source: Source, filetype: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its class differs between classic and Connect
        torn = re.search(r"while reading file (\S+?)\.? ", str(error))
        if filetype == "jsonl" and (torn is not None or "Unexpected end of input stream" in str(error)):
            # Spark 3 does not say which file it was.
            named = f"a file of {source}" if torn is None else normalise_path(torn[1])
            raise InputError(f"{named} cannot be read to its end: write it again or remove it") from error
        if "COLUMN_ALREADY_EXISTS" not in str(error):
            raise
        raise InputError(
            f"{source} has columns whose names are equal or differ only in case ({first_line(error)}): rename one, "
            "or set spark.sql.caseSensitive=true"
        ) from error
