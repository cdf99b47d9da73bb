"""JSON lines to JSON lines: what remains is what was read; the lines themselves are what is expected."""

import bz2
import gzip
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spark_4 import OLD

from spark_dedup import CURATOR_DEDUP_ID_STR as ID
from spark_dedup import (
    ExactDeduplicationWorkflow,
    TextDuplicatesRemovalWorkflow,
    identify_exact,
    read_documents,
)
from spark_dedup.errors import InputError
from spark_dedup.ids import jsonl
from spark_dedup.removal import passes
from spark_dedup.settings import settings

LINES = [
    '{"z": {}, "id": 0, "a": [1, "one", {}, null], "e": 1e5, "n": 0.10}',
    '{"id": 1, "a": "gone"}',
    '{"a": null, "id": 2, "t": "caf\\u00e9 \\ud83d\\ude00 \\"\\\\u00e9\\" \\n", "big": 12345678901234567890}',
    "",
    '{"id": 3, "t": "öö 😀"}  ',
    '{"id": null, "a": 4}',
    '{"id": 7, "a": "gone"}',
    '{"a": {}}',
]
UNESCAPED = {2: '{"a": null, "id": 2, "t": "café 😀 \\"\\\\u00e9\\" \\n", "big": 12345678901234567890}'}


@pytest.fixture
def json_lines(tmp_path):
    """Two files whose types and empty objects Spark's inference would change; ids to remove are 1 and 7."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(LINES[:4]).encode())
    with gzip.open(tmp_path / "in" / "deep" / "b.jsonl.gz", "wb") as file:
        file.write("\r\n".join(LINES[4:]).encode())
    pq.write_table(pa.table({"id": [1, 7]}), tmp_path / "ids.parquet")
    return tmp_path


def lines_job(folder, **changes):
    return TextDuplicatesRemovalWorkflow(
        **{
            "input_path": folder / "in",
            "ids_to_remove_path": folder / "ids.parquet",
            "output_path": folder / "out",
            "input_filetype": "jsonl",
            "output_filetype": "jsonl",
            "id_field": "id",
            **changes,
        }
    )


def lines_of(folder):
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jsonl"))]
    return [line for text in texts for line in text.split("\n") if line]


@pytest.mark.parametrize("way", ["at once", "passes"])
def test_json_lines_are_written_as_they_were_read(spark, json_lines, monkeypatch, way):
    if way == "passes":
        monkeypatch.setattr(passes, "IDS_PER_PASS", 1)
    result = lines_job(json_lines).run(spark)
    assert (result["num_documents"], result["num_duplicates_removed"]) == (7, 2)
    assert sorted(lines_of(json_lines / "out")) == sorted(
        UNESCAPED.get(i, line) for i, line in enumerate(LINES) if line and "gone" not in line
    )


def test_lines_packed_by_bzip2_and_zstandard_are_read(spark, json_lines):
    for path in (json_lines / "in" / "a.jsonl", json_lines / "in" / "deep" / "b.jsonl.gz"):
        path.unlink()
    (json_lines / "in" / "a.jsonl.bz2").write_bytes(bz2.compress("\n".join(LINES[:4]).encode()))
    (json_lines / "in" / "b.json.zst").write_bytes(
        pa.compress("\n".join(LINES[4:]).encode(), "zstd", asbytes=True)
    )
    result = lines_job(json_lines).run(spark)
    assert (result["num_documents"], result["num_duplicates_removed"]) == (7, 2)
    kept = [UNESCAPED.get(i, line) for i, line in enumerate(LINES) if line and "gone" not in line]
    assert sorted(lines_of(json_lines / "out")) == sorted(kept)


@pytest.mark.parametrize("drop", [False, True])
def test_json_lines_take_the_ids_that_were_made(spark, json_lines, drop):
    pq.write_table(pa.table({"id": [1, 5]}), json_lines / "ids.parquet")
    read_documents(spark, json_lines / "in", filetype="jsonl", registry=str(json_lines / "registry"))
    lines_job(json_lines, id_field=ID, registry=str(json_lines / "registry"), drop_id_field=drop).run(spark)
    whole = [line for line in LINES if line]
    want = [
        {**json.loads(line), **({} if drop else {ID: i})} for i, line in enumerate(whole) if i not in (1, 5)
    ]
    got = [json.loads(line) for line in lines_of(json_lines / "out")]
    assert sorted(map(str, got)) == sorted(map(str, want))


def test_malformed_json_lines_are_left_out_of_lines_too(spark, json_lines):
    (json_lines / "in" / "c.jsonl").write_text('{"id": 9}\n{"id": 10\n[1]\n{"id": 11, "t": "x"}\n')
    with pytest.raises(InputError, match="2 malformed"):
        lines_job(json_lines).run(spark)
    result = lines_job(json_lines, on_bad_lines="skip").run(spark)
    assert (result["num_documents"], result["num_duplicates_removed"]) == (9, 2)
    assert {'{"id": 9}', '{"id": 11, "t": "x"}'} < set(lines_of(json_lines / "out"))


def test_json_lines_that_only_spark_takes_become_json(spark, json_lines):
    """Tabs between tokens beside escapes, single quotes, a comma after the object."""
    odd = ['{"id":\t20, "t": "\\u00e9"}', "{'id': 21, 't': 'it\\u0027s'}", '{"id": 22},']
    (json_lines / "in" / "c.jsonl").write_text("\n".join(odd))
    lines_job(json_lines).run(spark)
    got = [json.loads(line) for line in lines_of(json_lines / "out")]
    for want in ({"id": 20, "t": "é"}, {"id": 21, "t": "it's"}, {"id": 22}):
        assert want in got


def test_json_lines_that_are_no_utf_8_are_left_out_of_lines_too(spark, json_lines):
    (json_lines / "in" / "c.jsonl").write_bytes(b'{"id": 9}\n{"id": 10, "t": "\xff"}\n')
    result = lines_job(json_lines, on_bad_lines="skip").run(spark)
    assert (result["num_documents"], result["num_duplicates_removed"]) == (8, 2)
    assert '{"id": 9}' in lines_of(json_lines / "out")


@pytest.mark.parametrize("line", ['[{"id": 9}, {"id": 10}]', '[{"id": 7}]', "[]"])
def test_lines_that_are_arrays_are_refused(spark, json_lines, line):
    (json_lines / "in" / "c.jsonl").write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"array of objects.*input_fields$"):
        lines_job(json_lines).run(spark)
    assert not (json_lines / "out").exists()
    lines_job(json_lines, input_fields=["id"]).run(spark)
    got = [json.loads(row)["id"] for row in lines_of(json_lines / "out")]
    assert sorted(x for x in got if x is not None) == [0, 2, 3, *([9, 10] if "10" in line else [])]


def test_documents_of_over_twenty_million_characters(spark, json_lines):
    """By default Spark takes such lines for rows of nulls: all of them would be copies of the empty text."""
    long = "é" + "x" * 20_000_000
    for path in (json_lines / "in" / "a.jsonl", json_lines / "in" / "deep" / "b.jsonl.gz"):
        path.unlink()
    rows = [{"id": 2, "t": f"{long}y"}, {"id": 7, "t": long}, {"id": 9, "t": ""}]
    (json_lines / "in" / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    registry = str(json_lines / "registry")
    read = read_documents(spark, json_lines / "in", filetype="jsonl", registry=registry)
    found = identify_exact(read, text_field="t", id_field=ID)
    assert [(row[0], row[1]) for row in read.selectExpr("id", "length(t)").collect()] == [
        (2, 20_000_002),
        (7, 20_000_001),
        (9, 0),
    ]
    assert found.count() == 0
    lines_job(json_lines).run(spark)
    assert [json.loads(line) for line in lines_of(json_lines / "out")] == [rows[0], rows[2]]
    assert not any("\\u00e9" in line for line in lines_of(json_lines / "out"))


@pytest.mark.skipif(OLD, reason="SQL takes a reader's options since Spark 4.0")
def test_views_show_documents_of_over_twenty_million_characters(spark, json_lines, views):
    for path in (json_lines / "in" / "a.jsonl", json_lines / "in" / "deep" / "b.jsonl.gz"):
        path.unlink()
    (json_lines / "in" / "deep").rmdir()
    rows = [{"id": 2, "t": "x" * 20_000_001}, {"id": 7, "t": "y"}]
    (json_lines / "in" / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    views.append("long_lines")
    done = lines_job(json_lines, output_filetype="view", output_path="long_lines").run(spark)
    assert done["num_documents_written"] == 1
    assert [tuple(row) for row in spark.sql("SELECT id, length(t) FROM long_lines").collect()] == [
        (2, 20_000_001)
    ]


def test_cores_that_come_or_go_between_two_passes_do_not_stop_a_job(spark, tmp_path, monkeypatch):
    """Spark cuts files by the cores there are, which executors bring and take along."""
    texts = [f"text {number % 400:03d}" for number in range(600)]
    (tmp_path / "in").mkdir()
    for part in range(3):
        some = texts[200 * part : 200 * part + 200]
        (tmp_path / "in" / f"{part}.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in some))
    cores = itertools.count(3)
    counted = jsonl.check_files

    def check_files(*args, **kwargs):
        found = counted(*args, **kwargs)
        spark.conf.set("spark.sql.leafNodeDefaultParallelism", str(next(cores)))
        return found

    monkeypatch.setattr(jsonl, "check_files", check_files)
    wanted = {"spark.sql.files.openCostInBytes": "10", "spark.sql.leafNodeDefaultParallelism": "2"}
    with settings(spark, wanted):
        exact = ExactDeduplicationWorkflow(
            input_path=tmp_path / "in",
            output_path=tmp_path / "exact",
            input_filetype="jsonl",
            perform_removal=True,
        ).run(spark)
        removed = lines_job(
            tmp_path,
            ids_to_remove_path=tmp_path / "exact" / "ExactDuplicateIds",
            id_field=ID,
            duplicate_id_field=ID,
            registry=tmp_path / "exact" / "id_registry",
        ).run(spark)
    assert next(cores) > 4
    assert (exact["num_duplicates_removed"], removed["num_duplicates_removed"]) == (200, 200)
    kept = [json.loads(line) for line in lines_of(tmp_path / "out")]
    assert sorted((row[ID], row["text"]) for row in kept) == list(enumerate(texts[:400]))
