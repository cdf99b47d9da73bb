"""The seam between embeddings in a DataFrame and float32 matrices, and what counts as a valid embedding."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import functions as F

from spark_dedup.errors import InputError
from spark_dedup.kernels.arrays import normalise, row_norms
from spark_dedup.tables import col

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

logger = logging.getLogger(__name__)

Matrix = NDArray[np.float32]
Invalid = Literal["error", "drop"]

REASONS = ("valid", "null", "of another length", "with a null, NaN or infinite value", "all zero")
"""Why an embedding cannot be used, by code; 0 is valid."""

_VALID, _NULL, _LENGTH, _NOT_FINITE, _ZERO = range(5)
_EXAMPLES = 5
PROBE_ROWS = 1000
_BINARY_TYPES: dict[int, type[np.floating[Any]]] = {2: np.float16, 4: np.float32, 8: np.float64}


@dataclass(frozen=True)
class EmbeddingCheck:
    """What a pass over the embeddings found.

    Attributes:
        dim: length that an embedding must have.
        rows: number of rows seen.
        counts: unusable rows by reason.
        examples: up to five ids (or positions, without an id column) of unusable rows.
    """

    dim: int
    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: tuple[str, ...] = ()

    @property
    def invalid(self) -> int:
        """Number of unusable rows."""
        return sum(self.counts.values())

    def __add__(self, other: EmbeddingCheck) -> EmbeddingCheck:
        examples = tuple(sorted({*self.examples, *other.examples})[:_EXAMPLES])
        return EmbeddingCheck(self.dim, self.rows + other.rows, self.counts + other.counts, examples)

    def settle(self, embedding_field: str, invalid: Invalid) -> EmbeddingCheck:
        """Raise ``InputError`` for unusable rows, or log how many are left out."""
        if not self.invalid:
            return self
        what = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.counts.items()))
        ids = f"; ids {', '.join(self.examples)}" if self.examples else ""
        found = f"column '{embedding_field}': {self.invalid:,} of {self.rows:,} embeddings cannot be used"
        detail = f"{what} (an embedding has {self.dim} finite values, not all zero, as float32{ids})"
        if invalid == "error":
            raise InputError(
                f"{found}: {detail}. Mend them, or leave them out with invalid_embeddings='drop' "
                "(a command: --invalid-embeddings drop)."
            )
        logger.warning("%s and are left out: %s", found, detail)
        return self


def array_column(df: DataFrame, embedding_field: str) -> Column:
    """Return the embeddings as an array or binary column, Spark ML vectors converted.

    Raises:
        InputError: the column is missing, or its type is none that holds an embedding.
    """
    if embedding_field not in df.columns:
        raise InputError(f"column '{embedding_field}' not found; the columns are {', '.join(df.columns)}")
    data_type = next(f.dataType for f in df.schema.fields if f.name == embedding_field)
    name = data_type.typeName()
    if name == "array" and data_type.elementType.typeName() in ("float", "double"):  # type: ignore[attr-defined]
        return col(embedding_field)
    if name == "array" and data_type.elementType.typeName().startswith(  # type: ignore[attr-defined]
        ("decimal", "byte", "short", "integer", "long")
    ):
        return col(embedding_field).cast("array<float>")
    if name == "binary":
        return col(embedding_field)
    if type(data_type).__name__ == "VectorUDT":
        from pyspark.ml.functions import vector_to_array

        return vector_to_array(col(embedding_field), "float32")
    raise InputError(
        f"column '{embedding_field}' has type {data_type.simpleString()}; an embedding is array<float>, "
        "array<double>, a Spark ML vector, or binary that packs float16, float32 or float64"
    )


def embedding_width(df: DataFrame, embedding_field: str, embedding_dim: int | None = None) -> int:
    """Return the length of the embeddings: as given, else the commonest among the first rows (one small job).

    Raises:
        InputError: there are no embeddings, or they are binary and ``embedding_dim`` is not given.
    """
    if embedding_dim is not None:
        check_dim(embedding_dim)
        return embedding_dim
    column = array_column(df, embedding_field)
    if df.select(column.alias("e")).schema["e"].dataType.typeName() == "binary":
        raise InputError(
            f"column '{embedding_field}' is binary: give embedding_dim, so that its bytes can be read as "
            "float16, float32 or float64"
        )
    rows = df.select(F.size(column).alias("n")).where("n > 0").limit(PROBE_ROWS).collect()
    width = commonest(int(row.n) for row in rows)
    if width is None:
        raise InputError(f"column '{embedding_field}' holds no embeddings")
    return width


def check_dim(embedding_dim: int | None) -> None:
    """Raise ``InputError`` unless a length that is given is a whole number of at least 1."""
    if embedding_dim is None:
        return
    whole = isinstance(embedding_dim, int | np.integer) and not isinstance(embedding_dim, bool)
    if not whole or embedding_dim < 1:
        raise InputError(f"embedding_dim must be a whole number of at least 1, not {embedding_dim!r}")


def commonest(lengths: Iterable[int]) -> int | None:
    """Return the commonest of the lengths above 0, of equally common ones the greatest; None without any."""
    counts = Counter(length for length in lengths if length > 0)
    return max(counts, key=lambda length: (counts[length], length), default=None)


def to_matrix(batch_column: pa.Array, dim: int) -> Matrix:
    """Return a column of valid embeddings as an (n, dim) float32 matrix, without a copy where possible.

    Args:
        batch_column: array of lists of floats, or of binary that packs ``dim`` float16, float32 or float64.
        dim: length of every embedding.

    Raises:
        ValueError: an embedding is null or has another length.
    """
    x, codes = _unpack(batch_column, dim)
    if codes.any():
        raise ValueError(f"{np.count_nonzero(codes)} embeddings are null or not of length {dim}")
    return x


def from_matrix(x: NDArray[np.floating[Any]]) -> pa.ListArray:
    """Return the rows of an (n, dim) matrix as a list<float> array that shares its memory when it can."""
    n, dim = x.shape
    values = np.ascontiguousarray(x, dtype=np.float32).reshape(-1)
    if n * dim > np.iinfo(np.int32).max:
        raise ValueError(f"{n} rows of {dim} values are too many for one Arrow list array")
    offsets = np.arange(0, (n + 1) * dim, dim, dtype=np.int32) if dim else np.zeros(n + 1, np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def packed_matrix(x: NDArray[np.floating[Any]]) -> pa.BinaryArray:
    """Return the rows of an (n, dim) matrix as binary, float32 in little-endian order."""
    values = np.ascontiguousarray(x, dtype="<f4")
    if values.nbytes > np.iinfo(np.int32).max:
        raise ValueError(f"{values.nbytes:,} bytes are too many for one Arrow binary array")
    offsets = np.arange(len(x) + 1, dtype=np.int32) * np.int32(4 * x.shape[1])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(x), buffers)


def as_lists(embeddings: pa.Array) -> pa.ListArray:
    """Return valid embeddings of one length, lists or packed float32, as list<float>."""
    # Sessions with spark.sql.execution.arrow.useLargeVarTypes hand over large binary.
    if not (pa.types.is_binary(embeddings.type) or pa.types.is_large_binary(embeddings.type)):
        return embeddings
    dim = len(embeddings[0].as_py()) // 4 if len(embeddings) else 0
    return from_matrix(_rows_of(embeddings, np.float32, dim))


def unit_matrix(batch_column: pa.Array, dim: int) -> tuple[Matrix, NDArray[np.uint8]]:
    """Return the usable embeddings scaled to unit length, and a code per row.

    Args:
        batch_column: as in :func:`to_matrix`, of n rows, valid or not.
        dim: length that an embedding must have.

    Returns:
        (m, dim) float32 unit rows of the m usable embeddings in their order, and (n,) codes into
        :data:`REASONS`, 0 for usable.
    """
    x, codes = _unpack(batch_column, dim)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = row_norms(x)
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.all():
        present = np.flatnonzero(codes == _VALID)
        codes[present[~np.isfinite(norms)]] = _NOT_FINITE
        codes[present[norms == 0]] = _ZERO
        x, norms = x[usable], norms[usable]
    return normalise(x, norms), codes


def check_of(
    codes: NDArray[np.uint8], dim: int, ids: Sequence[object] | pa.Array | None = None
) -> EmbeddingCheck:
    """Summarise the codes of a batch; ``ids`` are the rows' ids."""
    bad = np.flatnonzero(codes)
    counts: Counter[str] = Counter()
    for code, count in zip(*np.unique(codes[bad], return_counts=True), strict=True):
        counts[REASONS[code]] = int(count)
    examples = () if ids is None else tuple(str(ids[int(i)]) for i in bad[:_EXAMPLES])
    return EmbeddingCheck(dim, len(codes), counts, examples)


def check_invalid_option(invalid: str) -> None:
    """Raise ``InputError`` unless ``invalid`` is "error" or "drop"."""
    if invalid not in ("error", "drop"):
        raise InputError(f"invalid_embeddings must be 'error' or 'drop', not {invalid!r}")


def _unpack(column: pa.Array, dim: int) -> tuple[Matrix, NDArray[np.uint8]]:
    """Return the rows that are present and ``dim`` long as float32, and a code for every row."""
    codes = np.zeros(len(column), np.uint8)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return _unpack_binary(column, dim, codes)
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if column.null_count == 0 and len(column):
        offsets = column.offsets.to_numpy()
        if (np.diff(offsets) == dim).all():
            return _float32(column.values.slice(offsets[0], dim * len(column))).reshape(-1, dim), codes
    lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    codes[lengths != dim] = _LENGTH
    codes[lengths == -1] = _NULL
    kept = column.filter(pa.array(codes == _VALID))
    return _float32(kept.flatten()).reshape(-1, dim), codes


def _unpack_binary(column: pa.Array, dim: int, codes: NDArray[np.uint8]) -> tuple[Matrix, NDArray[np.uint8]]:
    lengths = pc.binary_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
    chosen = [(kind, lengths == size * dim) for size, kind in _BINARY_TYPES.items()]
    for kind, rows in chosen:
        if rows.all():
            return _rows_of(column, kind, dim), codes
    present = np.logical_or.reduce([rows for _, rows in chosen])
    codes[~present] = _LENGTH
    codes[lengths == -1] = _NULL
    x = np.empty((np.count_nonzero(present), dim), np.float32)
    for kind, rows in chosen:
        x[rows[present]] = _rows_of(column.filter(pa.array(rows)), kind, dim)
    return x, codes


def _rows_of(column: pa.Array, kind: type[np.floating[Any]], dim: int) -> Matrix:
    """Return binary values of one kind and length, which lie side by side, as a matrix."""
    if not len(column):
        return np.empty((0, dim), np.float32)
    _, offsets, values = column.buffers()
    wide = pa.types.is_large_binary(column.type)
    start = int(np.frombuffer(offsets, np.int64 if wide else np.int32)[column.offset])
    order = np.dtype(kind).newbyteorder("<")
    numbers = np.frombuffer(values, order, dim * len(column), start).reshape(-1, dim)
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32, copy=False)


def _float32(values: pa.Array) -> Matrix:
    numbers = values.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        return np.asarray(numbers, dtype=np.float32)
