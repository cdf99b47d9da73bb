"""Footers of parquet files: what files hold, and whether Spark can read it, without reading a row."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError, first_line
from spark_dedup.paths import filesystem, is_local

if TYPE_CHECKING:
    import pyarrow as pa

    from spark_dedup.listing import FileInfo

__all__ = ["alike_columns", "check_readable", "opened", "parquet_footers"]

_THREADS = 16
_MOST_DIGITS = 38
"""Of Spark's decimals."""
_SIGNATURE_BYTES = 28
"""Follow a footer that can be read though columns are encrypted (parquet-format: Encryption.md, 5.5)."""


def parquet_footers(files: Sequence[FileInfo]) -> list[pa.parquet.FileMetaData]:
    """Read the footers of parquet files, in parallel.

    Raises:
        InputError: naming up to five files that are truncated, no parquet, or encrypted.
    """
    import pyarrow.parquet as pq

    def read(file: FileInfo) -> pa.parquet.FileMetaData | str:
        try:
            with opened(file.path) as handle:
                footer = pq.read_metadata(handle)
                # Arrow ends the process when it is asked for a column that is encrypted.
                is_signed = _footer_length(handle) == footer.serialized_size + _SIGNATURE_BYTES
            return f"{file.path} (encrypted)" if is_signed else footer
        except Exception as error:  # libraries of stores have classes of their own
            return f"{file.path} ({first_line(error)})"

    with ThreadPoolExecutor(_THREADS) as pool:
        footers = list(pool.map(read, files))
    broken = [f for f in footers if isinstance(f, str)]
    if broken:
        raise InputError(
            f"{len(broken)} unreadable parquet file(s): {'; '.join(broken[:5])}. Write them again or remove them"
        )
    return footers


def opened(path: str) -> AbstractContextManager[Any]:
    """Open a file for Arrow to read, on any store."""
    import pyarrow as pa

    found: AbstractContextManager[Any]
    if is_local(path):
        found = pa.OSFile(path)
    else:
        fs, inner = filesystem(path)
        found = fs.open(inner)
    return found


def _footer_length(handle: Any) -> int:
    """Return the bytes of a parquet file's footer, as its last eight bytes tell."""
    handle.seek(-8, 2)
    return int.from_bytes(handle.read(4), "little")


def check_readable(
    files: Sequence[FileInfo],
    footers: Sequence[pa.parquet.FileMetaData],
    *,
    columns: Sequence[str] | None = None,
    times: bool = False,
) -> bool:
    """Check that Spark has the types of parquet files' columns.

    Args:
        files: the files.
        footers: their footers, in the same order.
        columns: the columns that are read; by default all.
        times: whether the session reads times of day in microseconds.

    Returns:
        Whether another column has nanoseconds, which do no harm where the session reads them as numbers.

    Raises:
        InputError: naming a file, the column, and what to write instead.
    """
    others, checked = False, None
    for file, footer in zip(files, footers, strict=True):
        if checked is not None and footer.schema.equals(checked):
            continue
        checked = footer.schema
        names = sorted(footer.schema.to_arrow_schema().names, key=len, reverse=True)
        for i in range(footer.num_columns):
            leaf = footer.schema.column(i)
            kind = json.loads(leaf.logical_type.to_json())
            unread = _unread(kind, times=times)
            if unread is None and kind.get("timeUnit") != "nanoseconds":
                continue
            path = leaf.path
            name = next((n for n in names if path == n or path.startswith(f"{n}.")), path)
            if unread is not None:
                what, instead = unread
                raise InputError(
                    f"{file.path}: column {name!r} has {what}, which Spark cannot read: "
                    f"write {instead}, or leave the column out of the files"
                )
            if columns is None or name in columns:
                raise InputError(
                    f"{file.path}: column {name!r} is in nanoseconds, which Spark cannot read: write microseconds "
                    "(pandas: to_parquet(…, coerce_timestamps='us')), or leave the column out of what is read"
                )
            others = True
    return others


def _unread(kind: Mapping[str, Any], *, times: bool) -> tuple[str, str] | None:
    """Return what a logical type is and what to write instead, if it keeps Spark from reading other columns too."""
    if kind["Type"] == "Interval":
        return "intervals of months, days and milliseconds", "integers or strings"
    if kind["Type"] == "Float16":
        return "floats of 16 bits", "float32"
    if kind["Type"] == "UUID":
        return "UUIDs", "strings"
    if kind["Type"] == "Decimal" and kind["precision"] > _MOST_DIGITS:
        return f"decimals of {kind['precision']} digits", f"at most {_MOST_DIGITS} digits, or strings"
    if kind["Type"] == "Time" and not (times and kind["timeUnit"] == "microseconds"):
        return "times of day", "integers or strings"
    return None


def alike_columns(
    file: FileInfo, footer: pa.parquet.FileMetaData, spark_types: Mapping[str, str]
) -> set[str]:
    """Return those columns of a file that Arrow reads as Spark does, of integers, strings, floats and booleans.

    Args:
        file: the file.
        footer: its footer.
        spark_types: Spark's types of columns, by their names.
    """
    import pyarrow as pa

    plain = {
        pa.int8(): "tinyint",
        pa.int16(): "smallint",
        pa.int32(): "int",
        pa.int64(): "bigint",
        pa.string(): "string",
        pa.large_string(): "string",
        pa.float32(): "float",
        pa.float64(): "double",
        pa.bool_(): "boolean",
    }
    schema = footer.schema.to_arrow_schema()
    found = {f.name for f in schema if f.name in spark_types and plain.get(f.type) == spark_types[f.name]}
    # Where a folder is named like a column, its value is what Spark reads.
    return found - {part.partition("=")[0] for part in os.path.dirname(file.path).split("/") if "=" in part}
