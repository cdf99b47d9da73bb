import random

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import functions as F
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from spark_dedup.errors import InputError
from spark_dedup.semantic.blocks import plan_units, slot_keys
from spark_dedup.semantic.cluster_reading import StoredClusters, one_cluster
from spark_dedup.semantic.embeddings import from_matrix
from spark_dedup.semantic.identify import above_threshold
from spark_dedup.semantic.matching import matcher
from spark_dedup.semantic.pairwise import pairwise_similarity
from spark_dedup.semantic.ranking import RankingStrategy

SCHEMA = "id long, embeddings array<float>, centroid int, cosine_dist_to_cent float, l2_dist_to_cent float"


def unit(x):
    x = np.asarray(x, np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def frame(spark, x, cluster, distance, ids=None, schema=SCHEMA):
    ids = range(len(x)) if ids is None else ids
    rows = [
        (i, v.tolist(), int(c), float(d), float(d))
        for i, v, c, d in zip(ids, x, cluster, distance, strict=True)
    ]
    return spark.createDataFrame(rows, schema)


def brute(x, cluster, distance, descending):
    """Rank and compare record by record, in float64."""
    found = {}
    for c in np.unique(cluster):
        order = sorted(np.flatnonzero(cluster == c), key=lambda i: (np.float32(distance[i]), i))
        order = order[::-1] if descending else order
        for place, i in enumerate(order):
            similar = [np.float32(x[i].astype(float) @ x[j].astype(float)) for j in order[:place]]
            best = int(np.argmax(similar)) if similar else None
            found[int(i)] = (int(i), 0.0) if best is None else (int(order[best]), float(similar[best]))
    return found


def result(df, **kwargs):
    return {r.id: (r.max_id, r.cosine_sim_score) for r in pairwise_similarity(df, **kwargs).collect()}


@pytest.fixture(scope="module")
def clusters():
    """Clusters of 0 (number 3), 1, 2 and many records, with exact copies."""
    rng = np.random.default_rng(5)
    cluster = np.array([0] + [1] * 2 + [2] * 60 + [4] * 30)
    x = unit(rng.standard_normal((len(cluster), 12)))
    x[[20, 33, 70]] = x[10]
    distance = rng.random(len(cluster)).round(1)
    return x, cluster, distance


@pytest.mark.parametrize(
    ("keep", "order", "max_id", "scores"),
    [
        ("hard", [3, 2, 1, 5, 4, 0], [3, 3, 2, 1, 5, 5], [0, 0.99961, 0.99819, 0.974631, 1, 1]),
        ("easy", [0, 4, 5, 1, 2, 3], [0, 0, 0, 0, 1, 2], [0, 1, 1, 0.97464, 0.99819, 0.999618]),
    ],
)
def test_six_rows(spark, keep, order, max_id, scores):
    x = unit([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [1, 2, 3], [1, 2, 3]])
    df = frame(spark, x, [0] * 6, 1 - x @ x[0])
    found = result(df, which_to_keep=keep)
    assert [found[i][0] for i in order] == max_id
    assert [found[i][1] for i in order] == pytest.approx(scores, abs=2e-5)


@pytest.mark.parametrize("keep", ["hard", "easy"])
def test_matches_brute_force_for_any_block_size_and_partitioning(spark, clusters, keep):
    x, cluster, distance = clusters
    df = frame(spark, x, cluster, distance)
    expected = brute(x, cluster, distance, descending=keep == "hard")
    for batch, partitions in ((1, 3), (4, 2), (1024, 1)):
        found = result(df.repartition(partitions), which_to_keep=keep, pairwise_batch_size=batch)
        assert {i: m for i, (m, _) in found.items()} == {i: m for i, (m, _) in expected.items()}
        assert [found[i][1] for i in sorted(found)] == pytest.approx(
            [s for _, (_, s) in sorted(expected.items())], abs=1e-6
        )


def test_result_has_the_columns_and_types_of_the_contract(spark, clusters):
    out = pairwise_similarity(frame(spark, *clusters))
    assert out.dtypes == [("id", "bigint"), ("max_id", "bigint"), ("cosine_sim_score", "float")]


def test_string_ids_and_odd_column_names(spark, clusters):
    x, cluster, distance = (a[1:63] for a in clusters)
    ids = [f"dök {i:02}" for i in range(len(x))]
    df = frame(spark, x, cluster, distance, ids, SCHEMA.replace("id long", "id string", 1))
    named = df.withColumnsRenamed({"id": "the `id`.x", "embeddings": "e m.b"})
    found = result(named, id_field="the `id`.x", embedding_field="e m.b", pairwise_batch_size=3)
    expected = brute(x, cluster, distance, descending=True)
    assert {i: m for i, (m, _) in found.items()} == {ids[i]: ids[m] for i, (m, _) in expected.items()}


def test_negative_similarities_are_kept(spark):
    df = frame(spark, unit([[1, 0], [-1, 0]]), [0, 0], [0, 1])
    assert result(df, which_to_keep="easy") == {0: (0, 0.0), 1: (0, -1.0)}


def test_empty_input(spark):
    assert result(spark.createDataFrame([], SCHEMA)) == {}


def test_records_that_no_cluster_was_counted_for_are_no_silent_loss(spark, clusters):
    df = frame(spark, *clusters)
    with pytest.raises(Exception, match="some records have no centroid"):
        result(df.withColumn("centroid", F.when(F.col("id") != 7, F.col("centroid"))))
    drawn = F.udf(lambda _: random.SystemRandom().randrange(1 << 31), "int").asNondeterministic()
    with pytest.raises(
        Exception, match=r"others each time they are read: .* write or cache the records first"
    ):
        result(df.withColumn("centroid", drawn("id")))


def test_metadata_ranking(spark):
    df = frame(spark, unit([[1, 0], [1, 0], [1, 0]]), [0] * 3, [0] * 3).withColumn(
        "score", F.element_at(F.array(F.lit(2), F.lit(9), F.lit(None)), (F.col("id") + 1).cast("int"))
    )
    best_first = RankingStrategy(["score"], ascending=False)
    assert {i: m for i, (m, _) in result(df, ranking_strategy=best_first).items()} == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize(("keep", "removed"), [("hard", 1471), ("easy", 1495)])
def test_blobs(spark, keep, removed):
    sizes = [100, 200, 300, 400, 500]
    x = unit(make_blobs(n_samples=sizes, n_features=3, random_state=42)[0])
    fitted = KMeans(5, random_state=0, n_init=3).fit(x)
    label, means = fitted.labels_, fitted.cluster_centers_
    distance = 1 - (x * means[label]).sum(axis=1) / np.linalg.norm(means, axis=1)[label]
    pairs = pairwise_similarity(frame(spark, x, label, distance), which_to_keep=keep)
    assert pairs.filter(above_threshold(0.01)).count() == removed


@pytest.mark.parametrize("kind", ["long", "string"])
@pytest.mark.parametrize("keep", ["hard", "easy"])
@pytest.mark.parametrize("batch", [1, 8, 1024], ids=["all cut", "some cut", "none cut"])
def test_stored_clusters_are_compared_alike(spark, clusters, tmp_path, kind, keep, batch, monkeypatch):
    """Clusters of one block are read by the tasks, larger ones go through Spark: the result is one."""
    x, cluster, distance = clusters
    df = frame(spark, x, cluster, distance)
    if kind == "string":
        df = df.withColumn("id", F.format_string("é%05d", "id"))
    df.repartition(3).write.partitionBy("centroid").parquet(str(tmp_path / "k"))
    written = spark.read.parquet(str(tmp_path / "k"))
    stored = StoredClusters(
        one_cluster(spark, str(tmp_path / "k")), str(tmp_path / "k"), written.columns, "embeddings"
    )
    whole, cut = [], []
    read_whole, read_cut = StoredClusters.whole, StoredClusters.vectors
    monkeypatch.setattr(
        StoredClusters,
        "whole",
        lambda self, sizes, **kw: whole.append(sizes) or read_whole(self, sizes, **kw),
    )
    monkeypatch.setattr(
        StoredClusters, "vectors", lambda self, **kw: cut.append(kw["clusters"]) or read_cut(self, **kw)
    )
    options = {"which_to_keep": keep, "pairwise_batch_size": batch}
    found = result(stored.frame, stored=stored, **options)
    assert found == result(df, **options)
    sizes = {0: 1, 1: 2, 2: 60, 4: 30}
    one_block = {1: {0: 1, 1: 2}, 8: {0: 1, 1: 2, 4: 30}, 1024: sizes}[batch]
    assert whole == [one_block]
    assert cut == ([sizes.keys() - one_block] if batch < 1024 else [])


@pytest.mark.parametrize(
    "options",
    [{"which_to_keep": "random"}, {"ranking_strategy": RankingStrategy.metadata_based(["l2_dist_to_cent"])}],
    ids=["random", "metadata"],
)
def test_stored_clusters_in_an_order_that_spark_computes(spark, clusters, tmp_path, options):
    df = frame(spark, *clusters)
    df.write.partitionBy("centroid").parquet(str(tmp_path / "k"))
    written = spark.read.parquet(str(tmp_path / "k"))
    stored = StoredClusters(
        one_cluster(spark, str(tmp_path / "k")), str(tmp_path / "k"), written.columns, "embeddings"
    )
    assert result(stored.frame, stored=stored, **options) == result(df, **options)


def test_probing_finds_pairs_across_a_border(spark, clusters):
    x, _, distance = clusters
    centroids = unit(np.random.default_rng(0).standard_normal((6, 12)))
    cluster = ((x[:, None] - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
    df = frame(spark, x, cluster, distance)
    one = result(df, pairwise_batch_size=7, n_probe=1, centroids=centroids)
    two = result(df, pairwise_batch_size=7, n_probe=2, centroids=centroids)
    every = result(df, pairwise_batch_size=7, n_probe=9, centroids=centroids)
    whole = brute(x, np.zeros(len(x)), distance, descending=True)
    assert one == result(df)
    first = [i for i, (m, _) in whole.items() if m == i]
    assert {i: s for i, (_, s) in every.items()} == pytest.approx(
        {i: s for i, (_, s) in whole.items()}, abs=1e-6
    )
    for i in set(range(len(x))) - set(first):
        assert two[i][1] <= whole[i][1] + 1e-6
        if one[i][0] != i:
            assert one[i][1] <= two[i][1]
    assert sum(two[i][1] > one[i][1] for i in two) > 0


def test_blocks_are_balanced_and_the_largest_work_comes_first(spark):
    sizes = {0: 900, 1: 40, 2: 40, 3: 1}
    rows = spark.createDataFrame([(c, i) for c, n in sizes.items() for i in range(n)], "_c int, _k0 long")
    plan = plan_units(rows, cluster="_c", keys=["_k0"], ascending=[True], batch=10, slots=2)
    units = {
        r["_c"]: (sorted((u.block, u.unit, u.slot) for u in r["_units"]), r["_starts"])
        for r in plan.collect()
    }
    # A quarter of all pairs, 101,650, over 900 rows: blocks of 113, so eight of them.
    blocks, starts = units[0]
    assert [b for b, _, _ in blocks] == list(range(8))
    assert sorted(s["_k0"] for s in starts) == [113 * b for b in range(1, 8)]
    assert units[1][1] is None
    # The last block has the most rows before it; the small clusters come after all of them.
    assert [u for _, u, _ in blocks] == [7, 6, 5, 4, 3, 2, 1, 0]
    slots = {u: s for us, _ in units.values() for _, u, s in us}
    assert [slots[u] for u in range(11)] == [0, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5]


def sent(x, order, cut):
    """The rows of one cluster as the tasks get them: each block's queries, then the earlier blocks."""
    blocks = np.array_split(order, cut)
    for unit, block in enumerate(blocks):
        for query, rows in [(True, block), *((False, b) for b in blocks[:unit])]:
            yield pa.RecordBatch.from_pydict(
                {
                    "_unit": pa.array([unit] * len(rows), pa.int32()),
                    "_query": pa.array([query] * len(rows)),
                    "_id": pa.array(rows),
                    "_e": from_matrix(x[rows]),
                }
            )


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_task_matches_brute_force_on_either_device(clusters, cut):
    x = clusters[0][3:63]
    order = np.random.default_rng(0).permutation(60)
    expected = brute(x[order], np.zeros(60), np.arange(60), descending=False)
    called = []

    def calls(name, *args):
        """NumPy in the GPU library's place."""
        called.append(name)
        return 1 if name == "device_count" else None if name == "set_device" else np.array(*args)

    for device in (None, calls):
        found = pa.Table.from_batches(matcher(16, device)(sent(x, order, cut))).to_pylist()
        for place, row in enumerate(found):
            match, score = expected[place]
            assert row["id"] == order[place]
            if match == place:
                assert row["max_id"] is row["cosine_sim_score"] is None
            else:
                assert (row["max_id"], row["cosine_sim_score"]) == (
                    order[match],
                    pytest.approx(score, abs=1e-6),
                )
    assert called.count("to_host") == 2 * (cut + cut * (cut - 1) // 2)


def test_slot_keys_hash_to_their_partition(spark):
    for count in (1, 2, 7, 64, 200):
        keys = spark.createDataFrame([(k,) for k in slot_keys(count)], "k int")
        places = [r.p for r in keys.select(F.pmod(F.hash("k"), F.lit(count)).alias("p")).collect()]
        assert places == list(range(count))


def test_bad_arguments(spark, clusters):
    df = frame(spark, *clusters)
    with pytest.raises(InputError, match="pairwise_batch_size"):
        pairwise_similarity(df, pairwise_batch_size=0)
    with pytest.raises(InputError, match="'centroid' not found"):
        pairwise_similarity(df.drop("centroid"))
    with pytest.raises(InputError, match="centroids"):
        pairwise_similarity(df, n_probe=2)
    with pytest.raises(InputError, match="n_probe"):
        pairwise_similarity(df, n_probe=0)


def test_an_unusable_embedding_is_named(spark):
    df = frame(spark, np.array([[1, 0], [0, 0]], np.float32), [0, 0], [0, 1])
    with pytest.raises(Exception, match="zero or not finite; ids 1"):
        pairwise_similarity(df).collect()


def test_connect(run_connect):
    run_connect(
        """
from spark_dedup.semantic.identify import identify_semantic
from spark_dedup.semantic.pairwise import pairwise_similarity

rows = [(i, [1.0, 0.0] if i % 2 else [0.6, 0.8], 0, i / 10) for i in range(6)]
df = spark.createDataFrame(rows, "id long, embeddings array<float>, centroid int, cosine_dist_to_cent float")
pairs = pairwise_similarity(df, which_to_keep="easy", pairwise_batch_size=1)
found = {r.id: (r.max_id, round(r.cosine_sim_score, 6)) for r in pairs.collect()}
assert found == {0: (0, 0.0), 1: (0, 0.6), 2: (0, 1.0), 3: (1, 1.0), 4: (0, 1.0), 5: (1, 1.0)}, found
ledger = {r.id: r.kept_id for r in identify_semantic(pairs, eps=0.01).collect()}
assert ledger == {2: 0, 3: 1, 4: 0, 5: 1}, ledger
"""
    )
