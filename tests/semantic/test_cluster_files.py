"""Clusters as parquet files: any column, whole files only, and read back as they were written."""

import datetime as dt
import logging
from decimal import Decimal

import hostless
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml.functions import array_to_vector
from pyspark.sql import functions as F
from sessions import partitions
from spark_4 import ARROW_FRAMES

from spark_dedup.errors import InputError
from spark_dedup.semantic import cluster_files, cluster_reading
from spark_dedup.semantic.assign import cluster_layout
from spark_dedup.semantic.cluster_files import parquet_codec, write_clusters
from spark_dedup.semantic.cluster_reading import StoredClusters, one_cluster
from spark_dedup.semantic.embeddings import from_matrix, packed_matrix

NAME = "the `e`.x é"
UNIT = np.eye(4, dtype=np.float32)[np.arange(60) % 4] * np.float32(0.5)
CLUSTER = (np.arange(60, dtype=np.int32) * 7) % 5 + 10


def laid_out(spark, embeddings, **others):
    table = pa.table({"id": np.arange(60), NAME: embeddings, **others, "centroid": CLUSTER})
    return cluster_layout(spark.createDataFrame(table), cluster_sizes=np.bincount(CLUSTER))


@ARROW_FRAMES
@pytest.mark.parametrize("pack", [from_matrix, packed_matrix], ids=["lists", "packed"])
def test_rows_lie_in_the_folder_of_their_cluster(spark, tmp_path, pack):
    folder = str(tmp_path / "a b=c%20é")
    counts = write_clusters(laid_out(spark, pack(UNIT)), folder, embedding_field=NAME, codec="zstd")
    assert counts == dict.fromkeys(range(10, 15), 12)
    for cluster in range(10, 15):
        (file,) = (tmp_path / "a b=c%20é" / f"centroid={cluster}").iterdir()
        assert file.name.endswith(".parquet")
        assert not file.name.startswith((".", "_"))
        stored = pq.ParquetFile(file)
        assert stored.metadata.row_group(0).column(0).compression == "ZSTD"
        rows = stored.read().sort_by("id")
        assert rows.column("id").to_pylist() == np.flatnonzero(cluster == CLUSTER).tolist()
        assert pa.types.is_float32(rows.schema.field(NAME).type.value_type)
        got = np.array(rows.column(NAME).to_pylist(), np.float32)
        np.testing.assert_array_equal(got, UNIT[cluster == CLUSTER])


def test_a_task_left_running_does_not_bring_back_what_was_cleared(tmp_path):
    with pytest.raises(InputError, match="aside cannot be seen by a worker"):
        cluster_files._create(str(tmp_path / "aside" / "centroid=3" / "part"))
    assert list(tmp_path.iterdir()) == []


@ARROW_FRAMES
def test_types_of_sparks_own_come_back(spark, tmp_path):
    rows = laid_out(spark, packed_matrix(UNIT)).withColumns(
        {"took": F.expr("make_dt_interval(1, 2, 3, id)"), "vector": array_to_vector(F.expr("array(id, 0D)"))}
    )
    write_clusters(rows, str(tmp_path / "out"), embedding_field=NAME)
    after = spark.read.parquet(str(tmp_path / "out"))
    assert dict(after.dtypes) == dict(rows.withColumn(NAME, F.expr("array(1f)")).dtypes)
    columns = ["id", "took", "vector"]
    assert after.select(columns).orderBy("id").collect() == rows.select(columns).orderBy("id").collect()


@ARROW_FRAMES
def test_columns_of_all_types_come_back_to_spark_as_they_were(spark, tmp_path):
    moment = dt.datetime(2024, 2, 29, 12, 30, 1, 250, tzinfo=dt.UTC)
    others = {
        "text": pa.array(["ä'\"", None] * 30),
        "small": pa.array([3, -3] * 30, pa.int8()),
        "price": pa.array([Decimal("1.25"), None] * 30, pa.decimal128(12, 2)),
        "day": pa.array([dt.date(1969, 7, 20)] * 60),
        "at": pa.array([moment] * 60, pa.timestamp("us", tz="UTC")),
        "local": pa.array([dt.datetime(2024, 2, 29)] * 60, pa.timestamp("us")),
        "raw": pa.array([b"\x00\xff"] * 60),
        "tags": pa.array([["a", None], []] * 30, pa.list_(pa.string())),
        "nested": pa.array([{"x": 1, "y": [1.5]}, None] * 30),
        "table": pa.array([[("k", 1)], []] * 30, pa.map_(pa.string(), pa.int32())),
    }
    before = laid_out(spark, packed_matrix(UNIT), **others).drop(NAME, "centroid")
    write_clusters(
        laid_out(spark, packed_matrix(UNIT), **others), str(tmp_path / "out"), embedding_field=NAME
    )
    after = spark.read.parquet(str(tmp_path / "out"))
    assert dict(after.dtypes)[NAME] == "array<float>"
    after = after.drop(NAME, "centroid")
    assert after.dtypes == before.dtypes
    assert sorted(map(str, after.collect())) == sorted(map(str, before.collect()))


@ARROW_FRAMES
def test_files_of_tasks_that_did_not_succeed_are_deleted(spark, tmp_path):
    left = tmp_path / "out" / "centroid=3"
    left.mkdir(parents=True)
    (left / "part-00000-77.parquet").write_bytes(b"half")
    (left / ".part-00001-78.parquet").write_bytes(b"half")
    counts = write_clusters(laid_out(spark, packed_matrix(UNIT)), str(tmp_path / "out"), embedding_field=NAME)
    assert sum(counts.values()) == spark.read.parquet(str(tmp_path / "out")).count() == 60
    assert not list(left.iterdir())


@ARROW_FRAMES
def test_no_rows_make_no_files(spark, tmp_path):
    none = laid_out(spark, packed_matrix(UNIT)).where("id < 0")
    assert write_clusters(none, str(tmp_path / "out"), embedding_field=NAME) == {}
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_large_cluster_has_several_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_files, "ROW_GROUP_BYTES", 300)
    layout = cluster_files._Layout(str(tmp_path), ["e"], 0, "none", "{}")
    file = cluster_files._ClusterFile(2, "x.parquet", layout)
    batch = pa.record_batch([from_matrix(UNIT)], ["e"])
    for start in range(0, 60, 20):
        file.add(batch.slice(start, 20))
    assert not (tmp_path / "centroid=2" / "x.parquet").exists()
    number, path, rows = file.close()
    assert (number, rows) == (2, 60)
    assert pq.ParquetFile(path).num_row_groups > 1
    np.testing.assert_array_equal(np.array(pq.read_table(path)["e"].to_pylist(), np.float32), UNIT)


@pytest.mark.parametrize("share", [400, 1500, 1 << 20])
def test_every_row_is_read_once_in_any_shares(spark, tmp_path, monkeypatch, share):
    for cluster in range(10, 15):
        rows = np.flatnonzero(cluster == CLUSTER)
        (tmp_path / f"centroid={cluster}").mkdir()
        table = pa.table({"id": rows, "more": rows * 0.5, NAME: from_matrix(UNIT[rows])})
        pq.write_table(table, tmp_path / f"centroid={cluster}" / "0.parquet", row_group_size=cluster - 8)
    (tmp_path / "kmeans_centroids.npy").write_bytes(b"no parquet")
    monkeypatch.setattr(cluster_reading, "_LEAST_BYTES", share)
    monkeypatch.setattr(cluster_reading, "_MOST_BYTES", share)
    columns = ["centroid", NAME, "id"]
    clusters = spark.read.parquet(str(tmp_path))
    stored = StoredClusters(clusters, str(tmp_path), columns, NAME)
    read = stored.vectors(slots=2)
    assert read.columns == columns
    assert partitions(read) >= (5 if share < 1500 else 1)
    rows = sorted(read.collect(), key=lambda row: row.id)
    assert [row.id for row in rows] == list(range(60))
    assert [row.centroid for row in rows] == CLUSTER.tolist()
    got = np.array([np.frombuffer(row[NAME], "<f4") for row in rows])
    np.testing.assert_array_equal(got, UNIT)
    assert read.agg(F.sum("id")).first()[0] == 60 * 59 // 2
    some = stored.vectors(slots=2, clusters={11, 14}).select("id").collect()
    assert sorted(row.id for row in some) == np.flatnonzero(np.isin(CLUSTER, [11, 14])).tolist()
    assert stored.sizes() == dict.fromkeys(range(10, 15), 12)


def test_compression(spark, caplog):
    assert parquet_codec(spark, None) == "snappy"
    assert parquet_codec(spark, {"compression": "UNCOMPRESSED"}) == "none"
    assert parquet_codec(spark, {"compression": None}) == "snappy"
    with pytest.raises(InputError, match="compression 'lzo' is not one of"):
        parquet_codec(spark, {"compression": "lzo"})
    with caplog.at_level(logging.WARNING):
        assert parquet_codec(spark, {"compression": "zstd", "maxRecordsPerFile": 5}) == "zstd"
    assert "no option maxRecordsPerFile" in caplog.text


@pytest.mark.parametrize("root", ["memory://bucket", "hostless://host:80/user"])
def test_stores_behind_fsspec(root):
    hostless.store()
    layout = cluster_files._Layout(f"{root}/out", ["id", "e"], 1, "snappy", "{}")
    batch = pa.record_batch([pa.array(range(60)), from_matrix(UNIT)], ["id", "e"])
    kept, left = (cluster_files._ClusterFile(2, name, layout) for name in ("a.parquet", "b.parquet"))
    for file in (kept, left):
        file.add(batch)
    (_, path, _), _ = kept.close(), left.close()
    cluster_files._keep(layout.folder, {path})
    ((name, _),) = cluster_reading.files_below(layout.folder)
    assert name == f"{root}/out/centroid=2/a.parquet"
    ((piece,),) = cluster_reading._shares(layout.folder, 2)
    (rows,) = cluster_reading._read(piece, ["e", "centroid", "id"], 0)
    assert rows.column(1).to_pylist() == [2] * 60
    assert rows.column(2).to_pylist() == list(range(60))
    assert rows.column(0).to_pylist() == packed_matrix(UNIT).to_pylist()


def test_files_of_given_up_tasks_are_no_clusters(spark, tmp_path):
    rows = pa.table({"id": [1, 2], "embeddings": [[1.0, 0.0], [0.0, 1.0]]})
    (tmp_path / "centroid=3").mkdir()
    pq.write_table(rows, tmp_path / "centroid=3" / "part-0.parquet")
    for name in (".part-1.parquet", "_part-2.parquet"):
        (tmp_path / "centroid=3" / name).write_bytes(b"PAR1")
    clusters = one_cluster(spark, str(tmp_path))
    stored = StoredClusters(clusters, str(tmp_path), clusters.columns, "embeddings")
    assert stored.sizes() == {3: 2}


def test_files_that_are_seen_by_workers_only_are_an_error(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("x")
    with pytest.raises(
        InputError, match=r"1 of 2 files that workers wrote .* such as .*/elsewhere: write to a store"
    ):
        cluster_files._keep(str(tmp_path), {f"{tmp_path}/a", f"{tmp_path}/elsewhere"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    cluster_files._keep(str(tmp_path), {f"{tmp_path}/a"})
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
