"""The commands over a ledger - views, report - and plan."""

import json

import pytest
from ledger_rows import rows, run

from spark_dedup.cli import main
from spark_dedup.ledger import write_run


@pytest.fixture(scope="module")
def home(spark, tmp_path_factory):
    home = tmp_path_factory.mktemp("cli ledger")
    spark.range(1, 13).selectExpr("id", "'t' AS text").write.parquet(str(home / "docs"))
    write_run(spark, home / "ledger", run(input=str(home / "docs")), rows(spark))
    return home


def call(capsys, *args):
    """Exit code, the metadata on the last line of stdout, and stderr."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, args), "--json"])
    out = capsys.readouterr()
    shown = json.loads(out.out.splitlines()[-1]) if stopped.value.code == 0 else None
    return stopped.value.code, shown, out.err


def test_views(spark, home, capsys):
    arguments = ("--ledger", home / "ledger", "--documents", home / "docs", "--prefix", "cli_")
    code, shown, _ = call(capsys, "views", *arguments)
    try:
        assert code == 0
        assert "`cli_documents`" in shown["views"]
        assert spark.table("cli_documents").count() == 6
    finally:
        for name in (shown or {}).get("views", "").split(", "):
            spark.sql(f"DROP VIEW IF EXISTS {name}")


def test_report(spark, home, capsys):
    code, shown, _ = call(capsys, "report", "--ledger", home / "ledger", "--output", home / "r.html")
    assert (code, shown["run_id"]) == (0, run(input=str(home / "docs")).run_id)
    assert "6</b> of 12 records are duplicates" in (home / "r.html").read_text("utf-8")


def test_report_of_a_run_that_does_not_exist(spark, home, capsys):
    code, _, errors = call(
        capsys, "report", "--ledger", home / "ledger", "--run-id", "x", "--output", home / "none.html"
    )
    assert code == 2
    assert "no run 'x' in the ledger" in errors
    assert not (home / "none.html").exists()


def test_no_ledger(spark, tmp_path, capsys):
    code, _, errors = call(capsys, "views", "--ledger", tmp_path / "none")
    assert code == 2
    assert "no ledger at" in errors


def test_plan_writes_nothing(spark, home, capsys):
    out = home / "planned"
    code, shown, _ = call(
        capsys, "plan", "exact", "--input", home / "docs", "--output", out, "--id-field", "id"
    )
    assert (code, shown["rows"]) == (0, 12)
    assert shown["device"].startswith(("cpu, as", "gpu, as"))
    assert not out.exists()


def test_plan_of_the_semantic_job(spark, home, capsys):
    made = spark.range(20).selectExpr("id", "array(float(id + 1), 1f, 2f) AS embeddings")
    made.write.parquet(str(home / "embeddings"))
    out = home / "planned"
    arguments = ("--input", home / "embeddings", "--output", out, "--n-clusters", 4, "--eps", 0.1)
    code, shown, _ = call(capsys, "plan", "semantic", *arguments)
    # Four even clusters of five: ten pairs each, of three dimensions.
    assert (code, shown["rows"], shown["dimensions"]) == (0, 20, 3)
    assert (shown["largest_cluster"], shown["pairwise_multiplications"]) == (5, 4 * 10 * 3)
    assert not out.exists()
