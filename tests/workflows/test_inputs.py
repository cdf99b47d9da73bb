"""What jobs learn of their input before any work."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spark_4 import OLD

from spark_dedup import KMeansStage, TextDuplicatesRemovalWorkflow
from spark_dedup.errors import InputError
from spark_dedup.settings import VECTORIZED, conf_of, parquet_as_it_is, settings
from spark_dedup.workflows import inputs
from spark_dedup.workflows.inputs import inspect_input


def test_files_on_a_store_are_looked_at_as_local_ones(spark, store, monkeypatch):
    monkeypatch.setattr("spark_dedup.hadoop.require_client", lambda path: None)
    files = {
        "memory://bucket/in/0.parquet": {"id": [1, 2], "note": [None, None]},
        "memory://bucket/in/1.parquet": {"id": [3], "note": [0.5]},
    }
    for path, columns in files.items():
        with store.open(path, "wb") as file:
            pq.write_table(pa.table(columns), file, use_dictionary=False, use_byte_stream_split=["note"])
    with parquet_as_it_is(spark):
        assert conf_of(spark, VECTORIZED) == "true"
        found = inspect_input(spark, "memory://bucket/in", filetype="parquet", nulls_fit=True)
        assert conf_of(spark, VECTORIZED) == "false"
    assert found.num_rows == 3
    assert {file.path: rows for file, rows in found.rows.items()} == dict(zip(files, (2, 1), strict=True))
    assert found.parts == dict(zip(files, (frozenset({("note",)}), frozenset()), strict=True))


@pytest.mark.skipif(OLD, reason="variants come with Spark 4.0")
def test_variants_by_sparks_other_reader(spark, tmp_path):
    rows = [(i, [float(i + 1), 1.0], json.dumps({"a": i})) for i in range(4)]
    frame = spark.createDataFrame(rows, "id bigint, embeddings array<float>, v string")
    frame.selectExpr("id", "embeddings", "parse_json(v) AS v").write.parquet(str(tmp_path / "in"))
    spark.createDataFrame([(2,)], "id bigint").write.parquet(str(tmp_path / "ids"))
    with settings(spark, {"spark.sql.sources.useV1SourceList": ""}):
        TextDuplicatesRemovalWorkflow(
            tmp_path / "in", tmp_path / "ids", tmp_path / "kept", id_field="id"
        ).run(spark)
        KMeansStage(tmp_path / "in", tmp_path / "clusters", 2, metadata_fields=["v"]).run(spark)
    for path, ids in (("kept", [0, 1, 3]), ("clusters/kmeans_results", [0, 1, 2, 3])):
        read = spark.read.parquet(str(tmp_path / path)).selectExpr("id", "to_json(v)").orderBy("id")
        assert [tuple(row) for row in read.collect()] == [(i, f'{{"a":{i}}}') for i in ids]


def test_a_table_that_is_not_read_by_version(spark, monkeypatch):
    """As those with row filters on Databricks, which tell their history all the same."""
    spark.range(3).write.format("delta").saveAsTable("filtered")

    def refuses(*_, read_kwargs, **__):
        raise InputError(f"cannot read the table or view `filtered`: no time travel: {read_kwargs}")

    try:
        held = inputs.at_version(spark, "filtered", filetype="delta", read_kwargs={"a": 1, "b": None})
        assert held == {"a": 1, "versionAsOf": "0"}
        with settings(spark, {"spark.sql.files.ignoreCorruptFiles": "true"}):
            assert inputs.at_version(spark, "filtered", filetype="delta") == {"versionAsOf": "0"}
        monkeypatch.setattr(inputs, "read_dataset", refuses)
        assert inputs.at_version(spark, "filtered", filetype="delta") is None
        asked = {"timestampAsOf": "2026-01-01"}
        assert inputs.at_version(spark, "filtered", filetype="delta", read_kwargs=asked) == asked
    finally:
        spark.sql("DROP TABLE filtered")
