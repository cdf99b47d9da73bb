"""Exact matching against a hash table: any texts, any partitioning, any order; the ledger's rows."""

import hashlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sessions import plan_of

from spark_dedup import identify_exact
from spark_dedup.errors import InputError
from spark_dedup.exact import keep_order
from spark_dedup.kernels.hashing import xxhash64_ints, xxhash64_strings
from spark_dedup.tables import LEDGER_COLUMNS

LEAN = settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
DOCUMENTS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.sampled_from(["", "a", "A", "a ", "é", "e\u0301", "\u0000", "x" * 300])),
        st.integers(0, 2),
    ),
    max_size=30,
)


def by_hash_table(rows):
    """Return id → (survivor, md5) of the rows to remove; a row is (order, id, text)."""
    groups = {}
    for row in rows:
        groups.setdefault(row[2] or "", []).append(row)
    return {
        row[1]: (members[0][1], hashlib.md5(text.encode()).hexdigest())
        for text, members in ((text, sorted(found)) for text, found in groups.items())
        for row in members[1:]
    }


@LEAN
@given(documents=DOCUMENTS, parts=st.integers(1, 7), seed=st.randoms(use_true_random=False))
def test_any_partitioning_gives_what_a_hash_table_gives(spark, documents, parts, seed):
    rows = [(rank, number, text) for number, (text, rank) in enumerate(documents)]
    shuffled = rows.copy()
    seed.shuffle(shuffled)
    schema = "rank int, id int, text string"
    df = spark.createDataFrame(shuffled, schema).repartition(parts)
    smallest = {r["id"]: (r["kept_id"], r["group_id"]) for r in identify_exact(df, id_field="id").collect()}
    assert smallest == by_hash_table([(0, *row[1:]) for row in rows])
    ranked = identify_exact(df, id_field="id", keep="rank", verify=True).collect()
    assert {r["id"]: (r["kept_id"], r["group_id"]) for r in ranked} == by_hash_table(rows)
    removed = set(smallest)
    texts = [text or "" for _, number, text in rows if number not in removed]
    assert len(texts) == len(set(texts))
    assert set(texts) == {text or "" for _, _, text in rows}


def test_xxhash64_finds_the_same_groups(spark):
    texts = ["x", "", None, "x" * 31, "x" * 32, "x" * 33, "é" * 200, "x", "", "x" * 32, "é" * 200, "e" * 200]
    df = spark.createDataFrame(list(enumerate(texts)), "id int, text string").repartition(3)
    rows = [(0, number, text) for number, text in enumerate(texts)]
    found = identify_exact(df, id_field="id", hash_method="xxhash64").collect()
    assert {r["id"]: r["kept_id"] for r in found} == {
        number: kept for number, (kept, _) in by_hash_table(rows).items()
    }
    assert {r["id"]: r["group_id"] for r in found} == {
        r["id"]: two_seeds(texts[r["id"]] or "") for r in found
    }


def two_seeds(text):
    """XXH64 of a text under Spark's seed and under the hash of the number 1, as NumPy computes it."""
    data, ends = np.frombuffer(text.encode(), np.uint8), np.array([0, len(text.encode())])
    second = int(xxhash64_ints(np.array([1], np.int32))[0])
    return "".join(f"{int(xxhash64_strings(data, ends, seed)[0]):016x}" for seed in (42, second))


def test_an_unknown_hash_is_named(spark):
    df = spark.createDataFrame([(1, "x")], "id int, text string")
    with pytest.raises(InputError, match="hash_method must be one of md5, xxhash64, not 'sha1'"):
        identify_exact(df, id_field="id", hash_method="sha1")


def test_ledger_rows(spark):
    df = spark.createDataFrame(
        [("b", "x"), ("a", "x"), ("c", None), ("d", ""), ("e", "y")], "id string, text string"
    )
    found = df.transform(lambda d: identify_exact(d, text_field="text", id_field="id"))
    assert tuple(found.columns) == LEDGER_COLUMNS
    assert [kind for _, kind in found.dtypes] == ["string"] * 5 + ["double"]
    empty = "d41d8cd98f00b204e9800998ecf8427e"  # md5 of nothing, RFC 1321
    x = "9dd4e461268c8034f5c8564e155c67a6"  # md5sum of the letter x
    want = [("b", "a", "a", x, "exact", 1.0), ("d", "c", "c", empty, "exact", 1.0)]
    assert sorted(map(tuple, found.collect())) == want


def test_only_hashes_are_shuffled(spark, tmp_path):
    spark.createDataFrame([(1, "x")], "id int, text string").write.parquet(str(tmp_path / "docs"))
    df = spark.read.parquet(str(tmp_path / "docs"))
    for verify in (False, True):
        plan = plan_of(identify_exact(df, id_field="id", verify=verify), "Optimized Logical")
        below = plan[plan.index("Repartition") :].splitlines()
        assert ("__spark_dedup_text" in below[1]) is verify
        assert "md5(" in below[2]


def test_survivor_by_columns_nulls_last(spark):
    rows = [(1, None, "a"), (2, 5, "b"), (3, 5, "a"), (4, 1, None)]
    df = spark.createDataFrame(
        [(*r, "t") for r in rows], "id int, `my quality` int, `the.date` string, text string"
    )

    def survivor(keep):
        return {r["kept_id"] for r in identify_exact(df, id_field="id", keep=keep).collect()}

    assert survivor(None) == {1}
    assert survivor([("my quality", "desc"), "the.date"]) == {3}
    assert survivor("my quality") == {4}
    assert survivor([("the.date", "DESC")]) == {2}


@pytest.mark.parametrize("kind", ["float", "double"])
def test_a_quality_that_is_no_number_comes_last(spark, kind):
    nan = float("nan")
    rows = [(0, "a", nan), (1, "a", 0.5), (2, "a", None), (3, "a", 0.9), (4, "b", nan), (5, "b", None)]
    df = spark.createDataFrame(rows, f"id long, text string, quality {kind}")
    for direction, kept in (("desc", 3), ("asc", 1)):
        found = identify_exact(df, id_field="id", keep=[("quality", direction)]).collect()
        assert {r["kept_id"] for r in found} == {kept, 4}


def test_ansi_mode_makes_no_difference(spark):
    df = spark.createDataFrame([(1, "x"), (2, "x")], "id bigint, text string")
    spark.conf.set("spark.sql.ansi.enabled", "false")
    try:
        assert identify_exact(df, id_field="id").count() == 1
    finally:
        spark.conf.unset("spark.sql.ansi.enabled")


def test_bad_arguments(spark):
    df = spark.createDataFrame([(1, "x")], "id int, text string")
    with pytest.raises(InputError, match="column 'body' not found in the documents; it has id, text"):
        identify_exact(df, text_field="body", id_field="id")
    with pytest.raises(InputError, match="column 'key' not found"):
        identify_exact(df, id_field="key")
    with pytest.raises(InputError, match="text column 'id' is int, not string"):
        identify_exact(df, text_field="id", id_field="id")
    with pytest.raises(InputError, match="column 'date' not found"):
        identify_exact(df, id_field="id", keep="date")


def test_keep_takes_columns_and_pairs():
    assert keep_order(None) == []
    assert keep_order("date") == [("date", False)]
    assert keep_order(["date", ("quality", "Desc")]) == [("date", False), ("quality", True)]
    for wrong in ([("a", "b", "c")], [("a", "down")]):
        with pytest.raises(InputError, match="keep takes columns"):
            keep_order(wrong)
