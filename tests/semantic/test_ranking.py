import pytest
from pyspark.sql import Window
from pyspark.sql import functions as F

from spark_dedup.errors import InputError
from spark_dedup.semantic.ranking import RankingStrategy, order_keys, precedes, rank_order

ROWS = [
    # id, cosine, l2, quality, source
    (3, 0.5, 0.1, 1.0, "b"),
    (1, 0.5, 0.9, float("nan"), "a"),
    (2, 0.1, 0.5, None, None),
    (4, 0.9, 0.2, 2.0, "a"),
    (5, 0.1, 0.5, 2.0, None),
]


@pytest.fixture(scope="module")
def rows(spark):
    schema = "id long, cosine_dist_to_cent float, l2_dist_to_cent float, `quality %` double, source string"
    return spark.createDataFrame(ROWS, schema)


def keyed(rows, **kwargs):
    """Return the id and the key values, the names of these, and their directions."""
    keys = order_keys(rows, id_field="id", **kwargs)
    names = [f"k{i}" for i in range(len(keys))]
    columns = [key.column.alias(name) for key, name in zip(keys, names, strict=True)]
    return rows.select("id", *columns), names, [key.ascending for key in keys]


def ranked(rows, **kwargs):
    values, names, ascending = keyed(rows, **kwargs)
    return [r.id for r in values.orderBy(*rank_order(names, ascending)).collect()]


def test_hard_ranks_the_farthest_first_and_easy_the_nearest(rows):
    assert ranked(rows, which_to_keep="hard") == [4, 3, 1, 5, 2]
    assert ranked(rows, which_to_keep="easy") == [2, 5, 1, 3, 4]
    assert ranked(rows, which_to_keep="hard", distance_metric="l2") == [1, 5, 2, 4, 3]
    assert ranked(rows, which_to_keep="easy", distance_metric="l2") == [3, 4, 2, 5, 1]


def test_metadata_with_ties_by_id_and_missing_values_last(rows):
    up = RankingStrategy.metadata_based(["quality %"])
    down = RankingStrategy(["quality %"], ascending=False)
    assert ranked(rows, ranking_strategy=up) == [3, 4, 5, 1, 2]
    assert ranked(rows, ranking_strategy=down) == [4, 5, 3, 1, 2]
    mixed = RankingStrategy(["source", "quality %"], ascending=[True, False])
    assert ranked(rows, ranking_strategy=mixed) == [4, 1, 3, 5, 2]


def test_random_is_seeded_and_does_not_depend_on_partitions(rows):
    first = ranked(rows, which_to_keep="random")
    assert first == ranked(rows.repartition(3), ranking_strategy=RankingStrategy.random(42))
    assert sorted(first) == [1, 2, 3, 4, 5]
    assert any(ranked(rows, ranking_strategy=RankingStrategy.random(s)) != first for s in (1, 2, 3))


def test_precedes_agrees_with_the_sort_order(rows):
    for strategy in (
        RankingStrategy(["source", "quality %"], ascending=[True, False]),
        RankingStrategy(["quality %", "cosine_dist_to_cent"], ascending=[False, True]),
    ):
        values, names, ascending = keyed(rows, ranking_strategy=strategy)
        place = F.row_number().over(Window.orderBy(*rank_order(names, ascending)))
        a = values.select(place.alias("place"), *names)
        b = a.select(*[F.col(c).alias("b_" + c) for c in a.columns])
        before = precedes([F.col(n) for n in names], [F.col("b_" + n) for n in names], ascending)
        wrong = a.crossJoin(b).filter(~before.eqNullSafe(F.col("place") < F.col("b_place")))
        assert wrong.collect() == []


def test_errors(rows):
    with pytest.raises(ValueError, match=r"Length of ascending \(1\) must match metadata_cols \(2\)"):
        RankingStrategy(["a", "b"], ascending=[True])
    with pytest.raises(ValueError, match=r"Invalid strategy: x\. Supported: 'sort', 'random'"):
        RankingStrategy(["a"], strategy="x")
    with pytest.raises(ValueError, match="at least one column"):
        RankingStrategy([])
    with pytest.raises(ValueError, match=r"Required columns \['absent'\] not found"):
        order_keys(rows, id_field="id", ranking_strategy=RankingStrategy(["absent"]))
    with pytest.raises(ValueError, match=r"Required columns \['cosine_dist_to_cent'\] not found"):
        order_keys(rows.drop("cosine_dist_to_cent"), id_field="id")
    with pytest.raises(InputError, match="which_to_keep must be"):
        order_keys(rows, id_field="id", which_to_keep="best")
    with pytest.raises(InputError, match="distance_metric must be"):
        order_keys(rows, id_field="id", distance_metric="l1")
