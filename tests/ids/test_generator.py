import json
import threading

import numpy as np
import pytest

from spark_dedup.errors import InputError
from spark_dedup.ids.batches import StaleBatchError
from spark_dedup.ids.generator import IdGenerator

# Published with the contract: UUID version 5 in the URL namespace of the paths joined by ";".
KEYS = [
    ("file1.txt", "0471c9c9-5d0f-5323-8937-76af86e92a18"),
    (["file1.txt", "file2.txt"], "3deb200a-26cf-5d7d-b235-52ed4454b790"),
    (["file2.txt", "file1.txt"], "8ff7e90f-4ac2-55b3-95b1-35967dec7e19"),
    (["s3://b/a.parquet"], "8aa87dd2-ebed-5a55-837a-2baad327c0b4"),
    ([], "1b4db7eb-4057-5ddf-91e0-36dec72071f5"),
]


@pytest.mark.parametrize(("files", "key"), KEYS)
def test_keys_are_those_of_curator(files, key, tmp_path):
    assert IdGenerator().hash_files(files) == key


def test_paths_may_be_path_objects(tmp_path):
    path = tmp_path / "a.parquet"
    assert IdGenerator().hash_files(path) == IdGenerator().hash_files([str(path)])


def test_ranges_follow_each_other():
    ids = IdGenerator()
    assert [ids.register_batch(f"f{n}", n) for n in (30, 20, 10)] == [0, 30, 50]
    assert ids.next_id == 60
    assert [ids.get_batch_range(f"f{n}") for n in (30, 20, 10)] == [(0, 29), (30, 49), (50, 59)]
    assert ids.get_batch_range(key=ids.hash_files("f20")) == (30, 49)


def test_known_batch_keeps_its_ids_and_nothing_advances():
    ids = IdGenerator(start_id=5)
    assert ids.register_batches([("a", 3), ("b", 2), ("a", 3)]) == [5, 8, 5]
    assert ids.register_batch("b", 2) == 8
    assert ids.next_id == 10


def test_changed_count_is_an_error_and_registers_nothing():
    ids = IdGenerator()
    ids.register_batch("a", 3)
    with pytest.raises(
        StaleBatchError, match=r"a \(3 rows then, 4 now\); restore the files \(get_batch_range tells"
    ):
        ids.register_batches([("b", 1), ("a", 4)])
    assert ids.next_id == 3
    assert len(ids.batch_registry) == 1


def test_empty_batch_has_an_empty_range():
    ids = IdGenerator(7)
    assert ids.register_batches([("none", 0), ("one", 1)]) == [7, 7]
    assert ids.get_batch_range("none") == (7, 6)
    assert ids.next_id == 8


@pytest.mark.parametrize("count", [-1, 1.0, "3", None, True])
def test_bad_counts(count):
    ids = IdGenerator()
    with pytest.raises(ValueError, match="count must"):
        ids.register_batch("a", count)
    assert ids.next_id == 0


def test_numpy_counts_work():
    ids = IdGenerator()
    ids.register_batch("a", np.int32(4))
    assert (ids.next_id, type(ids.next_id)) == (4, int)


def test_range_needs_exactly_one_name():
    ids = IdGenerator()
    with pytest.raises(ValueError, match="exactly one"):
        ids.get_batch_range()
    with pytest.raises(ValueError, match="exactly one"):
        ids.get_batch_range("a", "k")
    with pytest.raises(KeyError, match=r"a\.parquet"):
        ids.get_batch_range("a.parquet")
    with pytest.raises(KeyError, match="some-key"):
        ids.get_batch_range(key="some-key")


def test_given_ranges_are_not_given_out_again():
    ids = IdGenerator(batch_registry={"k": (0, 29), "empty": (90, 89)})
    assert ids.next_id == 30
    assert ids.register_batch("a", 2) == 30
    assert IdGenerator(60, {"k": (0, 29)}).next_id == 60


@pytest.mark.parametrize(
    ("ranges", "says"),
    [
        ({"a": (0, 9), "b": (9, 12)}, "batches 'a' and 'b' overlap at id 9"),
        ({"a": (5, 2)}, "last lies before first"),
        ({"a": (1,)}, "not .first, last."),
    ],
)
def test_given_ranges_that_are_not_sound(ranges, says):
    with pytest.raises(InputError, match=says):
        IdGenerator(batch_registry=ranges)


def test_json_round_trip(tmp_path, monkeypatch):
    ids = IdGenerator(100)
    ids.register_batches([("ä b%.parquet", 3), (["x", "y"], 0), ("z", 5)])
    path = tmp_path / "new::folder" / "ids.json"  # two colons would chain stores for fsspec
    ids.to_disk(path)
    monkeypatch.chdir(tmp_path)
    again = IdGenerator.from_disk("new::folder/ids.json")
    assert (again.next_id, again.batch_registry) == (108, ids.batch_registry)
    assert json.loads(path.read_text())["batch_registry"][ids.hash_files("z")] == [103, 107]
    assert [p.name for p in path.parent.iterdir()] == ["ids.json"]


def test_json_through_fsspec():
    ids = IdGenerator(1)
    ids.register_batch("a", 2)
    ids.to_disk("memory://bucket/ids.json")
    assert IdGenerator.from_disk("memory://bucket/ids.json").batch_registry == ids.batch_registry


BAD_FILES = {
    "not json": ("{", "is not an id generator file"),
    "a list": ([], "must be"),
    "no next_id": ({"batch_registry": {}}, "must be"),
    "float next_id": ({"next_id": 1.5, "batch_registry": {}}, "next_id is 1.5"),
    "bool next_id": ({"next_id": True, "batch_registry": {}}, "next_id is True"),
    "registry a list": ({"next_id": 1, "batch_registry": []}, "batch_registry is not an object"),
    "three ends": ({"next_id": 9, "batch_registry": {"k": [1, 2, 3]}}, "range of batch 'k'"),
    "reversed": ({"next_id": 9, "batch_registry": {"k": [5, 2]}}, "range of batch 'k'"),
    "negative": ({"next_id": 9, "batch_registry": {"k": [-2, 2]}}, "range of batch 'k'"),
    "overlap": ({"next_id": 9, "batch_registry": {"k": [0, 4], "m": [4, 6]}}, "'k' and 'm' overlap at id 4"),
    "inside": ({"next_id": 6, "batch_registry": {"k": [0, 4], "m": [5, 6]}}, "next_id 6 lies inside"),
    "twice": ('{"next_id": 9, "batch_registry": {"k": [0, 4], "k": [5, 6]}}', "'k' stands in it 2 times"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_unsound_files_are_named(name, tmp_path):
    content, message = BAD_FILES[name]
    path = tmp_path / "ids.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        IdGenerator.from_disk(path)
    assert str(path) in str(caught.value)


def test_gaps_and_empty_ranges_are_sound(tmp_path):
    path = tmp_path / "ids.json"
    path.write_text(
        json.dumps({"next_id": 50, "batch_registry": {"k": [0, 4], "e": [3, 2], "f": [10, 9], "m": [9, 20]}})
    )
    assert IdGenerator.from_disk(path).next_id == 50


def test_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        IdGenerator.from_disk(tmp_path / "no.json")


def test_threads_share_a_generator():
    ids = IdGenerator()

    def register(worker):
        for i in range(200):
            ids.register_batch(f"{worker}-{i}", 3)

    threads = [threading.Thread(target=register, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    firsts = sorted(first for first, _ in ids.batch_registry.values())
    assert firsts == list(range(0, 8 * 200 * 3, 3))
