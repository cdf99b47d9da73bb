import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from sessions import CONNECT, child_environment

from spark_dedup.errors import InputError
from spark_dedup.ids import spark_log
from spark_dedup.ids.batches import Batch, StaleBatchError
from spark_dedup.ids.delta_log import DeltaLog
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.ids.rows import origin_rows
from spark_dedup.ids.spark_log import SparkLog
from spark_dedup.outputs import exclusive


@pytest.fixture
def place(tmp_path):
    return tmp_path / "id registry: a=b, 'ä'"


@pytest.fixture(params=["path", "table"])
def registry(request, spark, place):
    if request.param == "path":
        yield IdRegistry.open(spark, place, start_id=7)
    else:
        name = f"ids_{os.getpid()}_{abs(hash(str(place)))}"
        yield IdRegistry.open(spark, name, start_id=7)
        spark.sql(f"DROP TABLE {name}")


def test_paths_go_through_delta_rs_and_names_through_spark(registry):
    # A path means the server's disk to a Connect session, so that Spark has to write there.
    expected = DeltaLog if "/" in registry.location and not CONNECT else SparkLog
    assert type(registry._log) is expected


def test_same_methods_as_the_generator(registry, tmp_path):
    plain = IdGenerator(7)
    batches = [("a", 30), (["x", "y"], 20), ("a", 30), ("empty", 0), ("b", 10)]
    assert registry.register_batches(batches) == plain.register_batches(batches) == [7, 37, 7, 57, 57]
    assert registry.register_batch("a", 30) == 7
    assert registry.next_id == plain.next_id == 67
    assert registry.get_batch_range(["x", "y"]) == (37, 56)
    assert registry.get_batch_range(key=registry.hash_files("empty")) == (57, 56)
    with pytest.raises(StaleBatchError, match=r"b \(10 rows then, 11 now\)"):
        registry.register_batches([("new", 1), ("b", 11)])
    with pytest.raises(KeyError, match="new"):
        registry.get_batch_range("new")
    for key in (None, "origin"):
        with pytest.raises((KeyError, ValueError)):
            registry.get_batch_range(key=key)
    registry.to_disk(tmp_path / "ids.json")
    assert IdGenerator.from_disk(tmp_path / "ids.json").batch_registry == plain.batch_registry
    shown = {tuple(row.files): row for row in registry.to_dataframe().collect()}
    assert {files: row.row_count for files, row in shown.items()} == {
        ("a",): 30, ("x", "y"): 20, ("empty",): 0, ("b",): 10
    }  # fmt: skip
    assert shown[("b",)].key == registry.hash_files("b")


@pytest.mark.parametrize("name", ["per%20cent", "100%", "back`tick", "[a]", "{a}"])
def test_odd_paths(spark, tmp_path, name):
    registry = IdRegistry.open(spark, tmp_path / name)
    assert registry.register_batches([("a", 2), ("b", 1)]) == [0, 2]
    assert IdRegistry.open(spark, tmp_path / name).next_id == 3
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert registry.to_dataframe().count() == 2


def test_a_path_object_is_never_a_table_name(spark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry = IdRegistry.open(spark, Path("ids"))
    assert registry.location == f"{tmp_path}/ids"
    registry.register_batch("a", 2)
    registry.to_disk(tmp_path / "ids.json")
    assert IdRegistry.from_disk(spark, tmp_path / "ids.json", Path("copy")).location == f"{tmp_path}/copy"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["copy", "ids"]


def test_spark_waits_for_another_process_on_a_local_path(spark, tmp_path, monkeypatch):
    """Delta's commits on a local disk refuse inside one JVM only."""
    registry = IdRegistry.open(spark, tmp_path / "[ids]")
    registry.register_batch("a", 2)
    monkeypatch.setattr(spark_log, "HOLD_PATIENCE_S", 0.1)
    log, own = registry._log, [Batch(("b",), 3)]
    with exclusive(f"{registry.location}/_commit"):  # as another process does while its statement runs
        assert log.append(own, [own[0].key], "token") is None
    assert log.append(own, [own[0].key], "token")[own[0].key].min_id == 2
    assert [p.name for p in tmp_path.rglob("*.lock")] == ["_turn.lock"]


def test_two_drivers_on_a_path_that_delta_rs_does_not_take(spark, tmp_path):
    place = tmp_path / "[ids]"
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    theirs = subprocess.Popen(
        [sys.executable, str(script), str(place)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    try:
        assert theirs.stdout.readline().strip() == "ready"
        registry = IdRegistry.open(spark, place)
        theirs.stdin.write("go\n")
        theirs.stdin.flush()
        mine = {f"mine{i}": registry.register_batch(f"mine{i}", 10) for i in range(4)}
        given = json.loads(theirs.stdout.readline()) | mine
    finally:
        theirs.kill()
        theirs.wait()
    assert sorted(given.values()) == list(range(0, 80, 10))
    assert registry.next_id == 80


WRITER = """
import json, sys
from spark_dedup import IdRegistry, build_session
spark = build_session(device="cpu", master="local[1]", conf={"spark.driver.memory": "1g"})
registry = IdRegistry.open(spark, sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps({f"theirs{i}": registry.register_batch(f"theirs{i}", 10) for i in range(4)}), flush=True)
"""


def test_one_commit_for_many_batches(spark, place):
    registry = IdRegistry.open(spark, place)
    before = DeltaTable(place.as_uri()).version()
    registry.register_batches([(f"f{i}", i) for i in range(500)])
    registry.register_batches([(f"f{i}", i) for i in range(500)])
    assert DeltaTable(place.as_uri()).version() == before + 1


def test_size_and_time_of_a_file_are_kept(spark, place):
    registry = IdRegistry.open(spark, place)
    registry.register([Batch((f"f{i}",), 10, size=100, modified_ms=5) for i in range(8)])
    assert registry.register([Batch(("f0",), 10, size=100, modified_ms=5)]) == [0]
    assert registry.register_batch("f0", 10) == 0
    changed = [Batch((f"f{i}",), 10, size=101, modified_ms=6) for i in range(8)]
    with pytest.raises(StaleBatchError, match=r"f4 .*and 3 more") as caught:
        registry.register(changed)
    assert "f0 (100 bytes then, 101 now; 5 ms modification time then, 6 now)" in str(caught.value)
    assert isinstance(caught.value, InputError)


def test_one_batch_given_twice_with_two_counts(registry):
    with pytest.raises(InputError, match="given twice"):
        registry.register_batches([("a", 1), ("a", 2)])


def test_start_id_belongs_to_the_table(spark, place):
    IdRegistry.open(spark, place, start_id=100)
    assert IdRegistry.open(spark, place).next_id == 100
    assert IdRegistry.open(spark, place, start_id=100).register_batch("a", 1) == 100
    with pytest.raises(InputError, match="starts at id 100, not 5"):
        IdRegistry.open(spark, place, start_id=5)


def test_two_handles_see_each_other(spark, place):
    one, two = IdRegistry.open(spark, place), IdRegistry.open(spark, place)
    assert [one.register_batch("a", 2), two.register_batch("b", 2), one.register_batch("c", 2)] == [0, 2, 4]
    assert two.register_batch("a", 2) == 0


def test_spark_and_delta_rs_write_one_table(spark, place):
    native = IdRegistry.open(spark, place)
    native.register_batch("a", 3)
    sql = IdRegistry(spark, SparkLog(spark, f"delta.`{place}`", str(place), initial=origin_rows(0)))
    assert sql.register_batches([("a", 3), ("b", 4)]) == [0, 3]
    assert native.register_batches([("b", 4), ("c", 1)]) == [3, 7]
    assert sql.next_id == native.next_id == 8
    with pytest.raises(StaleBatchError):
        sql.register_batch("c", 2)


def test_spark_log_gives_way_to_a_batch_registered_meanwhile(spark, place):
    native = IdRegistry.open(spark, place)
    log = SparkLog(spark, f"delta.`{place}`", str(place), initial=origin_rows(0))
    native.register_batch("a", 3)
    batches = [Batch(("a",), 3), Batch(("b",), 3)]
    assert log.append(batches, [b.key for b in batches], "token") is None
    assert log.next_id() == 3


def test_delta_rs_commit_on_an_old_version_is_refused(place):
    late = IdRegistry.open(None, place)._log
    IdRegistry.open(None, place).register_batch("a", 3)
    assert late.append([Batch(("b",), 2)], ["key of b"], "token") is None
    assert late.append([Batch(("b",), 2)], ["key of b"], "token")["key of b"].min_id == 3


def test_reader_of_a_compacted_table(spark, place):
    registry, reader = IdRegistry.open(None, place), IdRegistry.open(None, place)
    for i in range(105):
        registry.register_batch(f"f{i}", 1)
        if i % 40 == 0:
            reader.register_batch(f"f{i}", 1)
    assert len(DeltaTable(place.as_uri()).file_uris()) < 20
    assert reader.get_batch_range("f100") == (100, 100)
    assert registry.register_batches([(f"f{i}", 1) for i in range(105)]) == list(range(105))
    assert IdRegistry.open(spark, place).to_dataframe().count() == 105


def test_another_table_is_refused_and_left_alone(spark, place):
    write_deltalake(place.as_uri(), pa.table({"key": ["a"], "value": [1]}))
    with pytest.raises(InputError, match="not an id registry of this layout: it has the columns key, value"):
        IdRegistry.open(spark, place)
    assert DeltaTable(place.as_uri()).version() == 0


def test_what_a_killed_process_began_is_cleared(place):
    """It died with the first version of the table written aside, before it had its name."""
    for aside in (
        place.with_name(f".{place.name}.0123456789ab.tmp"),
        place.with_name(".other.0123456789ab.tmp"),
    ):
        (aside / "_delta_log").mkdir(parents=True)
    assert IdRegistry.open(None, place).next_id == 0
    assert sorted(os.listdir(place.parent)) == [".other.0123456789ab.tmp", place.name]


def test_what_a_killed_spark_began_is_made_whole(spark, tmp_path):
    """Rows and a log, but no commit yet, at a path that delta-rs does not take."""
    place = tmp_path / "[ids]"
    (place / "_delta_log").mkdir(parents=True)
    (place / "part-0.snappy.parquet").write_bytes(b"PAR1")
    registry = IdRegistry.open(spark, place, start_id=5)
    assert (registry.register_batch("a", 10), registry.next_id) == (5, 15)
    detail = spark.sql(f"DESCRIBE DETAIL delta.`{place}`").first()
    assert detail["properties"]["delta.appendOnly"] == "true"


def test_a_folder_of_other_files_is_refused(spark, tmp_path):
    (tmp_path / "documents.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="exists and is no Delta table"):
        IdRegistry.open(spark, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["documents.parquet"]


def test_import_of_a_generator(spark, place, tmp_path):
    path = tmp_path / "exact_id_generator.json"
    path.write_text(
        json.dumps({"next_id": 99, "batch_registry": {"k1": [0, 9], "k2": [20, 29], "e": [5, 4]}})
    )
    registry = IdRegistry.from_disk(spark, path, place)
    assert registry.get_batch_range(key="k2") == (20, 29)
    assert registry.get_batch_range(key="e") == (5, 4)
    assert registry.register_batch("next", 5) == 99
    assert DeltaTable(place.as_uri()).version() == 1


def test_import_onto_another_registry(spark, place, tmp_path):
    path = tmp_path / "ids.json"
    IdGenerator(3).to_disk(path)
    assert IdRegistry.from_disk(spark, path, place).next_id == 3
    registry = IdRegistry.from_disk(spark, path, place)
    registry.register_batch("a", 1)
    with pytest.raises(InputError, match="already holds an id registry with other ranges"):
        IdRegistry.from_disk(spark, path, place)


def test_a_read_only_place_is_an_error_not_a_wait(place):
    registry = IdRegistry.open(None, place)

    def refuse(*args, **kwargs):
        raise OSError("read-only file system")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltalake.write_deltalake", refuse)
        started = time.monotonic()
        with pytest.raises(OSError, match="read-only"):
            registry.register_batch("a", 1)
        assert time.monotonic() - started < 60


def test_a_commit_whose_reply_was_lost_is_found_again(place):
    import deltalake

    registry = IdRegistry.open(None, place)
    write = deltalake.write_deltalake

    def lose_reply(*args, **kwargs):
        write(DeltaTable(place.as_uri()), *args[1:], **kwargs)
        raise OSError("connection lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltalake.write_deltalake", lose_reply)
        assert registry.register_batches([("a", 3), ("b", 2)]) == [0, 3]
    assert registry.next_id == 5


def _register(place, worker, batches, done):
    registry = IdRegistry.open(None, place)
    for i in range(batches):
        registry.register_batches([(f"/data/{worker}/{i}-{k}.parquet", worker + k + 1) for k in range(2)])
        done.put(i)


@pytest.fixture
def spawn():
    started = []
    context = multiprocessing.get_context("spawn")

    def start(*args):
        process = context.Process(target=_register, args=args)
        process.start()
        started.append(process)
        return process

    yield start, context
    for process in started:
        process.kill()
        process.join()


def check_ranges(place):
    """Return the sizes by worker after checking that ranges touch, starting at 0."""
    state = IdRegistry.open(None, place)._state()
    ranges = sorted(state[1].values())
    ends = [-1, *(last for _, last in ranges)]
    assert all(first == end + 1 for (first, _), end in zip(ranges, ends, strict=False))
    assert state[0] == ends[-1] + 1
    return state[1]


def test_processes_side_by_side(place, spawn):
    start, context = spawn
    done = context.Queue()
    workers = [start(str(place), n, 12, done) for n in range(4)]
    for _ in range(4 * 12):
        done.get(timeout=120)
    for worker in workers:
        worker.join(60)
    ranges = check_ranges(place)
    hash_files = IdGenerator().hash_files
    for worker in range(4):
        for i in range(12):
            for k in range(2):
                first, last = ranges[hash_files(f"/data/{worker}/{i}-{k}.parquet")]
                assert last - first + 1 == worker + k + 1
    assert len(ranges) == 4 * 12 * 2


def test_killed_processes_leave_no_gap_and_run_again(place, spawn):
    start, context = spawn
    done = context.Queue()
    victims = [start(str(place), n, 1000, done) for n in range(3)]
    for _ in range(10):
        done.get(timeout=60)
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(30)
    before = check_ranges(place)
    assert before
    done = context.Queue()  # a queue whose writer was killed may stay locked
    again = start(str(place), 0, 8, done)
    for _ in range(8):
        done.get(timeout=60)
    again.join(60)
    after = check_ranges(place)
    assert before.items() <= after.items()


WITHOUT_SPARK = """
import sys
sys.modules["pyspark"] = None  # any import of it fails
import spark_dedup
from spark_dedup import IdGenerator, IdRegistry, StaleBatchError

batches = [("a.parquet", 30), (["b.parquet", "c.parquet"], 20)]
assert IdGenerator().register_batches(batches) == [0, 30]
registry = IdRegistry.open(None, sys.argv[1] + "/registry")
assert registry.register_batches(batches) == [0, 30]
registry.to_disk(sys.argv[1] + "/ids.json")
assert IdGenerator.from_disk(sys.argv[1] + "/ids.json").get_batch_range("a.parquet") == (0, 29)
assert IdRegistry.from_disk(None, sys.argv[1] + "/ids.json", sys.argv[1] + "/other").next_id == 50
for work in (lambda: registry.register_batch("a.parquet", 31), lambda: IdRegistry.open(None, "a.table"),
             lambda: spark_dedup.identify_exact):
    try:
        work()
    except ValueError as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_ids_need_no_spark(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"}
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_SPARK, tmp_path], capture_output=True, text=True, timeout=120, env=env
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    stale, needed, none = ran.stdout.splitlines()
    assert stale.startswith("StaleBatchError: changed since")
    assert "this needs a Spark session" in needed
    assert "no Spark found" in none
