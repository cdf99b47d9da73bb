"""How columns of parquet files are packed: what Spark's readers lack is known before a task meets it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError
from spark_dedup.settings import VECTORIZED

if TYPE_CHECKING:
    import pyarrow as pa

    from spark_dedup.listing import FileInfo

__all__ = ["check_packed"]

_CODECS = {
    "BROTLI": "org.apache.hadoop.io.compress.BrotliCodec",
    "LZO": "com.hadoop.compression.lzo.LzoCodec",
}
"""Codecs that Spark brings no code for, and the classes that it looks for."""
_NUMBERS = ("FLOAT", "DOUBLE", "INT32", "INT64", "FIXED_LEN_BYTE_ARRAY")
_MOST_CHUNKS = 50_000
"""Columns of row groups that are looked at, which takes a tenth of a second."""


def check_packed(
    files: Sequence[FileInfo],
    footers: Sequence[pa.parquet.FileMetaData],
    *,
    columns: Sequence[str] | None = None,
    by_spark: bool = True,
    shown: bool = False,
) -> bool:
    """Check that Spark can unpack the columns of parquet files, by some of their row groups where these are many.

    Args:
        files: the files.
        footers: their footers, in the same order.
        columns: the columns that are read; by default all.
        by_spark: whether Spark reads them; if not, its lack of a codec does no harm.
        shown: users read the files themselves, with Spark's fast reader.

    Returns:
        Whether numbers are split into byte streams, as DuckDB and Arrow may write them: only Spark's slow reader,
        with ``VECTORIZED`` off, knows these.

    Raises:
        InputError: naming a file, the column and what it is packed by.
    """
    from spark_dedup.hadoop import has_class

    lacking = [codec for codec, name in _CODECS.items() if by_spark and not has_class(name)]
    is_split = False
    for path, chunk in _chunks(files, footers, columns):
        where = f"{path}: column {chunk.path_in_schema!r}"
        if chunk.compression in lacking:
            raise InputError(
                f"{where} is compressed by {chunk.compression}, for which this Spark session has no codec: write "
                "zstd, snappy or gzip"
            )
        if chunk.physical_type in _NUMBERS and "BYTE_STREAM_SPLIT" in chunk.encodings:
            is_split = True
            if shown:
                raise InputError(
                    f"{where} is encoded as BYTE_STREAM_SPLIT, which Spark reads only where {VECTORIZED} is false: "
                    "set it so wherever they are read, or have removal write them anew as parquet, jsonl or delta"
                )
    return is_split


def _chunks(
    files: Sequence[FileInfo], footers: Sequence[pa.parquet.FileMetaData], columns: Sequence[str] | None
) -> Iterator[tuple[str, Any]]:
    step = 1 + sum(footer.num_row_groups * footer.num_columns for footer in footers) // _MOST_CHUNKS
    for file, footer in zip(files, footers, strict=True):
        paths = [footer.schema.column(i).path for i in range(footer.num_columns)]
        wanted = [i for i, path in enumerate(paths) if columns is None or _is_of(path, columns)]
        numbers = range(footer.num_row_groups)
        for number in sorted({*numbers[::step], *numbers[-1:]}):
            group = footer.row_group(number)
            yield from ((file.path, group.column(i)) for i in wanted)


def _is_of(path: str, columns: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in columns)
