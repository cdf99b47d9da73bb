"""What a user names - a path, paths, a table - as files and DataFrames."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError
from spark_dedup.paths import Location, exists, filesystem, is_local, normalise_path, spark_path

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, DataFrameReader, SparkSession

__all__ = [
    "EXTENSIONS",
    "FileInfo",
    "check_schemas",
    "Source",
    "is_table_name",
    "list_files",
    "parquet_footers",
    "read_dataset",
    "read_files",
]

Named = Location | Sequence[Location]

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".json", ".jsonl.gz", ".json.gz"),
}
_NAME = r"(?:`(?:[^`]|``)+`|\w+)"
_TABLE = re.compile(rf"{_NAME}(?:\.{_NAME}){{0,2}}")


@dataclass(frozen=True, order=True)
class FileInfo:
    """One input file.

    Attributes:
        path: as NeMo Curator lists it: a local path absolute and without ``file:``, a remote one with its scheme.
        size: bytes.
        modified_ms: modification time in milliseconds since 1970.
    """

    path: str
    size: int
    modified_ms: int


@dataclass(frozen=True)
class Source:
    """A dataset that was found: ``kind`` is ``files``, ``delta`` (a path) or ``table``; ``names`` say where."""

    kind: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.names)


def is_table_name(source: Any) -> bool:
    """Return whether ``source`` is written like a table name and is not an existing local path."""
    return isinstance(source, str) and bool(_TABLE.fullmatch(source)) and not os.path.exists(source)


def find_source(spark: SparkSession, source: Named, *, filetype: str = "parquet") -> Source:
    """Find out what a user's name stands for.

    Raises:
        InputError: for an unsupported filetype or an unknown table.
        FileNotFoundError: for a path that does not exist.
    """
    if filetype not in (*EXTENSIONS, "delta"):
        raise InputError(f"unsupported filetype {filetype!r}: use {', '.join(EXTENSIONS)} or delta")
    if is_table_name(source):
        name = str(source)
        if spark.catalog.tableExists(name):
            return Source("table", (name,))
        raise FileNotFoundError(f"{name!r} is neither an existing path nor a table of this session's catalog")
    given = [source] if isinstance(source, str | PathLike) else list(source)
    if not given:
        raise InputError("no input path was given")
    paths = tuple(normalise_path(path) for path in given)
    for path in paths:
        if not exists(path):
            raise FileNotFoundError(f"no such path: {path}")
    if len(paths) == 1 and (filetype == "delta" or exists(f"{paths[0]}/_delta_log")):
        return Source("delta", paths)
    return Source("files", paths)


def list_files(
    source: Named,
    *,
    filetype: str = "parquet",
    extensions: Sequence[str] | None = None,
) -> list[FileInfo]:
    """List the data files under paths, recursively, sorted by path.

    Names that Spark does not read - with a leading ``_`` or ``.`` - are left out. A path that is a file itself
    is taken whatever its ending.

    Args:
        spark: unused for paths; kept so that every dataset function takes a session first.
        source: a path or paths.
        filetype: ``parquet`` or ``jsonl``.
        extensions: endings to take instead of the filetype's own.

    Raises:
        FileNotFoundError: when a path does not exist or holds no such file.
    """
    endings = tuple(e if e.startswith(".") else f".{e}" for e in extensions or EXTENSIONS[filetype])
    given = [source] if isinstance(source, str | PathLike) else list(source)
    found: set[FileInfo] = set()
    for path in map(normalise_path, given):
        if not exists(path):
            raise FileNotFoundError(f"no such path: {path}")
        here = set(_walk_local(path, endings) if is_local(path) else _walk_remote(path, endings))
        if not here:
            raise FileNotFoundError(f"no input files: {path} holds no file ending in {', '.join(endings)}")
        found |= here
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _walk_local(root: str, endings: tuple[str, ...]) -> Iterator[FileInfo]:
    if os.path.isfile(root):
        stat = os.stat(root)
        yield FileInfo(root, stat.st_size, stat.st_mtime_ns // 1_000_000)
        return
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if _hidden(entry.name):
                    continue
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.name.endswith(endings):
                    stat = entry.stat()
                    yield FileInfo(entry.path, stat.st_size, stat.st_mtime_ns // 1_000_000)


def _walk_remote(root: str, endings: tuple[str, ...]) -> Iterator[FileInfo]:
    fs, inner = filesystem(root)
    scheme = root.split("://", 1)[0]
    single = fs.isfile(inner)
    for path, info in fs.find(inner, detail=True).items():
        below = PurePosixPath(path[len(inner) :].lstrip("/")).parts
        if single or (path.endswith(endings) and not any(map(_hidden, below))):
            modified = info.get("LastModified") or info.get("mtime") or info.get("last_modified") or 0
            seconds = modified.timestamp() if hasattr(modified, "timestamp") else float(modified)
            yield FileInfo(f"{scheme}://{path.lstrip('/')}", int(info["size"]), int(seconds * 1000))


def read_dataset(
    spark: SparkSession,
    source: Named,
    *,
    filetype: str = "parquet",
    columns: Sequence[str] | None = None,
    read_kwargs: Mapping[str, Any] | None = None,
    extensions: Sequence[str] | None = None,
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

    Raises:
        FileNotFoundError, InputError: as ``find_source`` and ``list_files``.
    """
    from spark_dedup.tables import col, require_columns

    found = find_source(spark, source, filetype=filetype)
    reader = spark.read.options(**{k: v for k, v in (read_kwargs or {}).items() if v is not None})
    if found.kind == "table":
        df = spark.table(found.names[0])
    elif found.kind == "delta":
        df = reader.format("delta").load(found.names[0])
    else:
        df = read_files(reader, found, filetype, extensions)
    if columns is not None:
        require_columns(df, columns, where=str(found))
        df = df.select(*[col(name) for name in columns])
    return df


def read_files(
    reader: DataFrameReader, source: Source, filetype: str, extensions: Sequence[str] | None = None
) -> DataFrame:
    """Read the files of a source with a reader that is set up: the same ones that ``list_files`` lists."""
    roots = list(source.names)
    endings = extensions or EXTENSIONS[filetype]
    files = list_files(roots, filetype=filetype, extensions=extensions)
    # Spark silently leaves out files that lie beside partition folders, so all must be partitioned alike.
    layouts = {tuple(part.partition("=")[:2] for part in _below(f.path, roots)) for f in files}
    partitioned = (
        len(layouts) == 1 and all(equals for _, equals in next(iter(layouts), ())) and layouts != {()}
    )
    whole = all(os.path.isdir(r) if is_local(r) else not r.endswith(tuple(endings)) for r in roots)
    if whole:
        reader = reader.option("pathGlobFilter", "*{" + ",".join(e.replace("*", "") for e in endings) + "}")
        if not partitioned:
            reader = reader.option("recursiveFileLookup", "true")
    paths = [spark_path(root) for root in roots]
    if filetype == "jsonl":
        df: DataFrame = reader.json(paths)
        return df
    df = reader.parquet(*paths)
    return df


def _below(path: str, roots: Sequence[str]) -> tuple[str, ...]:
    root = next((r for r in roots if path.startswith(r + "/")), None)
    return PurePosixPath(path[len(root) + 1 :]).parts[:-1] if root else ()


def parquet_footers(files: Sequence[FileInfo], *, threads: int = 16) -> list[pa.parquet.FileMetaData]:
    """Read the footers of parquet files, in parallel.

    Raises:
        InputError: naming up to five files that are truncated or no parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read(file: FileInfo) -> pa.parquet.FileMetaData | str:
        try:
            if is_local(file.path):
                with pa.OSFile(file.path) as handle:
                    return pq.read_metadata(handle)
            fs, inner = filesystem(file.path)
            with fs.open(inner) as handle:
                return pq.read_metadata(handle)
        except (pa.ArrowInvalid, OSError) as error:
            return f"{file.path} ({str(error).splitlines()[0]})"

    with ThreadPoolExecutor(threads) as pool:
        footers = list(pool.map(read, files))
    broken = [f for f in footers if isinstance(f, str)]
    if broken:
        raise InputError(
            f"{len(broken)} unreadable parquet file(s): {'; '.join(broken[:5])}. Write them again or remove them"
        )
    return footers


def check_schemas(
    files: Sequence[FileInfo],
    footers: Sequence[pa.parquet.FileMetaData],
    *,
    columns: Sequence[str] | None = None,
) -> None:
    """Check that parquet files agree in the names and types of their columns, whatever their order.

    Args:
        files: the files.
        footers: their footers, in the same order.
        columns: the columns that matter; by default all.

    Raises:
        InputError: naming a file, the column, and how it differs from the first file.
    """
    first = footers[0].schema
    fields = _fields(footers[0], columns)
    for file, footer in zip(files, footers, strict=True):
        if footer.schema.equals(first):
            continue
        own = _fields(footer, columns)
        for name in dict.fromkeys((*fields, *own)):
            here, there = own.get(name, "absent"), fields.get(name, "absent")
            if here != there:
                raise InputError(
                    f"{file.path} has another schema: column {name!r} is {here}, in {files[0].path} it is {there}. "
                    "Read them apart or write them with one schema"
                )


def _fields(footer: pa.parquet.FileMetaData, columns: Sequence[str] | None) -> dict[str, str]:
    schema = footer.schema.to_arrow_schema()
    return {f.name: str(f.type) for f in schema if columns is None or f.name in columns}
