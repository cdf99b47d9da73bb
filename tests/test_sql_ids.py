"""Views of documents whose ids a registry gave."""

import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ledger_rows import run
from sessions import another

from spark_dedup import CURATOR_DEDUP_ID_STR as ID
from spark_dedup import ExactDeduplicationWorkflow, sql_ids
from spark_dedup.errors import InputError
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.ledger import write_run
from spark_dedup.sql import create_views

SCHEMA = "id bigint, matched_id bigint, kept_id bigint, group_id string, method string, score double"


@pytest.fixture
def folder(tmp_path):
    """Two files of texts; their folder's name has what URIs and SQL spell otherwise."""
    folder = tmp_path / "d ö+%41'`s"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a", "b", "a"]}), folder / "0.parquet")
    pq.write_table(pa.table({"text": ["b", "c"]}), folder / "1.parquet")
    return folder


def ledger_of(spark, tmp_path, folder, removed):
    """A ledger whose run, with ids of the registry beside it, removes some ids."""
    given = run(input=str(folder), id_field=ID, registry=str(tmp_path / "registry"))
    rows = spark.createDataFrame([(i, 0, 0, "g", "exact", 1.0) for i in removed], SCHEMA)
    write_run(spark, tmp_path / "ledger", given, rows)
    return tmp_path / "ledger"


def test_a_leftover_id_column_is_never_trusted(spark, tmp_path, views):
    texts = ["a", "b", "a", "c", "b"]
    old = [2, 4, 0, 1, 3]  # rows 2 and 4 are the copies; their ids of old name rows 0 and 3
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({ID.upper(): old, "text": texts}), tmp_path / "docs" / "0.parquet")
    ExactDeduplicationWorkflow(
        input_path=tmp_path / "docs", output_path=tmp_path / "out", ledger=tmp_path / "ledger"
    ).run(spark)
    views += create_views(spark, ledger=tmp_path / "ledger", documents=tmp_path / "docs", prefix="s1_")
    shown = spark.table("s1_documents")
    assert shown.columns == ["text", ID]
    assert {(r["text"], r[ID]) for r in shown.collect()} == {("a", 0), ("b", 1), ("c", 3)}


def test_folders_with_glob_characters_and_other_endings(spark, tmp_path, views):
    docs = tmp_path / "run[1]{a,b}*?"
    docs.mkdir()
    (tmp_path / "lines").mkdir()
    for number, text in enumerate(["a", "b", "a"]):
        pq.write_table(pa.table({"text": [text]}), docs / f"{number}.parquet")
        (tmp_path / "lines" / f"{number}.txt").write_text(json.dumps({"text": text}))
    ledger = tmp_path / "ledger [2]"
    lines = {"input_filetype": "jsonl", "input_file_extensions": [".txt"]}
    jobs = [{"input_path": docs}, {"input_path": tmp_path / "lines", **lines}]
    for number, job in enumerate(jobs):
        out = tmp_path / f"out {number}"
        done = ExactDeduplicationWorkflow(output_path=out, ledger=ledger, **job).run(spark)
        assert (done["num_duplicates"], done["run_id"][:6]) == (1, "exact-")
    views += create_views(spark, ledger=ledger, documents=docs, prefix="s8_")
    assert sorted(r["text"] for r in spark.table("s8_documents").collect()) == ["a", "b"]


def test_an_imported_registry_knows_files_by_key(spark, tmp_path, folder, views):
    ranges = {
        str(uuid.uuid5(uuid.NAMESPACE_URL, str(folder / name))): span
        for name, span in {"0.parquet": [7, 9], "1.parquet": [3, 4]}.items()
    }
    (tmp_path / "ids.json").write_text(json.dumps({"next_id": 10, "batch_registry": ranges}))
    IdRegistry.from_disk(spark, tmp_path / "ids.json", tmp_path / "registry")
    ledger = ledger_of(spark, tmp_path, folder, removed=[9, 3])
    views += create_views(spark, ledger=ledger, documents=folder, prefix="s2_")
    assert {(r["text"], r[ID]) for r in spark.table("s2_documents").collect()} == {
        ("a", 7),
        ("b", 8),
        ("c", 4),
    }


@pytest.mark.parametrize("path", ["s3a://b/a.parquet", "s3://b/a.parquet"])
def test_files_on_s3_are_named_as_curator_does_and_as_spark_does(spark, path):
    ways = ["s3://b/a.parquet", "s3a://b/a.parquet"]
    keys = [str(uuid.uuid5(uuid.NAMESPACE_URL, way)) for way in ways]
    for by_key, named in ((False, ("files[0]", ways)), (True, ("key", keys))):
        known, wanted = sql_ids._names(f"'{path}'", by_key=by_key, on_s3=True)
        assert (known, list(spark.sql(f"SELECT {', '.join(wanted)}").first())) == named


def test_files_without_ids_are_named(spark, tmp_path, folder):
    IdRegistry.open(spark, tmp_path / "registry").register_batch([str(folder / "0.parquet")], 3)
    ledger = ledger_of(spark, tmp_path, folder, removed=[2])
    with pytest.raises(InputError, match=r"^1 of 2 files have no id range .*1\.parquet\. Run the job again"):
        create_views(spark, ledger=ledger, documents=folder, prefix="s3_")
    assert spark.sql("SHOW VIEWS LIKE 's3_*'").count() == 0


def test_batches_of_several_files_are_refused(spark, tmp_path, folder):
    files = [str(folder / name) for name in ("0.parquet", "1.parquet")]
    IdRegistry.open(spark, tmp_path / "registry").register_batch(files, 5)
    ledger = ledger_of(spark, tmp_path, folder, removed=[2])
    with pytest.raises(InputError, match=r"^2 of 2 files have no id range of their own .*several files"):
        create_views(spark, ledger=ledger, documents=folder, prefix="s4_")


def test_a_file_in_two_batches_shows_its_rows_once(spark, tmp_path, folder, views):
    first, second = (str(folder / name) for name in ("0.parquet", "1.parquet"))
    registry = IdRegistry.open(spark, tmp_path / "registry")
    registry.register_batches([([first, second], 5), ([first], 3), ([second], 2)])
    ledger = ledger_of(spark, tmp_path, folder, removed=[8])
    views += create_views(spark, ledger=ledger, documents=folder, prefix="s5_")
    assert sorted(r[ID] for r in spark.table("s5_documents").collect()) == [5, 6, 7, 9]


def test_a_file_that_comes_later_is_an_error(spark, tmp_path, folder, views):
    registry = IdRegistry.open(spark, tmp_path / "registry")
    registry.register_batches([(str(folder / "0.parquet"), 3), (str(folder / "1.parquet"), 2)])
    ledger = ledger_of(spark, tmp_path, folder, removed=[2])
    views += create_views(spark, ledger=ledger, documents=folder, prefix="s6_")
    assert spark.table("s6_documents").count() == 4
    pq.write_table(pa.table({"text": ["a"]}), folder / "2.parquet")
    with pytest.raises(Exception, match=r"no ids are registered .*2\.parquet"):
        another(spark).table("s6_documents").count()


def test_json_lines_are_not_numbered_by_a_column_of_old(spark, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "0.jsonl").write_text('{"text": "a", "_curator_dedup_id": 5}\n')
    IdRegistry.open(spark, tmp_path / "registry").register_batch([str(tmp_path / "docs" / "0.jsonl")], 1)
    ledger = ledger_of(spark, tmp_path, tmp_path / "docs", removed=[])
    with pytest.raises(InputError, match="SQL cannot number JSON lines"):
        create_views(spark, ledger=ledger, documents=tmp_path / "docs", prefix="s7_", filetype="jsonl")


def test_a_delta_table_that_does_not_number_its_rows_is_told_how_to(spark, tmp_path, views):
    docs = str(tmp_path / "docs")
    texts = spark.createDataFrame([("a",), ("a",), ("b",)], "text string").coalesce(1)
    texts.write.format("delta").option("delta.enableDeletionVectors", "false").save(docs)
    ExactDeduplicationWorkflow(
        input_path=docs, input_filetype="delta", output_path=tmp_path / "out", ledger=tmp_path / "ledger"
    ).run(spark)
    with pytest.raises(InputError, match=r"delta\.enableDeletionVectors=true; set it .*id_field"):
        create_views(spark, ledger=tmp_path / "ledger", documents=docs, prefix="s9_", filetype="delta")
    spark.sql(f"ALTER TABLE delta.`{docs}` SET TBLPROPERTIES ('delta.enableDeletionVectors' = true)")
    views += create_views(spark, ledger=tmp_path / "ledger", documents=docs, prefix="s9_", filetype="delta")
    assert sorted(row["text"] for row in spark.table("s9_documents").collect()) == ["a", "b"]


def test_a_view_does_not_number_its_rows(spark, tmp_path):
    pq.write_table(pa.table({"text": ["a", "a", "b"]}), tmp_path / "0.parquet")
    spark.read.parquet(str(tmp_path / "0.parquet")).createOrReplaceTempView("unnumbered")
    try:
        ExactDeduplicationWorkflow(
            input_path="unnumbered", output_path=tmp_path / "out", ledger=tmp_path / "ledger"
        ).run(spark)
        with pytest.raises(InputError, match=r"a view or a table of other files .* write what remains"):
            create_views(spark, ledger=tmp_path / "ledger", documents="unnumbered", prefix="s10_")
    finally:
        spark.catalog.dropTempView("unnumbered")
