import pytest
from ledger_rows import GROUPS, ROWS, SOURCES, rows

from spark_dedup import rules
from spark_dedup.errors import InputError
from spark_dedup.exact import identify_exact

TEXTS = {i: name for name, members in GROUPS.items() for i in members} | {4: "x", 11: "y", 12: "z"}


@pytest.fixture(scope="module")
def docs(spark):
    made = [(i, TEXTS[i], SOURCES[i]) for i in sorted(TEXTS)]
    return spark.createDataFrame(made, "id bigint, text string, `my.source` string").cache()


def survivors(found):
    return {r["group_id"]: r["kept_id"] for r in found.collect()}


def test_priority_by_source(docs):
    ranked = rules.with_source_rank(docs, source_field="my.source", priority=["books", "news"])
    found = identify_exact(ranked, text_field="text", id_field="id", keep=["_source_rank"])
    # a has a copy in books (6), b too (7), c none: news wins there with its smallest id.
    assert sorted(survivors(found).values()) == [3, 6, 7]


def test_protected_sources_lose_nothing(docs):
    ranked = rules.with_source_rank(docs, source_field="my.source", protected=["news"])
    found = identify_exact(ranked, text_field="text", id_field="id", keep=["_source_rank"])
    named = rules.with_sources(found, docs, id_field="id", source_field="my.source")
    left = rules.protect(named, ["news"])
    assert sorted(r["id"] for r in left.collect()) == [5, 6, 7, 10]
    assert {(r["id"], r["source"], r["kept_source"]) for r in left.collect()} == {
        (5, "web", "web"),
        (6, "books", "web"),
        (7, "books", "web"),
        (10, "web", "news"),
    }


def test_keep_longest(spark):
    near = spark.createDataFrame([(1, "ab"), (2, "abcd"), (3, None)], "id int, text string")
    got = rules.with_text_length(near, text_field="text").orderBy("id").collect()
    assert [r["_text_length"] for r in got] == [2, 4, 0]


def test_drop_all_copies(spark):
    found = rules.drop_all_copies(rows(spark)).collect()
    assert sorted(r["id"] for r in found) == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert {r["kept_id"] for r in found} == {None}
    assert {r["id"]: r["source"] for r in found} == {i: SOURCES[i] for g in GROUPS.values() for i in g}


def test_drop_all_copies_but_protected_ones(spark):
    found = rules.drop_all_copies(rows(spark), protected=["news"]).collect()
    assert sorted(r["id"] for r in found) == [1, 2, 5, 6, 7, 8, 9, 10]
    # Only c has a survivor in news; 8 and 9 are for protect to leave out.
    assert {(r["kept_id"], r["kept_source"]) for r in found if r["group_id"] == "c"} == {(3, "news")}
    assert {(r["kept_id"], r["kept_source"]) for r in found if r["group_id"] != "c"} == {(None, None)}
    with pytest.raises(InputError, match="'kept_source' not found in the ledger rows"):
        rules.drop_all_copies(rows(spark).drop("source", "kept_source"), protected=["news"])


def test_drop_all_copies_tells_the_groups_of_a_centroid_apart(spark):
    # Two chains in centroid 7: 3 → 2 → 1, with 4 nearest to 1, and 9 → 8.
    chains = [(2, 1, 1, 0.96), (3, 2, 1, 0.99), (4, 1, 1, 0.98), (9, 8, 8, 0.97)]
    made = [(i, m, k, "7", "semantic", s) for i, m, k, s in chains]
    schema = "id bigint, matched_id bigint, kept_id bigint, group_id string, method string, score double"
    found = rules.drop_all_copies(spark.createDataFrame(made, schema))
    assert found.columns == [name.split()[0] for name in schema.split(", ")]
    assert {(r["id"], r["matched_id"], r["kept_id"], r["group_id"], r["score"]) for r in found.collect()} == {
        (1, 4, None, "7:1", 0.98),
        (2, 1, None, "7:1", 0.96),
        (3, 2, None, "7:1", 0.99),
        (4, 1, None, "7:1", 0.98),
        (8, 9, None, "7:8", 0.97),
        (9, 8, None, "7:8", 0.97),
    }


def test_rules_by_source_are_lists_and_need_a_column():
    def check(field="source", priority=(), protected=(), limit=None):
        rules.check_source_rules(field, priority=priority, protected=protected, max_removed_fraction=limit)

    check()
    check(None, limit=0.5)
    check(priority=["a"], protected=("b",), limit={"a": 0.5})
    for given in ({"priority": ["a"]}, {"protected": ["a"]}, {"limit": {"a": 0.5}}):
        with pytest.raises(InputError, match="rules by source need source_field"):
            check(None, **given)
    with pytest.raises(InputError, match=r"source_priority takes a list of sources: write \['a'\], not 'a'"):
        check(priority="a")


def test_count_by_source(docs):
    assert rules.count_by_source(docs, source_field="my.source") == {"web": 5, "books": 3, "news": 4}


class TestSurvivors:
    def test_good_rows_pass(self, spark):
        rules.check_survivors(rows(spark))
        rules.check_survivors(rules.drop_all_copies(rows(spark)), drop_all=True)
        rules.check_survivors(rows(spark, []))

    def test_a_chain_is_found(self, spark):
        chain = [*ROWS, (1, 5, 5, "a", "exact", 1.0, None, None)]
        with pytest.raises(RuntimeError, match=r"(1|5) \(survivor and removed\)"):
            rules.check_survivors(rows(spark, chain))

    def test_a_record_without_a_survivor_is_found(self, spark):
        with pytest.raises(RuntimeError, match=r"\d+ \(without a survivor\)"):
            rules.check_survivors(rules.drop_all_copies(rows(spark)))

    def test_a_dropped_survivor_that_another_record_names_is_found(self, spark):
        mixed = rules.drop_all_copies(rows(spark)).unionByName(rows(spark, ROWS[:1]))
        with pytest.raises(RuntimeError, match=r"1 \(survivor and removed\)|5 \(removed 2 times\)"):
            rules.check_survivors(mixed, drop_all=True)

    def test_a_record_removed_twice_is_found(self, spark):
        with pytest.raises(RuntimeError, match=r"5 \(removed 2 times\)"):
            rules.check_survivors(rows(spark, [*ROWS, ROWS[0]]))


class TestStops:
    def check(self, spark, limit):
        totals = {"web": 5, "books": 3, "news": 4}
        rules.check_removed(
            rows(spark), num_documents=12, max_removed_fraction=limit, documents_by_source=totals
        )

    def test_exactly_the_limit_passes(self, spark):
        # Removed by hand: web 5, 10; books 6, 7; news 8, 9: 6 of 12.
        self.check(spark, 0.5)
        self.check(spark, {"*": 0.5, "web": 0.4, "books": 0.67, "news": 0.5})

    def test_the_whole(self, spark):
        with pytest.raises(rules.SafetyStopError, match=r"6 of 12 records of the input \(50.0%\)"):
            self.check(spark, 0.49)

    def test_one_source(self, spark):
        with pytest.raises(rules.SafetyStopError, match=r"2 of 3 records of source 'books' \(66.7%\)"):
            self.check(spark, {"*": 0.9, "books": 0.6})

    def test_an_unknown_source(self, spark):
        with pytest.raises(InputError, match=r"names the source 'wiki', which is not one of: \*, books"):
            self.check(spark, {"wiki": 0.5})

    def test_a_limit_that_is_no_fraction(self, spark):
        with pytest.raises(InputError, match=r"\[0, 1\], not 50"):
            self.check(spark, 50)

    def test_a_group(self, spark):
        rules.check_group_sizes(rows(spark), num_documents=12, max_cluster_fraction=4 / 12)
        with pytest.raises(rules.SafetyStopError, match=r"group c with survivor 3 holds 4 of 12 records"):
            rules.check_group_sizes(rows(spark), num_documents=12, max_cluster_fraction=0.3)

    def test_a_group_without_a_survivor(self, spark):
        dropped = rules.drop_all_copies(rows(spark))
        rules.check_group_sizes(dropped, num_documents=12, max_cluster_fraction=4 / 12)
        with pytest.raises(rules.SafetyStopError, match=r"group c holds 4 of 12 records"):
            rules.check_group_sizes(dropped, num_documents=12, max_cluster_fraction=0.3)
