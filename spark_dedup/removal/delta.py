"""Removal without a copy: a shallow clone with deletion vectors, or a view."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spark_dedup.datasets import ANY_LENGTH
from spark_dedup.errors import InputError
from spark_dedup.ids.batches import named_few
from spark_dedup.ids.files import path_of
from spark_dedup.partitions import are_partitioned
from spark_dedup.paths import filesystem, on_databricks, spark_path
from spark_dedup.settings import settings
from spark_dedup.sources import relation_of, table_format
from spark_dedup.tables import as_compared, col, have_char, quote

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

    from spark_dedup.listing import FileInfo
    from spark_dedup.sources import Source

__all__ = [
    "check_alone",
    "check_clonable",
    "check_flat",
    "clone_without",
    "drop_empty_files",
    "shown_relation",
    "view_query",
]


_MERGE_SETTINGS = {
    # The list is files that nobody changes meanwhile; Delta would copy it first, lest it differ when read again.
    "spark.databricks.delta.merge.materializeSource": "none",
}


def clone_without(
    spark: SparkSession,
    source: Source,
    duplicates: DataFrame,
    target: str,
    *,
    id_field: str,
    duplicate_id_field: str,
    version: str | None = None,
) -> None:
    """Clone a Delta table and hide the listed rows behind deletion vectors; ids are shuffled, no list is broadcast.

    The source is untouched, and no data file is written: the clone's log points to the source's files.

    Args:
        spark: a session with Delta.
        source: Delta path or table.
        duplicates: list of ids.
        target: the clone, as SQL names it.
        id_field: id column of the source.
        duplicate_id_field: id column of ``duplicates``.
        version: number of the source's version to clone; None for the newest.

    Raises:
        InputError: for a source that cannot be cloned, or not in this session.
    """
    older = "" if version is None else f"VERSION AS OF {int(version)} "
    with _named_refusal(source):
        spark.sql(
            f"CREATE TABLE {target} SHALLOW CLONE {relation_of(source)} {older}"
            "TBLPROPERTIES ('delta.enableDeletionVectors' = 'true', 'delta.appendOnly' = 'false')"
        )
    ids = (spark.table(target), id_field), (duplicates, duplicate_id_field)
    own, key, wanted = f"t.{quote(id_field)}", as_compared(*ids), dict(_MERGE_SETTINGS)
    if have_char(*ids):
        own = f"rtrim({own})"
        # MERGE fails at a key that Spark pads as it reads it.
        wanted["spark.sql.readSideCharPadding"] = "false"
    listed = f"__spark_dedup_listed_{uuid.uuid4().hex}"
    duplicates.select(key(col(duplicate_id_field)).alias("id")).createOrReplaceTempView(listed)
    try:
        with _named_refusal(source), settings(spark, wanted, reason="delta-clone"):
            spark.sql(
                f"MERGE INTO {target} AS t USING {listed} AS d ON {own} = d.id WHEN MATCHED THEN DELETE"
            )
    finally:
        spark.catalog.dropTempView(listed)


@contextlib.contextmanager
def _named_refusal(source: Source) -> Iterator[None]:
    """Name what Delta 4.1 does not get along with: tasks that it sends a session with observations."""
    try:
        yield
    except Exception as error:  # its class differs between classic and Connect
        if "Task not serializable" not in str(error):
            raise
        raise InputError(
            f"Delta cannot clone {source} in a session where a DataFrame was observed (df.observe): run it in "
            "another (spark.newSession(), on Spark Connect SparkSession.builder.create()), or write parquet, "
            "jsonl or delta"
        ) from error


def drop_empty_files(folder: str) -> None:
    """Delete the data file without rows that MERGE writes and no commit of a fresh clone names."""
    import pyarrow.parquet as pq

    fs, inner = filesystem(folder)
    for path in fs.ls(inner, detail=False):
        place, _, name = path.rpartition("/")
        if not name.endswith(".parquet") or _is_named(fs, f"{inner}/_delta_log", name):
            continue
        with fs.open(path) as file:
            is_empty = pq.read_metadata(file).num_rows == 0
        if is_empty:
            for left in (path, f"{place}/.{name}.crc"):  # Hadoop's checksum, on local disks
                if fs.exists(left):
                    fs.rm_file(left)


def _is_named(fs: AbstractFileSystem, log: str, name: str) -> bool:
    """Return whether a commit names a file; read by line, as a log of many files is large."""
    for path in fs.ls(log, detail=False):
        if path.endswith(".json"):
            with fs.open(path) as commit:
                if any(name.encode() in line for line in commit):
                    return True
    return False


def shown_relation(spark: SparkSession, source: Source, filetype: str) -> str:
    """Return a dataset as views name it in FROM: JSON lines with strings of any length, where SQL takes options."""
    relation = relation_of(source, filetype)
    # On Databricks this clause names credentials.
    if (
        (source.kind, filetype) != ("files", "jsonl")
        or int(spark.version.split(".")[0]) < 4
        or on_databricks()
    ):
        return relation
    options = ", ".join(f"'{name}' = '{value}'" for name, value in ANY_LENGTH.items())
    return f"{relation} WITH ({options})"


def view_query(
    documents: str,
    duplicates: Source,
    columns: list[str],
    *,
    id_field: str,
    duplicate_id_field: str,
    is_char: bool = False,
) -> str:
    """Return the SQL of a view of the documents whose id is not listed; it follows both as they change.

    Args:
        documents: the documents, as SQL names them in FROM.
        duplicates: the list of ids.
        columns: the columns it shows.
        id_field: id column of the documents.
        duplicate_id_field: id column of the list.
        is_char: whether one of the two is a CHAR, in which blanks at the end do not count.
    """
    own, listed = f"d.{quote(id_field)}", f"r.{quote(duplicate_id_field)}"
    if is_char:
        own, listed = f"rtrim({own})", f"rtrim({listed})"
    shown = ", ".join(f"d.{quote(name)}" for name in columns)
    return (
        f"SELECT {shown} FROM {documents} AS d LEFT ANTI JOIN {relation_of(duplicates)} AS r "
        f"ON {own} = {listed}"
    )


def check_clonable(spark: SparkSession, source: Source) -> None:
    """Check that Delta can clone a table.

    Raises:
        InputError: it is a view, or its files are of a format that Delta does not clone.
    """
    found = table_format(spark, source)
    if found not in ("delta", "parquet", "iceberg"):
        raise InputError(
            f"{source} is {'a view' if found is None else f'a table of {found} files'}, which cannot be cloned: "
            "name the table below it, or write view, parquet, jsonl or delta"
        )


def check_flat(files: Sequence[FileInfo], source: Source) -> None:
    """Check that SQL, which looks into partition folders but no others, sees all the files.

    Raises:
        InputError: naming a file that lies deeper.
    """
    if are_partitioned(files, source.names):
        return
    deep = next((f.path for f in files if f.path.rsplit("/", 1)[0] not in source.names), None)
    if deep is not None and deep not in source.names:
        raise InputError(f"SQL would not find {deep}, which lies deeper than {source}: name its own folder")


def check_alone(
    spark: SparkSession,
    files: Sequence[FileInfo],
    source: Source,
    schema: StructType,
    *,
    filetype: str = "parquet",
) -> None:
    """Check that SQL, which minds no endings, reads the files and no others.

    Raises:
        InputError: naming the others.
    """
    if source.kind != "files":
        return
    kind = "json" if filetype == "jsonl" else "parquet"
    urls = spark.read.schema(schema).format(kind).load(spark_path(source.names[0])).inputFiles()
    paths = {file.path for file in files}
    others = sorted(url for url in urls if path_of(url, paths) is None)
    if others:
        raise InputError(
            f"SQL would read {named_few(others)} as {kind}, too: move what is no data elsewhere, or write parquet, "
            "jsonl or delta"
        )
