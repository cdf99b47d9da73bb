"""Count the rows of files, once, before they get ids."""

from __future__ import annotations

from collections.abc import Sequence

from spark_dedup.datasets import FileInfo, parquet_footers

__all__ = ["count_parquet"]


def count_parquet(files: Sequence[FileInfo]) -> list[int]:
    """Return the rows of parquet files, from their footers."""
    return [footer.num_rows for footer in parquet_footers(files)]
