"""What the guides show, run as printed; only the catalog's name and /data are other ones."""

import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_dedup.cli import main

DOCS = Path(__file__).parents[1] / "docs"


def snippets(name, folder):
    text = (DOCS / name).read_text("utf-8").replace("main.", "").replace("/data/", f"{folder}/")
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


def statements(sql):
    lines = [line.partition("--")[0] for line in sql.splitlines()]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]


@pytest.fixture
def schemas(spark):
    for schema in ("dedup", "corpus"):
        spark.sql(f"CREATE SCHEMA {schema}")
    yield
    for schema in ("dedup", "corpus"):
        spark.sql(f"DROP SCHEMA {schema} CASCADE")


def test_ledger(spark, schemas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spark.range(9).selectExpr(
        "id", "string(id % 6) AS text", "if(id < 6, 'books', 'web') AS source"
    ).write.format("delta").saveAsTable("corpus.docs")
    names, last, ran = {"spark": spark}, None, []
    for kind, body in snippets("ledger.md", tmp_path):
        ran.append(kind)
        if kind == "python":
            exec(body, names)
        elif kind == "bash":
            with pytest.raises(SystemExit) as ended:
                main(body.split()[1:])
            assert ended.value.code == 0, body
        else:
            for statement in statements(body):
                last = spark.sql(statement)
                last.collect()
    assert {kind: ran.count(kind) for kind in ran} == {"python": 5, "bash": 2, "sql": 2}
    assert names["result"]["num_duplicates"] == 3
    assert sorted(r[0] for r in spark.table("corpus.clean").select("id").collect()) == [0, 1, 2, 3, 4, 5]
    pairs = spark.table("dedup.v_source_pairs").orderBy("source_a").collect()
    assert [(r["source_a"], r["source_b"], r["fraction_of_a"]) for r in pairs] == [
        ("books", "web", 0.5),
        ("web", "books", 1.0),
    ]
    assert sorted(r["id"] for r in spark.table("dedup.dups").collect()) == [6, 7, 8]
    assert "3</b> of 9 records" in (tmp_path / "report.html").read_text("utf-8")


def test_readme_commands(spark, tmp_path, capsys):
    """In their order, and with fewer clusters."""
    for folder in ("docs", "embeddings"):
        (tmp_path / folder).mkdir()
    pq.write_table(pa.table({"text": ["a", "b", "a"]}), tmp_path / "docs" / "a.parquet")
    vectors = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    records = pa.table({"id": range(4), "embeddings": vectors, "source": ["web", "benchmark", "web", "web"]})
    pq.write_table(records, tmp_path / "embeddings" / "a.parquet")
    text = (
        (DOCS.parent / "README.md").read_text("utf-8").replace("\\\n", " ").replace("/data/", f"{tmp_path}/")
    )
    commands = [line for line in text.splitlines() if line.startswith("spark-dedup ")]
    assert len(commands) == 6
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(command.replace("1000", "2"), comments=True)[1:])
        assert ended.value.code == 0, capsys.readouterr().err
    assert pq.read_table(tmp_path / "kept")["text"].to_pylist() == ["a", "b"]
    removed = {
        name: pq.read_table(tmp_path / name / "duplicates")["id"] for name in ("semantic", "semantic2")
    }
    assert removed["semantic"].to_pylist() == [0, 2]
    assert removed["semantic2"].to_pylist() == [0, 2, 3]
