"""Embeddings in parquet files that Python tasks read by themselves.

Spark would hand over an embedding value by value, three times: from the file to its rows, through a shuffle, and
to Arrow. A task that reads with Arrow copies blocks (``benchmarks/RESULTS.md`` has the difference). Only for files
that every task can open and that Spark and Arrow read alike; for all else there is Spark's reader.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import functions as F

from spark_dedup.errors import InputError, first_line
from spark_dedup.footers import alike_columns, parquet_footers
from spark_dedup.kernels.hashing import xxhash64_ints, xxhash64_longs, xxhash64_strings
from spark_dedup.paths import is_local
from spark_dedup.semantic.embeddings import PROBE_ROWS, commonest

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from spark_dedup.listing import FileInfo

__all__ = [
    "EmbeddingFiles",
    "RowGroup",
    "Sample",
    "find_embedding_files",
    "keyed_rows",
    "plain_rows",
]

_KEYS = ("tinyint", "smallint", "int", "bigint", "string")
"""Types of ids whose hash is known here."""
_VECTORS = {pa.float32(): "array<float>", pa.float64(): "array<double>"}

_PARTS_PER_SLOT = 4
_LEAST_BYTES, _MOST_BYTES = 8 << 20, 128 << 20
_MOST_GROUPS = 100_000
_UNEVEN_SHARE, _UNEVEN_ROWS = 0.05, 4096
_BATCH_ROWS, _BATCH_BYTES = 8192, 8 << 20
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, order=True)
class RowGroup:
    """One row group: its file, number in the file, rows, and bytes of its embeddings."""

    path: str
    number: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class EmbeddingFiles:
    """The rows of a DataFrame, by the files they lie in.

    Attributes:
        groups: all row groups, in the order of their files.
        columns: names of the columns besides the embedding that Arrow reads as Spark does.
    """

    groups: tuple[RowGroup, ...]
    columns: frozenset[str]

    def width(self, embedding_field: str) -> int | None:
        """Return the commonest length among the first embeddings; None where they are all null or empty."""
        lengths: list[int] = []
        for group in self.groups:
            for (embeddings,) in _read(group.path, [group], [embedding_field]):
                lengths += pc.list_value_length(embeddings).drop_null().to_pylist()
                if len(lengths) >= PROBE_ROWS:
                    return commonest(lengths[:PROBE_ROWS])
        return commonest(lengths)

    def even_shares(self, count: int) -> list[list[RowGroup]] | None:
        """Divide the row groups into ``count`` shares of about equal rows; None where that cannot be done."""
        heap = [(0, number) for number in range(count)]
        shares: list[list[RowGroup]] = [[] for _ in range(count)]
        for group in sorted(self.groups, key=lambda group: (-group.rows, group)):
            rows, number = heap[0]
            shares[number].append(group)
            heapq.heapreplace(heap, (rows + group.rows, number))
        even = sum(group.rows for group in self.groups) / count
        if max(heap)[0] - even > max(_UNEVEN_ROWS, _UNEVEN_SHARE * even):
            return None
        return [sorted(share) for share in shares]

    def small_shares(self, slots: int) -> list[list[RowGroup]]:
        """Divide the row groups into shares of a size that tasks take in turn."""
        total = max(1, sum(group.bytes for group in self.groups))
        wanted = min(max(total // (_PARTS_PER_SLOT * slots), _LEAST_BYTES), _MOST_BYTES)
        count = -(-total // wanted)
        shares: dict[int, list[RowGroup]] = {}
        before = 0
        for group in self.groups:
            shares.setdefault((before + group.bytes // 2) * count // total, []).append(group)
            before += group.bytes
        return list(shares.values()) or [[]]


@dataclass(frozen=True)
class Sample:
    """A share of the rows, drawn by a hash of their keys: those whose draw of ``of`` is below ``below``."""

    seed: int
    below: int
    of: int

    def condition(self, key: str) -> Column:
        """Return the condition on a column of keys that a row is in the sample."""
        return F.pmod(F.xxhash64(F.lit(self.seed), F.col(key)), F.lit(self.of)) < self.below

    def drawn(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows are in the sample, as ``condition`` does."""
        if -(1 << 31) <= self.seed < 1 << 31:
            first = xxhash64_ints(np.array([self.seed], np.int32))
        else:
            first = xxhash64_longs(np.array([self.seed], np.int64))
        hashes = xxhash64_longs(keys, np.full(len(keys), first[0]))
        return hashes.view(np.int64) % self.of < self.below


def find_embedding_files(
    df: DataFrame, files: Sequence[FileInfo], *, id_field: str, embedding_field: str
) -> EmbeddingFiles | None:
    """Return what tasks need to read some parquet files by themselves; None where Spark had better read them.

    Args:
        df: what Spark's reader makes of the files, with no option given.
        files: the files.
        id_field: column of ids.
        embedding_field: column of embeddings.
    """
    types = dict(df.dtypes)
    if not all(is_local(file.path) for file in files):
        return None
    columns: set[str] | None = None
    groups: list[RowGroup] = []
    for file, footer in zip(files, parquet_footers(files), strict=True):
        schema = footer.schema.to_arrow_schema()
        here = alike_columns(file, footer, types)
        columns = here if columns is None else columns & here
        vector = schema.field(embedding_field).type if embedding_field in schema.names else None
        if vector is None or not _is_vector(vector, types[embedding_field]):
            return None
        groups += _groups_of(file.path, footer, embedding_field)
    if columns is None or len(groups) > _MOST_GROUPS:
        return None
    if id_field not in columns or types[id_field] not in _KEYS:
        return None
    return EmbeddingFiles(tuple(groups), frozenset(columns))


def keyed_rows(
    shares: Sequence[Sequence[RowGroup]], *, id_field: str, embedding_field: str, sample: Sample | None = None
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return a function that turns numbers of shares into their rows: ``key``, ``id`` and embedding ``e``.

    The key is Spark's ``xxhash64`` of the id.
    """

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for ids, embeddings in _columns(batches, shares, [id_field, embedding_field]):
            keys = id_keys(ids)
            rows = pa.RecordBatch.from_arrays([pa.array(keys), ids, embeddings], ["key", "id", "e"])
            yield rows if sample is None else rows.filter(pa.array(sample.drawn(keys)))

    return read


def plain_rows(
    shares: Sequence[Sequence[RowGroup]], columns: Sequence[str]
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return a function that turns numbers of shares into rows with the columns, in this order."""

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        names = [f"c{i}" for i in range(len(columns))]
        for arrays in _columns(batches, shares, columns):
            yield pa.RecordBatch.from_arrays(arrays, names)

    return read


def id_keys(ids: pa.Array) -> NDArray[np.int64]:
    """Return Spark's ``xxhash64`` of a column of integers or strings (not large ones) without nulls."""
    if pa.types.is_integer(ids.type):
        numbers = ids.to_numpy(zero_copy_only=False)
        wide = numbers.dtype.itemsize == 8
        found = xxhash64_longs(numbers) if wide else xxhash64_ints(numbers.astype(np.int32))
    else:
        _, offsets, data = ids.buffers()
        places = np.frombuffer(offsets, np.int32, len(ids) + 1, 4 * ids.offset)
        found = xxhash64_strings(np.frombuffer(data or b"", np.uint8), places)
    return found.view(np.int64)


def _is_vector(found: pa.DataType, spark_type: str) -> bool:
    listed = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    return listed and _VECTORS.get(found.value_type) == spark_type


def _groups_of(path: str, footer: pq.FileMetaData, embedding_field: str) -> Iterator[RowGroup]:
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        leaves = (group.column(i) for i in range(group.num_columns))
        size = sum(
            leaf.total_uncompressed_size
            for leaf in leaves
            if leaf.path_in_schema.startswith(f"{embedding_field}.")
        )
        yield RowGroup(path, number, group.num_rows, size)


def _columns(
    batches: Iterable[pa.RecordBatch], shares: Sequence[Sequence[RowGroup]], columns: Sequence[str]
) -> Iterator[list[pa.Array]]:
    """Read the shares whose numbers are given; memory is that of a batch of rows and of a page per column."""
    for batch in batches:
        for number in batch.column(0).to_pylist():
            for path, groups in groupby(shares[number], key=attrgetter("path")):
                yield from _read(path, list(groups), columns)


def _read(path: str, groups: Sequence[RowGroup], columns: Sequence[str]) -> Iterator[list[pa.Array]]:
    widest = max(group.bytes // max(1, group.rows) for group in groups)
    batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, widest)))
    numbers = [group.number for group in groups]
    try:
        # Without a buffer Arrow would read a row group's whole column at once.
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            for batch in file.iter_batches(
                batch_rows, row_groups=numbers, columns=list(columns), use_threads=False
            ):
                arrays = [batch.column(name) for name in columns]
                yield [a.cast(pa.string()) if pa.types.is_large_string(a.type) else a for a in arrays]
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): write it again or remove it; "
            "on a cluster, all workers must see it"
        ) from error
