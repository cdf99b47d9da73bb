import logging
import os
import signal

import numpy as np
import pyarrow as pa
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from spark_dedup.errors import InputError
from spark_dedup.kernels.arrays import normalise
from spark_dedup.semantic.embeddings import from_matrix
from spark_dedup.semantic.kmeans import fit_kmeans

SIZES = [100, 200, 300, 400, 500]


@pytest.fixture(scope="module")
def blobs():
    x, labels = make_blobs(SIZES, 3, random_state=42)
    return x.astype(np.float32), labels


def frame(spark, x, **columns):
    table = pa.table({"id": np.arange(len(x)), "embeddings": from_matrix(x), **columns})
    return spark.createDataFrame(table.to_pandas())  # Spark 3 takes no Arrow table


@pytest.fixture(scope="module")
def df(spark, blobs):
    return frame(spark, blobs[0]).cache()


@pytest.fixture(scope="module")
def model(df):
    return fit_kmeans(df, n_clusters=5, id_field="id")


def test_given_start_gives_scikit_learns_centroids(df, blobs, caplog):
    unit = normalise(blobs[0])
    with caplog.at_level(logging.INFO, logger="spark_dedup"):
        ours = fit_kmeans(df, n_clusters=5, init=unit[:5].tolist())
    theirs = KMeans(5, init=unit[:5], n_init=1).fit(unit.astype(np.float64))
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-5)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    assert ours.n_iter == theirs.n_iter_ == len(ours.history)
    np.testing.assert_array_equal(ours.cluster_sizes, np.bincount(theirs.labels_))
    assert ours.centroids.dtype == np.float32
    lines = [r.getMessage() for r in caplog.records if "k-means iteration" in r.getMessage()]
    assert lines
    assert "of at most 300: inertia" in lines[0]
    assert "rows moved" in lines[0]


def test_blobs_are_found(model, blobs):
    unit = normalise(blobs[0]).astype(np.float64)
    best = min(KMeans(5, n_init=1, random_state=s).fit(unit).inertia_ for s in range(10))
    assert model.inertia == pytest.approx(best, rel=1e-3)
    assert model.cluster_sizes.sum() == 1500


@pytest.mark.parametrize("partitions", [1, 7])
def test_partitions_and_order_do_not_matter(df, model, partitions):
    again = fit_kmeans(df.orderBy("embeddings").repartition(partitions), n_clusters=5, id_field="id")
    np.testing.assert_array_equal(again.centroids, model.centroids)
    assert again.n_iter == model.n_iter


def test_without_ids_the_embedding_is_hashed(df):
    first = fit_kmeans(df.drop("id"), n_clusters=5, random_state=3)
    again = fit_kmeans(df.select("embeddings").repartition(3), n_clusters=5, random_state=3)
    np.testing.assert_array_equal(first.centroids, again.centroids)


def test_best_of_several_random_starts(df):
    single = [fit_kmeans(df, n_clusters=5, init="random", random_state=s).inertia for s in (8, 9)]
    assert fit_kmeans(df, n_clusters=5, init="random", random_state=8, n_init=2).inertia == min(single)


def test_alias_of_the_start(df, model):
    same = fit_kmeans(df, n_clusters=5, id_field="id", init="scalable-k-means++")
    np.testing.assert_array_equal(same.centroids, model.centroids)


def test_samples_are_drawn_by_hash(df):
    tenth = fit_kmeans(df, n_clusters=5, id_field="id", fit_data_fraction=0.2)
    again = fit_kmeans(df.repartition(5), n_clusters=5, id_field="id", fit_data_fraction=0.2)
    np.testing.assert_array_equal(tenth.centroids, again.centroids)
    assert 220 < tenth.cluster_sizes.sum() < 380  # 300 expected, standard deviation 15
    capped = fit_kmeans(df, n_clusters=5, id_field="id", max_points_per_centroid=40)
    assert 140 < capped.cluster_sizes.sum() < 260  # 200 expected, standard deviation 13


@pytest.mark.parametrize("seed", range(4))
def test_a_cap_never_leaves_fewer_rows_than_clusters(df, seed):
    options = {"n_clusters": 2, "max_points_per_centroid": 1, "random_state": seed}
    found = fit_kmeans(df, id_field="id", **options)
    # Of 1,500 rows two are expected; where the draw gives none or one, all are taken.
    assert 2 <= found.cluster_sizes.sum() < 12 or found.cluster_sizes.sum() == 1500


@pytest.mark.parametrize("seed", [0, 7, (1 << 63) - 1])
def test_a_seed_of_any_whole_kind_is_one(df, seed):
    usual = fit_kmeans(df, n_clusters=5, id_field="id", random_state=seed, fit_data_fraction=0.5)
    same = fit_kmeans(df, n_clusters=5, id_field="id", random_state=np.int64(seed), fit_data_fraction=0.5)
    np.testing.assert_array_equal(same.centroids, usual.centroids)


def test_a_sample_of_fewer_rows_than_clusters_is_said_to_be_one(df):
    with pytest.raises(
        InputError, match=r"only \d+ usable embeddings in the sample of fit_data_fraction=0.01"
    ):
        fit_kmeans(df, n_clusters=400, id_field="id", fit_data_fraction=0.01)


def test_a_session_with_one_slot_for_many_partitions(df, model, monkeypatch):
    monkeypatch.setattr("spark_dedup.semantic.kmeans.barrier_slots", lambda _: 1)
    one = fit_kmeans(df.repartition(4), n_clusters=5, id_field="id")
    np.testing.assert_array_equal(one.centroids, model.centroids)


def test_without_barrier_stages_one_task_does_it(df, model, monkeypatch, caplog):
    monkeypatch.setattr("spark_dedup.semantic.kmeans.barrier_slots", lambda _: 0)
    one = fit_kmeans(df, n_clusters=5, id_field="id")
    np.testing.assert_array_equal(one.centroids, model.centroids)
    assert "dynamic allocation" in caplog.text


def test_a_barrier_stage_that_the_session_refuses_is_done_without(df, model, monkeypatch, caplog):
    frame = type(df)
    usual = frame.mapInArrow

    def refusing(rows, work, schema, barrier=False):
        if barrier:
            raise RuntimeError(
                "[SPARK-24942]: Barrier execution mode does not support dynamic resource allocation"
            )
        return usual(rows, work, schema)

    monkeypatch.setattr(frame, "mapInArrow", refusing)
    one = fit_kmeans(df, n_clusters=5, id_field="id")
    np.testing.assert_array_equal(one.centroids, model.centroids)
    assert "no barrier stage (SPARK-24942)" in caplog.text


def test_tasks_that_cannot_reach_each_other_go_through_the_driver(df, model, monkeypatch):
    from spark_dedup.semantic import kmeans, resident

    def unreachable(work):
        run = resident.staged(work)

        def patched(batches):
            from spark_dedup.semantic import peers

            def refuse(*args, **kwargs):
                raise OSError("no route to host")

            dial, seconds = peers.dial, peers._CONNECT_SECONDS
            peers.dial, peers._CONNECT_SECONDS = refuse, 0.5
            try:
                yield from run(batches)
            finally:
                peers.dial, peers._CONNECT_SECONDS = dial, seconds

        return patched

    monkeypatch.setattr(kmeans, "staged", unreachable)
    through_driver = fit_kmeans(df, n_clusters=5, id_field="id")
    np.testing.assert_array_equal(through_driver.centroids, model.centroids)


def test_a_worker_that_is_killed_in_the_midst_is_named(df, monkeypatch):
    def dies(batches, peers, options, reporter):
        peers.from_root(None)
        if peers.rank == peers.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        list(peers.gather(None))
        yield from ()

    monkeypatch.setattr("spark_dedup.semantic.kmeans.fit_task", dies)
    with pytest.raises(
        RuntimeError, match=r"^k-means lost one of its workers \(.+\) and cannot .*memoryOverhead$"
    ):
        fit_kmeans(df, n_clusters=5, id_field="id")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "n_clusters must be a whole number of at least 1, not 0"),
        ({"n_clusters": -3}, "n_clusters must be"),
        ({"n_clusters": 2.5}, "n_clusters must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"n_init": 0}, "n_init must be"),
        ({"tol": -1e-4}, "tol must be at least 0"),
        ({"tol": float("nan")}, "tol must be at least 0"),
        ({"tol": "small"}, "tol must be at least 0, not 'small'"),
        ({"oversampling_factor": float("inf")}, "oversampling_factor must be above 0 and finite"),
        ({"fit_data_fraction": "half"}, "fit_data_fraction must lie between"),
        ({"max_samples_per_batch": 0}, "max_samples_per_batch must be a whole number"),
        ({"max_points_per_centroid": "64"}, "max_points_per_centroid must be a whole number"),
        ({"oversampling_factor": 0}, "oversampling_factor must be above 0"),
        ({"fit_data_fraction": 1.0}, "fit_data_fraction must lie between 0 and 1"),
        ({"fit_data_fraction": 0}, "fit_data_fraction must lie between 0 and 1"),
        ({"max_points_per_centroid": 0}, "max_points_per_centroid must be"),
        ({"random_state": -1}, r"random_state must be a whole number from 0 to 2\*\*63 - 1, not -1"),
        ({"random_state": None}, "random_state must be"),
        ({"random_state": 1.0}, "random_state must be"),
        ({"random_state": 1 << 63}, "random_state must be"),
        ({"init": "k-means+++"}, "init must be one of"),
        ({"init": np.zeros((4, 3))}, r"init has shape \(4, 3\); n_clusters=5 needs that many rows"),
        ({"init": np.zeros((5, 2))}, r"init has shape \(5, 2\); embeddings of length 3 need \(5, 3\)"),
        ({"init": np.full((5, 3), np.nan)}, "init holds NaN"),
        ({"id_field": "nope"}, "column 'nope' not found"),
        ({"embedding_field": "nope"}, "column 'nope' not found"),
        ({"invalid_embeddings": "skip"}, "'error' or 'drop'"),
        ({"device": "tpu"}, "device must be one of"),
        ({"n_clusters": 1501}, "n_clusters is 1,501, but there are only 1,500 usable embeddings"),
    ],
)
def test_bad_arguments(df, options, message):
    with pytest.raises(InputError, match=message):
        fit_kmeans(df, **({"n_clusters": 5} | options))


def test_unusable_embeddings_are_named_or_left_out(spark, blobs):
    rows = [*blobs[0][:20].tolist(), None, [1.0], [0.0, 0.0, 0.0], [float("inf"), 0.0, 0.0]]
    table = pa.table(
        {"id": [f"r{i}" for i in range(24)], "embeddings": pa.array(rows, pa.list_(pa.float32()))}
    )
    df = spark.createDataFrame(table.to_pandas())
    with pytest.raises(InputError, match=r"4 of 24 embeddings.*ids r20, r21, r22, r23"):
        fit_kmeans(df, n_clusters=2, id_field="id")
    raw = df.selectExpr("unhex(concat('FF', hex(id))) AS id", "embeddings")  # no UTF-8
    with pytest.raises(InputError, match=r"ids FF723230, FF723231, FF723232, FF723233"):
        fit_kmeans(raw, n_clusters=2, id_field="id")
    found = fit_kmeans(df, n_clusters=2, id_field="id", invalid_embeddings="drop")
    assert found.invalid == 4
    assert found.cluster_sizes.sum() == 20


def test_one_row_and_all_rows_equal(spark):
    one = fit_kmeans(frame(spark, np.array([[3, 4]], np.float32)), n_clusters=1)
    np.testing.assert_allclose(one.centroids, [[0.6, 0.8]], rtol=1e-6)
    same = fit_kmeans(frame(spark, np.array([[3, 4]] * 9, np.float32)), n_clusters=3, id_field="id")
    np.testing.assert_allclose(same.centroids, [[0.6, 0.8]] * 3, rtol=1e-6)
    assert sorted(same.cluster_sizes.tolist()) == [0, 0, 9]


CONNECT = """
import numpy as np, pyarrow as pa
from sklearn.datasets import make_blobs
from spark_dedup.semantic import assign as module
from spark_dedup.semantic.assign import assign_clusters, cluster_layout
from spark_dedup.semantic.embeddings import from_matrix
from spark_dedup.semantic.kmeans import fit_kmeans
from pyspark.ml.functions import array_to_vector

x = make_blobs([100, 200, 300, 400, 500], 3, random_state=42)[0].astype(np.float32)
df = spark.createDataFrame(pa.table({"id": np.arange(len(x)), "embeddings": from_matrix(x)}))
model = fit_kmeans(df, n_clusters=5, id_field="id")
assert model.cluster_sizes.sum() == 1500
vectors = df.select("id", array_to_vector("embeddings").alias("embeddings"))
again = fit_kmeans(vectors, n_clusters=5, id_field="id")
assert (again.centroids == model.centroids).all()
sizes = assign_clusters(df, model).groupBy("centroid").count().toArrow().sort_by("centroid")["count"]
assert sizes.to_pylist() == model.cluster_sizes.tolist()
module.LARGE_BYTES = 0
rows = cluster_layout(assign_clusters(df, model), cluster_sizes=model.cluster_sizes, rows_per_file=300)
assert rows.count() == 1500
print("done")
"""


def test_on_spark_connect(run_connect, model, tmp_path):
    assert "done" in run_connect(CONNECT + f"np.save({str(tmp_path / 'c.npy')!r}, model.centroids)")
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), model.centroids)
