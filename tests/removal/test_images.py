"""Image removal on real images: rows, folders, tar shards byte for byte; expected ids from hashes of the bytes."""

import hashlib
import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sessions import plan_of
from spark_4 import TO_ARROW, needs_spark_4

from spark_dedup import ImageDuplicatesRemovalStage, remove_duplicates
from spark_dedup.errors import InputError
from spark_dedup.removal import image_files
from spark_dedup.removal.shards import copy_without, members


@pytest.fixture(scope="module")
def emoji(shared_data):
    """The 72-pixel images: id → bytes, and the ids of all but the first of equal ones."""
    rows = pq.read_table(shared_data / "images_noto_emoji" / "emoji.parquet").to_pylist()
    images = {row["id"]: row["png"] for row in rows if row["size"] == 72}
    first, surplus = {}, []
    for key in sorted(images):
        digest = hashlib.sha256(images[key]).digest()
        surplus += [key] if digest in first else []
        first.setdefault(digest, key)
    assert len(surplus) == 10
    return images, surplus


def list_ids(folder, ids, name="id", kind=None):
    os.makedirs(folder, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(ids, kind)}), f"{folder}/ids.parquet")
    return str(folder)


@TO_ARROW
def test_rows_keep_columns_and_order(spark, emoji, tmp_path, shared_data):
    images, surplus = emoji
    stage = ImageDuplicatesRemovalStage(
        list_ids(tmp_path / "nested" / "a", [*surplus, surplus[0], "unknown"], "dup"), "dup"
    )
    stage.removal_parquets_dir = tmp_path / "nested"
    source = str(shared_data / "images_noto_emoji" / "emoji.parquet")
    kept = stage.process(spark.read.parquet(source).where("size = 72"), image_id_field="id").toArrow()
    want = [key for key in pq.read_table(source, columns=["id"]).column(0).to_pylist() if key in images]
    assert kept.column("id").to_pylist() == [key for key in want if key not in surplus]
    assert kept.schema.names == ["id", "cluster", "size", "png"]
    assert all(images[row["id"]] == row["png"] for row in kept.to_pylist())
    assert stage.num_removed == 10


def test_bad_lists(spark, tmp_path):
    images = spark.createDataFrame([(1, b"x"), (2, b"y")], "image_id int, png binary")
    with pytest.raises(FileNotFoundError, match=f"No parquet files found in {tmp_path}/none"):
        ImageDuplicatesRemovalStage(tmp_path / "none").process(images)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"No parquet files found in {tmp_path}/empty"):
        ImageDuplicatesRemovalStage(str(tmp_path / "empty")).process(images)
    listed = list_ids(tmp_path / "ids", [1])
    with pytest.raises(ValueError, match="column 'dup' not found in the list of duplicate ids; it has id"):
        ImageDuplicatesRemovalStage(listed, duplicate_id_field="dup").process(images)
    (tmp_path / "a.tar").write_bytes(b"no shard: nobody reads it before the list is looked at")
    with pytest.raises(ValueError, match="column 'dup' not found in the list of duplicate ids"):
        ImageDuplicatesRemovalStage(listed, "dup").filter_shards(spark, tmp_path / "a.tar", tmp_path / "out")
    with pytest.raises(ValueError, match="column 'key' not found in the images"):
        ImageDuplicatesRemovalStage(listed).process(images, "key")
    stage = ImageDuplicatesRemovalStage(listed)
    with pytest.raises(RuntimeError, match="nothing was removed yet"):
        _ = stage.num_removed
    stage.process(images)
    assert stage.num_removed == 1


@pytest.mark.parametrize("others", [pa.array(["a"]), pa.array([3], pa.int32())])
def test_lists_that_disagree_about_the_id_are_named(spark, tmp_path, others):
    images = spark.createDataFrame([(1, b"x"), (2, b"y"), (3, b"z")], "image_id long, png binary")
    list_ids(tmp_path / "ids" / "a", [1])
    list_ids(
        tmp_path / "ids" / "b", others.to_pylist(), "id" if others.type == pa.int32() else "key", others.type
    )
    with pytest.raises(InputError, match=r"b/ids.parquet has another schema: column 'id' is (absent|int32)"):
        ImageDuplicatesRemovalStage(tmp_path / "ids").process(images)


def test_what_is_removed_is_counted_without_observing(spark, tmp_path):
    """Delta's MERGE into a clone of a parquet table fails in a session that has observed once."""
    images = spark.createDataFrame(
        [(1, b"x"), (2, b"y"), (None, b"z"), (1, b"x")], "image_id int, png binary"
    )
    stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "ids", [1, 1, 7]))
    kept = stage.process(images)
    plan = plan_of(kept, "Parsed Logical")
    assert "Join" in plan
    assert "CollectMetrics" not in plan
    assert (kept.count(), stage.num_removed, kept.columns) == (2, 2, images.columns)


def test_ids_of_other_types_match_only_when_cast(spark, tmp_path, caplog):
    images = spark.createDataFrame([(1,), (2,), (None,)], "image_id int").coalesce(1)
    listed = list_ids(tmp_path / "ids", ["1", "02"])
    with pytest.raises(InputError, match="image ids are int, the listed ids string: cast one of them"):
        ImageDuplicatesRemovalStage(listed).process(images)
    assert "compared as text" not in caplog.text
    kept = ImageDuplicatesRemovalStage(listed, cast_ids=True).process(images)
    assert [row[0] for row in kept.collect()] == [2, None]
    assert "compared as text" in caplog.text


@needs_spark_4("a type of its own for columns without values")
def test_a_list_without_values_or_type_is_named(spark, tmp_path):
    """What pandas writes of an empty list."""
    images = spark.createDataFrame([("a",)], "image_id string")
    listed = list_ids(tmp_path / "ids", [], kind=pa.null())
    says = "void is the type of a column without values: write it with the other's type"
    with pytest.raises(
        InputError, match=f"image ids are string, the listed ids void: these never match; {says}"
    ):
        ImageDuplicatesRemovalStage(listed).process(images)
    with pytest.raises(InputError, match=f"'id' of the list of duplicate ids is void; {says}, or name the"):
        remove_duplicates(images, spark.read.parquet(listed), id_field="image_id")


@pytest.mark.parametrize("padded", ["images", "list"])
def test_blanks_at_the_end_of_a_char_do_not_count(spark, tmp_path, padded):
    spark.sql("CREATE TABLE char_ids (id CHAR(3), n INT) USING parquet")
    try:
        spark.sql("INSERT INTO char_ids VALUES ('a', 1), ('bb', 2), ('ccc', 3), (NULL, 4)")
        if padded == "images":
            stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "ids", ["bb", "ccc "]))
            kept = stage.process(spark.table("char_ids"), "id")
            assert ([r[0] for r in kept.orderBy("n").collect()], stage.num_removed) == (["a  ", None], 2)
            return
        images = spark.createDataFrame([("a", 1), ("b", 2), ("bb", 3), (None, 4)], "id string, n int")
        stage = ImageDuplicatesRemovalStage("char_ids")
        kept = stage.process(images, "id")
        assert ([r[0] for r in kept.orderBy("n").collect()], stage.num_removed) == (["b", None], 2)
        (tmp_path / "in").mkdir()
        for name in ("a.png", "b.png"):
            (tmp_path / "in" / name).write_bytes(b"1")
        assert stage.filter_folder(spark, tmp_path / "in", tmp_path / "out") == 1
        numbers = spark.createDataFrame([(7,), (8,)], "id int")
        spark.sql("INSERT INTO char_ids VALUES ('7', 5)")
        kept = ImageDuplicatesRemovalStage("char_ids", cast_ids=True).process(numbers, "id")
        assert [r[0] for r in kept.collect()] == [8]
    finally:
        spark.sql("DROP TABLE char_ids")


def test_folder_is_copied_byte_for_byte(spark, emoji, tmp_path):
    images, surplus = emoji
    some = [*sorted(images)[:8], *surplus[:3]]
    for number, key in enumerate(some):
        os.makedirs(tmp_path / "in" / f"set {number % 2}", exist_ok=True)
        (tmp_path / "in" / f"set {number % 2}" / f"{number}.PNG").write_bytes(images[key])
    (tmp_path / "in" / "readme.txt").write_text("no image")
    # Spark's own reader of files goes through the same stage, the path as id.
    files = (
        spark.read.format("binaryFile")
        .option("recursiveFileLookup", "true")
        .option("pathGlobFilter", "*.PNG")
    )
    rows = files.load(str(tmp_path / "in"))
    paths = [f"file:{tmp_path}/in/set {n % 2}/{n}.PNG" for n in (8, 9, 10)]
    stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "paths", paths))
    contents = {row["path"]: bytes(row["content"]) for row in stage.process(rows, "path").collect()}
    assert contents == {f"file:{tmp_path}/in/set {n % 2}/{n}.PNG": images[some[n]] for n in range(8)}
    assert stage.num_removed == 3
    stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "ids", ["set 0/8", "set 1/9", "set 0/10", "9"]))
    assert stage.filter_folder(spark, tmp_path / "in", tmp_path / "out") == 8
    out = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.PNG")
    }
    assert out == {f"set {n % 2}/{n}.PNG": images[some[n]] for n in range(8)}
    assert stage.num_removed == 3
    with pytest.raises(FileExistsError):
        stage.filter_folder(spark, tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match="inside the input"):
        stage.filter_folder(spark, tmp_path / "in", tmp_path / "in" / "out")


def test_a_task_left_running_does_not_bring_back_what_was_cleared(spark, tmp_path, monkeypatch):
    """The job has ended, by an error or an interrupt; Spark lets its other tasks go on for seconds."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "1.png").write_bytes(b"1")
    stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "ids", ["c"]))
    monkeypatch.setattr("spark_dedup.removal.image_files.make_folder", lambda _: None)
    with pytest.raises(Exception, match="is gone, as its job ended"):
        stage.filter_folder(spark, tmp_path / "in", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["ids", "in"]


def test_a_killed_second_attempt_at_a_copy_leaves_the_first_ones_file_whole(tmp_path):
    """Under speculation Spark starts a slow task again, and kills whichever is not first."""
    (tmp_path / "1.png").write_bytes(b"first half, second half")
    with image_files.copies(tmp_path / "out") as aside:
        attempts = [image_files._pair(str(tmp_path / "1.png"), aside, "a/1.png") for _ in range(3)]
        with attempts[0] as (reader, writer):
            writer.write(reader.read(11))
            writer.flush()
            attempts[1].__enter__()
            writer.write(reader.read())
        attempts[2].__enter__()
    assert (tmp_path / "out" / "a" / "1.png").read_bytes() == b"first half, second half"
    assert sorted(os.listdir(tmp_path)) == ["1.png", "out"]


def test_endings_in_any_case_and_an_output_on_a_store(spark, tmp_path, monkeypatch):
    """``local://`` is a store to fsspec and to us, and one that tasks share."""
    (tmp_path / "in").mkdir()
    (tmp_path / "cwd").mkdir()
    images = {"a.Jpg": b"1", "b.jPeG": b"2", "c.png": b"3"}
    for name, content in images.items():
        (tmp_path / "in" / name).write_bytes(content)
    monkeypatch.chdir(tmp_path / "cwd")
    stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "ids", ["c"]))
    assert stage.filter_folder(spark, tmp_path / "in", f"local://{tmp_path}/out") == 2
    del images["c.png"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == images
    assert list((tmp_path / "cwd").iterdir()) == []
    (tmp_path / "shards").mkdir()
    shard(tmp_path / "shards" / "s.Tar", [("k", b"1"), ("c", b"2")])
    assert stage.filter_shards(spark, tmp_path / "shards", f"local://{tmp_path}/kept") == 1
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["s.Tar"]
    assert list((tmp_path / "cwd").iterdir()) == []


def shard(path, samples, form=tarfile.PAX_FORMAT):
    """Write a shard of (key, image) with a JSON file beside each image; long names get extended headers."""
    with tarfile.open(path, "w", format=form, pax_headers={"comment": "global"}) as tar:
        for number, (key, image) in enumerate(samples):
            for ending, data in (("png", image), ("json", json.dumps({"n": number}).encode())):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size, info.mtime, info.uname = len(data), 1234567890 + number, "someone ü"
                tar.addfile(info, io.BytesIO(data))


def raw(path):
    """Return name → all bytes of the member, headers and padding included, read by offsets of its own."""
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
        return {
            i.name: data[i.offset : i.offset_data + -(-i.size // 512) * 512] for i in infos
        }, tar.pax_headers


def test_shards_keep_members_byte_for_byte(spark, held, emoji, tmp_path):
    images, surplus = emoji
    keys = [*sorted(images)[:20], *surplus]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    named = {
        key: f"{'deep/' * 30}{number:06}" if number % 2 else f"{number:06}" for number, key in enumerate(keys)
    }
    shard(tmp_path / "in" / "a.tar", [(named[k], images[k]) for k in keys[:10]])
    shard(tmp_path / "in" / "sub" / "b.tar", [(named[k], images[k]) for k in keys[10:]], tarfile.GNU_FORMAT)
    gone = [named[key] for key in (keys[0], *surplus)]
    stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "ids", gone))
    assert stage.filter_shards(spark, tmp_path / "in", tmp_path / "out") == 19
    assert stage.num_removed == 11
    for place in ("a.tar", "sub/b.tar"):
        before, header = raw(tmp_path / "in" / place)
        after, still = raw(tmp_path / "out" / place)
        assert after == {n: b for n, b in before.items() if n.rsplit(".", 1)[0] not in gone}
        assert list(after) == [n for n in before if n in after]
        assert header == still
        assert os.path.getsize(tmp_path / "out" / place) % 10240 == 0
    assert sorted(os.listdir(tmp_path)) == ["ids", "in", "out"]
    (tmp_path / "in" / "c.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"compressed shards are not rewritten: .*c\.tar\.gz\. Unpack them"):
        stage.filter_shards(spark, tmp_path / "in", tmp_path / "out2")
    (tmp_path / "in" / "c.tar.gz").rename(tmp_path / "in" / "c.tar")
    (tmp_path / "in" / "c.tar").write_bytes((tmp_path / "in" / "a.tar").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"unreadable shard\(s\): .*c\.tar"):
        stage.filter_shards(spark, tmp_path / "in", tmp_path / "out2")
    assert sorted(os.listdir(tmp_path)) == ["ids", "in", "out"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_nothing_removed_gives_the_same_members(tmp_path, form):
    shard(tmp_path / "a.tar", [(f"d/{n}", bytes([n]) * (500 + n)) for n in range(5)], form)
    source, target = io.BytesIO((tmp_path / "a.tar").read_bytes()), io.BytesIO()
    copy_without(source, target, frozenset())
    assert target.getvalue() == source.getvalue()
    assert [m.key for m in members(source)] == [f"d/{n}" for n in range(5) for _ in range(2)]


@pytest.mark.parametrize("joined", [False, True])
def test_a_shard_that_loses_its_last_samples_is_still_a_tar(tmp_path, joined):
    """Python's tarfile, and WebDataset with it, reads no archive that ends in a global header."""
    shard(tmp_path / "a.tar", [("a", b"1")])
    shard(tmp_path / "b.tar", [("b", b"2")])
    first, second = ((tmp_path / name).read_bytes() for name in ("a.tar", "b.tar"))
    data = first[: list(members(io.BytesIO(first)))[-1].end] + second if joined else second
    with open(tmp_path / "kept.tar", "wb") as target:
        copy_without(io.BytesIO(data), target, {"b"})
    with tarfile.open(tmp_path / "kept.tar") as tar:
        assert tar.getnames() == (["a.png", "a.json"] if joined else [])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_to_what_is_removed_become_files(tmp_path, form):
    """As ``tar`` packs files that are hard links to each other: the first has the content."""
    names = {"a.png": None, f"{'deep/' * 30}b.png": "./a.png", "c.png": "b.png", "d.png": "e.png"}
    source = io.BytesIO()
    with tarfile.open(fileobj=source, mode="w", format=form, pax_headers={"comment": "global"}) as tar:
        for number, (name, link) in enumerate([("e.png", None), *names.items(), ("f.png", "a.png")]):
            info = tarfile.TarInfo(name)
            info.mtime, info.mode = 1234567890 + number, 0o600
            if link is None:
                info.size = 700
            else:
                info.type, info.linkname = tarfile.LNKTYPE, link
            tar.addfile(info, io.BytesIO(name[:1].encode() * 700))
        info = tarfile.TarInfo("sub/g.png")
        info.type, info.linkname = tarfile.SYMTYPE, "../a.png"
        tar.addfile(info)
    with open(tmp_path / "kept.tar", "wb") as target:
        copy_without(source, target, {"a", "f"})
    with tarfile.open(tmp_path / "kept.tar") as tar:
        kept = {
            i.name: (i.type, i.mtime, i.mode, tar.extractfile(i).read()) for i in tar if i.name != "c.png"
        }
        assert tar.getnames() == ["e.png", f"{'deep/' * 30}b.png", "c.png", "d.png", "sub/g.png"]
        assert tar.getmember("c.png").linkname == "b.png"  # it led nowhere before
    assert kept == {
        "e.png": (tarfile.REGTYPE, 1234567890, 0o600, b"e" * 700),
        f"{'deep/' * 30}b.png": (tarfile.REGTYPE, 1234567892, 0o600, b"a" * 700),
        "d.png": (tarfile.LNKTYPE, 1234567894, 0o600, b"e" * 700),
        "sub/g.png": (tarfile.REGTYPE, 0, 0o644, b"a" * 700),
    }
    assert os.path.getsize(tmp_path / "kept.tar") % 10240 == 0


def test_pictures_named_by_cameras_and_screens_are_not_lost(spark, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("_DSC0001.JPG", "_DSC0002.JPG", "Screen 10:00.png"):
        (tmp_path / "in" / name).write_bytes(b"1")
    stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "ids", ["_DSC0002"]))
    assert stage.filter_folder(spark, tmp_path / "in", tmp_path / "out") == 2
    assert sorted(os.listdir(tmp_path / "out")) == ["Screen 10:00.png", "_DSC0001.JPG"]


def test_a_file_whose_name_is_not_utf8_is_named(spark, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"1")
    (tmp_path / "in" / b"caf\xe9.png".decode("utf-8", "surrogateescape")).write_bytes(b"2")
    stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "ids", ["a"]))
    with pytest.raises(InputError, match=r"caf\\udce9\.png': .* not UTF-8: rename"):
        stage.filter_folder(spark, tmp_path / "in", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["ids", "in"]


def test_joined_shards_are_not_cut_after_the_first(tmp_path):
    """``cat a.tar b.tar``: tarfile, and WebDataset with it, stops at the first end; the rest would be lost."""
    shard(tmp_path / "a.tar", [("a", b"1")])
    data = (tmp_path / "a.tar").read_bytes()
    end = list(members(io.BytesIO(data)))[-1].end
    with pytest.raises(tarfile.ReadError, match=f"joined to another tar, or damaged at byte {end:,}"):
        list(members(io.BytesIO(data + data)))


@pytest.mark.parametrize("damage", ["flip", "zero", "cut"])
def test_a_damaged_header_is_no_end_of_the_shard(tmp_path, damage):
    """tarfile itself takes one in the middle for the end, and the samples after it would be lost."""
    shard(tmp_path / "a.tar", [(f"{n}", b"x" * 600) for n in range(5)], tarfile.USTAR_FORMAT)
    data = (tmp_path / "a.tar").read_bytes()
    at = [member.start for member in members(io.BytesIO(data))][4]
    damaged = {
        "flip": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        "zero": data[:at] + bytes(512) + data[at + 512 :],
        "cut": data[: at + 100],
    }[damage]
    with pytest.raises(tarfile.ReadError, match=f"damaged at byte {at:,}"):
        list(members(io.BytesIO(damaged)))


def test_a_key_that_is_not_utf8_is_written_as_escapes(spark, tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    (tmp_path / "in").mkdir()
    shard(tmp_path / "in" / "a.tar", [("a", b"1"), (name, b"2"), ("b", b"3")], tarfile.GNU_FORMAT)
    stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "ids", ["a"]))
    assert stage.filter_shards(spark, tmp_path / "in", tmp_path / "out") == 2
    assert list(raw(tmp_path / "out" / "a.tar")[0]) == [
        f"{k}.{e}" for k in (name, "b") for e in ("png", "json")
    ]
    stage = ImageDuplicatesRemovalStage(list_ids(tmp_path / "others", [r"caf\udce9"]))
    assert stage.filter_shards(spark, tmp_path / "in", tmp_path / "out2") == 2
    assert [m.key for m in members(io.BytesIO((tmp_path / "out2" / "a.tar").read_bytes()))] == [
        "a",
        "a",
        "b",
        "b",
    ]


def test_keys_are_webdatasets():
    source = io.BytesIO()
    with tarfile.open(fileobj=source, mode="w") as tar:
        for name in ("./a.b/c.seg.png", "x.tar.gz", ".hidden", "noending", "d/e"):
            tar.addfile(tarfile.TarInfo(name))
    assert [m.key for m in members(source)] == ["a.b/c", "x", None, None, None]


def test_connect(run_connect, tmp_path):
    list_ids(tmp_path / "ids", [1, 3])
    pq.write_table(
        pa.table({"image_id": list(range(6)), "png": [bytes([n]) for n in range(6)]}), tmp_path / "im.parquet"
    )
    shard(tmp_path / "s.tar", [(f"{n}", bytes([n])) for n in range(4)])
    out = run_connect(f"""
from spark_dedup import ImageDuplicatesRemovalStage, remove_duplicates
stage = ImageDuplicatesRemovalStage({str(tmp_path / "ids")!r})
kept = stage.process(spark.read.parquet({str(tmp_path / "im.parquet")!r}))
print([r[0] for r in kept.collect()], stage.num_removed)
stage = ImageDuplicatesRemovalStage({str(tmp_path / "ids")!r}, cast_ids=True)
print(stage.filter_shards(spark, {str(tmp_path / "s.tar")!r}, {str(tmp_path / "out")!r}), stage.num_removed)
""")
    assert out.splitlines()[-2:] == ["[0, 2, 4, 5] 2", "2 2"]
