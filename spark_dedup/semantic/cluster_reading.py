"""Clusters that lie as parquet files, read by Python tasks: in shares of any rows, or cluster by cluster.

Spark moves an embedding between parquet, its rows and Arrow value by value; Arrow alone copies blocks of them
(``benchmarks/RESULTS.md`` has the difference).
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spark_dedup.datasets import read_dataset
from spark_dedup.footers import opened, parquet_footers
from spark_dedup.listing import FileInfo
from spark_dedup.paths import filesystem, find_files, is_local, spark_location, spark_path
from spark_dedup.semantic.assign import CENTROID_COL
from spark_dedup.semantic.embeddings import from_matrix, packed_matrix, to_matrix
from spark_dedup.workers import in_worker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["StoredClusters", "files_below", "one_cluster"]

_PARTS_PER_SLOT = 4
_LEAST_BYTES, _MOST_BYTES = 8 << 20, 128 << 20
_BATCH_ROWS = 8192
_MOST_FOOTERS = 20_000


@dataclass(frozen=True, eq=False)
class StoredClusters:
    """The clusters in a folder.

    Attributes:
        frame: what Spark's reader makes of the clusters, or of one of them: only its schema is looked at.
        folder: ``kmeans_results``.
        columns: columns to read, the embedding and ``centroid`` among them.
        embedding_field: list<float> column.
    """

    frame: DataFrame
    folder: str
    columns: Sequence[str]
    embedding_field: str

    def sizes(self) -> dict[int, int] | None:
        """Return the rows of each cluster, by the files' footers; None where these are too many or too far."""
        if not is_local(self.folder):
            return None
        files = [FileInfo(path, size, 0) for path, size in _parquet_files(self.folder)]
        if len(files) > _MOST_FOOTERS:
            return None
        counts: Counter[int] = Counter()
        for file, footer in zip(files, parquet_footers(files), strict=True):
            counts[_cluster_of(file.path)] += footer.num_rows
        return dict(counts)

    def rows(self, clusters: Collection[int] | None = None) -> DataFrame:
        """Return all columns of some clusters, or of all, by Spark's reader."""
        rows = read_dataset(self.frame.sparkSession, self.folder)
        return rows if clusters is None else rows.where(rows[CENTROID_COL].isin([*clusters]))

    def vectors(self, *, slots: int, clusters: Collection[int] | None = None) -> DataFrame:
        """Return the columns, embeddings packed as binary of little-endian float32.

        Args:
            slots: tasks that run at once.
            clusters: those to read; all when None.
        """
        from pyspark.sql.types import BinaryType, StructField, StructType

        columns = list(self.columns)
        there = {field.name: field for field in self.frame.schema.fields}
        fields = [there[name] for name in columns]
        place = columns.index(self.embedding_field)
        fields[place] = StructField(self.embedding_field, BinaryType())
        shares = _shares(self.folder, slots, clusters)

        def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for number in batch.column(0).to_pylist():
                    for piece in shares[number]:
                        yield from _read(piece, columns, place)

        plain = StructType([StructField(f"c{i}", f.dataType) for i, f in enumerate(fields)])
        spark = self.frame.sparkSession
        return spark.range(0, len(shares), 1, len(shares)).mapInArrow(in_worker(run), plain).toDF(*columns)

    def whole(
        self, sizes: Mapping[int, int], *, tasks: int, id_field: str, rank_by: str, ascending: bool
    ) -> tuple[DataFrame, Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]]:
        """Return tasks, and how one reads its clusters, each as a batch in the order of its ranks.

        Args:
            sizes: rows of the clusters to read.
            tasks: into how many tasks to divide them.
            id_field: id column.
            rank_by: column that ranks; equal ones are ranked by the id.
            ascending: direction of both.

        Returns:
            One row per task, those with most comparisons first; and the function for its rows, which gives
            ``_unit`` (the cluster), ``_query`` (true), ``_id`` and ``_e`` (list<float>).
        """
        folder, embedding_field = self.folder, self.embedding_field
        shares = _by_comparisons(sizes, tasks)

        def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for number in batch.column(0).to_pylist():
                    for cluster in shares[number]:
                        table = _table(folder, cluster, [id_field, rank_by, embedding_field])
                        yield _ranked(table, cluster, ascending)

        return self.frame.sparkSession.range(0, len(shares), 1, len(shares)), read


def one_cluster(spark: SparkSession, folder: str) -> DataFrame:
    """Return one of the clusters in a folder, by Spark's reader: their schema, without a listing of them all."""
    fs, inner = filesystem(folder)
    names = sorted(info.rpartition("/")[2] for info in fs.ls(inner, detail=False))
    first = next(name for name in names if name.startswith(f"{CENTROID_COL}="))
    found = spark.read.option("basePath", spark_location(folder)).parquet(spark_path(f"{folder}/{first}"))
    # A session may leave what folders name as strings.
    return found.withColumn(CENTROID_COL, found[CENTROID_COL].cast("int"))


def _by_comparisons(sizes: Mapping[int, int], tasks: int) -> list[list[int]]:
    """Divide clusters into shares of about equal numbers of comparisons, the largest first."""
    heap = [(0, number) for number in range(max(1, tasks))]
    shares: list[list[int]] = [[] for _ in heap]
    for cluster in sorted(sizes, key=lambda cluster: (-sizes[cluster], cluster)):
        work, number = heap[0]
        shares[number].append(cluster)
        heapq.heapreplace(heap, (work + sizes[cluster] ** 2, number))
    return [shares[number] for work, number in sorted(heap, reverse=True) if work] or [[]]


def _table(folder: str, cluster: int, columns: Sequence[str]) -> pa.Table:
    """Read columns of a cluster, named by their places."""
    tables = []
    for path, _ in _parquet_files(f"{folder}/{CENTROID_COL}={cluster}"):
        with opened(path) as source, pq.ParquetFile(source) as file:
            table = file.read(columns=list(columns), use_threads=False)
            tables.append(table.select(list(columns)).rename_columns([f"c{i}" for i in range(len(columns))]))
    return pa.concat_tables(tables)


def _ranked(table: pa.Table, cluster: int, ascending: bool) -> pa.RecordBatch:
    """Return a cluster's rows (id, what ranks, embedding) in the order of their ranks."""
    direction = "ascending" if ascending else "descending"
    order = pc.sort_indices(table, sort_keys=[("c1", direction), ("c0", direction)])
    embeddings = table.column("c2").combine_chunks()
    x = to_matrix(embeddings, len(embeddings[0]) if len(embeddings) else 0)[order.to_numpy()]
    arrays = [
        pa.repeat(pa.scalar(cluster, pa.int32()), len(x)),
        pa.repeat(pa.scalar(True), len(x)),
        table.column("c0").combine_chunks().take(order),
        from_matrix(x),
    ]
    return pa.RecordBatch.from_arrays(arrays, ["_unit", "_query", "_id", "_e"])


@dataclass(frozen=True)
class _Piece:
    """Part ``number`` of the ``of`` equal parts of a file's row groups."""

    path: str
    number: int
    of: int


def _shares(folder: str, slots: int, clusters: Collection[int] | None = None) -> list[list[_Piece]]:
    """Divide the files of clusters into about equal shares, one per task."""
    files = [
        (path, size)
        for path, size in _parquet_files(folder)
        if clusters is None or _cluster_of(path) in clusters
    ]
    total = sum(size for _, size in files)
    share = min(max(total // (_PARTS_PER_SLOT * slots), _LEAST_BYTES), _MOST_BYTES)
    shares: list[list[_Piece]] = [[]]
    filled = 0
    for path, size in files:
        parts = max(1, -(-size // share))
        for number in range(parts):
            if filled >= share:
                shares.append([])
                filled = 0
            shares[-1].append(_Piece(path, number, parts))
            filled += size // parts
    return shares


def _read(piece: _Piece, columns: Sequence[str], place: int) -> Iterator[pa.RecordBatch]:
    """Read a piece; the cluster's number is in the path."""
    cluster = _cluster_of(piece.path)
    stored = [name for name in columns if name != CENTROID_COL]
    with opened(piece.path) as source, pq.ParquetFile(source) as file:
        count = file.num_row_groups
        groups = range(piece.number * count // piece.of, (piece.number + 1) * count // piece.of)
        if not groups:
            return
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=list(groups), columns=stored):
            found = {name: batch.column(name) for name in stored}
            found[CENTROID_COL] = pa.repeat(pa.scalar(cluster, pa.int32()), batch.num_rows)
            arrays = [found[name] for name in columns]
            embeddings = arrays[place]
            dim = len(embeddings[0]) if len(embeddings) else 0
            arrays[place] = packed_matrix(to_matrix(embeddings, dim))
            yield pa.RecordBatch.from_arrays(arrays, [f"c{i}" for i in range(len(arrays))])


def files_below(folder: str) -> list[tuple[str, int]]:
    """Return the paths and sizes of all files below a folder, in the order of their names."""
    if is_local(folder):
        found = [f"{where}/{name}" for where, _, names in os.walk(folder) for name in names]
        return sorted((path, os.path.getsize(path)) for path in found)
    fs, inner = filesystem(folder)
    listed = find_files(fs, inner)
    # As the folder is named: a store's own name of a path may lack the host.
    return sorted((folder + path[len(inner) :], int(info["size"])) for path, info in listed.items())


def _parquet_files(folder: str) -> list[tuple[str, int]]:
    found = ((path, size, os.path.basename(path)) for path, size in files_below(folder))
    # Names that Spark does not read are those of tasks that were given up.
    return [(p, size) for p, size, name in found if name.endswith(".parquet") and name[0] not in "._"]


def _cluster_of(path: str) -> int:
    """Return the number of the cluster that a file belongs to."""
    return int(os.path.basename(os.path.dirname(path)).partition("=")[2])
