"""The removal job: formats, passes, registries, counts that balance; expected rows from plain Python."""

import datetime
import decimal
import hashlib
import json
import os
import shutil

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F
from sessions import plan_of
from spark_4 import TO_ARROW

from spark_dedup import CURATOR_DEDUP_ID_STR as ID
from spark_dedup import IdGenerator, TextDuplicatesRemovalWorkflow, read_documents
from spark_dedup.errors import InputError
from spark_dedup.removal import passes
from spark_dedup.workflows import removal_writing

N = 40
GONE = [0, 3, 4, 5, 17, 39]
ROWS = [
    {
        "id": i,
        "text": None if i == 7 else f"text {i} ü \u2028",
        "day": datetime.date(2024, 1, 1 + i % 28),
        "price": decimal.Decimal(i) / 4,
        "tags": [{"name": f"t{i}", "n": [i, None]}] if i % 3 else [],
        "meta": {"a": {"b": i / 8, "c": None}},
    }
    for i in range(N)
]
TYPES = pa.schema(
    [
        ("id", pa.int64()),
        ("text", pa.string()),
        ("day", pa.date32()),
        ("price", pa.decimal128(10, 2)),
        ("tags", pa.list_(pa.struct([("name", pa.string()), ("n", pa.list_(pa.int32()))]))),
        ("meta", pa.struct([("a", pa.struct([("b", pa.float64()), ("c", pa.string())]))])),
    ]
)


def hashes(folder):
    return {
        os.path.join(root, name): hashlib.sha256(open(os.path.join(root, name), "rb").read()).hexdigest()
        for root, _, names in os.walk(folder)
        for name in names
    }


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Documents in four files, and lists of ids: in a column, and of repeated, unknown and null ids."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "in").mkdir()
    table = pa.Table.from_pylist(ROWS, schema=TYPES)
    for i in range(4):
        pq.write_table(table.slice(10 * i, 10), folder / "in" / f"{i}.parquet")
    os.makedirs(folder / "ids" / "nested")
    pq.write_table(
        pa.table({"id": pa.array([*GONE, 3, 999, None], pa.int32())}), folder / "ids" / "nested" / "a.parquet"
    )
    return folder


def job(given, out, **arguments):
    return TextDuplicatesRemovalWorkflow(
        **{
            "input_path": given / "in",
            "ids_to_remove_path": given / "ids",
            "output_path": out,
            "id_field": "id",
            **arguments,
        }
    )


def kept(limit=N):
    return [row for row in ROWS[:limit] if row["id"] not in GONE]


def in_order(table):
    rows = table.to_pylist()
    return sorted(rows, key=lambda r: r["id"])


def test_parquet_keeps_columns_types_and_order(spark, given, tmp_path):
    before = hashes(given)
    result = job(given, tmp_path / "out").run(spark)
    counts = [result[key] for key in ("num_documents", "num_duplicates_removed", "num_documents_written")]
    assert counts == [40, 6, 34]
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert in_order(pa.concat_tables(tables)) == kept()
    for table in tables:
        ids = table.column("id").to_pylist()
        for source in range(4):
            mine = [i for i in ids if i // 10 == source]
            assert mine == sorted(mine)
        assert table.schema.names == TYPES.names
        assert [str(t).replace("element", "item") for t in table.schema.types] == [
            str(t) for t in TYPES.types
        ]
    assert hashes(given) == before
    assert sorted(os.listdir(tmp_path)) == ["out"]
    with pytest.raises(FileExistsError, match="exists: choose another one"):
        job(given, tmp_path / "out").run(spark)
    ignored = job(given, tmp_path / "out", output_mode="ignore", ids_to_remove_path="nowhere").run(spark)
    assert ignored["num_documents_written"] == 0
    (tmp_path / "out").rename(
        tmp_path / ".out.0123456789ab.tmp.old"
    )  # as a run killed while it overwrites leaves it
    assert job(given, tmp_path / "out", output_mode="ignore").run(spark)["num_documents_written"] == 0
    assert os.listdir(tmp_path) == ["out"]
    once = job(
        given,
        tmp_path / "out",
        output_mode="overwrite",
        input_task_limit=2,
        output_fields=["text", "id"],
        output_file_extension="pq",
        output_kwargs={"compression": "gzip"},
    ).run(spark)
    assert once["num_documents"] == 20
    names = [n for n in os.listdir(tmp_path / "out") if not n.startswith((".", "_"))]
    assert names
    assert all(name.endswith(".gz.pq") for name in names)
    table = ds.dataset([str(tmp_path / "out" / n) for n in names], format="parquet").to_table()
    assert in_order(table) == [{"text": r["text"], "id": r["id"]} for r in kept(20)]


@pytest.mark.parametrize("name", ["plain", "a[b] {c}*?", "d:e é%20"])
def test_some_files_of_partition_folders(spark, given, tmp_path, name):
    for i in range(3):
        table = pa.table({"id": range(10 * i, 10 * i + 10), "text": ["x"] * 10})
        (tmp_path / name / f"part={i}").mkdir(parents=True)
        pq.write_table(table, tmp_path / name / f"part={i}" / "a.parquet")
    done = job(given, tmp_path / "out", input_path=tmp_path / name, input_task_limit=2).run(spark)
    assert done["num_documents"] == 20
    rows = spark.read.parquet(str(tmp_path / "out")).collect()
    assert {(row.id, row.part) for row in rows} == {(i, i // 10) for i in range(20) if i not in GONE}


@pytest.mark.parametrize("unit", ["us", "ms"])
def test_timestamps_stay_what_they_are(spark, given, tmp_path, unit):
    """Far dates too: as INT96, Spark's default, other readers take them for nanoseconds, which overflow."""
    years = [1500, 1969, 2020, 3000]
    moments = [datetime.datetime(y, 1, 2, 3, 4, 5, 678000, tzinfo=datetime.UTC) for y in years]
    naive = [m.replace(tzinfo=None) for m in moments]
    table = pa.table(
        {
            "id": [100, 101, 0, 102],
            "at": pa.array(moments, pa.timestamp(unit, "UTC")),
            "there": pa.array(naive, pa.timestamp(unit)),
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    job(given, tmp_path / "out", input_path=tmp_path / "in").run(spark)
    found = ds.dataset(tmp_path / "out").to_table()
    assert [str(found.schema.field(name).type) for name in ("at", "there")] == [
        "timestamp[us, tz=UTC]",
        "timestamp[us]",
    ]
    assert found.to_pylist() == [row for row in table.to_pylist() if row["id"] != 0]


def test_text_is_never_shuffled(spark, given, monkeypatch, tmp_path):
    plans = []
    real = removal_writing.save

    def save(df, folder, **options):
        plans.append(plan_of(df))
        real(df, folder, **options)

    monkeypatch.setattr(removal_writing, "save", save)
    job(given, tmp_path / "out").run(spark)
    assert len(plans) == 1
    assert "BroadcastExchange" in plans[0]
    assert [line for line in plans[0].splitlines() if "Exchange" in line and "Broadcast" not in line] == []


def test_jsonl(spark, given, tmp_path):
    result = job(
        given, tmp_path / "out", output_filetype="jsonl", drop_id_field=True, input_fields=["text", "meta"]
    ).run(spark)
    assert result["num_documents_written"] == 34
    files = sorted((tmp_path / "out").glob("*.jsonl"))
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    want = [{"text": row["text"], "meta": row["meta"]} for row in kept()]
    assert sorted(map(json.loads, text.rstrip("\n").split("\n")), key=lambda r: r["meta"]["a"]["b"]) == want
    assert " ü " in text
    assert not list((tmp_path / "out").glob(".*.json.crc"))  # of files that are there no longer
    with pytest.raises(InputError, match="nothing is left to write without 'id'"):
        job(given, tmp_path / "none", drop_id_field=True, input_fields=["id"]).run(spark)
    again = TextDuplicatesRemovalWorkflow(
        input_path=str(tmp_path / "out"),
        ids_to_remove_path=given / "ids",
        output_path=tmp_path / "again",
        input_filetype="jsonl",
        output_filetype="jsonl",
        id_field="id",
    )
    with pytest.raises(InputError, match="column 'id' not found"):
        again.run(spark)


@pytest.mark.parametrize("codec", ["lz4", "deflate"])
def test_compressed_jsonl_keeps_microseconds(spark, tmp_path, codec):
    at = datetime.datetime(2026, 1, 2, 3, 4, 5, 123456)
    zoned = pa.array([at] * 2, pa.timestamp("us", "UTC"))
    plain = pa.array([at.replace(microsecond=7)] * 2, pa.timestamp("us"))
    pq.write_table(pa.table({"id": [1, 2], "zoned": zoned, "plain": plain}), tmp_path / "in.parquet")
    pq.write_table(pa.table({"id": [2]}), tmp_path / "ids.parquet")
    made = {"output_filetype": "jsonl", "output_kwargs": {"compression": codec}}
    sources = {"input_path": tmp_path / "in.parquet", "ids_to_remove_path": tmp_path / "ids.parquet"}
    job(tmp_path, tmp_path / "out", **sources, **made).run(spark)
    files = [name for name in os.listdir(tmp_path / "out") if not name.startswith((".", "_"))]
    assert [name.partition("c000")[2] for name in files] == [f".jsonl.{codec}"]
    (row,) = [json.loads(row.value) for row in spark.read.text(str(tmp_path / "out")).collect()]
    assert datetime.datetime.fromisoformat(row["zoned"]) == at.replace(tzinfo=datetime.UTC)
    assert row["plain"] == "2026-01-02T03:04:05.000007"


@TO_ARROW
@pytest.mark.parametrize("kind", ["files", "delta"])
def test_a_view_over_ids_that_a_registry_gave(spark, given, tmp_path, kind):
    docs, name = given / "in", f"shown_by_registry_{kind}"
    if kind == "delta":
        docs = tmp_path / "docs"
        frame = spark.read.parquet(str(given / "in"))
        frame.write.format("delta").option("delta.enableDeletionVectors", "true").save(str(docs))
    numbered = read_documents(spark, docs, registry=tmp_path / "registry")
    of_id = {row[ID]: row["id"] for row in numbered.select(ID, "id").collect()}
    (tmp_path / "gone").mkdir()
    gone = [made for made, own in of_id.items() if own in GONE]
    pq.write_table(pa.table({"id": pa.array(gone)}), tmp_path / "gone" / "a.parquet")
    arguments = {"ids_to_remove_path": tmp_path / "gone", "registry": tmp_path / "registry", "id_field": ID}
    view = job(given, name, input_path=docs, output_filetype="view", **arguments)
    try:
        result = view.run(spark)
        assert (result["num_documents"], result["num_documents_written"]) == (40, 34)
        shown = spark.table(name)
        assert shown.columns == [*TYPES.names, ID]
        assert in_order(shown.drop(ID).toArrow()) == kept()
        assert {row[ID]: row["id"] for row in shown.select(ID, "id").collect()} == {
            made: own for made, own in of_id.items() if own not in GONE
        }
    finally:
        spark.sql(f"DROP VIEW IF EXISTS {name}")


@TO_ARROW
def test_delta_view_and_clone(spark, given, tmp_path):
    result = job(given, tmp_path / "delta", output_filetype="delta").run(spark)
    assert result["num_documents_written"] == 34
    delta = spark.read.format("delta").load(str(tmp_path / "delta"))
    assert in_order(delta.toArrow()) == kept()

    spark.sql("CREATE SCHEMA IF NOT EXISTS removal_tests")
    try:
        shows = {"output_filetype": "view", "output_fields": ["id", "text"]}
        with pytest.raises(InputError, match=r"SQL would not find .*nested/a\.parquet, which lies deeper"):
            job(given, "removal_tests.`2remain`", **shows).run(spark)
        shows["ids_to_remove_path"] = given / "ids" / "nested"
        view = job(given, "removal_tests.`2remain`", **shows).run(spark)
        assert (view["num_documents"], view["num_documents_written"]) == (40, 34)
        shown = spark.table("removal_tests.`2remain`").orderBy("id").toArrow().to_pylist()
        assert shown == [{"id": r["id"], "text": r["text"]} for r in kept()]
        with pytest.raises(FileExistsError):
            job(given, "removal_tests.2remain", output_filetype="view").run(spark)

        table = job(given, "removal_tests.docs", output_filetype="delta").run(spark)
        assert table["num_documents_written"] == 34
        with pytest.raises(InputError, match="is a table, which no view replaces"):
            job(given, "removal_tests.docs", output_mode="overwrite", **shows).run(spark)
        same = {
            "input_path": "removal_tests.docs",
            "output_path": "removal_tests.docs",
            "output_mode": "overwrite",
        }
        with pytest.raises(InputError, match="is an input as well"):
            job(given, **{"out": None, **same, "output_filetype": "delta"}).run(spark)
        spark.sql("USE removal_tests")
        for source, target in (("`docs`", "removal_tests.DOCS"), ("removal_tests.docs", "`docs`")):
            same |= {"input_path": source, "output_path": target, "output_filetype": "delta"}
            with pytest.raises(InputError, match="is an input as well"):
                job(given, **{"out": None, **same}).run(spark)
        spark.sql("USE default")
        narrow = job(
            given,
            "removal_tests.docs",
            output_filetype="delta",
            output_mode="overwrite",
            output_fields=["id"],
        )
        narrow.run(spark)
        assert spark.table("removal_tests.docs").columns == ["id"]
    finally:
        spark.sql("USE default")
        spark.sql("DROP SCHEMA removal_tests CASCADE")

    before = hashes(given)
    clone = job(given, tmp_path / "clone", output_filetype="delta-clone").run(spark)
    assert (clone["num_duplicates_removed"], clone["num_documents_written"]) == (6, 34)
    cloned = spark.read.format("delta").load(str(tmp_path / "clone"))
    assert in_order(cloned.toArrow()) == kept()
    assert hashes(given) == before
    # No data file, not even the empty one of MERGE: the clone's own log adds none but the source's.
    assert not [p for p in (tmp_path / "clone").rglob("*.parquet*") if p.parent.name != "_delta_log"]
    added = spark.read.json(str(tmp_path / "clone" / "_delta_log" / "*.json")).where("add is not null")
    assert {row[0].startswith("file:") for row in added.select("add.path").collect()} == {True}
    assert list((tmp_path / "clone").glob("deletion_vector_*.bin"))
    assert sorted(os.listdir(tmp_path)) == ["clone", "delta"]


def test_passes_give_the_same_and_stay_small(spark, given, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "IDS_PER_PASS", 2)
    # Partition folders: a pass that reads some files keeps their columns.
    table = pa.Table.from_pylist(ROWS, schema=TYPES)
    for i, lang in enumerate(("de", "en", "fr", "it")):
        folder = tmp_path / "in" / f"lang={lang}"
        folder.mkdir(parents=True)
        pq.write_table(table.slice(10 * i, 10), folder / "a.parquet")
    calls = []
    real = removal_writing.save
    monkeypatch.setattr(removal_writing, "save", lambda *a, **k: (calls.append(1), real(*a, **k)))
    result = job(given, tmp_path / "out", input_path=tmp_path / "in").run(spark)
    assert result["num_documents_written"] == 34
    assert len(calls) == 2  # ids in the files: 4 | 1, 0 and 1
    table = ds.dataset(str(tmp_path / "out"), format="parquet").to_table()
    langs = [("de", "en", "fr", "it")[row["id"] // 10] for row in kept()]
    assert in_order(table) == [{**row, "lang": lang} for row, lang in zip(kept(), langs, strict=True)]
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


@pytest.mark.parametrize(("limit", "broadcasts"), [(2, 0), (100, 1)])
def test_a_long_list_is_not_broadcast_to_be_counted(spark, given, tmp_path, monkeypatch, limit, broadcasts):
    monkeypatch.setattr(passes, "IDS_PER_PASS", limit)
    plans = []
    real = removal_writing.count_documents

    def count_documents(df, listed, **options):
        with monkeypatch.context() as patch:
            first = type(df).first
            patch.setattr(type(df), "first", lambda self: (plans.append(plan_of(self)), first(self))[1])
            return real(df, listed, **options)

    monkeypatch.setattr(removal_writing, "count_documents", count_documents)
    spark.read.parquet(str(given / "in")).write.format("delta").save(str(tmp_path / "docs"))
    done = job(given, tmp_path / "out", input_path=tmp_path / "docs").run(spark)
    assert (done["num_documents"], done["num_duplicates_removed"]) == (40, 6)
    assert [plan.count("BroadcastExchange") for plan in plans] == [broadcasts]


@pytest.mark.parametrize("written", ["folder", "table"])
def test_a_long_list_is_not_broadcast_for_delta(spark, given, tmp_path, monkeypatch, written):
    monkeypatch.setattr(passes, "IDS_PER_PASS", 2)
    monkeypatch.setattr(removal_writing, "remove_duplicates", lambda *_, **__: pytest.fail("broadcast"))
    docs = spark.read.parquet(str(given / "in")).withColumn("odd name", F.col("id") % 2)
    mapped = {"delta.columnMapping.mode": "name"}
    docs.write.format("delta").partitionBy("odd name").options(**mapped).save(str(tmp_path / "docs"))
    before = hashes(tmp_path / "docs")
    target = tmp_path / "out" if written == "folder" else "long_lists.kept"
    wanted = {"input_fields": ["text", "odd name", "id"], "input_path": tmp_path / "docs"}
    spark.sql("CREATE SCHEMA IF NOT EXISTS long_lists")
    try:
        made = {"output_filetype": "delta"} if written == "table" else {}
        done = job(given, target, **wanted, **made).run(spark)
        got = spark.read.parquet(str(target)) if written == "folder" else spark.table(target)
        assert got.columns == ["text", "odd name", "id"]
        rows = sorted((row["id"], row["text"], row["odd name"]) for row in got.collect())
        tables = [t.name for t in spark.catalog.listTables("long_lists") if not t.isTemporary]
        assert tables == (["kept"] if written == "table" else [])
    finally:
        spark.sql("DROP SCHEMA long_lists CASCADE")
    assert (done["num_documents"], done["num_duplicates_removed"]) == (40, 6)
    assert rows == [(row["id"], row["text"], row["id"] % 2) for row in kept()]
    assert hashes(tmp_path / "docs") == before
    assert sorted(os.listdir(tmp_path)) == ["docs", *(["out"] if written == "folder" else [])]


@pytest.mark.parametrize("source", ["delta table", "table", "files"])
def test_a_list_without_the_blanks_of_a_char(spark, tmp_path, monkeypatch, source):
    """Spark pads a CHAR as it reads it, also from files that it wrote of one."""
    kind = "delta" if source == "delta table" else "parquet"
    spark.sql(f"CREATE TABLE char_ids (id CHAR(4), n INT) USING {kind}")
    os.mkdir(tmp_path / "ids")
    pq.write_table(pa.table({"id": ["1", "1  ", "30", "31 ", "x"]}), tmp_path / "ids" / "a.parquet")
    targets = {"parquet": "parquet", "view": "char_view", "delta": "char_kept", "delta-clone": "clone"}
    try:
        spark.sql("INSERT INTO char_ids SELECT /*+ REPARTITION(2) */ id, id FROM range(40)")
        spark.table("char_ids").write.parquet(str(tmp_path / "docs"))
        docs = tmp_path / "docs" if source == "files" else "char_ids"
        for filetype, name in targets.items():
            out = name if name.startswith("char_") else tmp_path / name
            arguments = {"ids_to_remove_path": tmp_path / "ids", "output_filetype": filetype}
            done = job(tmp_path, out, input_path=docs, **arguments).run(spark)
            assert (done["num_documents"], done["num_duplicates_removed"]) == (40, 3)
            form = "parquet" if filetype == "parquet" else "delta"
            left = spark.table(name) if out == name else spark.read.format(form).load(str(out))
            assert sorted(r["n"] for r in left.collect()) == [n for n in range(40) if n not in (1, 30, 31)]
        monkeypatch.setattr(passes, "IDS_PER_PASS", 2)
        done = job(tmp_path, tmp_path / "long", input_path=docs, ids_to_remove_path=tmp_path / "ids").run(
            spark
        )
        assert (done["num_documents"], done["num_duplicates_removed"]) == (40, 3)
    finally:
        spark.sql("DROP VIEW IF EXISTS char_view")
        for name in ("char_ids", "char_kept"):
            spark.sql(f"DROP TABLE IF EXISTS {name}")


def jsonl_with_ids(folder):
    """JSON lines whose files differ in columns, their Curator registry, and the ids to remove."""
    (folder / "in").mkdir()
    files = [folder / "in" / f"{name}.jsonl" for name in "abc"]
    for number, file in enumerate(files):
        lines = [
            {"text": f"{number}/{i}", **({"extra": i} if number == 1 else {})} for i in range(5 + number)
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pq.write_table(pa.table({"id": [0, 4, 6, 7, 12, 17]}), folder / "ids.parquet")
    want = [f"{n}/{i}" for n in range(3) for i in range(5 + n)]
    return files, [text for number, text in enumerate(want) if number not in (0, 4, 6, 7, 12, 17)]


@pytest.mark.parametrize("batches", ["one each", "all together", "passes"])
def test_generated_ids_of_jsonl(spark, tmp_path, monkeypatch, batches):
    files, want = jsonl_with_ids(tmp_path)
    generator = IdGenerator()
    if batches == "all together":
        generator.register_batch([str(file) for file in files], 18)
    else:
        generator.register_batches([(str(file), 5 + n) for n, file in enumerate(files)])
    generator.to_disk(tmp_path / "ids.json")
    if batches == "passes":
        monkeypatch.setattr(passes, "IDS_PER_PASS", 2)
    result = TextDuplicatesRemovalWorkflow(
        input_path=tmp_path / "in",
        ids_to_remove_path=tmp_path / "ids.parquet",
        output_path=tmp_path / "out",
        input_filetype="jsonl",
        id_generator_path=tmp_path / "ids.json",
        # As Curator's users write it, whoever made the ids.
        input_files_per_partition=None if batches == "passes" else 3,
    ).run(spark)
    assert result["num_duplicates_removed"] == 6
    rows = ds.dataset(str(tmp_path / "out"), format="parquet").to_table()
    assert sorted(rows.column("text").to_pylist()) == want
    assert rows.schema.names == ["extra", "text", ID]
    extra = {row["text"]: row["extra"] for row in rows.to_pylist()}
    assert extra["1/4"] == 4
    assert extra["2/6" if "2/6" in extra else "2/5"] is None


def test_unknown_files_are_named(spark, given, tmp_path):
    generator = IdGenerator()
    generator.register_batches([(str(given / "in" / f"{i}.parquet"), 10) for i in range(3)])
    generator.to_disk(tmp_path / "ids.json")
    with pytest.raises(KeyError, match=r"does not know 1 of 4 .*in/3\.parquet"):
        job(given, tmp_path / "out", id_field=ID, id_generator_path=tmp_path / "ids.json").run(spark)
    assert sorted(os.listdir(tmp_path)) == ["ids.json"]


@pytest.mark.parametrize("filetype", ["parquet", "delta table"])
def test_counts_that_do_not_balance_publish_nothing(spark, given, tmp_path, monkeypatch, filetype):
    monkeypatch.setattr(removal_writing, "remove_duplicates", lambda df, *_, **__: df.where("id > 20"))
    out = "unbalanced" if filetype == "delta table" else tmp_path / "out"
    with pytest.raises(RuntimeError, match="40 read - 6 removed is not 19 written; nothing was published"):
        job(given, out, output_filetype=filetype.split()[0]).run(spark)
    assert os.listdir(tmp_path) == []
    assert not spark.catalog.tableExists("unbalanced")


@pytest.mark.parametrize("left", ["committed", "files"])
def test_the_folder_of_a_table_that_a_killed_run_left(spark, given, left):
    """Killed between Delta's commit and the catalog's entry, or while it wrote."""
    home = spark.conf.get("spark.sql.warehouse.dir").removeprefix("file:")
    writer = spark.range(3).write.format("delta" if left == "committed" else "parquet")
    writer.save(f"{home}/half_written")
    try:
        for mode in ("error", "ignore"):
            with pytest.raises(InputError, match=r"no table `half_written`, but its folder .*: overwrite it"):
                job(given, "half_written", output_filetype="delta", output_mode=mode).run(spark)
        job(given, "half_written", output_filetype="delta", output_mode="overwrite").run(spark)
        assert in_order(spark.table("half_written").toArrow()) == kept()
    finally:
        spark.sql("DROP TABLE IF EXISTS half_written")
        shutil.rmtree(f"{home}/half_written", ignore_errors=True)


@pytest.mark.parametrize("filetype", ["jsonl", "parquet"])
def test_a_view_over_a_folder_with_other_files_is_refused(spark, tmp_path, filetype):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": [1]}), tmp_path / "in" / "list.parquet")
    for name in ("docs.jsonl", "readme.txt"):
        (tmp_path / "in" / name).write_text('{"id": 1, "text": "a"}\n')
    view = TextDuplicatesRemovalWorkflow(
        input_path=tmp_path / "in",
        ids_to_remove_path=tmp_path / "in" / "list.parquet",
        output_path="beside_others",
        input_filetype=filetype,
        output_filetype="view",
        id_field="id",
    )
    kind = "json" if filetype == "jsonl" else "parquet"
    with pytest.raises(InputError, match=rf"SQL would read file:.*readme\.txt as {kind}, too"):
        view.run(spark)


def test_nothing_and_everything_listed(spark, given, tmp_path):
    for name, ids in (("none", []), ("all", list(range(N)))):
        pq.write_table(pa.table({"id": pa.array(ids, pa.int64())}), tmp_path / f"{name}.parquet")
        result = job(given, tmp_path / name, ids_to_remove_path=tmp_path / f"{name}.parquet").run(spark)
        assert result["num_documents_written"] == N - len(ids)
        assert spark.read.parquet(str(tmp_path / name)).columns == TYPES.names


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"drop_id_field": True, "output_fields": ["id"]},
            "Cannot drop id_field 'id' when it is incl",
        ),
        ({"output_filetype": "csv"}, "output_filetype must be"),
        ({"output_mode": "append"}, "output_mode must be one of"),
        ({"registry": "a", "id_generator_path": "b", "id_field": ID}, "name one of them"),
        ({"registry": "a"}, "assigned ids are called"),
        ({"input_task_limit": 0}, "must be 1 or more"),
        ({"output_fields": []}, "output_fields is empty: name columns"),
        ({"output_fields": ["id", "id"]}, "output_fields names a column twice: id, id"),
        (
            {"output_kwargs": {"compression": "zip"}},
            "output_kwargs: compression 'zip' is not one of none, uncompressed, snappy",
        ),
        (
            {"output_filetype": "jsonl", "output_kwargs": {"compression": "zstd"}},
            "output_kwargs: compression 'zstd' is not one of none, uncompressed, bzip2, deflate, gzip",
        ),
        ({"output_filetype": "delta-clone", "output_fields": ["id"]}, "leave output_fields out"),
        (
            {"output_filetype": "view", "id_generator_path": "a", "id_field": ID},
            "a view tells ids by a column",
        ),
        (
            {"output_filetype": "view", "registry": "a", "input_files_per_partition": 2, "id_field": ID},
            "or by an id registry that has a range for each file",
        ),
        ({"output_filetype": "view", "output_path": "a..b"}, "is no name of a table"),
    ],
)
def test_arguments(given, arguments, says):
    with pytest.raises(ValueError, match=says):
        job(given, **{"out": "out", **arguments})


def test_aliases(given):
    made = job(given, "out", input_id_field="a", ids_to_remove_duplicate_id_field="b")
    assert (made.id_field, made.duplicate_id_field) == ("a", "b")
    by_place = TextDuplicatesRemovalWorkflow("in", "ids", "out", "jsonl")
    assert (by_place.ids_to_remove_path, by_place.input_filetype) == ("ids", "jsonl")


def test_connect(run_connect, given, tmp_path):
    out = run_connect(f"""
from spark_dedup import ExactDeduplicationWorkflow, TextDuplicatesRemovalWorkflow
done = ExactDeduplicationWorkflow(
    input_path={str(given / "in")!r}, output_path={str(tmp_path / "exact")!r}, perform_removal=True
).run(spark)
removed = TextDuplicatesRemovalWorkflow(
    input_path={str(given / "in")!r}, ids_to_remove_path={str(given / "ids")!r}, id_field="id",
    output_path={str(tmp_path / "clone")!r}, output_filetype="delta-clone",
).run(spark)
print(done["num_documents_written"], removed["num_documents_written"])
""")
    assert out.splitlines()[-1] == "40 34"


@TO_ARROW
@pytest.mark.parametrize("source", ["view", "files"])
def test_a_list_far_too_long_to_broadcast_shuffles_documents(
    spark, given, tmp_path, monkeypatch, caplog, source
):
    monkeypatch.setattr(passes, "IDS_PER_PASS", 2)
    monkeypatch.setattr(passes, "IDS_TO_BROADCAST", 3)
    real = removal_writing.remove_duplicates
    plans = []

    def remove_duplicates(*args, **options):
        plans.append(plan_of(real(*args, **options)))
        return real(*args, **options)

    monkeypatch.setattr(removal_writing, "remove_duplicates", remove_duplicates)
    spark.sql("CREATE SCHEMA IF NOT EXISTS far_too_long")
    try:
        docs = given / "in"
        if source == "view":
            spark.sql(f"CREATE VIEW far_too_long.docs AS SELECT * FROM parquet.`{docs}`")
            docs = "far_too_long.docs"
        target = tmp_path / "out" if source == "view" else "far_too_long.kept"
        done = job(given, target, input_path=docs, output_filetype="delta").run(spark)
        assert (done["num_documents"], done["num_duplicates_removed"]) == (40, 6)
        got = spark.read.format("delta").load(str(target)) if source == "view" else spark.table(target)
        assert in_order(got.toArrow()) == kept()
    finally:
        spark.sql("DROP SCHEMA far_too_long CASCADE")
    assert ["Broadcast" in plan for plan in plans] == [False]
    assert "documents are shuffled" in caplog.text


@pytest.mark.parametrize("odd", ["append only", "Iceberg", "_metadata"])
def test_a_long_list_for_a_delta_table_that_deletion_vectors_do_not_suit(
    spark, given, tmp_path, monkeypatch, odd
):
    monkeypatch.setattr(passes, "IDS_PER_PASS", 2)
    docs = spark.read.parquet(str(given / "in")).select("id", "text")
    options = {
        "append only": {"delta.appendOnly": "true"},
        "Iceberg": {"delta.enableIcebergCompatV1": "true", "delta.columnMapping.mode": "name"},
    }.get(odd, {})
    docs = docs if options else docs.withColumn("_metadata", F.lit("own"))
    docs.write.format("delta").options(**options).save(str(tmp_path / "docs"))
    done = job(given, tmp_path / "out", input_path=tmp_path / "docs").run(spark)
    assert (done["num_documents"], done["num_duplicates_removed"]) == (40, 6)
    got = spark.read.parquet(str(tmp_path / "out"))
    assert got.columns == docs.columns
    assert sorted(row[0] for row in got.select("id").collect()) == [row["id"] for row in kept()]


def test_what_cannot_be_cloned_is_refused_before_work(spark, given, tmp_path):
    spark.sql("CREATE SCHEMA IF NOT EXISTS not_cloned")
    try:
        spark.sql("CREATE TABLE not_cloned.lines USING json AS SELECT id FROM range(9)")
        spark.sql("CREATE VIEW not_cloned.shown AS SELECT id FROM not_cloned.lines")
        for name, said in (("lines", "is a table of json files"), ("shown", "is a view")):
            with pytest.raises(InputError, match=f"`{name}` {said}, which cannot be cloned"):
                job(
                    given, tmp_path / "out", input_path=f"not_cloned.{name}", output_filetype="delta-clone"
                ).run(spark)
    finally:
        spark.sql("DROP SCHEMA not_cloned CASCADE")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", ["error", "overwrite"])
@pytest.mark.parametrize("filetype", ["delta", "view"])
def test_an_absent_schema_or_catalog_is_named_before_work(spark, given, filetype, mode):
    shows = {"output_filetype": filetype, "output_mode": mode, "ids_to_remove_path": given / "ids" / "nested"}
    with pytest.raises(InputError, match=r"no schema `absent_schema` .* CREATE SCHEMA `absent_schema`"):
        job(given, "absent_schema.kept", **shows).run(spark)
    with pytest.raises(InputError, match=r"`absent`\.`s`") as refused:
        job(given, "absent.s.kept", **shows).run(spark)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("filetype", ["delta-clone", "parquet"])
def test_a_folder_named_like_a_table_is_refused(spark, given, filetype):
    with pytest.raises(
        InputError, match=r"names a table of schema `default`: give a path, such as ./default.kept"
    ):
        job(given, "default.kept", output_filetype=filetype).run(spark)
    assert not os.path.exists("default.kept")


def test_a_view_over_a_temporary_one_is_refused(spark, given):
    spark.range(9).createOrReplaceTempView("of_this_session")
    try:
        with pytest.raises(InputError, match=r"create the view `default`\.`lasts`: .*temporary") as refused:
            job(
                given,
                "default.lasts",
                input_path="of_this_session",
                output_filetype="view",
                ids_to_remove_path=given / "ids" / "nested",
            ).run(spark)
        assert "\n" not in str(refused.value)
    finally:
        spark.catalog.dropTempView("of_this_session")
