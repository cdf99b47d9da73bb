import random

import pytest
from pyspark.sql import functions as F

from spark_dedup.errors import InputError
from spark_dedup.semantic.identify import identify_semantic
from spark_dedup.semantic.sweep import sweep
from spark_dedup.tables import LEDGER_COLUMNS

SCHEMA = "id long, max_id long, cosine_sim_score float"


def ledger(pairs, **kwargs):
    return {r.id: r for r in identify_semantic(pairs, **kwargs).collect()}


def test_threshold_counts_exactly_one_minus_eps(spark):
    pairs = spark.createDataFrame(
        [(0, 0, 0.0), (1, 0, 0.95), (2, 0, 0.9499), (3, 0, 0.9499995), (4, 0, 1.0)], SCHEMA
    )
    assert set(ledger(pairs, eps=0.05)) == {1, 3, 4}
    assert set(ledger(pairs, eps=0.0)) == {4}


def test_many_thresholds_from_one_pass(spark):
    pairs = spark.createDataFrame([(i, 0, i / 100) for i in range(101)], SCHEMA)
    assert [identify_semantic(pairs, eps=e).count() for e in (0.0, 0.1, 0.5, 0.9)] == [1, 11, 51, 91]


def test_a_record_without_a_match_is_never_removed(spark):
    pairs = spark.createDataFrame([(0, 0, 0.0), (1, 0, 0.2)], SCHEMA)
    assert set(ledger(pairs, eps=0.9999999)) == {1}


def test_pairs_that_change_between_reads_are_read_once(spark):
    pairs = spark.createDataFrame([(0, 0, 0.0), *((i, i - 1, 1.0) for i in range(1, 200))], SCHEMA)
    drawn = F.udf(lambda _: random.SystemRandom().random() < 0.5, "boolean").asNondeterministic()
    rows = identify_semantic(pairs.where(drawn("id")), eps=0.05)
    removed = {r.id for r in rows.collect()}
    assert 60 < len(removed) < 140
    assert {r.id for r in rows.collect()} == removed
    assert not {r.kept_id for r in rows.collect()} & removed


def test_a_score_that_is_no_number_removes_nothing(spark):
    """To Spark NaN is greater than 1; pandas and cuDF, which other tools filter with, keep such a record."""
    rows = [(0, 0, 0.0), (1, 0, float("nan")), (2, 0, None), (3, 0, 1.0)]
    pairs = spark.createDataFrame(rows, SCHEMA)
    assert set(ledger(pairs, eps=0.05)) == {3}
    swept = sweep(pairs, eps=[0.05])
    assert (swept.rows[0].removed, swept.rows[0].kept, swept.counts.sum()) == (1, 3, 1)


def test_chains_end_at_a_survivor(spark):
    length = 37
    rows = [("r00", "r00", 0.0)] + [(f"r{i:02}", f"r{i - 1:02}", 0.99) for i in range(1, length)]
    rows += [("x", "r20", 0.5), ("y", "x", 0.999), ("z", "y", 0.97)]
    pairs = spark.createDataFrame(rows, "id string, max_id string, cosine_sim_score float")
    found = ledger(pairs, eps=0.05)
    assert len(found) == length - 1 + 2
    assert {found[f"r{i:02}"].kept_id for i in range(1, length)} == {"r00"}
    assert (found["y"].kept_id, found["z"].kept_id) == ("x", "x")
    assert (found["z"].matched_id, found["z"].method) == ("y", "semantic")
    assert found["z"].score == pytest.approx(0.97)


def test_ledger_columns_and_group(spark):
    pairs = spark.createDataFrame([(0, 0, 0.0), (1, 0, 1.0), (2, 1, 0.99)], SCHEMA)
    out = identify_semantic(pairs, eps=0.05)
    assert out.columns == list(LEDGER_COLUMNS)
    types = dict(out.dtypes)
    assert (types["id"], types["kept_id"], types["group_id"], types["score"]) == (
        "bigint",
        "bigint",
        "string",
        "double",
    )
    assert {r.group_id for r in out.collect()} == {"0"}
    clusters = spark.createDataFrame([(0, 7), (1, 7), (2, 7)], "id long, centroid int")
    assert {r.group_id for r in identify_semantic(pairs, eps=0.05, clusters=clusters).collect()} == {"7"}
    named = pairs.withColumnRenamed("id", "doc id")
    assert identify_semantic(named, eps=0.05, id_field="doc id").columns == list(LEDGER_COLUMNS)


def test_a_group_of_ids_that_are_bytes_is_named_by_their_digits(spark):
    pairs = spark.sql("SELECT X'FF00' AS id, X'FE01' AS max_id, 1F AS cosine_sim_score")
    (row,) = identify_semantic(pairs, eps=0.05).collect()
    assert (bytes(row.kept_id), row.group_id) == (b"\xfe\x01", "FE01")


def test_a_group_across_clusters_is_named_by_its_survivor(spark):
    pairs = spark.createDataFrame([(0, 0, 0.0), (1, 0, 1.0), (2, 1, 0.99), (3, 3, 0.0)], SCHEMA)
    clusters = spark.createDataFrame([(0, 7), (1, 8), (2, 9), (3, 9)], "id long, centroid int")
    found = ledger(pairs, eps=0.05, clusters=clusters)
    assert {i: (r.kept_id, r.group_id) for i, r in found.items()} == {1: (0, "7"), 2: (0, "7")}


def test_nothing_to_remove(spark):
    assert identify_semantic(spark.createDataFrame([], SCHEMA), eps=0.1).collect() == []


@pytest.mark.parametrize("eps", [-0.1, 1.0, 2, float("nan"), None, "0.1", True])
def test_eps_outside_its_range(spark, eps):
    with pytest.raises(ValueError, match="eps must be at least 0 and less than 1"):
        identify_semantic(spark.createDataFrame([], SCHEMA), eps=eps)


def test_a_missing_column_and_a_circle_are_named(spark):
    with pytest.raises(InputError, match="'max_id'"):
        identify_semantic(spark.createDataFrame([], "id long, cosine_sim_score float"), eps=0.1)
    circle = spark.createDataFrame([(1, 2, 1.0), (2, 3, 1.0), (3, 1, 1.0)], SCHEMA)
    with pytest.raises(InputError, match="circle"):
        identify_semantic(circle, eps=0.1)
