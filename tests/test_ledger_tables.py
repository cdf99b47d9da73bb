"""The tables of a ledger: what they say of themselves, and which ones are refused, with nothing written."""

import os
import shutil

import pytest
from ledger_rows import REMOVED, ROWS, rows, run

from spark_dedup import ExactDeduplicationWorkflow, SemanticDeduplicationWorkflow
from spark_dedup.errors import InputError
from spark_dedup.ledger import open_ledger, read_duplicates, write_run

LAYOUT = "spark_dedup.ledger.layout"


def test_tables_explain_themselves(spark, tmp_path):
    ledger = write_run(spark, tmp_path, run(), rows(spark))
    for relation in (ledger.runs, ledger.duplicates):
        described = spark.sql(f"DESCRIBE {relation}").where("col_name rlike '^[a-z_]+$'").collect()
        assert described
        assert all(row["comment"] for row in described)
        detail = spark.sql(f"DESCRIBE DETAIL {relation}").first()
        assert detail["description"]
        assert detail["properties"][LAYOUT] == "1"


def test_in_a_schema_with_a_reserved_name(spark):
    spark.sql("CREATE SCHEMA IF NOT EXISTS `select`")
    try:
        ledger = write_run(spark, "`select`", run(), rows(spark))
        assert spark.table("`select`.runs").count() == 1
        assert {r["id"] for r in read_duplicates(spark, ledger).collect()} == REMOVED
    finally:
        spark.sql("DROP SCHEMA `select` CASCADE")


class TestErrors:
    def test_nothing_there(self, spark, tmp_path):
        with pytest.raises(InputError, match="no ledger at"):
            open_ledger(spark, tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_no_such_schema(self, spark):
        with pytest.raises(InputError, match=r"no schema `nosuch`.*write \./nosuch for a folder"):
            write_run(spark, "nosuch", run(), rows(spark))

    def test_foreign_table(self, spark, tmp_path):
        spark.range(3).write.format("delta").save(str(tmp_path / "duplicates"))
        with pytest.raises(InputError, match="no spark_dedup ledger"):
            write_run(spark, tmp_path, run(), rows(spark))
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize("role", ["runs", "duplicates"])
    @pytest.mark.parametrize(("layout", "mend"), [("0", "name a new ledger"), ("7", "update spark_dedup")])
    def test_other_layout(self, spark, tmp_path, role, layout, mend):
        ledger = write_run(spark, tmp_path, run(), rows(spark))
        relation = getattr(ledger, role)
        spark.sql(f"ALTER TABLE {relation} SET TBLPROPERTIES ('{LAYOUT}' = '{layout}')")
        says = f"{role}` has layout {layout}, spark_dedup .* works with layout 1: {mend}"
        with pytest.raises(InputError, match=says):
            open_ledger(spark, tmp_path)
        with pytest.raises(InputError, match=says):
            write_run(spark, tmp_path, run(input_version="new"), rows(spark, ROWS[:1]))
        assert spark.table(ledger.duplicates).count() == len(ROWS)
        assert spark.table(ledger.runs).count() == 1

    def test_a_layout_from_before_layouts_had_numbers(self, spark, tmp_path):
        ledger = write_run(spark, tmp_path, run(), rows(spark))
        spark.sql(f"ALTER TABLE {ledger.runs} UNSET TBLPROPERTIES ('{LAYOUT}')")
        with pytest.raises(
            InputError, match=r"has layout unknown, .*: name a new ledger and run the job again"
        ):
            open_ledger(spark, tmp_path)

    def test_a_foreign_table_beside_nothing(self, spark, tmp_path):
        spark.range(3).write.format("delta").save(str(tmp_path / "runs"))
        with pytest.raises(InputError, match="runs` exists and is no spark_dedup ledger"):
            write_run(spark, tmp_path, run(), rows(spark))
        assert [p.name for p in tmp_path.iterdir()] == ["runs"]

    def test_half_a_ledger(self, spark, tmp_path):
        write_run(spark, tmp_path, run(), rows(spark))
        shutil.rmtree(tmp_path / "duplicates")
        with pytest.raises(InputError, match=r"no ledger at .*duplicates` does not exist"):
            open_ledger(spark, tmp_path)

    def test_other_id_type(self, spark, tmp_path):
        write_run(spark, tmp_path, run(), rows(spark))
        texts = rows(spark).selectExpr(
            "string(id)", "string(matched_id)", "string(kept_id)", "* except (id, matched_id, kept_id)"
        )
        with pytest.raises(InputError, match="holds bigint ids, these are string"):
            write_run(spark, tmp_path, run(input_version="x"), texts)

    def test_jobs_look_before_they_work(self, spark, tmp_path):
        """A ledger that cannot take the run is refused before the job has written anything."""
        docs = tmp_path / "docs"
        spark.createDataFrame(
            [("a", "x", [1.0, 0.0]), ("b", "x", [0.0, 1.0])],
            "id string, text string, embeddings array<float>",
        ).coalesce(1).write.parquet(str(docs))
        write_run(spark, tmp_path / "ledger", run(), rows(spark))
        spark.range(1).write.format("delta").save(str(tmp_path / "foreign" / "runs"))
        (tmp_path / "file").touch()
        before = sorted(os.listdir(tmp_path))
        out = tmp_path / "out"
        exact = {"input_path": docs, "output_path": out, "assign_id": False, "id_field": "id"}
        for ledger, error, says in (
            (tmp_path / "ledger", InputError, "holds bigint ids, these are string"),
            (tmp_path / "foreign", InputError, "is no spark_dedup ledger"),
            (tmp_path / "file" / "ledger", NotADirectoryError, "is a file, so .*ledger cannot be made"),
            ("no_such_schema", InputError, "no schema `no_such_schema`"),
        ):
            with pytest.raises(error, match=says):
                ExactDeduplicationWorkflow(**exact, ledger=ledger).run(spark)
            with pytest.raises(error, match=says):
                SemanticDeduplicationWorkflow(docs, out, 1, eps=0.1, ledger=ledger).run(spark)
            assert sorted(os.listdir(tmp_path)) == before
