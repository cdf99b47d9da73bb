"""Bad input ends in one clear error with nothing written; odd names work through both jobs."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from spark_dedup import CURATOR_DEDUP_ID_STR as ID
from spark_dedup import ExactDeduplicationWorkflow, StaleBatchError, TextDuplicatesRemovalWorkflow
from spark_dedup.errors import InputError

GOOD = pa.table({"id": [1, 2, 3], "text": ["a", "b", "a"]})
KEYS = pa.list_(pa.map_(pa.string(), pa.int64()))


def parquet(folder, *tables, name="{}.parquet"):
    os.makedirs(folder, exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(table, f"{folder}/{name.format(number)}")


def truncated(folder):
    parquet(folder, GOOD, GOOD)
    data = (folder / "1.parquet").read_bytes()
    (folder / "1.parquet").write_bytes(data[: len(data) - 20])


def nested_delta(folder):
    parquet(folder / "docs", GOOD)
    (folder / "docs" / "_delta_log").mkdir()


CASES = {
    "empty folder": (
        lambda f: f.mkdir(),
        {},
        FileNotFoundError,
        "no input files: .*/in holds no file ending in",
    ),
    "no such path": (lambda f: None, {}, FileNotFoundError, "no such path: .*/in"),
    "unsupported filetype": (
        lambda f: parquet(f, GOOD),
        {"input_filetype": "csv"},
        InputError,
        "unsupported fil",
    ),
    "truncated parquet": (
        truncated,
        {},
        InputError,
        r"1 unreadable parquet file.*in/1\.parquet.*Write them again",
    ),
    "another schema": (
        lambda f: parquet(f, GOOD, GOOD.set_column(1, "text", pa.array([1, 2, 3]))),
        {},
        InputError,
        r"in/1\.parquet has another schema: column 'text' is int64, in .*0\.parquet it is string",
    ),
    "missing text column": (
        lambda f: parquet(f, GOOD),
        {"text_field": "body"},
        InputError,
        "column 'body' not found in .*; it has id, text",
    ),
    "text of another type": (
        lambda f: parquet(f, GOOD),
        {"text_field": "id"},
        InputError,
        "text column 'id' is bigint, not string",
    ),
    "null id": (
        lambda f: parquet(f, pa.table({"id": [1, None, 3], "text": ["a", "b", "c"]})),
        {"assign_id": False, "id_field": "id"},
        InputError,
        r"id column 'id' has 1 null\(s\) in 3 rows",
    ),
    "duplicate ids": (
        lambda f: parquet(f, GOOD, GOOD),
        {"assign_id": False, "id_field": "id"},
        InputError,
        "id column 'id' has duplicate ids, such as 1, 2, 3: make them unique",
    ),
    "duplicate string ids": (
        lambda f: parquet(f, pa.table({"id": ["x", "y", "y"], "text": ["a", "b", "c"]})),
        {"assign_id": False, "id_field": "id"},
        InputError,
        "duplicate ids, such as y",
    ),
    "times of day": (
        lambda f: parquet(f, GOOD.append_column("at", pa.array([0, 1, 2], pa.time64("us")))),
        {},
        InputError,
        r"in/0\.parquet: column 'at' has times of day, which Spark cannot read: write integers or strings",
    ),
    "decimals of many digits": (
        lambda f: parquet(f, GOOD.append_column("n", pa.array([1, 2, 3], pa.decimal256(50)))),
        {},
        InputError,
        "column 'n' has decimals of 50 digits, which Spark cannot read",
    ),
    "keep without an order": (
        lambda f: parquet(f, GOOD.append_column("m", pa.array([[[("k", 1)]]] * 3, KEYS))),
        {"keep": ["m"]},
        InputError,
        "keep column 'm' is array<map<string,bigint>>, which has no order",
    ),
    "id without an order": (
        lambda f: parquet(f, GOOD.append_column("m", pa.array([[("k", 1)]] * 3, KEYS.value_type))),
        {"assign_id": False, "id_field": "m"},
        InputError,
        "id_field column 'm' is map<string,bigint>, which has no order",
    ),
    "no Delta table": (
        lambda f: parquet(f, GOOD),
        {"input_filetype": "delta"},
        InputError,
        "is no Delta table: it has no _delta_log",
    ),
    "Delta below": (nested_delta, {}, InputError, "docs below .*/in is a Delta table: read it on its own"),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_refuses(spark, tmp_path, case):
    make, arguments, error, says = CASES[case]
    make(tmp_path / "in")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(error, match=says) as caught:
        ExactDeduplicationWorkflow(
            **{"input_path": tmp_path / "in", "output_path": tmp_path / "new" / "out", **arguments}
        ).run(spark)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("case", ["text", "other"])
def test_files_that_differ_are_found_before_work(spark, tmp_path, case):
    """A file without texts would lose its rows as copies of ""; removal writes the other columns, too."""
    lacks = {"text": "text", "other": "name"}[case]
    whole = GOOD.append_column("name", pa.array(["x", "y", "z"]))
    other = whole.set_column(0, "id", pa.array([4, 5, 6])).drop_columns([lacks])
    parquet(tmp_path / "in", whole, other)
    job = {
        "text": {"assign_id": False, "id_field": "id"},
        "other": {"perform_removal": True},
    }[case]
    with pytest.raises(InputError, match=rf"1\.parquet has another schema: column '{lacks}' is absent"):
        ExactDeduplicationWorkflow(input_path=tmp_path / "in", output_path=tmp_path / "out", **job).run(spark)
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("assign", [True, False])
def test_two_documents_on_a_line_are_refused(spark, tmp_path, assign):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"id": 1, "text": "a"}{"id": 2, "text": "b"}\n')
    job = {} if assign else {"assign_id": False, "id_field": "id"}
    with pytest.raises(InputError, match=r"a\.jsonl: 1, such as .*: give every document a line of its own$"):
        ExactDeduplicationWorkflow(
            input_path=tmp_path / "in", output_path=tmp_path / "out", input_filetype="jsonl", **job
        ).run(spark)
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("assign", [True, False])
def test_files_of_malformed_lines_alone_are_named(spark, tmp_path, assign):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("no json\nat all\n")
    job = {} if assign else {"assign_id": False, "id_field": "id"}
    with pytest.raises(InputError, match=r"2 malformed line\(s\) in 1 file.*a\.jsonl line 1: 'no json'"):
        ExactDeduplicationWorkflow(
            input_path=tmp_path / "in", output_path=tmp_path / "out", input_filetype="jsonl", **job
        ).run(spark)
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("assign", [True, False])
def test_malformed_lines_are_named(spark, tmp_path, assign):
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"id": i, "text": f"t{i}"}).encode() for i in range(3)]
    (tmp_path / "in" / "a.jsonl").write_bytes(
        b"\n".join([lines[0], b"", b'{"id": 7, "text": "\xff\xfe"}', lines[1]])
    )
    with gzip.open(tmp_path / "in" / "b.jsonl.gz", "wb") as file:
        file.write(b"\n".join([lines[2], b"no json"]))
    job = {
        "input_path": tmp_path / "in",
        "input_filetype": "jsonl",
        **({} if assign else {"assign_id": False, "id_field": "id"}),
    }
    (tmp_path / "out").mkdir()
    beside = {"registry": tmp_path / "registry"} if assign else {}
    with pytest.raises(
        InputError, match=r"2 malformed line\(s\) in 2 file.*a\.jsonl line 3.*b\.jsonl\.gz line 2"
    ):
        ExactDeduplicationWorkflow(output_path=tmp_path / "out", **job, **beside).run(spark)
    assert os.listdir(tmp_path / "out") == []
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    done = ExactDeduplicationWorkflow(output_path=tmp_path / "out", on_bad_lines="skip", **job).run(spark)
    assert (done["num_documents"], done["num_duplicates"]) == (3, 0)


@pytest.mark.parametrize("place", ["in", "in/out", "link/out"])
def test_output_apart_from_input(spark, tmp_path, place):
    parquet(tmp_path / "in", GOOD)
    parquet(tmp_path / "ids", pa.table({"id": [1]}))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(InputError, match="equal to or inside the input"):
        ExactDeduplicationWorkflow(input_path=tmp_path / "in", output_path=tmp_path / place).run(spark)
    job = {"id_field": "id", "output_path": tmp_path / place, "output_mode": "overwrite"}
    with pytest.raises(InputError, match="equal to or inside the input"):
        TextDuplicatesRemovalWorkflow(
            input_path=tmp_path / "in", ids_to_remove_path=tmp_path / "ids", **job
        ).run(spark)
    assert os.listdir(tmp_path / "in") == ["0.parquet"]


def test_removal_refuses(spark, tmp_path):
    parquet(tmp_path / "in", GOOD)
    parquet(tmp_path / "ids", pa.table({"id": ["1", "2"]}))
    (tmp_path / "none").mkdir()
    parquet(tmp_path / "broken", pa.table({"id": [1]}))
    (tmp_path / "broken" / "0.parquet").write_bytes(b"PAR1")
    before = sorted(os.listdir(tmp_path))

    def refuse(error, says, **arguments):
        job = {"input_path": tmp_path / "in", "ids_to_remove_path": tmp_path / "ids", "id_field": "id"}
        with pytest.raises(error, match=says) as caught:
            TextDuplicatesRemovalWorkflow(**{**job, "output_path": tmp_path / "out", **arguments}).run(spark)
        assert "\n" not in str(caught.value)

    refuse(InputError, "'id' of the documents is bigint, 'id' of the list of duplicate ids is string")
    refuse(
        InputError,
        f"column '{ID}' not found in .*: name the id column with id_field, or the reg",
        id_field=ID,
    )
    refuse(InputError, "column 'key' not found in the documents", id_field="key")
    refuse(
        InputError, "'key' not found in the list .* .duplicate_id_field.; it has", duplicate_id_field="key"
    )
    refuse(FileNotFoundError, "no id registry at .*none: name the", registry=tmp_path / "none", id_field=ID)
    refuse(
        FileNotFoundError, "'no_registry' is neither an existing path", registry="no_registry", id_field=ID
    )
    refuse(
        InputError,
        "column 'body' not found",
        output_fields=["body"],
        duplicate_id_field="id",
        id_field="text",
    )
    refuse(FileNotFoundError, "no input files: .*none", ids_to_remove_path=tmp_path / "none")
    refuse(InputError, "1 unreadable parquet file", ids_to_remove_path=tmp_path / "broken")
    refuse(InputError, "holds the input", output_path=tmp_path, output_mode="overwrite", id_field="text")
    refuse(InputError, "has another schema", output_filetype="view", output_path="v", id_field="text",
           input_path=[tmp_path / "in", tmp_path / "ids"])  # fmt: skip
    assert sorted(os.listdir(tmp_path)) == before


def test_registry_of_changed_files(spark, tmp_path):
    parquet(tmp_path / "in", GOOD)
    job = {"input_path": tmp_path / "in", "registry": tmp_path / "registry"}
    ExactDeduplicationWorkflow(output_path=tmp_path / "one", **job).run(spark)
    parquet(tmp_path / "in", pa.concat_tables([GOOD, GOOD]))
    with pytest.raises(StaleBatchError, match=r"in/0\.parquet"):
        ExactDeduplicationWorkflow(output_path=tmp_path / "two", **job).run(spark)
    with pytest.raises(InputError, match="equal to or inside"):
        ExactDeduplicationWorkflow(
            input_path=tmp_path / "in", output_path=tmp_path / "three", registry=tmp_path / "in" / "ids"
        ).run(spark)
    assert sorted(os.listdir(tmp_path)) == ["in", "one", "registry"]


ODD = [
    "two words",
    "quote'and\"quote",
    "back`tick",
    "dots.in.it",
    "100%25 %20",
    "a=b",
    "c:d",
    "straße 数据",
    "glob[1]*?{x}",
    "plus+#&;,",
]


@pytest.mark.parametrize("filetype", ["parquet", "jsonl"])
def test_odd_names_work(spark, tmp_path, filetype):
    """Every odd name at once: as input folders, files and columns; each as an output folder would cost a job."""
    text, key = "tëxt `of` \"a.b\" 'c' 5%", "id: = a.b"
    number = 0
    for name in ODD:
        folder = tmp_path / f"in {''.join(ODD[:3])}" / name
        folder.mkdir(parents=True)
        rows = [{key: number + i, text: f"t{(number + i) % 7}"} for i in range(2)]
        number += 2
        if filetype == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{name.replace(':', '')}.parquet")
        else:
            (folder / f"{name.replace(':', '')}.jsonl").write_text(
                "".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"
            )
    source = tmp_path / f"in {''.join(ODD[:3])}"
    # Hadoop's globbing knows no name with a colon and a glob character both.
    plain = [name for name in ODD[3:] if "[" not in name]
    out = tmp_path / f"out {''.join(plain)}"
    exact = ExactDeduplicationWorkflow(
        input_path=source, output_path=out, input_filetype=filetype, text_field=text, perform_removal=True
    ).run(spark)
    assert (exact["num_duplicates"], exact["num_documents_written"]) == (13, 7)
    kept = ds.dataset(
        str(out / "deduplicated"), format="parquet" if filetype == "parquet" else "json"
    ).to_table()
    assert sorted(kept.column(text).to_pylist()) == [f"t{i}" for i in range(7)]
    if filetype == "parquet":
        pq.write_table(pa.table({key: [0, 5]}), tmp_path / "ids.parquet")
        for kind in ("delta", "delta-clone"):
            place = tmp_path / f"{kind} {''.join(plain)}"
            removed = TextDuplicatesRemovalWorkflow(
                input_path=source / ODD[0] / f"{ODD[0]}.parquet"
                if kind == "delta"
                else tmp_path / "plain %20 ü'`",
                ids_to_remove_path=tmp_path / "ids.parquet",
                output_path=place,
                output_filetype=kind,
                id_field=key if kind == "delta" else "id",
                duplicate_id_field=key,
            )
            if kind == "delta-clone":
                parquet(tmp_path / "plain %20 ü'`", pa.table({"id": [0, 1, 5], "ä": [1, 2, 3]}))
            removed.run(spark)
            ids = [row[0] for row in spark.read.format("delta").load(str(place)).collect()]
            assert ids == [1]


NANOS = pa.array([0, 1, 2], pa.timestamp("ns"))


@pytest.mark.parametrize("nested", [False, True])
def test_nanoseconds_are_left_alone_or_named(spark, tmp_path, nested):
    """Pandas writes its dates so, and Spark cannot read them."""
    dates = pa.StructArray.from_arrays([NANOS], ["at"]) if nested else NANOS
    parquet(tmp_path / "in", GOOD.append_column("a.b", dates))
    options = {"input_path": tmp_path / "in", "id_field": "id"}
    found = ExactDeduplicationWorkflow(output_path=tmp_path / "out", assign_id=False, **options).run(spark)
    assert found["num_duplicates"] == 1
    named = r"in/0\.parquet: column 'a\.b' is in nanoseconds, which Spark cannot read: write microseconds"
    whole = ExactDeduplicationWorkflow(
        output_path=tmp_path / "whole", assign_id=False, perform_removal=True, **options
    )
    with pytest.raises(InputError, match=named):
        whole.run(spark)
    removal = {"ids_to_remove_path": tmp_path / "out" / "ExactDuplicateIds", **options}
    with pytest.raises(InputError, match=named):
        TextDuplicatesRemovalWorkflow(output_path=tmp_path / "kept", **removal).run(spark)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    TextDuplicatesRemovalWorkflow(output_path=tmp_path / "kept", input_fields=["id", "text"], **removal).run(
        spark
    )
    assert ds.dataset(tmp_path / "kept").to_table().to_pylist() == GOOD.to_pylist()[:2]
    assert spark.conf.get("spark.sql.legacy.parquet.nanosAsLong") == "false"


def test_old_timestamps_of_spark_are_not_taken_for_nanoseconds(spark, tmp_path):
    """Arrow reads INT96 as nanoseconds."""
    table = GOOD.append_column("at", pa.array([0, 1, 2], pa.timestamp("us")))
    os.makedirs(tmp_path / "in")
    pq.write_table(table, tmp_path / "in" / "a.parquet", use_deprecated_int96_timestamps=True)
    found = ExactDeduplicationWorkflow(
        output_path=tmp_path / "out", input_path=tmp_path / "in", perform_removal=True
    ).run(spark)
    assert found["num_documents_written"] == 2


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize(
    "line", ['[{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]', '[{"id": 1, "text": "a"}]']
)
def test_arrays_are_refused_before_ids_are_written(spark, tmp_path, assign, line):
    """A file that is one JSON array, as pandas and DuckDB write; lines of arrays cannot be written as they were."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text(line)
    job = {} if assign else {"assign_id": False, "id_field": "id"}
    job |= {"input_path": tmp_path / "in", "input_filetype": "jsonl", "output_path": tmp_path / "out"}
    with pytest.raises(InputError, match=r"line\(s\) are arrays of objects, in .*a\.json: 1, such as '\[\{"):
        ExactDeduplicationWorkflow(**job, perform_removal=True).run(spark)
    assert not os.path.exists(tmp_path / "out" / "ExactDuplicateIds")
    found = ExactDeduplicationWorkflow(**job).run(spark)
    assert (found["num_documents"], found["num_duplicates"]) == (line.count("id"), 0)
