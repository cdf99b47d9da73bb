import contextlib
import gzip
import json
import logging
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import functions as F
from sessions import plan_of

from spark_dedup.errors import InputError
from spark_dedup.ids import assign
from spark_dedup.ids.assign import documents, read_documents
from spark_dedup.ids.batches import StaleBatchError
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.settings import settings
from spark_dedup.tables import ID

FAILED = (PySparkException, Py4JJavaError)  # the latter on Spark 3
NAMES = ["sp ace", "per%20cent", "pct%", "ümläut", "k=v", "quo'te", 'dq"x', "back`tick", "ha#sh", "q?m",
         "pl+us", "[b]{c}", "st*r", "semi;comma,", "日本", "nfd-u\u0308"]  # fmt: skip


def write_parquet(path, n, start=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    place = list(range(n))
    texts = [f"{path.name} {i} " + "x" * (i % 50) for i in place]
    schema = pa.schema([("file", pa.string()), ("place", pa.int64()), ("text", pa.string())])
    table = pa.table({"file": [str(path)] * n, "place": place, "text": texts}, schema=schema)
    pq.write_table(table, path, **options)


def expected(ids, paths_and_counts):
    """Ids by (file, place), from the registered ranges and plain counting."""
    return {(str(p), i): ids.get_batch_range(str(p))[0] + i for p, n in paths_and_counts for i in range(n)}


def by_place(df):
    rows = df.select("file", "place", ID).collect()
    assert len({row[ID] for row in rows}) == len(rows)
    return {(row.file, row.place): row[ID] for row in rows}


@pytest.fixture
def split_settings(spark):
    """Set how Spark cuts files, and put it back."""
    names = ["maxPartitionBytes", "openCostInBytes", "minPartitionNum"]

    def cut(*values):
        for name, value in zip(names, values, strict=True):
            if value is None:
                spark.conf.unset(f"spark.sql.files.{name}")
            else:
                spark.conf.set(f"spark.sql.files.{name}", value)

    yield cut
    cut(None, None, None)


CUTS = [("128m", "4m", None), ("2k", "1", None), ("700", "0", "9"), ("5k", "20k", "1")]


@pytest.fixture
def by_split(monkeypatch):
    """Take the GPU's way to number rows, here on the CPU."""
    monkeypatch.setattr(assign, "on_gpu", lambda spark: True)


def parquet_folder(folder):
    rng = random.Random(11)
    made = []
    for k, n in enumerate([0, 1, 7, 300, 1000, 40]):
        path = folder / f"part-{k}.parquet"
        write_parquet(path, n, row_group_size=rng.choice([1, 13, 100]) if n else None)
        made.append((path, n))
    return made


def test_parquet_ids_do_not_depend_on_splits(spark, tmp_path, split_settings):
    made = parquet_folder(tmp_path / "docs")
    ids = IdGenerator(5)
    for cut in CUTS:
        split_settings(*cut)
        got = by_place(read_documents(spark, tmp_path / "docs", registry=ids))
        assert got == expected(ids, made)
    assert sorted(got.values()) == list(range(5, 5 + sum(n for _, n in made)))


@pytest.mark.usefixtures("by_split")
def test_numbering_by_split_gives_the_same(spark, tmp_path, split_settings):
    made = parquet_folder(tmp_path / "docs")
    ids = IdRegistry.open(spark, tmp_path / "registry")
    for cut in CUTS:
        split_settings(*cut)
        assert by_place(read_documents(spark, tmp_path / "docs", registry=ids)) == expected(ids, made)


def test_another_cutting_is_an_error_not_another_id(spark, tmp_path, split_settings, by_split):
    write_parquet(tmp_path / "docs" / "a.parquet", 1000, row_group_size=50)
    split_settings("4k", "1", None)
    df = read_documents(spark, tmp_path / "docs", registry=IdGenerator())
    split_settings("3k", "1", None)
    with pytest.raises(FAILED, match="cut into other splits than when it was counted"):
        df.select(F.sum(ID)).collect()


def test_a_new_file_does_not_change_the_ids_of_others(spark, tmp_path):
    ids = IdRegistry.open(spark, tmp_path / "registry")
    write_parquet(tmp_path / "docs" / "m.parquet", 10)
    before = by_place(read_documents(spark, tmp_path / "docs", registry=ids))
    write_parquet(tmp_path / "docs" / "a.parquet", 5)
    after = by_place(read_documents(spark, tmp_path / "docs", registry=tmp_path / "registry"))
    assert before.items() <= after.items()
    assert sorted(after.values()) == list(range(15))


def test_odd_names_of_files_and_folders(spark, tmp_path):
    made = [(tmp_path / "do cs" / f"{name}.parquet", 3) for name in NAMES]
    made += [(tmp_path / "do cs" / "co:lon" / f"{name} x" / "y.parquet", 2) for name in NAMES]
    for path, n in made:
        write_parquet(path, n)
    ids = IdGenerator()
    assert by_place(read_documents(spark, tmp_path / "do cs", registry=ids)) == expected(ids, made)
    for path, n in made[:3]:
        assert by_place(read_documents(spark, str(path), registry=ids)) == expected(ids, [(path, n)])


def test_what_spark_does_not_read_gets_no_ids(spark, tmp_path):
    write_parquet(tmp_path / "docs" / "a.parquet", 4)
    for hidden in ("_hidden.parquet", ".hidden.parquet", "_folder/b.parquet", "notes.txt"):
        write_parquet(tmp_path / "docs" / hidden, 4)
    found = documents(spark, tmp_path / "docs", filetype="parquet", registry=IdGenerator())
    assert found.num_ids == found.df.count() == 4


def test_partition_folders_stay_columns(spark, tmp_path):
    made = [(tmp_path / "docs" / f"lang={lang}" / "a.parquet", 3) for lang in ("en", "de")]
    for path, n in made:
        write_parquet(path, n)
    ids = IdGenerator()
    df = read_documents(spark, tmp_path / "docs", registry=ids)
    assert by_place(df) == expected(ids, made)
    assert {row.lang for row in df.collect()} == {"en", "de"}


def test_files_beside_partition_folders_are_read(spark, tmp_path):
    made = [(tmp_path / "docs" / "lang=en" / "a.parquet", 3), (tmp_path / "docs" / "b.parquet", 2)]
    for path, n in made:
        write_parquet(path, n)
    ids = IdGenerator()
    assert by_place(read_documents(spark, tmp_path / "docs", registry=ids)) == expected(ids, made)


def test_columns_and_a_leftover_id(spark, tmp_path, caplog):
    table = pa.table({"a.b c`": ["x", "y"], ID: [7, 7], "_Metadata": [1, 2], "__metadata": [3, 4]})
    (tmp_path / "docs").mkdir()
    pq.write_table(table, tmp_path / "docs" / "a.parquet")
    with caplog.at_level(logging.WARNING):
        df = read_documents(spark, tmp_path / "docs", registry=IdGenerator(100))
    assert "not trusted" in caplog.text
    assert df.columns == ["a.b c`", "_Metadata", "__metadata", ID]
    assert dict(df.dtypes)[ID] == "bigint"
    assert sorted((row[0], row[3]) for row in df.collect()) == [("x", 100), ("y", 101)]
    chosen = read_documents(spark, tmp_path / "docs", registry=IdGenerator(), columns=["a.b c`", ID])
    assert chosen.columns == ["a.b c`", ID]
    with pytest.raises(InputError, match="'text' not found"):
        read_documents(spark, tmp_path / "docs", registry=IdGenerator(), columns=["text"])


def test_changed_file_is_named(spark, tmp_path):
    ids = IdRegistry.open(spark, tmp_path / "registry")
    path = tmp_path / "docs" / "a.parquet"
    write_parquet(path, 4)
    read_documents(spark, tmp_path / "docs", registry=ids)
    write_parquet(path, 5)
    with pytest.raises(StaleBatchError, match=r"docs/a\.parquet .*modification time"):
        read_documents(spark, tmp_path / "docs", registry=ids)
    assert ids.next_id == 4


def test_changed_count_is_named_without_size_and_time(spark, tmp_path):
    path = tmp_path / "docs" / "a.parquet"
    write_parquet(path, 4)
    ids = IdGenerator()
    ids.register_batch(str(path), 3)
    with pytest.raises(StaleBatchError, match=r"a\.parquet \(3 rows then, 4 now\)"):
        read_documents(spark, tmp_path / "docs", registry=ids)


def test_file_replaced_between_counting_and_reading(spark, tmp_path):
    path = tmp_path / "docs" / "a.parquet"
    write_parquet(path, 4)
    df = read_documents(spark, tmp_path / "docs", registry=IdGenerator())
    write_parquet(path, 9)
    with pytest.raises(FAILED, match="more rows than were counted"):
        df.collect()


def test_truncated_file_and_other_schema(spark, tmp_path):
    write_parquet(tmp_path / "docs" / "a.parquet", 400)
    whole = (tmp_path / "docs" / "a.parquet").read_bytes()
    (tmp_path / "docs" / "b.parquet").write_bytes(whole[: len(whole) // 2])
    ids = IdGenerator()
    for registry in (ids, tmp_path / "registry"):
        with pytest.raises(InputError, match=r"1 unreadable parquet file\(s\): .*b\.parquet"):
            read_documents(spark, [tmp_path / "docs"], registry=registry)
    assert not (tmp_path / "registry").exists()
    pq.write_table(
        pa.table({"file": ["x"], "place": ["not a number"], "text": ["y"]}), tmp_path / "docs/b.parquet"
    )
    with pytest.raises(InputError, match=r"b\.parquet .*'place'"):
        read_documents(spark, [tmp_path / "docs"], registry=ids)
    assert ids.next_id == 0


def test_new_files_without_a_column_of_the_known_ones(spark, tmp_path):
    write_parquet(tmp_path / "docs" / "a.parquet", 4)
    ids = IdRegistry.open(spark, tmp_path / "registry")
    read_documents(spark, tmp_path / "docs", registry=ids)
    for name in ("b", "c"):  # alike among themselves
        pq.write_table(pa.table({"place": [7, 8]}), tmp_path / "docs" / f"{name}.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has another schema: column 'text' is absent"):
        read_documents(spark, tmp_path / "docs", registry=ids, columns=["text"])
    assert ids.next_id == 4
    assert read_documents(spark, tmp_path / "docs", registry=ids, columns=["place"]).count() == 8


def test_unknown_file_when_nothing_may_be_registered(spark, tmp_path):
    write_parquet(tmp_path / "docs" / "a.parquet", 4)
    with pytest.raises(KeyError, match=r"does not know 1 of 1 .*a\.parquet"):
        documents(spark, tmp_path / "docs", filetype="parquet", registry=IdGenerator(), register_new=False)


@pytest.mark.parametrize("how", [{"blocksize": "5KB"}, {"files_per_partition": 3}])
def test_batches_of_curator(spark, tmp_path, how):
    """A registry that Curator would write: ranges of file groups, rows counted on through each group."""
    sizes, made = {}, {}
    for k in range(8):
        path = tmp_path / "docs" / f"{k}.parquet"
        write_parquet(path, 5 + 37 * (k % 3))
        sizes[str(path)], made[str(path)] = path.stat().st_size, 5 + 37 * (k % 3)
    if "blocksize" in how:
        groups, filled = [], 0
        for path in sorted(sizes, key=lambda p: (sizes[p], p)):
            if not groups or filled + sizes[path] > 5000:
                groups.append([])
                filled = 0
            groups[-1].append(path)
            filled += sizes[path]
    else:
        paths = sorted(sizes)
        groups = [paths[0:3], paths[3:6], paths[6:8]]
    curator, want = IdGenerator(50), {}
    for group in reversed(groups):
        first = curator.register_batch(group, sum(made[p] for p in group))
        for path in group:
            want |= {(path, i): first + i for i in range(made[path])}
            first += made[path]
    found = documents(
        spark, tmp_path / "docs", filetype="parquet", registry=curator, register_new=False, **how
    )
    assert by_place(found.df) == want
    with pytest.raises(
        KeyError, match=r"does not know .*give its input_files_per_partition or input_blocksize"
    ):
        documents(spark, tmp_path / "docs", filetype="parquet", registry=curator, register_new=False)


def test_delta_rows_keep_their_ids_when_others_are_deleted(spark, tmp_path):
    folder = str(tmp_path / "delta table %20")
    rows = spark.range(100).selectExpr("id AS place", "'f' AS file", "concat('p % ä', id % 2) AS part")
    deleting = rows.write.format("delta").option("delta.enableDeletionVectors", "true")
    deleting.partitionBy("part").save(folder)
    ids = IdRegistry.open(spark, tmp_path / "registry")
    before = by_place(read_documents(spark, folder, registry=ids))
    spark.sql(f"DELETE FROM delta.`{folder}` WHERE place % 7 = 0")
    found = documents(spark, folder, filetype="parquet", registry=ids)
    after = by_place(found.df)
    assert after == {key: value for key, value in before.items() if key[1] % 7}
    assert ids.next_id == found.num_ids == 100
    assert sorted(before.values()) == list(range(100))


def test_delta_table_by_name(spark, tmp_path):
    spark.range(10).selectExpr("id AS place", "'f' AS file").write.format("delta").saveAsTable("ids_docs")
    try:
        got = by_place(read_documents(spark, "ids_docs", registry=IdGenerator()))
        assert sorted(got.values()) == list(range(10))
    finally:
        spark.sql("DROP TABLE ids_docs")


def write_lines(path, lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = end.join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def jsonl_folder(folder):
    rng = random.Random(5)
    made = []
    for k, n in enumerate([0, 1, 60, 300, 900]):
        name = f"l{k}%2 x{['.jsonl', '.jsonl.gz', '.json', '.json.gz'][k % 4]}"
        path = folder / name
        lines = []
        for i in range(n):
            lines += [rng.choice(["", "  ", "\t"])] * (rng.random() < 0.2)
            lines.append(
                json.dumps({"file": str(path), "place": i, "text": "ü\n" * (i % 40)}, ensure_ascii=False)
            )
        write_lines(path, lines, rng.choice(["\n", "\r\n"]))
        made.append((path, n))
    return made


def test_jsonl_ids_do_not_depend_on_splits(spark, tmp_path, split_settings):
    made = jsonl_folder(tmp_path / "docs")
    ids = IdGenerator(3)
    for cut in CUTS:
        split_settings(*cut)
        got = by_place(read_documents(spark, tmp_path / "docs", filetype="jsonl", registry=ids))
        assert got == expected(ids, made)
    filtered = read_documents(spark, tmp_path / "docs", filetype="jsonl", registry=ids).where("place = 7")
    assert by_place(filtered).items() <= got.items()


def test_malformed_lines_are_named_by_file_and_line(spark, tmp_path):
    good = '{"file": "f", "place": 1}'
    path = tmp_path / "docs" / "bäd 1.jsonl"
    write_lines(path, [good, "", "   ", good, '{"file": "f", "pl', good])
    (tmp_path / "docs" / "b.jsonl.gz").write_bytes(gzip.compress(b'{"place": 2}\n\n{"text": "\xff\xfe"}\n'))
    ids = IdGenerator()
    with pytest.raises(InputError) as caught:
        read_documents(spark, tmp_path / "docs", filetype="jsonl", registry=ids)
    message = str(caught.value)
    assert message.startswith("2 malformed line(s) in 2 file(s)")
    assert f'{path} line 5: \'{{"file": "f", "pl\'' in message
    assert f"{tmp_path / 'docs' / 'b.jsonl.gz'} line 3: " in message
    assert ids.next_id == 0


@pytest.mark.parametrize(
    ("line", "is_whole"),
    [
        ('{"place": 1}{"place": 2}', False),  # files that were joined, the first without a newline at its end
        ('{"place": 1} {"place": 2}', False),
        ('{"place": 1}, {"place": 2},', False),
        ('\ufeff{"place": 1} more', False),
        ('{"place": 1, "file": "} {"} ,\t', True),
        ("{'place': 1}", True),
        ('{"place": 1, "list": [{}, {"a": [{}]}]}', True),
        ('[{"place": 1}, {"place": 2}]', True),
        ('\ufeff{"place": 1}', True),
    ],
)
@pytest.mark.parametrize("on_bad_lines", ["error", "skip"])
def test_lines_that_go_on_after_their_object_are_refused(spark, tmp_path, line, is_whole, on_bad_lines):
    path = tmp_path / "docs" / "bäd 1.jsonl"
    write_lines(path, [line, "", '{"place": 3}'])
    ids = IdGenerator()
    with contextlib.nullcontext() if is_whole else pytest.raises(InputError) as caught:
        read_documents(spark, tmp_path / "docs", filetype="jsonl", registry=ids, on_bad_lines=on_bad_lines)
    if not is_whole:
        assert f"{path}: 1, such as {line.lstrip(chr(0xFEFF))!r}" in str(caught.value)
    assert ids.next_id == (0 if not is_whole else 3 if line.startswith("[") else 2)


def test_skipped_lines_keep_their_places(spark, tmp_path, caplog):
    lines = [json.dumps({"file": str(tmp_path / "docs" / "a.jsonl"), "place": i}) for i in range(6)]
    write_lines(tmp_path / "docs" / "a.jsonl", [*lines[:2], "{oops", *lines[3:]])
    with caplog.at_level(logging.WARNING):
        found = documents(
            spark, tmp_path / "docs", filetype="jsonl", registry=IdGenerator(), on_bad_lines="skip"
        )
    assert sorted(by_place(found.df).values()) == [0, 1, 3, 4, 5]
    assert found.df.columns == ["file", "place", ID]
    assert (found.num_ids, found.num_skipped) == (6, 1)
    assert "1 malformed line(s)" in caplog.text
    # Spark 3.5 refuses a scan for malformed lines alone, which counting would leave.
    assert "none:string" in plan_of(found.df.groupBy().count())
    with pytest.raises(InputError, match="on_bad_lines must be"):
        read_documents(
            spark, tmp_path / "docs", filetype="jsonl", registry=IdGenerator(), on_bad_lines="warn"
        )


@pytest.mark.parametrize(
    ("text", "is_torn"),
    [
        (r"a\ud83d", True),
        (r"a\uDE00b", True),
        (r"\ude00\ud83d", True),
        (r"\ud83d\\\ude00", True),
        (r"\ud83d\ud83d\ude00", True),
        (r"\ud83d\ude00 \uD83D\uDE00", False),
        (r"\\ud83d", False),
        (r"\u00e9", False),
    ],
)
def test_halves_of_surrogate_pairs_are_told(spark, tmp_path, caplog, text, is_torn):
    r"""Where Spark reads "?", so that ``\ud83d`` and ``\ud83e`` are equal."""
    path = tmp_path / "docs" / "a.jsonl"
    write_lines(path, [f'{{"place": 1, "text": "{text}"}}'])
    with caplog.at_level(logging.WARNING):
        df = read_documents(spark, tmp_path / "docs", filetype="jsonl", registry=IdGenerator())
    assert ("halves of surrogate pairs" in caplog.text) == is_torn == ("?" in df.first()["text"])
    assert not is_torn or f"{path}: 1, such as" in caplog.text


def test_a_torn_line_that_is_no_utf8_is_shown(spark, tmp_path, caplog):
    path = tmp_path / "docs" / "a.jsonl"
    write_lines(path, ['{"place": 1, "text": "b"}'])
    path.write_bytes(path.read_bytes() + b'\n{"place": 2, "text": "\\ud83d \xff"}\n')
    with caplog.at_level(logging.WARNING):
        documents(spark, tmp_path / "docs", filetype="jsonl", registry=IdGenerator(), on_bad_lines="skip")
    malformed, torn = caplog.messages
    shown = r"""{"place": 2, "text": "\\ud83d """ + "\ufffd"
    assert "1 malformed line(s)" in malformed
    assert "halves of surrogate pairs" in torn
    assert shown in malformed
    assert shown in torn


def test_files_of_malformed_lines_alone_are_named(spark, tmp_path):
    """Where no line can be read no column is known, so this comes before one is missed."""
    write_lines(tmp_path / "docs" / "a.json", ["{", '"place": 1', "}"])
    with pytest.raises(InputError, match=r"3 malformed .*a\.json line 1: '\{'\. JSON that goes over several"):
        read_documents(spark, tmp_path / "docs", filetype="jsonl", registry=IdGenerator(), columns=["place"])


def test_only_blank_lines(spark, tmp_path):
    write_lines(tmp_path / "docs" / "a.jsonl", ["", " ", ""])
    df = read_documents(spark, tmp_path / "docs", filetype="jsonl", registry=IdGenerator())
    assert (df.columns, df.count()) == ([ID], 0)


def test_empty_and_absent_folders(spark, tmp_path):
    (tmp_path / "docs").mkdir()
    for path in (tmp_path / "docs", tmp_path / "nowhere"):
        for kind in (FileNotFoundError, InputError):
            with pytest.raises(kind, match=path.name):
                read_documents(spark, path, registry=tmp_path / "ids")
    assert not (tmp_path / "ids").exists()


def test_a_view_without_files(spark, tmp_path):
    spark.range(3).selectExpr("string(id) AS text").createOrReplaceTempView("of_no_file")
    with pytest.raises(InputError, match=r"rows that come from no file.* name their own id column"):
        read_documents(spark, "of_no_file", registry=tmp_path / "ids")


def test_on_spark_connect(run_connect, tmp_path):
    write_parquet(tmp_path / "docs" / "a b.parquet", 5)
    write_lines(tmp_path / "lines" / "a.jsonl", ['{"place": 0}', "", '{"place": 1}'])
    printed = run_connect(f"""
from spark_dedup.ids import IdRegistry, read_documents
registry = IdRegistry.open(spark, {str(tmp_path / "registry")!r}, start_id=10)
print(type(registry._log).__name__)
df = read_documents(spark, {str(tmp_path / "docs")!r}, registry=registry)
print(sorted((row.place, row._curator_dedup_id) for row in df.collect()))
df = read_documents(spark, {str(tmp_path / "lines")!r}, filetype="jsonl", registry=registry)
print(sorted((row.place, row._curator_dedup_id) for row in df.collect()))
print(registry.register_batches([("x", 3), ("y", 2)]), registry.next_id, registry.get_batch_range("x"))
""")
    assert printed.splitlines()[-4:] == [
        "SparkLog",
        "[(0, 10), (1, 11), (2, 12), (3, 13), (4, 14)]",
        "[(0, 15), (1, 16)]",
        "[17, 20] 22 (17, 19)",
    ]
    plain = IdRegistry.open(None, tmp_path / "registry")
    assert plain.next_id == 22
    assert Path(plain.location) == tmp_path / "registry"


@pytest.mark.parametrize("packed", ["4096", "134217728"])
def test_sources_of_the_second_kind_number_rows_by_splits(spark, tmp_path, packed):
    """Without parquet in this list a scan has no ``_metadata``."""
    (tmp_path / "docs").mkdir()
    for number in range(3):
        places = pa.table({"n": range(500 * number, 500 * number + 500), "pad": ["x" * 9] * 500})
        pq.write_table(places, tmp_path / "docs" / f"{number}.parquet", row_group_size=50)
    odd = {"spark.sql.sources.useV1SourceList": "csv", "spark.sql.files.maxPartitionBytes": packed}
    with settings(spark, odd):
        rows = read_documents(spark, tmp_path / "docs", registry=str(tmp_path / "registry")).collect()
    assert [row["n"] for row in rows if row[ID] != row["n"]] == []
    assert len(rows) == 1500
