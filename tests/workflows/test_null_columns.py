"""Columns of nulls alone, to which a writer such as pandas gives no type, beside files that have one."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_dedup import (
    ExactDeduplicationWorkflow,
    SemanticDeduplicationWorkflow,
    TextDuplicatesRemovalWorkflow,
    read_documents,
)
from spark_dedup.datasets import read_dataset
from spark_dedup.errors import InputError
from spark_dedup.listing import list_files
from spark_dedup.removal import passes
from spark_dedup.schemas import null_parts

TYPED = {
    "language": "en",
    "length": 5,
    "score": 0.5,
    "ok": True,
    "day": dt.date(2020, 1, 1),
    "raw": b"x",
    "tags": ["a"],
    "place": {"page": "x", "line": 1},
    "links": [{"to": "z"}],
}
NULLS = dict.fromkeys(TYPED)
INNER = {**NULLS, "tags": [], "place": {"page": None, "line": 1}, "links": [{"to": None}]}


def write(folder, *, texts=("ab", "ac", "bd")):
    """Two rows a file, of nulls alone, of values, of nulls inside; return the rows by their id."""
    folder.mkdir(parents=True)
    rows = {}
    for number, (kind, pair) in enumerate(zip((NULLS, TYPED, INNER), texts, strict=True)):
        part = [{"id": 2 * number + i, "text": text, **kind} for i, text in enumerate(pair)]
        pq.write_table(pa.Table.from_pylist(part), folder / f"{number}.parquet")
        rows |= {row["id"]: row for row in part}
    return rows


def remove(spark, tmp_path, removed, **options):
    pq.write_table(pa.table({"id": pa.array(removed, pa.int64())}), tmp_path / "ids.parquet")
    return TextDuplicatesRemovalWorkflow(
        input_path=tmp_path / "in", ids_to_remove_path=tmp_path / "ids.parquet", id_field="id",
        duplicate_id_field="id", output_path=tmp_path / "out", **options,
    ).run(spark)  # fmt: skip


def read(spark, path, form="parquet"):
    return {
        row["id"]: row.asDict(recursive=True) for row in spark.read.format(form).load(str(path)).collect()
    }


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_removal_keeps_the_values_and_finds_the_types(spark, tmp_path, form):
    rows = write(tmp_path / "in")
    remove(spark, tmp_path, [0, 3, 4], output_filetype=form)
    assert read(spark, tmp_path / "out", form) == {id_: rows[id_] for id_ in (1, 2, 5)}


@pytest.mark.parametrize("ids_per_pass", [1, 2])
def test_removal_in_passes(spark, tmp_path, monkeypatch, ids_per_pass):
    rows = write(tmp_path / "in")
    monkeypatch.setattr(passes, "IDS_PER_PASS", ids_per_pass)
    remove(spark, tmp_path, [0, 3, 4])
    assert read(spark, tmp_path / "out") == {id_: rows[id_] for id_ in (1, 2, 5)}


def test_files_of_nulls_alone_get_the_types_of_those_left_out(spark, tmp_path):
    rows = write(tmp_path / "in")
    remove(spark, tmp_path, [0], input_task_limit=1)
    kept = spark.read.parquet(str(tmp_path / "out"))
    assert [row.asDict() for row in kept.collect()] == [rows[1]]
    assert dict(kept.dtypes)["links"] == "array<struct<to:string>>"


def test_partition_folders_stay_columns(spark, tmp_path):
    write(tmp_path / "in" / "lang=a")
    for number in (1, 2):
        (tmp_path / "in" / f"lang={'abc'[number]}").mkdir()
        name = f"{number}.parquet"
        (tmp_path / "in" / "lang=a" / name).rename(tmp_path / "in" / f"lang={'abc'[number]}" / name)
    remove(spark, tmp_path, [0])
    assert {id_: row["lang"] for id_, row in read(spark, tmp_path / "out").items()} == dict(
        zip(range(1, 6), "abbcc", strict=True)
    )


def test_exact_matching_with_ids_made(spark, tmp_path):
    rows = write(tmp_path / "in", texts=("ab", "ac", (None, None)))
    for _ in range(2):  # first the registry does not know the files, then it does
        ran = ExactDeduplicationWorkflow(
            input_path=tmp_path / "in", output_path=tmp_path / "out", perform_removal=True,
            output_mode="overwrite", registry=tmp_path / "registry", keep=["length"],
        ).run(spark)  # fmt: skip
        # Nulls rank last, so the second "a" stays, and the first of the texts that are null.
        found = spark.read.parquet(str(tmp_path / "out" / "ExactDuplicateIds")).collect()
        assert [row[0] for row in found] == [0, 5]
    assert ran["num_documents"] == 6
    kept = read(spark, tmp_path / "out" / "deduplicated")
    assert {id_: {**rows[id_], "_curator_dedup_id": id_} for id_ in (1, 2, 3, 4)} == kept


def test_semantic_matching_keeps_metadata_that_a_file_has_no_type_for(spark, tmp_path):
    rng = np.random.default_rng(3)
    rows = []
    for number, language in enumerate((None, "en")):
        part = [
            {"id": 20 * number + i, "embeddings": rng.normal(size=4).tolist(), "language": language}
            for i in range(20)
        ]
        part[0]["embeddings"] = [1.0, 0, 0, 0]
        rows += part
    (tmp_path / "in").mkdir()
    for number, part in enumerate((rows[:20], rows[20:], [{"id": 40, "embeddings": None, "language": "de"}])):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / "in" / f"{number}.parquet")
    ran = SemanticDeduplicationWorkflow(
        input_path=tmp_path / "in", output_path=tmp_path / "out", n_clusters=2, eps=1e-6, perform_removal=True,
        metadata_fields=["language"], invalid_embeddings="drop", random_state=5,
    ).run(spark)  # fmt: skip
    assert ran["num_duplicates"] == 1
    clusters = spark.read.parquet(str(tmp_path / "out" / "kmeans_results"))
    assert {row["id"]: row["language"] for row in clusters.collect()} == {
        row["id"]: row["language"] for row in rows
    }
    kept = {
        row["id"]: row["language"]
        for row in spark.read.parquet(str(tmp_path / "out" / "deduplicated")).collect()
    }
    assert len(kept) == 40
    assert {kept.get(0, "gone"), kept.get(20, "gone")} in ({None, "gone"}, {"en", "gone"})
    assert kept[40] == "de"


@pytest.mark.parametrize("form", ["delta-clone", "view"])
def test_what_shows_files_as_they_are_needs_the_types_there(spark, tmp_path, form):
    write(tmp_path / "in")
    with pytest.raises(InputError, match="of nulls alone"):
        remove(spark, tmp_path, [0], output_filetype=form)


def test_reading_with_ids_wants_the_types_as_well(spark, tmp_path):
    write(tmp_path / "in")
    with pytest.raises(InputError, match="of nulls alone"):
        read_documents(spark, tmp_path / "in", registry=tmp_path / "registry")
    assert (
        read_documents(spark, tmp_path / "in", registry=tmp_path / "registry", columns=["text"]).count() == 6
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": pa.nulls(1), "b": [1]}, {"a": ["x"], "b": [1.5]}),
        ({"a": [{"b": None}]}, {"a": [{"c": "x"}]}),
        ({"a": [{"b": None}]}, {"a": [{"b": "x", "c": 1}]}),
        ({"a": [[None]]}, {"a": [{"b": "x"}]}),
    ],
)
def test_other_differences_are_still_errors(spark, tmp_path, one, other):
    (tmp_path / "in").mkdir()
    for number, columns in enumerate((one, other)):
        pq.write_table(pa.table({"id": [number], **columns}), tmp_path / "in" / f"{number}.parquet")
    with pytest.raises(InputError, match="has another schema"):
        remove(spark, tmp_path, [0])
    assert not (tmp_path / "out").exists()


def test_three_files_of_which_two_differ(spark, tmp_path):
    (tmp_path / "in").mkdir()
    for number, values in enumerate((pa.nulls(1), ["x"], [1])):
        pq.write_table(pa.table({"id": [number], "a": values}), tmp_path / "in" / f"{number}.parquet")
    with pytest.raises(
        InputError, match=r"2\.parquet has another schema: column 'a' is int64, in .* it is string"
    ):
        remove(spark, tmp_path, [0])


def test_a_file_that_came_after_the_look_at_the_input_is_read_too(spark, tmp_path):
    rows = write(tmp_path / "in")
    files = list_files(tmp_path / "in")
    parts = dict(null_parts(files, [pq.read_metadata(file.path) for file in files]))
    del parts[files[1].path]
    found = read_dataset(spark, tmp_path / "in", parts=parts).collect()
    assert {row["id"]: row.asDict(recursive=True) for row in found} == rows


def test_files_alike_are_read_together(tmp_path):
    for number in range(2):
        pq.write_table(pa.table({"a": pa.nulls(1), "b": [1]}), tmp_path / f"{number}.parquet")
    files = list_files(tmp_path)
    assert null_parts(files, [pq.read_metadata(file.path) for file in files]) == {}


def test_connect(run_connect, tmp_path):
    rows = write(tmp_path / "in")
    out = run_connect(f"""
from spark_dedup import ExactDeduplicationWorkflow
ExactDeduplicationWorkflow(
    input_path={str(tmp_path / "in")!r}, output_path={str(tmp_path / "out")!r}, assign_id=False, id_field="id",
    perform_removal=True,
).run(spark)
left = spark.read.parquet({str(tmp_path / "out" / "deduplicated")!r}).collect()
print(sorted((row["id"], row["language"], row["tags"]) for row in left))
""")
    kept = [(id_, rows[id_]["language"], rows[id_]["tags"]) for id_ in (0, 1, 3, 5)]
    assert out.splitlines()[-1] == str(kept)
