"""Anti join of documents and ids: rows, columns, order; ids that cannot match."""

import pytest

from spark_dedup import identify_exact, remove_duplicates
from spark_dedup.errors import InputError
from spark_dedup.removal.passes import locate
from spark_dedup.removal.text import count_documents, count_listed

FIELDS = {"id_field": "the id", "duplicate_id_field": "gone"}


def test_rows_not_listed_stay_in_order(spark):
    df = spark.createDataFrame(
        [(i if i != 4 else None, f"t{i}") for i in range(9, -1, -1)], "`the id` int, t string"
    )
    listed = spark.createDataFrame([(2,), (2,), (7,), (99,), (None,)], "gone bigint")
    kept = df.coalesce(1).transform(lambda d: remove_duplicates(d, listed, **FIELDS))
    assert [row["t"] for row in kept.collect()] == ["t9", "t8", "t6", "t5", "t4", "t3", "t1", "t0"]
    assert kept.columns == ["the id", "t"]
    assert count_documents(df, listed, **FIELDS) == (10, 2)
    assert count_listed(df, listed, **FIELDS) == 2
    assert count_documents(df, listed, **FIELDS, is_long=True) == (10, 2)
    assert count_listed(df, listed, **FIELDS, is_long=True) == 2


def test_duplicates_found_in_the_same_frame(spark):
    df = spark.createDataFrame([("a", "x"), ("b", "x"), ("c", "y")], "id string, text string")
    kept = remove_duplicates(df, identify_exact(df, id_field="id"), id_field="id")
    assert sorted(row["id"] for row in kept.collect()) == ["a", "c"]


@pytest.mark.parametrize("kinds", [("CHAR(4)", "STRING"), ("STRING", "CHAR(5)"), ("CHAR(4)", "CHAR(5)")])
def test_blanks_at_the_end_of_a_char_do_not_count(spark, kinds):
    """Spark pads a CHAR as it reads it, and lists of ids come from elsewhere too."""
    names = ("char_documents", "char_list")
    try:
        for name, kind in zip(names, kinds, strict=True):
            spark.sql(f"CREATE TABLE {name} (id {kind}, n INT) USING parquet")
        spark.sql("INSERT INTO char_documents VALUES ('a', 1), ('bb', 2), ('cccc', 3), (NULL, 4)")
        spark.sql("INSERT INTO char_list VALUES ('bb', 1), ('cccc ', 2), ('cccc', 3), ('x', 4), (NULL, 5)")
        df, listed = map(spark.table, names)
        fields = {"id_field": "id", "duplicate_id_field": "id"}
        for broadcast in (True, False):
            kept = remove_duplicates(df, listed, **fields, broadcast=broadcast)
            assert sorted(row["n"] for row in kept.collect()) == [1, 4]
            assert count_documents(df, listed, **fields, is_long=not broadcast) == (4, 2)
            assert count_listed(df, listed, **fields, is_long=not broadcast) == 2
        assert sorted(r["id"].rstrip() for r in locate(df, listed, **fields).collect()) == ["bb", "cccc"]
    finally:
        for name in names:
            spark.sql(f"DROP TABLE IF EXISTS {name}")


def test_ids_that_cannot_match(spark):
    df = spark.createDataFrame([(1, "1")], "id int, name string")
    with pytest.raises(
        InputError, match="'id' of the documents is int, 'name' of the list of duplicate ids is string"
    ):
        remove_duplicates(df, df, id_field="id", duplicate_id_field="name")
    with pytest.raises(InputError, match="column 'key' not found in the documents; it has id, name"):
        remove_duplicates(df, df, id_field="key")
    with pytest.raises(InputError, match="column 'gone' not found in the list of duplicate ids"):
        remove_duplicates(df, df, id_field="id", duplicate_id_field="gone")
