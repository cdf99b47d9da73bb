"""A table of deletion vectors written here, read by Delta: whatever the files are called and hold."""

import datetime
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_dedup import IdRegistry, TextDuplicatesRemovalWorkflow, read_documents
from spark_dedup.errors import InputError

DAY = datetime.datetime(2026, 11, 21, 12, 30)


def clone(spark, source, target, ids, **options):
    listed = f"{target}-listed"
    os.makedirs(listed)
    pq.write_table(pa.table({"id": pa.array(ids, pa.int64())}), f"{listed}/0.parquet")
    done = TextDuplicatesRemovalWorkflow(
        input_path=source,
        ids_to_remove_path=listed,
        output_path=target,
        output_filetype="delta-clone",
        **options,
    ).run(spark)
    assert done["num_documents"] - done["num_duplicates_removed"] == done["num_documents_written"]
    return done, spark.read.format("delta").load(str(target))


def test_many_rows_and_files(spark, tmp_path):
    """Containers of every kind: dense, sparse, empty, a whole file; places beyond 2^16."""
    source = tmp_path / "in" / "deep %20 ü'`"
    source.mkdir(parents=True)
    sizes = (200_000, 70_000, 10, 5)
    firsts = (0, 200_000, 270_000, 270_010)
    for number, (first, size) in enumerate(zip(firsts, sizes, strict=True)):
        rows = pa.table({"id": range(first, first + size), "text": [f"t{i % 7}" for i in range(size)]})
        pq.write_table(rows, source / f"{number}.parquet", row_group_size=30_000)
    pq.write_table(pa.table({"id": [270_015], "text": ["alone"]}), tmp_path / "in" / "4.parquet")
    hidden = [*range(100_000), *range(131_072, 200_000, 1000), 199_999, 200_000, 269_999]
    hidden += [*range(270_000, 270_010), 270_014]
    listed = [*hidden, -1, 999_999, hidden[5]]  # unknown and repeated ids
    done, df = clone(spark, tmp_path / "in", tmp_path / "clone", listed, id_field="id")
    assert done["num_duplicates_removed"] == len(hidden)
    kept = {row.id: row.text for row in df.collect()}
    assert sorted(kept) == sorted(set(range(270_016)) - set(hidden))
    assert (kept[199_998], kept[270_015]) == (f"t{199_998 % 7}", "alone")
    # Delta goes on from there, in its own ways.
    table = f"delta.`{tmp_path / 'clone'}`"
    spark.sql(f"DELETE FROM {table} WHERE id % 2 = 0")
    spark.sql(f"INSERT INTO {table} VALUES (-7, 'new')")
    assert spark.sql(f"SELECT count(*) FROM {table}").first()[0] == 1 + sum(i % 2 for i in kept)
    assert spark.sql(f"SELECT count(*) FROM {table} VERSION AS OF 0").first()[0] == len(kept)
    history = spark.sql(f"DESCRIBE HISTORY {table}").collect()
    assert (history[-1]["operation"], history[-1]["operationParameters"]["isShallow"]) == ("CLONE", "true")
    assert sum(pq.read_metadata(f).num_rows for f in (tmp_path / "in").rglob("*.parquet")) == 270_016


def test_a_file_of_vectors_that_is_full_is_followed_by_another(spark, tmp_path, monkeypatch):
    monkeypatch.setattr("spark_dedup.removal.vectors._FILE_BYTES", 100)
    (tmp_path / "in").mkdir()
    for number in range(5):
        pq.write_table(
            pa.table({"id": range(10 * number, 10 * number + 10)}), tmp_path / "in" / f"{number}.parquet"
        )
    hidden = [0, 5, 11, 23, 24, 38, 49]
    done, df = clone(spark, tmp_path / "in", tmp_path / "clone", hidden, id_field="id")
    assert done["num_duplicates_removed"] == 7
    assert sorted(row.id for row in df.collect()) == sorted(set(range(50)) - set(hidden))
    log = (tmp_path / "clone" / "_delta_log" / f"{0:020d}.json").read_text().splitlines()
    adds = [json.loads(line)["add"] for line in log if line.startswith('{"add"')]
    offsets = {}
    for add in adds:
        offsets.setdefault(add["deletionVector"]["pathOrInlineDv"], []).append(
            add["deletionVector"]["offset"]
        )
    assert len(offsets) == len(list((tmp_path / "clone").glob("deletion_vector_*.bin"))) > 1
    assert all(min(found) == 1 and max(found) < 100 for found in offsets.values())


def test_partitions_names_and_types(spark, tmp_path):
    """Folders that give columns, null among them; names that need mapping; nested fields; times without zone."""
    row = {"the id": 1, "a, b;": {"x y": [{"k=": 1.5}]}, "at": DAY}
    places = (("2026-01-01", "a b"), ("2026-01-02", "__HIVE_DEFAULT_PARTITION__"), ("2026-01-02", "c%2Fd"))
    for number, (day, kind) in enumerate(places):
        folder = tmp_path / "in" / f"day={day}" / f"kind={kind}"
        folder.mkdir(parents=True)
        rows = [{**row, "the id": 10 * number + i} for i in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    done, df = clone(spark, tmp_path / "in", tmp_path / "out", [0, 1, 2, 3, 12, 23], id_field="the id")
    assert done["num_documents_written"] == 6
    assert df.columns == ["the id", "a, b;", "at", "day", "kind"]
    assert dict(df.dtypes)["at"] == "timestamp_ntz"
    found = sorted(
        (r["the id"], str(r["day"]), r["kind"], r["a, b;"]["x y"][0]["k="], r["at"]) for r in df.collect()
    )
    want = [(i, "2026-01-02", None, 1.5, DAY) for i in (10, 11, 13)]
    assert found == [*want, *((i, "2026-01-02", "c/d", 1.5, DAY) for i in (20, 21, 22))]
    assert df.where("kind = 'c/d' AND day = '2026-01-02'").count() == 3


def test_ids_that_are_made(spark, tmp_path):
    """The files have no id column: a row's id is its place, and the clone needs no more than that."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        pq.write_table(
            pa.table({"text": [f"{number} {i}" for i in range(5)]}), tmp_path / "in" / f"{number}.parquet"
        )
    registry = IdRegistry.open(spark, tmp_path / "registry")
    read_documents(spark, tmp_path / "in", registry=registry)
    done, df = clone(spark, tmp_path / "in", tmp_path / "out", [0, 6, 9], registry=tmp_path / "registry")
    assert done["num_duplicates_removed"] == 3
    assert df.columns == ["text"]
    assert sorted(r.text for r in df.collect()) == ["0 1", "0 2", "0 3", "0 4", "1 0", "1 2", "1 3"]
    _, whole = clone(spark, tmp_path / "in", tmp_path / "none", [77], registry=tmp_path / "registry")
    assert whole.count() == 10
    assert os.listdir(tmp_path / "none") == ["_delta_log"]

    whole.write.format("delta").save(str(tmp_path / "delta"))
    with pytest.raises(InputError, match="the ids must be one of its columns"):
        clone(spark, tmp_path / "delta", tmp_path / "no", [1], registry=tmp_path / "registry")


def test_one_file_and_several_paths(spark, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"id": [ord(name), ord(name) + 10]}), tmp_path / name / "0.parquet")
    _, df = clone(spark, tmp_path / "a" / "0.parquet", tmp_path / "one", [97], id_field="id")
    assert [r.id for r in df.collect()] == [107]
    _, df = clone(spark, [tmp_path / "a", tmp_path / "b"], tmp_path / "two", [98, 107], id_field="id")
    assert sorted(r.id for r in df.collect()) == [97, 108]
    pq.write_table(pa.table({"id": [1], "_metadata": ["mine"]}), tmp_path / "a" / "0.parquet")
    with pytest.raises(InputError, match="a column '_metadata', which Delta cannot read"):
        clone(spark, tmp_path / "a", tmp_path / "no", [1], id_field="id")
