"""A run that a safety limit stopped stays in the ledger for review, and never counts."""

import pytest
from ledger_rows import GROUPS, REMOVED, SOURCES

from spark_dedup import ExactDeduplicationWorkflow, create_views
from spark_dedup.errors import InputError
from spark_dedup.ledger import DONE, STOPPED, open_ledger, read_duplicates
from spark_dedup.report import make_report
from spark_dedup.rules import SafetyStopError

TEXTS = {i: name for name, members in GROUPS.items() for i in members} | {4: "x", 11: "y", 12: "z"}
VIEWS = (
    "runs",
    "duplicates",
    "duplicate_ids",
    "duplicate_ids_any_run",
    "groups",
    "source_pairs",
    "documents",
)


def test_for_review_then_on_with_a_higher_limit(spark, tmp_path):
    docs, out, ledger = tmp_path / "docs", tmp_path / "out", tmp_path / "ledger"
    made = [(i, TEXTS[i], SOURCES[i]) for i in sorted(TEXTS)]
    spark.createDataFrame(made, "id bigint, text string, source string").coalesce(1).write.parquet(str(docs))

    def job(limit):
        return ExactDeduplicationWorkflow(
            input_path=docs, output_path=out, assign_id=False, id_field="id", perform_removal=True,
            ledger=ledger, max_removed_fraction=limit,
        ).run(spark)  # fmt: skip

    for _ in range(2):  # stopped twice, it is still one run
        with pytest.raises(SafetyStopError, match=r"6 of 12 records"):
            job(0.4)
    opened = open_ledger(spark, ledger)
    stopped = spark.table(opened.runs).collect()
    assert [(r["status"], r["num_duplicates"]) for r in stopped] == [(STOPPED, 6)]
    found = read_duplicates(spark, opened, stopped[0]["run_id"])
    assert {r["id"] for r in found.collect()} == REMOVED
    assert found.count() == 6
    with pytest.raises(InputError, match=f"no finished run .*it has {stopped[0]['run_id']}"):
        make_report(spark, ledger=ledger)
    assert "6 of 12 records" in make_report(spark, ledger=ledger, run_id=stopped[0]["run_id"]).html
    with pytest.raises(InputError, match="no good run of"):
        create_views(spark, ledger=ledger, documents=docs, prefix="stopped_")

    assert job(0.6)["num_documents_written"] == 6
    create_views(spark, ledger=ledger, documents=docs, prefix="stopped_")
    try:
        count = {kind: spark.table(f"stopped_{kind}").count() for kind in VIEWS}
        assert (count["duplicates"], count["duplicate_ids"], count["groups"]) == (6, 6, 3)
        assert (count["duplicate_ids_any_run"], count["documents"]) == (6, 6)
        once = spark.table("stopped_duplicate_ids_any_run").select("num_runs").distinct().collect()
        assert [r[0] for r in once] == [1]
        assert {(r["status"], r["message"] is None) for r in spark.table("stopped_runs").collect()} == {
            (STOPPED, False),
            (DONE, True),
        }
        rows = spark.table(opened.duplicates)
        assert rows.groupBy("run_id", "id").count().where("count > 1").count() == 0
    finally:
        for kind in VIEWS:
            spark.sql(f"DROP VIEW IF EXISTS stopped_{kind}")
