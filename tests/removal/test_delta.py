"""A clone keeps no data file that its log does not name, and loses none that it does."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import Observation
from pyspark.sql import functions as F
from sessions import another

from spark_dedup.errors import InputError
from spark_dedup.names import path_relation
from spark_dedup.removal.delta import clone_without, drop_empty_files
from spark_dedup.sources import Source, find_source


def test_only_empty_files_that_no_commit_names_go(spark, tmp_path):
    source, target = tmp_path / "source", tmp_path / "clone %20 ü'`"
    spark.range(10).coalesce(1).write.format("delta").save(str(source))
    found = find_source(spark, str(source))
    listed = spark.createDataFrame([(3,), (4,)], "id bigint")
    clone_without(
        spark, found, listed, path_relation("delta", str(target)), id_field="id", duplicate_id_field="id"
    )
    drop_empty_files(str(target))
    clone = spark.read.format("delta").load(str(target))
    assert sorted(r[0] for r in clone.collect()) == [0, 1, 2, 5, 6, 7, 8, 9]
    assert not list(target.glob("*.parquet"))

    spark.range(20, 21).coalesce(1).write.format("delta").mode("append").save(str(target))
    named = {p.name for p in target.glob("*.parquet")}
    pq.write_table(pa.table({"id": pa.array([], pa.int64())}), target / "part-0-empty.parquet")
    pq.write_table(pa.table({"id": [1]}), target / "part-0-rows.parquet")
    drop_empty_files(str(target))
    assert {p.name for p in target.glob("*.parquet")} == named | {"part-0-rows.parquet"}
    assert spark.read.format("delta").load(str(target)).count() == 9


def test_a_session_that_has_observed_is_named(spark, tmp_path):
    other = another(spark)
    other.range(3).observe(Observation(), F.count(F.lit(1)).alias("n")).collect()
    other.sql("CREATE TABLE seen USING parquet AS SELECT id FROM range(3)")
    try:
        with pytest.raises(InputError, match=r"cannot clone seen in a session where .*\.create\(\)"):
            clone_without(
                other,
                Source("table", ("seen",)),
                other.range(1),
                f"delta.`{tmp_path}/clone`",
                id_field="id",
                duplicate_id_field="id",
            )
    finally:
        other.sql("DROP TABLE seen")


@pytest.mark.parametrize("source", ["delta", "parquet"])
def test_ids_of_fixed_width_are_compared_without_blanks(spark, tmp_path, source):
    """A CHAR(4) is read padded, and so are the ids that were found; a list from elsewhere is not."""
    spark.sql(f"CREATE TABLE fixed_width (id CHAR(4), n INT) USING {source}")
    try:
        spark.sql("INSERT INTO fixed_width SELECT concat('k', id), id FROM range(10)")
        for blanks in (0, 2):
            listed = spark.range(3).select(F.concat(F.lit("k"), F.col("id"), F.lit(" " * blanks)).alias("id"))
            target = f"delta.`{tmp_path}/{blanks}`"
            table = Source("table", ("fixed_width",))
            clone_without(spark, table, listed, target, id_field="id", duplicate_id_field="id")
            assert sorted(row["n"] for row in spark.table(target).collect()) == [3, 4, 5, 6, 7, 8, 9]
    finally:
        spark.sql("DROP TABLE fixed_width")
    assert spark.conf.get("spark.sql.readSideCharPadding") == "true"
