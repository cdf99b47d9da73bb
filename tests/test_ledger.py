import threading

import pytest
from ledger_rows import REMOVED, ROWS, rows, run

from spark_dedup.errors import InputError
from spark_dedup.ledger import find_run, open_ledger, read_duplicates, write_run
from spark_dedup.ledger_runs import describe_input, input_version
from spark_dedup.outputs import exclusive


def ids(df):
    return sorted(row["id"] for row in df.collect())


def test_a_repeated_run_replaces_itself(spark, tmp_path):
    home = tmp_path / "l e.d'g\"e`r % ü"
    write_run(spark, home, run(), rows(spark))
    ledger = write_run(spark, home, run(device="gpu"), rows(spark))
    assert ids(read_duplicates(spark, ledger)) == sorted(REMOVED)
    assert [r["device"] for r in spark.table(ledger.runs).collect()] == ["gpu"]
    assert spark.table(ledger.duplicates).count() == len(ROWS)


def test_other_data_is_another_run(spark, tmp_path):
    first, second = run(), run(input_version="files:1:bb", num_duplicates=1)
    write_run(spark, tmp_path, first, rows(spark))
    ledger = write_run(spark, tmp_path, second, rows(spark, ROWS[:1]))
    assert ids(read_duplicates(spark, ledger)) == [5]
    assert ids(read_duplicates(spark, ledger, first.run_id)) == sorted(REMOVED)
    assert find_run(spark, ledger)["run_id"] == second.run_id


def test_unknown_version_is_never_the_same_run():
    assert run(input_version=None).run_id != run(input_version=None).run_id
    assert run().run_id == run().run_id


def test_other_ids_are_another_run(spark, tmp_path):
    assigned = {"id_field": "_curator_dedup_id", "registry": "/ids"}
    runs = [run(id_field="a"), run(id_field="b"), run(**assigned), run(**assigned | {"registry": "/other"})]
    for number, other in enumerate(runs):
        ledger = write_run(spark, tmp_path, other, rows(spark, ROWS[number : number + 1]))
    assert spark.table(ledger.runs).count() == 4
    for number, other in enumerate(runs):
        assert ids(read_duplicates(spark, ledger, other.run_id)) == [ROWS[number][0]]


def test_a_deleted_run_is_written_again(spark, tmp_path):
    ledger = write_run(spark, tmp_path, run(), rows(spark))
    for _ in range(2):
        spark.sql(f"DELETE FROM {ledger.runs} WHERE run_id = '{run().run_id}'")
        assert spark.table(ledger.runs).count() == 0
        write_run(spark, tmp_path, run(), rows(spark))
        assert [r["run_id"] for r in spark.table(ledger.runs).collect()] == [run().run_id]


def test_a_run_that_died_before_its_end_does_not_count(spark, tmp_path, monkeypatch):
    write_run(spark, tmp_path, run(), rows(spark))
    monkeypatch.setattr("spark_dedup.ledger.run_row", lambda *_: pytest.fail("killed"))
    dead = run(input_version="files:1:cc")
    with pytest.raises(pytest.fail.Exception):
        write_run(spark, tmp_path, dead, rows(spark, ROWS[:1]))
    ledger = open_ledger(spark, tmp_path)
    assert ids(read_duplicates(spark, ledger)) == sorted(REMOVED)
    monkeypatch.undo()
    write_run(spark, tmp_path, dead, rows(spark, ROWS[:1]))
    assert ids(read_duplicates(spark, ledger)) == [5]
    assert spark.table(ledger.duplicates).count() == len(ROWS) + 1


def test_tables_that_a_killed_run_began_to_make(spark, tmp_path):
    """A log without a commit: Delta neither reads it nor makes a table there."""
    for role in ("duplicates", "runs"):
        (tmp_path / role / "_delta_log").mkdir(parents=True)
    (tmp_path / "runs" / "_delta_log" / ".00000000000000000000.json.0f1e.tmp").write_text("{")
    ledger = write_run(spark, tmp_path, run(), rows(spark))
    assert ids(read_duplicates(spark, ledger)) == sorted(REMOVED)
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []


def test_writers_at_the_same_time(spark, tmp_path):
    failed = []

    def write(version):
        try:
            write_run(spark, tmp_path, run(input_version=version), rows(spark))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(f"v{i}",)) for i in (0, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    ledger = open_ledger(spark, tmp_path)
    assert spark.table(ledger.runs).count() == 2
    assert spark.table(ledger.duplicates).count() == 2 * len(ROWS)


def test_a_writer_that_never_lets_go(spark, tmp_path, monkeypatch):
    def held():
        raise RuntimeError("[DELTA_CONCURRENT_APPEND] files were added")

    monkeypatch.setattr("time.sleep", lambda _: None)
    from spark_dedup.ledger import Ledger, _commit

    with pytest.raises(InputError, match="another job keeps writing the ledger /l"):
        _commit(held, Ledger("/l", "", ""))


def test_a_ledger_that_another_process_holds(spark, tmp_path, monkeypatch):
    """On a local disk Delta itself would let two processes replace each other's commits."""
    write_run(spark, tmp_path, run(), rows(spark))
    late = run(input_version="late")
    with exclusive(tmp_path / "runs"):
        monkeypatch.setattr("spark_dedup.ledger.PATIENCE_S", 0.0)
        with pytest.raises(InputError, match=f"another job keeps writing the ledger {tmp_path}: nothing of"):
            write_run(spark, tmp_path, late, rows(spark, ROWS[:1]))
        assert spark.read.format("delta").load(str(tmp_path / "duplicates")).count() == len(ROWS)
        monkeypatch.setattr("spark_dedup.ledger.PATIENCE_S", 60.0)
        waiting = threading.Thread(target=write_run, args=(spark, tmp_path, late, rows(spark, ROWS[:1])))
        waiting.start()
        waiting.join(2)
        assert waiting.is_alive()
    waiting.join()
    assert ids(read_duplicates(spark, open_ledger(spark, tmp_path))) == [5]
    assert not (tmp_path / ".runs.lock").exists()


class TestErrors:
    def test_no_such_run(self, spark, tmp_path):
        ledger = write_run(spark, tmp_path, run(), rows(spark))
        with pytest.raises(InputError, match=f"no run 'nope'.*it has {run().run_id}"):
            find_run(spark, ledger, "nope")


def test_inputs_and_their_versions(spark, tmp_path):
    spark.range(3).write.parquet(str(tmp_path / "p"))
    spark.range(3).write.format("delta").save(str(tmp_path / "d"))
    first = input_version(spark, tmp_path / "p")
    assert first.startswith("files:")
    assert input_version(spark, tmp_path / "p") == first
    spark.range(1).write.mode("append").parquet(str(tmp_path / "p"))
    assert input_version(spark, tmp_path / "p") != first
    assert input_version(spark, tmp_path / "d") == "delta:0"
    at = spark.sql(f"DESCRIBE HISTORY delta.`{tmp_path / 'd'}`").selectExpr("string(timestamp)").first()[0]
    spark.range(1).write.mode("append").format("delta").save(str(tmp_path / "d"))
    assert input_version(spark, tmp_path / "d") == "delta:1"
    for option in ({"versionAsOf": "0"}, {"timestampAsOf": at}):
        assert input_version(spark, tmp_path / "d", read_kwargs=option) == "delta:0"
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "0.txt").write_text("{}")
    assert input_version(spark, tmp_path / "t", filetype="jsonl", extensions=["txt"]).startswith("files:1:")
    assert describe_input(f"file:{tmp_path}/p") == f"{tmp_path}/p"
    assert describe_input("a.`b.c`") == "`a`.`b.c`"
    assert describe_input([tmp_path / "a", tmp_path / "b"]) == f'["{tmp_path}/a", "{tmp_path}/b"]'


def test_on_connect(run_connect):
    out = run_connect("""
import sys
from datetime import datetime, UTC
from spark_dedup.ledger import Run, write_run, read_duplicates
from spark_dedup.sql import create_views
from spark_dedup.sql_functions import register
rows = spark.createDataFrame([(5, 1, 1, "a", "exact", 1.0)],
    "id int, matched_id int, kept_id int, group_id string, method string, score double")
run = Run(method="exact", input="/d", input_version="1", id_field="id", num_documents=3, num_groups=1,
          num_duplicates=1, started_at=datetime.now(UTC))
for _ in range(2):
    ledger = write_run(spark, "./ledger", run, rows)
create_views(spark, ledger="./ledger")
register(spark)
spark.range(4).selectExpr("id", "'t' AS text").createOrReplaceTempView("docs")
spark.sql("SET VAR dedup_query = exact_duplicates_query('docs', 'id', 'text')")
print(read_duplicates(spark, ledger).count(), spark.table("dedup_groups").first()["size"],
      spark.sql("EXECUTE IMMEDIATE dedup_query").count())
""")
    assert out.split() == ["1", "2", "3"]
