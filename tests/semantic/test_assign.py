from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from spark_4 import ARROW_FRAMES

from spark_dedup.errors import InputError, named_errors
from spark_dedup.kernels.arrays import normalise
from spark_dedup.semantic.assign import assign_clusters, cluster_layout
from spark_dedup.semantic.embeddings import from_matrix
from spark_dedup.semantic.kmeans import KMeansModel


def model_of(centroids):
    array = np.array(centroids, np.float32)
    return KMeansModel(array, 0.0, 1, np.zeros(len(array), np.int64))


def test_the_published_points(spark):
    df = spark.createDataFrame(
        [("a", [2.0, 0.0], "x"), ("b", [0.0, 0.5], None), ("c", [6.0, 8.0], "z")],
        "id string, embeddings array<float>, note string",
    )
    found = assign_clusters(df, model_of([[1, 0], [0, 1]]), metadata_fields=["note"])
    assert found.schema.simpleString() == (
        "struct<id:string,embeddings:array<float>,note:string,l2_dist_to_cent:float,"
        "cosine_dist_to_cent:float,centroid:int>"
    )
    rows = {r.id: r for r in found.collect()}
    assert [rows[k].centroid for k in "abc"] == [0, 1, 1]
    np.testing.assert_allclose([rows[k].l2_dist_to_cent for k in "abc"], [0, 0, np.sqrt(0.4)], atol=1e-7)
    np.testing.assert_allclose([rows[k].cosine_dist_to_cent for k in "abc"], [0, 0, 0.2], atol=1e-7)
    np.testing.assert_allclose(rows["c"].embeddings, [0.6, 0.8], rtol=1e-6)
    assert [rows[k].note for k in "abc"] == ["x", None, "z"]


@ARROW_FRAMES
def test_against_numpy_with_odd_names_and_nested_metadata(spark):
    rng = np.random.default_rng(0)
    x, centroids = rng.standard_normal((500, 10)).astype(np.float32), rng.standard_normal((8, 10)) * 0.3
    table = pa.table(
        {
            "my `id`.x": np.arange(500),
            "emb 'e'": from_matrix(x),
            "a.b": pa.array([{"t": [i, None]} for i in range(500)]),
        }
    )
    found = assign_clusters(
        spark.createDataFrame(table), model_of(centroids), id_field="my `id`.x", embedding_field="emb 'e'",
        metadata_fields=["a.b"],
    ).toArrow().sort_by("my `id`.x")  # fmt: skip
    unit = normalise(x).astype(np.float64)
    distance = np.linalg.norm(unit[:, None] - centroids.astype(np.float32), axis=2)
    np.testing.assert_array_equal(found["centroid"], distance.argmin(axis=1))
    np.testing.assert_allclose(found["l2_dist_to_cent"], distance.min(axis=1), rtol=1e-5)
    assert found["a.b"].to_pylist() == table["a.b"].to_pylist()


def test_unusable_rows_fail_the_job_with_a_named_error_or_are_dropped(spark):
    df = spark.createDataFrame(
        [(1, [1.0, 0.0]), (2, None), (3, [1.0]), (4, [0.0, 0.0]), (5, [0.0, 3.0])],
        "id int, embeddings array<float>",
    )
    model = model_of([[1, 0], [0, 1]])
    with pytest.raises(InputError, match=r"3 of 5 embeddings.*ids 2, 3, 4"), named_errors():
        assign_clusters(df.coalesce(1), model).collect()
    kept = assign_clusters(df, model, invalid_embeddings="drop").collect()
    assert sorted((r.id, r.centroid) for r in kept) == [(1, 0), (5, 1)]


def test_workers_without_the_package_are_named():
    said = "Job aborted\nPythonException: ModuleNotFoundError: No module named 'numpy'\n\tat java"
    with pytest.raises(InputError, match="workers has no numpy: install spark_dedup"), named_errors():
        raise RuntimeError(said)


def test_other_errors_pass_unchanged():
    with pytest.raises(KeyError), named_errors():
        raise KeyError("other")


def test_bad_columns(spark):
    df = spark.createDataFrame([(1, [1.0, 0.0], 2)], "id int, embeddings array<float>, centroid int")
    model = model_of([[1, 0]])
    with pytest.raises(InputError, match="'nope' not found"):
        assign_clusters(df, model, metadata_fields=["nope"])
    with pytest.raises(InputError, match="'centroid' would be replaced"):
        assign_clusters(df, model, metadata_fields=["centroid"])
    with pytest.raises(InputError, match="'x' not found"):
        assign_clusters(df, model, id_field="x")


def test_empty_input(spark):
    df = spark.createDataFrame([], "id int, embeddings array<float>")
    assert assign_clusters(df, model_of([[1, 0]])).count() == 0


def test_layout_writes_few_files_and_cuts_giants(spark, tmp_path):
    sizes = np.array([3000, 10, 40, 0, 700, 5])
    centroid = np.repeat(np.arange(6, dtype=np.int32), sizes)
    table = pa.table({"id": np.arange(len(centroid)), "centroid": centroid})
    df = spark.createDataFrame(table.to_pandas()).repartition(7)
    laid = cluster_layout(df, cluster_sizes=sizes, rows_per_file=500)
    laid.write.partitionBy("centroid").parquet(str(tmp_path / "out"))
    files = {p.name: len(list(p.glob("*.parquet"))) for p in Path(tmp_path / "out").glob("centroid=*")}
    assert [files[f"centroid={k}"] for k in (1, 2, 5)] == [1, 1, 1]
    assert 2 <= files["centroid=0"] <= 6
    assert files["centroid=4"] <= 2
    assert "centroid=3" not in files
    back = spark.read.parquet(str(tmp_path / "out")).groupBy("centroid").count().collect()
    assert {r["centroid"]: r["count"] for r in back} == {k: int(n) for k, n in enumerate(sizes) if n}
