"""What users name: lists of files, tables, Delta paths, partition folders, schemas that agree."""

import gzip
import os
from pathlib import Path
from urllib.parse import unquote

import fsspec
import hostless
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spark_4 import OLD

from spark_dedup import listing
from spark_dedup.datasets import read_dataset
from spark_dedup.errors import InputError, MissingInputError
from spark_dedup.footers import parquet_footers
from spark_dedup.listing import is_small, list_files
from spark_dedup.names import is_table_name
from spark_dedup.schemas import check_schemas
from spark_dedup.sources import find_source


def write(path, **columns):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_listing(tmp_path):
    for name in (
        "b.parquet",
        "a.parquet",
        "sub/c.parquet",
        "_hidden/d.parquet",
        ".e.parquet",
        "_col=1/f.parquet",
        "g.txt",
    ):
        write(tmp_path / name, a=[1])
    found = [os.path.relpath(file.path, tmp_path) for file in list_files(tmp_path)]
    assert found == ["_col=1/f.parquet", "a.parquet", "b.parquet", "sub/c.parquet"]
    assert list_files([tmp_path / "sub", str(tmp_path / "sub" / "c.parquet")]) == list_files(tmp_path / "sub")
    assert [file.path for file in list_files(f"file://{tmp_path}/g.txt")] == [f"{tmp_path}/g.txt"]
    assert [Path(file.path).name for file in list_files(tmp_path, extensions=["txt"])] == ["g.txt"]
    assert list_files(tmp_path, extensions=".txt") == list_files(tmp_path, extensions=["txt"])
    stat = os.stat(tmp_path / "a.parquet")
    file = list_files(tmp_path / "a.parquet")[0]
    assert (file.size, file.modified_ms) == (stat.st_size, stat.st_mtime_ns // 1_000_000)


def test_the_files_listed_are_those_that_spark_reads(spark, tmp_path):
    """Spark looks into folders that begin like its own summaries, but into no others that begin with ``_``."""
    for name in (
        "a.parquet",
        "_metadata/b.parquet",
        "_metadata_old/c.parquet",
        "_common_metadata.d/d.parquet",
        "_other/e.parquet",
        "_col=1x/_metadata2/g.parquet",
        ".h/i.parquet",
    ):
        write(tmp_path / name, a=[1])
    listed = [os.path.relpath(file.path, tmp_path) for file in list_files(tmp_path)]
    df = read_dataset(spark, tmp_path)
    read = [os.path.relpath(unquote(url.split("://", 1)[1]), tmp_path) for url in df.inputFiles()]
    assert listed == sorted(read)
    assert df.count() == len(listed) == 5


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("docs", ["docs/a.parquet", "docs/b c/d%.parquet"]),
        ("docs/", ["docs/a.parquet", "docs/b c/d%.parquet"]),
        ("docs/a.parquet", ["docs/a.parquet"]),
    ],
)
def test_remote_files_keep_host_and_account(named, found):
    fs = hostless.store()
    for path in ("/docs/a.parquet", "/docs/b c/d%.parquet", "/docs/_x.parquet", "/docs/e.txt"):
        fs.pipe_file(path, b"12")
    listed = list_files(f"hostless://c@acct.net:80/{named}")
    assert [file.path for file in listed] == [f"hostless://c@acct.net:80/{path}" for path in found]
    assert {file.size for file in listed} == {2}


def test_remote_files_of_a_bucket():
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/listed/docs/a.parquet", b"12")
    for named in ("memory://listed/docs", "memory://listed", "memory://listed/docs/a.parquet"):
        assert [file.path for file in list_files(named)] == ["memory://listed/docs/a.parquet"]
    fs.rm("/listed", recursive=True)


@pytest.mark.parametrize("root", ["{tmp_path}", "memory://bucket"])
def test_a_delta_table_below_a_folder_is_named_on_any_store(tmp_path, store, root):
    """Its files hold the rows that the log removed, too."""
    root = root.format(tmp_path=tmp_path)
    fs, inner = fsspec.core.url_to_fs(root)

    def put(name):
        fs.makedirs(os.path.dirname(f"{inner}/{name}"), exist_ok=True)
        fs.pipe_file(f"{inner}/{name}", b"12")

    put("docs/a.parquet")
    put("docs/_old/t/_delta_log/00000000000000000000.json")  # Spark reads nothing below _old
    assert [file.path for file in list_files(f"{root}/docs")] == [f"{root}/docs/a.parquet"]
    put("docs/sub/t/b.parquet")
    put("docs/sub/t/_delta_log/00000000000000000000.json")
    for named, by_spark in (("docs", True), ("docs/sub/t", True), ("docs", False)):
        with pytest.raises(InputError, match=f"t below {root}/{named} is a Delta table: read it on its own"):
            list_files(f"{root}/{named}", by_spark=by_spark)


@pytest.mark.parametrize(
    ("name", "is_table"),
    [
        ("no_such_folder", True),
        ("a.b", True),
        ("a.b.c", True),
        ("`a b`.`c.d`", True),
        ("a.b.c.d", False),
        ("/a", False),
        ("s3://a", False),
    ],
)
def test_table_names(name, is_table):
    assert is_table_name(name) is is_table
    assert not is_table_name(Path("no_such_folder"))


def test_an_existing_path_is_no_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_table_name("docs")
    (tmp_path / "docs").mkdir()
    assert not is_table_name("docs")


def footers(*files):
    found = list_files(list(files))
    return found, parquet_footers(found)


def test_schemas_agree_whatever_the_writer_calls_things(tmp_path):
    values = [["x"], ["y"]]
    kinds = (pa.list_(pa.string()), pa.large_list(pa.field("e", pa.large_string())))
    for number, kind in enumerate(kinds):
        text = pa.array(["a", "b"], pa.string() if number else pa.dictionary(pa.int8(), pa.string()))
        # Spark writes a variant's values typed where a file's rows share a type.
        variant = {"metadata": b"m", "value": b"v"} | ({"typed_value": 1} if number else {})
        columns = {"tags": pa.array(values, kind), "text": text, "variant": [variant] * 2}
        write(tmp_path / f"{number}.parquet", **(columns if number else dict(reversed(columns.items()))))
    check_schemas(*footers(tmp_path))


@pytest.mark.skipif(
    int(pa.__version__.split(".")[0]) < 19, reason="older Arrow writes no string_view to parquet"
)
def test_schemas_that_only_arrow_tells_apart(tmp_path):
    """Zones, views, widths and extensions stand in Arrow's own note in the footer; the files are alike to Spark."""
    tensor = pa.fixed_shape_tensor(pa.float32(), [2])
    vectors = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    when = pa.array([0], pa.timestamp("us", "UTC"))
    write(tmp_path / "0.parquet", text=["x"], at=when, took=[1], vector=vectors)
    write(
        tmp_path / "1.parquet",
        text=pa.array(["x"], pa.string_view()),
        at=when.cast(pa.timestamp("us", "Europe/Berlin")),
        took=pa.array([1], pa.duration("us")),
        vector=pa.ExtensionArray.from_storage(tensor, vectors),
    )
    check_schemas(*footers(tmp_path))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            {"a": pa.nulls(1), "b": ["x"]},
            r"column 'a' is null, .* int64 \(null is the type of a column of nulls",
        ),
        ({"a": pa.nulls(0), "b": pa.array([], pa.string())}, r"1\.parquet has no rows: leave it out"),
        ({"a": pa.array([1], pa.timestamp("us")), "b": ["x"]}, r"column 'a' is timestamp\[us\], in "),
        ({"a": pa.array([1], pa.int32()), "b": ["x"]}, "column 'a' is int32, in .*0.parquet it is int64"),
        ({"a": [1]}, "column 'b' is absent"),
        ({"a": [1], "b": ["x"], "c": [1]}, "column 'c' is int64, in .* it is absent"),
    ],
)
def test_schemas_that_differ(tmp_path, other, says):
    write(tmp_path / "0.parquet", a=[1], b=["x"])
    write(tmp_path / "1.parquet", **other)
    found, read = footers(tmp_path)
    with pytest.raises(InputError, match=says):
        check_schemas(found, read)
    if "b" in other:
        check_schemas(found, read, columns=["b"])


def test_broken_files_are_named(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.parquet").write_bytes(b"PAR1" * (number % 2))
    with pytest.raises(
        InputError, match=r"7 unreadable parquet file\(s\): .*0\.parquet.*4\.parquet"
    ) as caught:
        parquet_footers(list_files(tmp_path))
    assert "5.parquet" not in str(caught.value)


def test_sources(spark, tmp_path):
    write(tmp_path / "a" / "x.parquet", a=[1])
    write(tmp_path / "b" / "y.parquet", a=[2])
    (tmp_path / "d" / "_delta_log").mkdir(parents=True)
    assert find_source(spark, [tmp_path / "a", str(tmp_path / "a" / "x.parquet")]).names == (f"{tmp_path}/a",)
    assert find_source(spark, [tmp_path / "d"], filetype="jsonl").kind == "delta"
    with pytest.raises(InputError, match="several paths cannot be read as Delta"):
        find_source(spark, [tmp_path / "d", tmp_path / "a"])
    with pytest.raises(InputError, match="no input path was given"):
        find_source(spark, [])
    with pytest.raises(FileNotFoundError, match="neither an existing path nor a table"):
        find_source(spark, "no_such_table")
    spark.range(3).createOrReplaceTempView("2seen")
    assert find_source(spark, ["2seen"]).names == ("`2seen`",)
    assert read_dataset(spark, "2seen").count() == 3
    # A folder and a file of another ending together: each as it was named.
    (tmp_path / "a" / "notes.txt").write_text("no parquet")
    os.rename(tmp_path / "b" / "y.parquet", tmp_path / "b" / "y.data")
    both = read_dataset(spark, [tmp_path / "a", tmp_path / "b" / "y.data"])
    assert sorted(row[0] for row in both.collect()) == [1, 2]


def test_what_is_named_beside_its_folder_is_read_once(spark, tmp_path):
    """A folder's own listing takes neither another ending nor what lies in a folder that begins with ``_``."""
    for number, name in enumerate(("a.parquet", "b.data", "_more/c.parquet", "sub/d.parquet")):
        write(tmp_path / "d" / name, a=[number])

    def read(*names, **kwargs):
        return sorted(
            row["a"] for row in read_dataset(spark, [tmp_path / n for n in names], **kwargs).collect()
        )

    assert read("d") == [0, 3]
    assert read("d/b.data", "d") == [0, 1, 3]
    assert read("d", "d/_more", "d/_more/c.parquet") == [0, 2, 3]
    assert read("d", "d/_more/c.parquet", "d/b.data") == [0, 1, 2, 3]
    assert read("d", "d/sub", "d/sub/d.parquet", "d/a.parquet") == [0, 3]
    assert read("d", "d/b.data", extensions=[".data"]) == [1]
    with pytest.raises(MissingInputError, match=r"no such path: .*d/gone\.parquet"):
        read("d", "d/gone.parquet")


def test_a_file_beside_its_partition_folders_keeps_their_columns(spark, tmp_path):
    write(tmp_path / "p" / "year=2024" / "x.parquet", a=[1])
    write(tmp_path / "p" / "year=2025" / "y.data", a=[2])
    write(tmp_path / "q" / "year=2026" / "z.parquet", a=[3])
    named = [tmp_path / "p", tmp_path / "p" / "year=2025" / "y.data"]
    assert sorted(map(tuple, read_dataset(spark, named).collect())) == [(1, 2024), (2, 2025)]
    with pytest.raises(InputError, match="each have partition folders"):
        read_dataset(spark, [*named, tmp_path / "q"])


@pytest.mark.parametrize("name", ["_x.parquet", ".x.parquet"])
def test_a_file_that_spark_does_not_read_is_refused(spark, tmp_path, store, name):
    write(tmp_path / "a.parquet", a=[1])
    write(tmp_path / name, a=[2])
    for named in ([tmp_path / name], [tmp_path / "a.parquet", tmp_path / name], [tmp_path, tmp_path / name]):
        with pytest.raises(InputError, match=f"{name}: Spark reads no file whose name begins with"):
            read_dataset(spark, named)
    store.pipe_file(f"/b/{name}", b"12")
    with pytest.raises(InputError, match=f"{name}: Spark reads no file whose name begins with"):
        list_files(f"memory://b/{name}")
    assert len(list_files(tmp_path / name, by_spark=False)) == 1


def test_partition_folders(spark, tmp_path):
    write(tmp_path / "p" / "year=2024" / "lang=de" / "x.parquet", a=[1])
    write(tmp_path / "p" / "year=2025" / "lang=en" / "y.parquet", a=[2])
    assert sorted(map(tuple, read_dataset(spark, tmp_path / "p").collect())) == [
        (1, 2024, "de"),
        (2, 2025, "en"),
    ]
    # Beside partition folders, Spark would silently leave this one out.
    write(tmp_path / "p" / "z.parquet", a=[3])
    assert sorted(row[0] for row in read_dataset(spark, tmp_path / "p").collect()) == [1, 2, 3]
    assert read_dataset(spark, tmp_path / "p" / "year=2024" / "lang=de").columns == ["a"]


@pytest.mark.parametrize("folder", ["year=", "=2024"])
def test_partition_folders_that_lack_a_name_or_value_are_named(spark, tmp_path, folder):
    write(tmp_path / "p" / folder / "x.parquet", a=[1])
    with pytest.raises(InputError, match=rf"x\.parquet lies in a folder '{folder}', which lacks a column"):
        read_dataset(spark, tmp_path / "p")


def test_spark_reads_the_files_that_are_listed(spark, tmp_path):
    """An ending is asked for with its dot or without, and is no pattern."""
    for number, name in enumerate(("a.p[q]", "b.p[q]", "c_p[q]", "d.pq")):
        write(tmp_path / name, a=[number])
    for extensions in (["p[q]"], ".p[q]"):
        assert len(list_files(tmp_path, extensions=extensions)) == 2
        found = read_dataset(spark, tmp_path, extensions=extensions).collect()
        assert sorted(row["a"] for row in found) == [0, 1]


def test_a_colon_in_a_file_name_is_refused_by_name(tmp_path):
    write(tmp_path / "a:b" / "fine.parquet", a=[1])
    assert len(list_files(tmp_path)) == 1
    write(tmp_path / "a:b" / "c:d.parquet", a=[1])
    with pytest.raises(InputError, match=r"c:d\.parquet.*rename the file"):
        list_files(tmp_path)


def test_names_that_only_spark_does_not_read(tmp_path):
    names = ["_dir/a.jpg", "_DSC1.jpg", "10:00.jpg"]
    for name in (*names, ".hidden.jpg"):
        write(tmp_path / name, a=[1])
    found = list_files(tmp_path, extensions=[".jpg"], by_spark=False)
    assert [os.path.relpath(file.path, tmp_path) for file in found] == sorted(names)
    found = list_files(f"local://{tmp_path}", extensions=[".jpg"], by_spark=False)
    assert [file.path[-len(name) :] for file, name in zip(found, sorted(names), strict=True)] == sorted(names)


@pytest.mark.parametrize("by_spark", [True, False])
def test_links_without_an_end_are_named(tmp_path, by_spark):
    write(tmp_path / "in" / "sub" / "a.parquet", a=[1])
    (tmp_path / "in" / "notes").symlink_to(tmp_path / "in" / "notes")
    (tmp_path / "in" / "b.txt").symlink_to(tmp_path / "nothing")
    assert len(list_files(tmp_path / "in", by_spark=by_spark)) == 1
    for name, to in (("b", "c"), ("c", "b"), ("d", "nothing")):
        link = tmp_path / "in" / f"{name}.parquet"
        link.symlink_to(tmp_path / "in" / f"{to}.parquet")
        with pytest.raises(
            MissingInputError, match=f"{link} is a link that leads nowhere .*: mend it or rem"
        ):
            list_files(tmp_path / "in", by_spark=by_spark)
        link.unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "back").symlink_to(tmp_path / "in")
    for to, link in (("in", "up"), (".", "up"), ("in/sub", "up"), ("other", "up/back")):
        (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / to)
        with pytest.raises(InputError, match=f"{tmp_path}/in/sub/{link} is a link to .*: remove the link"):
            list_files(tmp_path / "in", by_spark=by_spark)
        (tmp_path / "in" / "sub" / "up").unlink()
    write(tmp_path / "beside" / "a.parquet", a=[1])
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "beside")
    found = [os.path.relpath(file.path, tmp_path) for file in list_files(tmp_path / "in", by_spark=by_spark)]
    assert found == ["in/sub/a.parquet", "in/sub/up/a.parquet"]


def test_a_view_over_a_dropped_table(spark):
    spark.sql("CREATE TABLE ds_below USING parquet AS SELECT 1 AS a")
    spark.sql("CREATE VIEW ds_over AS SELECT * FROM ds_below")
    spark.sql("DROP TABLE ds_below")
    try:
        with pytest.raises(
            InputError, match=r"cannot read the table or view `ds_over`: .*ds_below"
        ) as caught:
            read_dataset(spark, "ds_over")
        assert "\n" not in str(caught.value)
    finally:
        spark.sql("DROP VIEW ds_over")


def test_an_older_version_of_a_table(spark, tmp_path):
    spark.range(3).write.format("delta").save(str(tmp_path / "t"))
    spark.range(3, 7).write.format("delta").mode("append").save(str(tmp_path / "t"))
    spark.sql(f"CREATE TABLE versions USING delta LOCATION '{tmp_path / 't'}'")
    try:
        for source in ("versions", tmp_path / "t"):
            assert read_dataset(spark, source).count() == 7
            assert read_dataset(spark, source, read_kwargs={"versionAsOf": 0}).count() == 3
    finally:
        spark.sql("DROP TABLE versions")
    for asked, option in (
        ("v0", "versionAsOf=0"),
        ("20260101000000000", "timestampAsOf"),
    ):  # as Delta spells it
        says = rf"no such path: {tmp_path}/t@{asked}; name the table {tmp_path}/t and, .* option {option} \("
        for read in (lambda path: read_dataset(spark, path), listing.check_there):
            with pytest.raises(FileNotFoundError, match=says):
                read(f"{tmp_path}/t@{asked}")
    with pytest.raises(FileNotFoundError, match=r"no such path: .*/other@v0$"):
        list_files(f"{tmp_path}/other@v0")


def test_an_unknown_catalog_is_one_line(spark):
    with pytest.raises(InputError, match=r"cannot look for the table `nowhere`\.`a`\.`b`: ") as caught:
        find_source(spark, "nowhere.a.b")
    assert "\n" not in str(caught.value)


def test_small_sources(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.parquet").write_bytes(b"x" * 600)
    (tmp_path / "y.parquet").write_bytes(b"y" * 600)
    monkeypatch.setattr(listing, "_SMALL_BYTES", 1000)
    assert is_small(tmp_path / "a")
    assert is_small(str(tmp_path / "y.parquet"))
    assert not is_small(tmp_path)
    assert not is_small([tmp_path / "a", tmp_path / "y.parquet"])
    assert not is_small([tmp_path / "a", tmp_path / "missing"])
    assert not is_small("s3://bucket/tiny.parquet")
    assert not is_small("schema.table")
    monkeypatch.setattr(listing, "_SMALL_FILES", 0)
    assert not is_small(tmp_path / "a")


@pytest.mark.parametrize("ending", ["jsonl.xz", "json.lz4"])
def test_files_packed_otherwise_are_not_left_out(tmp_path, ending):
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / f"b.{ending}").write_text("?")
    with pytest.raises(
        InputError, match=rf"packed files that are not read: .*/b\.{ending}\. Pack them by gzip"
    ):
        list_files(tmp_path, filetype="jsonl")
    named = list_files(tmp_path, filetype="jsonl", extensions=[".jsonl"])
    assert [file.path for file in named] == [f"{tmp_path}/a.jsonl"]
    assert len(list_files(tmp_path, filetype="jsonl", extensions=["jsonl", ending])) == 2
    assert len(list_files(tmp_path / f"b.{ending}", filetype="jsonl")) == 1


def test_a_truncated_packed_file_is_named(spark, tmp_path):
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(20_000))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.jsonl.gz").write_bytes(gzip.compress(lines)[:-200])
    named = "a file of .*/in" if OLD else r"in/a b\.jsonl\.gz"  # Spark 3 does not say which
    with pytest.raises(InputError, match=f"{named} cannot be read to its end: write it again"):
        read_dataset(spark, tmp_path / "in", filetype="jsonl")


def test_columns_that_differ_only_in_case_are_named(spark, tmp_path):
    write(tmp_path / "in" / "a.parquet", Text=["a"], text=["b"])
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_text('{"Text": "a", "text": "b"}\n')
    for name, filetype in (("in", "parquet"), ("lines", "jsonl")):
        with pytest.raises(InputError, match=rf"{name} has .* equal or differ only in case .*`text`"):
            read_dataset(spark, tmp_path / name, filetype=filetype)
