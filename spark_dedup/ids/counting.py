"""Count the rows of files, once, before they get ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from spark_dedup.encodings import check_packed
from spark_dedup.footers import parquet_footers
from spark_dedup.listing import FileInfo
from spark_dedup.schemas import check_schemas

__all__ = ["CountRows", "count_parquet"]

CountRows: TypeAlias = Callable[[Sequence[FileInfo]], Sequence[int]]


def count_parquet(
    files: Sequence[FileInfo],
    *,
    known: Mapping[FileInfo, int] | None = None,
    columns: Sequence[str] | None = None,
    nulls_fit: bool = False,
    shown: bool = False,
) -> list[int]:
    """Return the rows of parquet files from their footers, read in parallel.

    Args:
        files: the files.
        known: rows of files that were looked at before.
        columns: columns that every file must have, in one type, and that Spark can unpack; None does not ask.
        nulls_fit: as ``check_schemas`` takes it.
        shown: as ``check_packed`` takes it.

    Raises:
        InputError: a file is truncated or no parquet, has another schema, or is packed as Spark does not know;
            named.
    """
    rows = dict(known or {})
    new = [file for file in files if file not in rows]
    footers = parquet_footers(new)
    if columns is not None and footers:
        check_schemas(new, footers, columns=columns, nulls_fit=nulls_fit)
        check_packed(new, footers, columns=columns, shown=shown)
    rows |= {file: footer.num_rows for file, footer in zip(new, footers, strict=True)}
    return [rows[file] for file in files]
