"""A clone keeps no data file that its log does not name, and loses none that it does."""

import pyarrow as pa
import pyarrow.parquet as pq

from spark_dedup.datasets import find_source
from spark_dedup.names import path_relation
from spark_dedup.removal.delta import clone_without, drop_empty_files


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
