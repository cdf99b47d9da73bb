"""Settings of a user's session that would change what is read or written: documents stay what they were."""

import datetime
import json
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sessions import child_environment

from spark_dedup import CURATOR_DEDUP_ID_STR as ID
from spark_dedup import ExactDeduplicationWorkflow, TextDuplicatesRemovalWorkflow, read_documents
from spark_dedup.errors import InputError
from spark_dedup.settings import parquet_as_it_is, settings

LONG_AGO = datetime.datetime(1850, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
NOW = datetime.datetime(2026, 7, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)


@pytest.fixture
def remaining(tmp_path):
    """Write two documents and a list without ids; return what the removal job makes of them, sorted by id."""
    rows = {
        "id": [1, 2],
        "at": pa.array([LONG_AGO, NOW], pa.timestamp("us", "UTC")),
        "local": pa.array([at.replace(tzinfo=None) for at in (LONG_AGO, NOW)], pa.timestamp("us")),
        "day": [datetime.date(1200, 1, 2), datetime.date(2026, 7, 2)],
    }
    pq.write_table(pa.table(rows), tmp_path / "docs.parquet")
    pq.write_table(pa.table({"id": pa.array([], pa.int64())}), tmp_path / "ids.parquet")

    def run(spark, filetype):
        TextDuplicatesRemovalWorkflow(
            input_path=tmp_path / "docs.parquet",
            ids_to_remove_path=tmp_path / "ids.parquet",
            output_path=tmp_path / "out",
            id_field="id",
            output_filetype=filetype,
        ).run(spark)
        return tmp_path / "out"

    return run


@pytest.mark.parametrize("policy", ["CORRECTED", "LEGACY"])
@pytest.mark.parametrize("zone", ["Africa/Monrovia", "America/St_Johns", "+05:45"])
def test_times_in_json_lines(spark, remaining, zone, policy):
    """Offsets before there were time zones had seconds: 44:30 in Liberia, until 1972."""
    with settings(spark, {"spark.sql.session.timeZone": zone, "spark.sql.legacy.timeParserPolicy": policy}):
        out = remaining(spark, "jsonl")
    lines = [line for path in out.glob("*.jsonl") for line in path.read_text().splitlines()]
    rows = sorted(map(json.loads, lines), key=lambda row: row["id"])
    assert [datetime.datetime.fromisoformat(row["at"]) for row in rows] == [LONG_AGO, NOW]
    assert [row["local"] for row in rows] == ["1850-01-02T03:04:05.678901", "2026-07-02T03:04:05.678901"]
    assert [row["day"] for row in rows] == ["1200-01-02", "2026-07-02"]


def test_times_without_a_zone_stay_so(spark, remaining):
    name = "spark.sql.parquet.inferTimestampNTZ.enabled"
    with settings(spark, {name: "false", "spark.sql.session.timeZone": "Asia/Tokyo"}):
        out = remaining(spark, "parquet")
        assert spark.conf.get(name) == "false"
    found = pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("*.parquet")))
    assert [str(found.schema.field(name).type) for name in ("at", "local")] == [
        "timestamp[us, tz=UTC]",
        "timestamp[us]",
    ]
    assert found["at"].to_pylist() == [LONG_AGO, NOW]
    assert found["local"].to_pylist() == [LONG_AGO.replace(tzinfo=None), NOW.replace(tzinfo=None)]


def test_readers_stay_where_the_session_does_not_choose_them(spark):
    name = "spark.sql.sources.useV1SourceList"
    before = spark.conf.get(name)
    assert {"json", "parquet"} <= set(before.split(","))
    with parquet_as_it_is(spark):
        assert spark.conf.get(name) == before
    for given, held in (("json,Parquet", "json,Parquet"), ("json", "json,parquet"), ("", "parquet")):
        with settings(spark, {name: given}), parquet_as_it_is(spark):
            assert spark.conf.get(name) == held


def test_a_clone_where_parquet_is_read_by_the_second_reader(spark, remaining):
    """That one does not tell the places of rows, which a clone hides by."""
    name = "spark.sql.sources.useV1SourceList"
    with settings(spark, {name: ""}):
        out = remaining(spark, "delta-clone")
        assert spark.conf.get(name) == ""
    assert sorted(row["id"] for row in spark.read.format("delta").load(str(out)).collect()) == [1, 2]


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_ids_where_arrow_batches_have_no_limit(spark, tmp_path, limit):
    """PySpark 4.1 fails at making a frame of an Arrow table then."""
    for number in range(2):
        pq.write_table(pa.table({"n": range(3 * number, 3 * number + 3)}), tmp_path / f"{number}.parquet")
    with settings(spark, {"spark.sql.execution.arrow.maxRecordsPerBatch": limit}):
        docs = read_documents(spark, sorted(tmp_path.glob("*.parquet")), registry=tmp_path / "registry")
        assert sorted((row[ID], row["n"]) for row in docs.collect()) == [(i, i) for i in range(6)]


@pytest.mark.parametrize("filetype", ["delta", "delta-clone", "parquet"])
def test_columns_that_differ_in_case(spark, tmp_path, filetype):
    pq.write_table(
        pa.table({"id": [1, 2], "text": ["a", "b"], "Text": ["c", "d"]}), tmp_path / "docs.parquet"
    )
    pq.write_table(pa.table({"id": [2]}), tmp_path / "ids.parquet")
    job = TextDuplicatesRemovalWorkflow(
        tmp_path / "docs.parquet",
        tmp_path / "ids.parquet",
        tmp_path / "out",
        id_field="id",
        output_filetype=filetype,
    )
    with settings(spark, {"spark.sql.caseSensitive": "true"}):
        if filetype == "parquet":
            job.run(spark)
            found = [pq.read_table(path).to_pylist() for path in (tmp_path / "out").glob("*.parquet")]
            assert [row for rows in found for row in rows] == [{"id": 1, "text": "a", "Text": "c"}]
            return
        with pytest.raises(
            InputError, match="has columns 'text' and 'Text', which Delta does not tell apart: write parquet"
        ):
            job.run(spark)
    assert not (tmp_path / "out").exists()


def test_names_beyond_ascii_in_the_locale_c(tmp_path):
    """Java lists a folder without them; ids that documents bring do not show that rows are absent."""
    (tmp_path / "in").mkdir()
    for name in ("a", "é"):
        rows = {"id": [f"{name}{i}" for i in range(3)], "text": ["x"] * 3}
        pq.write_table(pa.table(rows), tmp_path / "in" / f"{name}.parquet")
    code = f"""
from spark_dedup import ExactDeduplicationWorkflow, build_session
from spark_dedup.errors import InputError
spark = build_session(device="cpu", master="local[1]", conf={{"spark.driver.memory": "1g"}})
job = ExactDeduplicationWorkflow(
    input_path={str(tmp_path / "in")!r}, output_path={str(tmp_path / "out")!r}, assign_id=False, id_field="id"
)
try:
    job.run(spark)
except InputError as error:
    print(ascii(str(error)))
"""
    environment = {k: v for k, v in child_environment().items() if not k.startswith(("LC_", "LANG"))}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | {"LC_ALL": "C"},
        cwd=tmp_path,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert r"would not read" in ran.stdout
    assert r"/\xe9.parquet: " in ran.stdout
    assert "starts with LC_ALL=C.UTF-8" in ran.stdout


def test_a_ledger_where_new_tables_may_only_grow(spark, tmp_path):
    """A run that is done again is recorded anew."""
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["a", "b", "a"]}), tmp_path / "docs.parquet")
    with settings(spark, {"spark.databricks.delta.properties.defaults.appendOnly": "true"}):
        for _ in range(2):
            ExactDeduplicationWorkflow(
                input_path=tmp_path / "docs.parquet",
                output_path=tmp_path / "out",
                assign_id=False,
                id_field="id",
                ledger=tmp_path / "ledger",
            ).run(spark)
            shutil.rmtree(tmp_path / "out")
    found = spark.read.format("delta").load(str(tmp_path / "ledger" / "duplicates")).collect()
    assert [(row["id"], row["kept_id"]) for row in found] == [(3, 1)]
