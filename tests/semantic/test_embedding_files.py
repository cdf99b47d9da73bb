"""Embeddings that tasks read from files by themselves: the same rows, keys and results as through Spark."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import functions as F
from sessions import partitions
from spark_4 import TO_ARROW

from spark_dedup import KMeansStage, SemanticDeduplicationWorkflow
from spark_dedup.datasets import read_dataset
from spark_dedup.errors import InputError
from spark_dedup.listing import list_files
from spark_dedup.semantic import embedding_files
from spark_dedup.semantic.assign import assign_clusters
from spark_dedup.semantic.embedding_files import EmbeddingFiles, RowGroup, find_embedding_files, id_keys
from spark_dedup.semantic.embeddings import embedding_width, from_matrix
from spark_dedup.semantic.kmeans import fit_kmeans

ROWS, DIM = 3000, 9
NAME = "the `e`.x é"


def matrix(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, DIM))
    return (centres[rng.integers(0, 12, rows)] + rng.standard_normal((rows, DIM))).astype(np.float32)


def write(folder, table, files=4, groups=3):
    folder.mkdir(exist_ok=True)
    for i in range(files):
        rows = table.slice(i * len(table) // files, len(table) // files)
        pq.write_table(rows, folder / f"part {i}.parquet", row_group_size=max(1, len(rows) // groups))
    return str(folder)


def found_in(spark, folder, **names):
    df = read_dataset(spark, folder)
    names = {"id_field": "id", "embedding_field": NAME} | names
    return df, find_embedding_files(df, list_files(folder), **names)


@pytest.fixture(scope="module", params=["long", "string", "short"])
def stored(spark, tmp_path_factory, request):
    """A folder of embeddings with ids of a type."""
    ids = np.random.default_rng(1).permutation(ROWS)
    kinds = {
        "long": pa.array(ids * 10**12),
        "string": pa.array([f"dökument-{i}" * (1 + i % 5) for i in ids], pa.large_string()),
        "short": pa.array(ids.astype(np.int16)),
    }
    table = pa.table(
        {"id": kinds[request.param], "note": [f"n{i % 7}" for i in ids], NAME: from_matrix(matrix())}
    )
    folder = write(tmp_path_factory.mktemp("in") / "a b", table)
    df, files = found_in(spark, folder)
    assert files is not None
    return df, files


@TO_ARROW
def test_keys_are_sparks_hashes(stored):
    df, _ = stored
    rows = df.select("id", F.xxhash64("id").alias("key")).toArrow()
    ids = rows["id"].combine_chunks()
    np.testing.assert_array_equal(id_keys(ids), rows["key"].to_numpy())
    np.testing.assert_array_equal(id_keys(ids[17:400]), rows["key"].to_numpy()[17:400])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init": "random", "n_init": 2},
        {"fit_data_fraction": 0.3},
        {"fit_data_fraction": 0.3, "random_state": 2**40},
        {"max_points_per_centroid": 50},
    ],
)
def test_a_fit_has_the_same_bits(stored, options):
    df, files = stored
    options = {"n_clusters": 6, "id_field": "id", "embedding_field": NAME, "max_iter": 5, **options}
    through_spark, direct = fit_kmeans(df, **options), fit_kmeans(df, files=files, **options)
    np.testing.assert_array_equal(direct.centroids, through_spark.centroids)
    np.testing.assert_array_equal(direct.cluster_sizes, through_spark.cluster_sizes)
    assert direct.inertia == pytest.approx(through_spark.inertia, rel=1e-12)


@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_assigned_alike(stored, packed, monkeypatch):
    monkeypatch.setattr(embedding_files, "_LEAST_BYTES", 10_000)
    df, files = stored
    model = fit_kmeans(df, n_clusters=3, id_field="id", embedding_field=NAME, max_iter=2)
    options = {"embedding_field": NAME, "metadata_fields": ["note"], "packed": packed}
    expected = assign_clusters(df, model, **options)
    direct = assign_clusters(df, model, files=files, **options)
    assert partitions(direct) > 2
    assert direct.schema == expected.schema
    assert sorted(map(str, direct.collect())) == sorted(map(str, expected.collect()))


def test_rows_that_do_not_spread_evenly_go_through_spark(spark, tmp_path):
    table = pa.table({"id": np.arange(ROWS * 4), NAME: from_matrix(matrix(ROWS * 4))})
    df, files = found_in(spark, write(tmp_path / "in", table, files=1, groups=1))
    assert files.even_shares(1) is not None
    assert files.even_shares(2) is None
    options = {"n_clusters": 3, "id_field": "id", "embedding_field": NAME, "max_iter": 2}
    found = fit_kmeans(df, files=files, **options)
    np.testing.assert_array_equal(found.centroids, fit_kmeans(df, **options).centroids)


@pytest.mark.parametrize(
    ("columns", "direct", "known"),
    [
        ({}, True, {"id", "note", "good"}),
        ({NAME: pa.array([[1.0, 2.0]] * 4)}, True, {"id", "note", "good"}),
        ({NAME: pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float32(), 2))}, True, {"id", "note", "good"}),
        ({NAME: pa.array([[1, 2]] * 4)}, False, None),
        ({NAME: pa.array([b"12345678"] * 4)}, False, None),
        ({"id": pa.array([Decimal(i) for i in range(4)])}, False, None),
        ({"id": pa.array(range(4), pa.uint8())}, False, None),
        ({"id": pa.array(list("abcd")).dictionary_encode()}, False, None),
        ({"note": pa.array(list("aabb")).dictionary_encode()}, True, {"id", "good"}),
        ({"note": pa.array([dt.datetime(2020, 1, 1)] * 4)}, True, {"id", "good"}),
        ({"note": pa.array([{"a": 1}] * 4)}, True, {"id", "good"}),
    ],
)
def test_only_columns_that_both_read_alike(spark, tmp_path, columns, direct, known):
    usual = {"id": np.arange(4), "note": list("abcd"), "good": [0.5] * 4, NAME: from_matrix(matrix(4))}
    _, files = found_in(spark, write(tmp_path / "in", pa.table(usual | columns), files=2))
    assert (files is not None) == direct
    if files is not None:
        assert files.columns == known


def test_a_column_that_one_file_lacks_is_not_known(spark, tmp_path):
    usual = {"id": np.arange(4), NAME: from_matrix(matrix(4))}
    write(tmp_path / "in", pa.table(usual), files=1)
    pq.write_table(pa.table({**usual, "note": list("abcd")}), tmp_path / "in" / "z.parquet")
    df = spark.read.option("mergeSchema", True).parquet(str(tmp_path / "in"))
    files = find_embedding_files(df, list_files(str(tmp_path / "in")), id_field="id", embedding_field=NAME)
    assert files.columns == {"id"}


def test_a_column_that_folders_name_is_left_to_spark(spark, tmp_path):
    table = pa.table({"id": np.arange(4), "note": list("abcd"), NAME: from_matrix(matrix(4))})
    write(tmp_path / "in", table, files=1)
    (tmp_path / "in" / "note=x").mkdir()
    (tmp_path / "in" / "part 0.parquet").rename(tmp_path / "in" / "note=x" / "part.parquet")
    df, files = found_in(spark, str(tmp_path / "in"))
    assert {row.note for row in df.collect()} == {"x"}
    assert files.columns == {"id"}


def test_a_broken_page_is_named(spark, tmp_path):
    table = pa.table({"id": np.arange(ROWS), NAME: from_matrix(matrix())})
    folder = write(tmp_path / "in", table, files=2)
    path = tmp_path / "in" / "part 1.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[1000:9000] = b"\xff" * 8000
    path.write_bytes(damaged)
    df, files = found_in(spark, folder)
    with pytest.raises(Exception, match=r"part 1\.parquet cannot be read"):
        fit_kmeans(df, n_clusters=2, id_field="id", embedding_field=NAME, embedding_dim=DIM, files=files)


def test_invalid_embeddings_are_found(spark, tmp_path):
    x = matrix(60)
    x[7] = 0
    x[31, 2] = np.nan
    df, files = found_in(spark, write(tmp_path / "in", pa.table({"id": np.arange(60), NAME: from_matrix(x)})))
    options = {"n_clusters": 2, "id_field": "id", "embedding_field": NAME}
    with pytest.raises(InputError, match=r"2 of 60 embeddings cannot be used.*ids 31, 7"):
        fit_kmeans(df, files=files, **options)
    model = fit_kmeans(df, files=files, invalid_embeddings="drop", **options)
    assert model.invalid == 2
    kept = assign_clusters(df, model, embedding_field=NAME, files=files, invalid_embeddings="drop")
    assert kept.count() == 58


groups = st.lists(st.integers(0, 10**6), max_size=40).map(
    lambda rows: tuple(RowGroup("f", i, n, 1536 * n) for i, n in enumerate(rows))
)


@given(groups, st.integers(1, 9))
def test_shares_hold_every_row_group_once(groups, count):
    files = EmbeddingFiles(groups, frozenset())
    small = files.small_shares(count)
    assert small
    assert [group for share in small for group in share] == list(groups)
    even = files.even_shares(count)
    if even is not None:
        assert len(even) == count
        assert sorted(group for share in even for group in share) == sorted(groups)
        rows = [sum(group.rows for group in share) for share in even]
        assert max(rows) - sum(rows) / count <= max(4096, 0.05 * sum(rows) / count)


@pytest.mark.parametrize("which", ["files", "spark"])
def test_the_job_takes_either_way(spark, tmp_path, which, monkeypatch):
    """Sources that Arrow may not read alike go through Spark, with the same ids to remove."""
    x = np.repeat(matrix(300), 2, axis=0)
    table = pa.table({"id": np.arange(600), NAME: from_matrix(x)})
    folder = write(tmp_path / "in", table)
    calls = []
    real = embedding_files.find_embedding_files

    def watched(*args, **kwargs):
        calls.append(real(*args, **kwargs))
        return calls[-1] if which == "files" else None

    monkeypatch.setattr("spark_dedup.workflows.clusters.find_embedding_files", watched)
    job = SemanticDeduplicationWorkflow(
        folder, tmp_path / "out", 4, embedding_field=NAME, eps=1e-4, max_iter=5, pairwise_batch_size=8
    )
    assert job.run(spark)["num_duplicates"] == 300
    assert len(calls) == 1
    assert calls[0] is not None
    removed = pq.read_table(tmp_path / "out" / "duplicates")["id"].to_numpy()
    assert sorted(removed // 2) == list(range(300))


def test_reader_options_go_through_spark(spark, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("files must not be looked for")

    monkeypatch.setattr("spark_dedup.workflows.clusters.find_embedding_files", refuse)
    folder = write(tmp_path / "in", pa.table({"id": np.arange(60), NAME: from_matrix(matrix(60))}))
    options = {"embedding_field": NAME, "read_kwargs": {"mergeSchema": True}}
    assert KMeansStage(folder, tmp_path / "out", 2, **options).run(spark)["num_documents"] == 60


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_the_width_is_the_commonest_of_the_first_rows(spark, tmp_path, kind):
    rows = [[1.0] * 2, None, [1.0] * 5, [], [1.0] * 3, [1.0] * 3, [1.0] * 5]
    table = pa.table({"id": np.arange(7), NAME: pa.array(rows, kind(pa.float32()))})
    df, files = found_in(spark, write(tmp_path / "in", table, files=1))
    assert files.width(NAME) == embedding_width(df, NAME) == 5
    _, files = found_in(
        spark, write(tmp_path / "none", table.filter([False, True, False, True] + 3 * [False]))
    )
    assert files.width(NAME) is None


def test_the_width_of_embeddings_of_a_fixed_size(spark, tmp_path):
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(matrix(50).ravel()), DIM)
    _, files = found_in(spark, write(tmp_path / "in", pa.table({"id": np.arange(50), NAME: fixed})))
    assert files.width(NAME) == DIM
