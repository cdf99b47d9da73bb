"""Jobs with sources and safety limits: who survives, when the job stops, and what it leaves for review."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from ledger_rows import GROUPS, SOURCES

from spark_dedup import ExactDeduplicationWorkflow, SemanticDeduplicationWorkflow
from spark_dedup.errors import InputError
from spark_dedup.ledger import STOPPED, find_run, open_ledger
from spark_dedup.rules import SafetyStopError
from spark_dedup.workflows.semantic_matching import safety_stop

TEXTS = {i: name for name, members in GROUPS.items() for i in members} | {4: "x", 11: "y", 12: "z"}


@pytest.fixture(scope="module")
def docs(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits") / "docs"
    made = [(i, TEXTS[i], SOURCES[i]) for i in sorted(TEXTS)]
    spark.createDataFrame(made, "id bigint, text string, source string").coalesce(1).write.parquet(
        str(folder)
    )
    return folder


def job(docs, out, **changes):
    return ExactDeduplicationWorkflow(
        input_path=docs, output_path=out, assign_id=False, id_field="id", source_field="source", **changes
    )


def removed(out):
    return sorted(pq.read_table(out / "ExactDuplicateIds")["id"].to_pylist())


def test_protected_sources_and_the_report(spark, docs, tmp_path):
    out = tmp_path / "out"
    result = job(docs, out, protected_sources=["news"], ledger=tmp_path / "ledger").run(spark)
    # news keeps 3, 8 and 9, and 3 stands for 10; the other groups keep their smallest id.
    assert removed(out) == [5, 6, 7, 10]
    assert (result["num_duplicates"], result["num_groups"]) == (4, 3)
    figures = result.report(tmp_path / "report.html", spark).figures
    assert (tmp_path / "report.html").stat().st_size > 5000
    assert sorted(figures.removed_by_source) == [("books", 2, 3), ("news", 0, 4), ("web", 2, 5)]


def test_priority_by_source(spark, docs, tmp_path):
    job(docs, tmp_path / "out", source_priority=["books", "news"]).run(spark)
    assert removed(tmp_path / "out") == [1, 2, 5, 8, 9, 10]


def test_a_stopped_job_leaves_what_it_found_and_goes_on(spark, docs, tmp_path):
    out, ledger = tmp_path / "out", tmp_path / "ledger"
    options = {"perform_removal": True, "ledger": ledger}
    with pytest.raises(SafetyStopError, match=r"2 of 3 records of source 'books' \(66.7%\)"):
        job(docs, out, max_removed_fraction={"books": 0.6}, **options).run(spark)
    assert removed(out) == [5, 6, 7, 8, 9, 10]
    assert not (out / "deduplicated").exists()
    runs = spark.table(open_ledger(spark, ledger).runs).collect()
    assert [r["status"] for r in runs] == [STOPPED]
    assert "source 'books'" in runs[0]["message"]
    result = job(docs, out, max_removed_fraction={"books": 0.7}, **options).run(spark)
    assert result["num_documents_written"] == 6
    assert find_run(spark, open_ledger(spark, ledger))["run_id"] == result["run_id"]


def test_one_group_is_too_large(spark, docs, tmp_path):
    with pytest.raises(SafetyStopError, match="holds 4 of 12 records"):
        job(docs, tmp_path / "out", max_cluster_fraction=0.3).run(spark)


def test_one_cluster_is_too_large(tmp_path):
    semantic = SemanticDeduplicationWorkflow(tmp_path, tmp_path / "out", 3, max_cluster_fraction=0.5)
    found = {"num_documents": 10, "largest_cluster": 6, "num_duplicates": 1}
    stop = safety_stop(semantic, None, "", "", found)
    assert "the largest cluster holds 6 of 10 records" in str(stop)
    assert safety_stop(semantic, None, "", "", {**found, "largest_cluster": 5}) is None


def test_bad_limits_and_rules(docs, tmp_path):
    with pytest.raises(InputError, match="rules by source need source_field"):
        ExactDeduplicationWorkflow(input_path=docs, output_path=tmp_path, protected_sources=["a"])
    with pytest.raises(InputError, match=r"max_removed_fraction must lie in \[0, 1\], not 20"):
        job(docs, tmp_path, max_removed_fraction=20)


def test_a_report_needs_a_ledger(spark, docs, tmp_path):
    result = job(docs, tmp_path / "out").run(spark)
    with pytest.raises(InputError, match="run the job with ledger="):
        result.report(tmp_path / "r.html", spark)
