"""Count the rows of files, once, before they get ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from spark_dedup.footers import parquet_footers
from spark_dedup.listing import FileInfo
from spark_dedup.schemas import check_columns, check_schemas

__all__ = ["CountRows", "count_parquet"]

CountRows: TypeAlias = Callable[[Sequence[FileInfo]], Sequence[int]]


def count_parquet(
    files: Sequence[FileInfo], *, columns: Sequence[str] | None = None, nulls_fit: bool = False
) -> list[int]:
    """Return the rows of parquet files from their footers, read in parallel.

    Args:
        files: the files.
        columns: columns that every file must have, in one type; None does not ask.
        nulls_fit: as ``check_schemas`` takes it.

    Raises:
        InputError: a file is truncated or no parquet, or has another schema; named.
    """
    footers = parquet_footers(files)
    if columns is not None and footers:
        check_schemas(files, footers, columns=columns, nulls_fit=nulls_fit)
        check_columns(files, footers, columns)
    return [footer.num_rows for footer in footers]
