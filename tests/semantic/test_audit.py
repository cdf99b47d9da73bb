import numpy as np
import pytest

from spark_dedup.errors import InputError
from spark_dedup.semantic.audit import audit_recall
from spark_dedup.semantic.recall import ratio_interval
from spark_dedup.settings import settings

SCHEMA = "id string, embeddings array<float>, centroid int"


@pytest.fixture(scope="module")
def data():
    """300 records in groups of three that are near copies, in six clusters whose borders cut some groups."""
    rng = np.random.default_rng(3)
    x = np.repeat(rng.standard_normal((100, 6)), 3, axis=0) + 0.15 * rng.standard_normal((300, 6))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    centroids = x[rng.choice(300, 6, replace=False)] * np.float32(0.9)
    order = ((x[:, None] - centroids[None]) ** 2).sum(axis=2).argsort(axis=1)
    return x, centroids, order


@pytest.fixture(scope="module")
def assigned(spark, data):
    x, _, order = data
    rows = [(f"r{i:03}", v.tolist(), int(order[i, 0])) for i, v in enumerate(x)]
    return spark.createDataFrame(rows, SCHEMA)


def truth(data, eps, probes):
    """True pairs, those compared, and the multiplications, by brute force."""
    x, _, order = data
    similar = x.astype(float) @ x.astype(float).T >= 1 - eps - 1e-6
    np.fill_diagonal(similar, False)
    member = np.zeros((300, 6), bool)
    np.put_along_axis(member, order[:, :probes], True, axis=1)
    together = (member.astype(int) @ member.T.astype(int)) > 0
    sizes = member.sum(axis=0)
    return similar.sum(), (similar & together).sum(), (sizes * (sizes - 1) / 2).sum()


def test_a_sample_of_everything_gives_the_truth(assigned, data):
    audit = audit_recall(assigned, eps=[0.05, 0.2], n_probe=3, centroids=data[1], sample_size=300)
    assert (audit.sample_size, audit.num_documents) == (300, 300)
    one = truth(data, 0.05, 1)[2]
    for row in audit.rows:
        pairs, found, cost = truth(data, row.eps, row.n_probe)
        assert (row.pairs, row.found) == (pairs, found)
        assert row.recall == row.low == row.high == pytest.approx(found / pairs)
        assert row.cost == pytest.approx(cost / one)
    assert [r.n_probe for r in audit.rows] == [1, 2, 3] * 2
    assert audit.rows[0].recall < audit.rows[1].recall <= audit.rows[2].recall


@pytest.mark.parametrize(
    ("ids", "first"),
    [
        ("binary", "FF00"),
        # 2026-10-25 has the hour from 2 to 3 o'clock twice in Berlin.
        ("timestamp", "2026-10-25 02:00:00"),
    ],
)
def test_ids_that_are_no_text_or_have_their_text_twice(spark, ids, first):
    made = {
        "binary": "unhex(concat('FF', lpad(hex(id), 2, '0')))",
        "timestamp": "timestamp_seconds(unix_timestamp('2026-10-25 00:00:00') + id * 600)",
    }
    with settings(spark, {"spark.sql.session.timeZone": "UTC"}):
        rows = spark.range(12).selectExpr(
            f"{made[ids]} AS id",
            "array(cast(1 AS float), cast(id % 3 AS float)) AS embeddings",
            "cast(id / 6 AS int) AS centroid",
        )
        rows = rows.localCheckpoint()
    with settings(spark, {"spark.sql.session.timeZone": "Europe/Berlin"}):
        audit = audit_recall(rows, eps=0.001, sample_size=100, missed=50)
    # Three groups of four equal vectors, two of each in either cluster.
    assert (audit.rows[0].pairs, audit.rows[0].found) == (12 * 3, 12)
    assert min(pair.id for pair in audit.missed) == first


def test_missed_pairs_are_true_and_apart(assigned, data):
    x, _, order = data
    audit = audit_recall(assigned, eps=np.float32(0.125), sample_size=300, missed=5)
    assert 0 < len(audit.missed) <= 5
    for pair in audit.missed:
        i, j = int(pair.id[1:]), int(pair.other_id[1:])
        assert x[i] @ x[j] == pytest.approx(pair.score, abs=1e-6)
        assert pair.score >= 0.875 - 1e-6
        assert order[i, 0] != order[j, 0]


def test_a_sample_is_the_same_for_any_partitioning_and_its_interval_holds_the_truth(assigned, data):
    first = audit_recall(assigned, eps=0.1, sample_size=80)
    again = audit_recall(assigned.repartition(5), eps=0.1, sample_size=80)
    assert first.rows == again.rows
    pairs, found, _ = truth(data, 0.1, 1)
    assert first.rows[0].low <= found / pairs <= first.rows[0].high
    assert "95% interval" in first.table


def test_interval_covers_clustered_pairs_as_often_as_it_says():
    """Groups of 1 to 12 records, each group found or missed whole: pairs far from independent."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 13, 1500)
    true = np.repeat(sizes - 1, sizes)
    kept = np.repeat(rng.random(1500) < 0.8, sizes)
    found = true * kept
    share, covered = found.sum() / true.sum(), 0
    for _ in range(400):
        drawn = rng.choice(len(true), 300, replace=False)
        _, low, high = ratio_interval(found[drawn], true[drawn], population=len(true))
        covered += low <= share <= high
    assert 0.92 <= covered / 400 <= 0.985


def test_interval_at_the_edges():
    ones = np.ones(50, np.int64)
    assert ratio_interval(ones * 0, ones * 0, population=1000)[1:] == (0.0, 1.0)
    recall, low, high = ratio_interval(ones, ones, population=1000)
    assert (recall, high) == (1.0, 1.0)
    assert 0.9 < low < 1
    recall, low, high = ratio_interval(ones * 0, ones, population=1000)
    assert (recall, low) == (0.0, 0.0)
    assert 0 < high < 0.1
    # All pairs of one record: fifty pairs tell no more than one draw.
    one = np.array([50] + [0] * 49)
    assert ratio_interval(one, one, population=1000)[1] < 0.25


def test_bad_arguments(assigned):
    for kwargs in ({"n_probe": 0}, {"sample_size": 0}, {"eps": []}):
        with pytest.raises(InputError, match="at least 1"):
            audit_recall(assigned, **{"eps": 0.1, **kwargs})
    with pytest.raises(InputError, match="centroids"):
        audit_recall(assigned, eps=0.1, n_probe=2)
    with pytest.raises(InputError, match="eps must be"):
        audit_recall(assigned, eps=1.5)
    with pytest.raises(InputError, match="no records"):
        audit_recall(assigned.limit(0), eps=0.1)
