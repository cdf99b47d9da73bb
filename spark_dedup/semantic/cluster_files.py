"""Clusters as parquet files, one folder each, written by Python tasks.

Spark moves an embedding between parquet, its rows and Arrow value by value; Arrow alone copies blocks of them
(``benchmarks/RESULTS.md`` has the difference). As with Spark's own writer, a file has its name only when it is
whole, and only files of tasks that succeeded are kept.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spark_dedup.errors import InputError, named_errors
from spark_dedup.paths import delete, filesystem, is_local, make_folder
from spark_dedup.semantic.assign import CENTROID_COL
from spark_dedup.semantic.cluster_reading import files_below
from spark_dedup.semantic.embeddings import as_lists
from spark_dedup.settings import conf_of
from spark_dedup.workers import in_worker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["parquet_codec", "read_centroids", "require_parquet", "write_centroids", "write_clusters"]

logger = logging.getLogger(__name__)

_CENTROIDS_FILE = "kmeans_centroids.npy"

ROW_GROUP_BYTES = 64 << 20
"""A row group is written when it has grown to this size; a task holds one."""

_CODECS = {"none": "none", "uncompressed": "none", "lz4_raw": "lz4"} | {
    name: name for name in ("snappy", "gzip", "brotli", "lz4", "zstd")
}
_SPARK_SCHEMA = "org.apache.spark.sql.parquet.row.metadata"


def parquet_codec(spark: SparkSession, options: Mapping[str, Any] | None) -> str:
    """Return Arrow's name for the compression that options of Spark's writer, or else its settings, ask for.

    Raises:
        InputError: a compression that Arrow does not write.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    name = given.pop("compression", None) or conf_of(spark, "spark.sql.parquet.compression.codec", "snappy")
    if given:
        logger.warning("clusters are written by Arrow, which knows no option %s", ", ".join(sorted(given)))
    codec = _CODECS.get(str(name).lower())
    if codec is None:
        raise InputError(f"compression {name!r} is not one of {', '.join(sorted(_CODECS))}")
    return codec


def require_parquet(df: DataFrame, names: Iterable[str]) -> None:
    """Check that columns, whose types are Arrow's, can be written.

    Raises:
        InputError: naming the first that cannot, as a struct without fields.
    """
    from pyspark.sql.pandas.types import to_arrow_type

    for name in names:
        kind = df.schema[name].dataType
        try:
            pq.write_metadata(pa.schema([(name, to_arrow_type(kind))]), io.BytesIO())
        except pa.ArrowException as error:
            raise InputError(
                f"column '{name}' has type {kind.simpleString()}, which parquet does not have: cast or drop it"
            ) from error


def write_clusters(
    laid_out: DataFrame, folder: str, *, embedding_field: str, codec: str = "snappy"
) -> dict[int, int]:
    """Write rows to ``folder/centroid=N/*.parquet``.

    Args:
        laid_out: from :func:`cluster_layout`; the embedding may be packed.
        folder: where to write; nobody else writes below it.
        embedding_field: column of the embeddings, written as list<float>.
        codec: from :func:`parquet_codec`.

    Returns:
        Rows by cluster.
    """
    from pyspark.sql.types import ArrayType, FloatType, StructField, StructType

    schema = laid_out.schema
    cluster = schema.names.index(CENTROID_COL)
    fields = [f for f in schema.fields if f.name != CENTROID_COL]
    place = [f.name for f in fields].index(embedding_field)
    fields[place] = StructField(embedding_field, ArrayType(FloatType()))
    layout = _Layout(folder, [f.name for f in fields], place, codec, StructType(fields).json())

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        written = list(_write(batches, cluster, layout))
        columns = zip(*written, strict=True) if written else ((), (), ())
        kinds = (pa.int32(), pa.string(), pa.int64())
        arrays = [pa.array(values, kind) for values, kind in zip(columns, kinds, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, ["centroid", "path", "rows"])

    make_folder(folder)
    # Plain names inside: mapInArrow looks its columns up by unquoted names.
    plain = laid_out.toDF(*(f"c{i}" for i in range(len(schema))))
    with named_errors():
        found = plain.mapInArrow(in_worker(run), "centroid int, path string, rows bigint").collect()
    _keep(folder, {row.path for row in found})
    counts: dict[int, int] = {}
    for row in found:
        counts[row.centroid] = counts.get(row.centroid, 0) + row.rows
    return counts


@dataclass(frozen=True)
class _Layout:
    """How files are written: the columns' names, the place of the embedding among them, Spark's schema as JSON."""

    folder: str
    names: list[str]
    place: int
    codec: str
    schema: str


def _write(
    batches: Iterable[pa.RecordBatch], cluster: int, layout: _Layout
) -> Iterator[tuple[int, str, int]]:
    """Write a task's rows, which are sorted by the column ``cluster``; yield (cluster, path, rows) of each file."""
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    name = f"part-{context.partitionId():05d}-{context.taskAttemptId()}.parquet"
    file: _ClusterFile | None = None
    for batch in batches:
        numbers = batch.column(cluster).to_numpy()
        columns = [column for i, column in enumerate(batch.columns) if i != cluster]
        columns[layout.place] = as_lists(columns[layout.place])
        rows = pa.RecordBatch.from_arrays(columns, layout.names)
        edges = [*np.flatnonzero(np.diff(numbers, prepend=-1)).tolist(), len(numbers)]
        for start, stop in pairwise(edges):
            number = int(numbers[start])
            if file is None or file.number != number:
                if file is not None:
                    yield file.close()
                file = _ClusterFile(number, name, layout)
            file.add(rows.slice(start, stop - start))
    if file is not None:
        yield file.close()


def _create(path: str) -> IO[bytes]:
    """Open a new local file in a folder of its own below one that the driver made.

    A task that a failed job left running finds that one gone, and does not bring it back.

    Raises:
        InputError: this machine does not see it.
    """
    folder = os.path.dirname(path)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        return open(path, "wb")
    except FileNotFoundError as error:
        raise InputError(
            f"{os.path.dirname(folder)} cannot be seen by a worker: write to a store that all machines share"
        ) from error


class _ClusterFile:
    """A file of one cluster; it gets its name when it is whole."""

    def __init__(self, number: int, name: str, layout: _Layout) -> None:
        self.number = number
        folder = f"{layout.folder}/{CENTROID_COL}={number}"
        self._path = f"{folder}/{name}"
        self._layout = layout
        self._rows = 0
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None
        if is_local(folder):
            self._sink = _create(f"{folder}/.{name}")
        else:
            fs, inner = filesystem(self._path)
            self._sink = fs.open(inner, "wb")

    def add(self, rows: pa.RecordBatch) -> None:
        """Take the next rows."""
        self._rows += rows.num_rows
        self._waiting.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> tuple[int, str, int]:
        """Finish the file; return its cluster, path and number of rows."""
        self._flush()
        assert self._writer is not None
        self._writer.close()
        self._sink.close()
        if is_local(self._path):
            folder, name = os.path.split(self._path)
            os.replace(f"{folder}/.{name}", self._path)
        return self.number, self._path, self._rows

    def _flush(self) -> None:
        """Write what waits as a row group."""
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting)
        if self._writer is None:
            self._writer = self._open(table.schema)
        self._writer.write_table(table, row_group_size=len(table))
        self._waiting, self._bytes = [], 0

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        layout = self._layout
        # Floats hardly repeat, and nobody asks for the least of them.
        others = [name for i, name in enumerate(layout.names) if i != layout.place]
        writer = pq.ParquetWriter(
            self._sink,
            schema,
            compression=layout.codec,
            use_dictionary=others,
            write_statistics=others,
            store_schema=False,
        )
        if hasattr(writer, "add_key_value_metadata"):  # of pyarrow 17; by it Spark knows its own types again
            writer.add_key_value_metadata({_SPARK_SCHEMA: layout.schema})
        return writer


def _keep(folder: str, kept: set[str]) -> None:
    """Delete the files below a folder that tasks left which were repeated or given up.

    Raises:
        InputError: files to keep are not there, as on a folder that each machine has for itself.
    """
    if not is_local(folder):
        filesystem(folder)[0].invalidate_cache()
    there = {path for path, _ in files_below(folder)}
    missing = sorted(kept - there)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(kept)} files that workers wrote cannot be seen from here, such as "
            f"{missing[0]}: write to a store that all machines share"
        )
    for path in there - kept:
        delete(path)


def read_centroids(folder: str) -> NDArray[np.float32]:
    """Return the (n_clusters, dim) centroids of a ``kmeans_results`` folder."""
    fs, inner = filesystem(f"{folder}/{_CENTROIDS_FILE}")
    loaded: NDArray[np.float32] = np.load(io.BytesIO(fs.cat_file(inner)), allow_pickle=False)
    return loaded


def write_centroids(folder: str, centroids: NDArray[np.float32]) -> None:
    """Write (n_clusters, dim) centroids beside the clusters, as ``np.load`` reads them."""
    buffer = io.BytesIO()
    np.save(buffer, centroids)
    fs, inner = filesystem(f"{folder}/{_CENTROIDS_FILE}")
    fs.pipe_file(inner, buffer.getvalue())
