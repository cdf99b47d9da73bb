"""Outputs: checks before work, one job at a time, written aside, published, cleared after a kill."""

import errno
import multiprocessing
import os
import threading
import time

import pytest

from spark_dedup import outputs
from spark_dedup.errors import InputError
from spark_dedup.names import path_relation
from spark_dedup.outputs import check_output, exclusive, publish, staged
from spark_dedup.paths import exists, filesystem, normalise_path, spark_location, spark_path, write_whole

KILLED = ".out.0123456789ab.tmp"


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def write(folder, text="new"):
    os.makedirs(folder)
    with open(f"{folder}/part", "w") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("output", "given", "says"),
    [
        ("in", "in", "equal to or inside"),
        ("in/out", "in", "equal to or inside"),
        ("link/out", "in", "equal to or inside"),
        ("out", "out/in", "holds the input"),
    ],
)
def test_output_must_lie_apart_from_input(tmp_path, output, given, says):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(InputError, match=says):
        check_output(tmp_path / output, inputs=[str(tmp_path / given)], mode="overwrite")
    assert check_output(tmp_path / "in2", inputs=[str(tmp_path / "in")]) == str(tmp_path / "in2")


@pytest.mark.parametrize("given", ["s3://b/in", "s3a://b//in/", "s3a://b/x/../in"])
def test_one_place_on_s3_has_many_spellings(given):
    with pytest.raises(InputError, match="equal to or inside the input"):
        check_output("s3a://b/in/out", inputs=[given])


def test_output_that_exists_is_a_file_or_lies_below_one(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists: choose another"):
        check_output(tmp_path / "there")
    with pytest.raises(FileExistsError, match="is a file"):
        check_output(tmp_path / "file", mode="overwrite")
    with pytest.raises(NotADirectoryError, match="is a file, so"):
        check_output(tmp_path / "file" / "out")


def test_read_only_output_is_refused(tmp_path, monkeypatch):
    locked = str(tmp_path / "locked")
    os.makedirs(locked)
    real = os.access  # root may write everywhere, so the system's answer is put in its mouth
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and real(path, mode))
    with pytest.raises(PermissionError, match="locked is read-only: choose an output folder"):
        check_output(f"{locked}/a/out")


def test_a_job_that_leaves_nothing_leaves_no_folder_and_no_lock(tmp_path):
    with pytest.raises(InputError, match="no such thing"), exclusive(tmp_path / "a" / "b" / "out"):  # noqa: PT012
        assert (tmp_path / "a" / "b" / ".out.lock").exists()
        raise InputError("no such thing")
    assert tree(tmp_path) == []


def test_a_second_job_on_one_output_is_refused(tmp_path):
    with exclusive(tmp_path / "out"):
        with pytest.raises(InputError, match="another job is writing"), exclusive(tmp_path / "out"):
            pass
        with exclusive(tmp_path / "other"):
            pass
    with exclusive(tmp_path / "out"):
        pass


def _hold(output, inside, most, turns):
    """Take the output again and again, counting how many hold it at once."""
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        try:
            with exclusive(output):
                with inside.get_lock():
                    inside.value += 1
                    most.value, turns.value = max(most.value, inside.value), turns.value + 1
                with inside.get_lock():
                    inside.value -= 1
        except InputError:
            continue


def test_many_processes_never_hold_an_output_together(tmp_path):
    context = multiprocessing.get_context("fork")
    inside, most, turns = (context.Value("i", 0) for _ in range(3))
    workers = [
        context.Process(target=_hold, args=(str(tmp_path / "x" / "out"), inside, most, turns))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert most.value == 1
    assert turns.value > 20
    assert [worker.exitcode for worker in workers] == [0] * 4


def test_a_folder_that_another_job_removes_is_no_file(tmp_path, monkeypatch):
    """It is made again by others between each two looks at it."""
    real, times = os.makedirs, []

    def contended(path, *args, **options):
        times.append(path)
        if len(times) < 4:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        real(path, *args, **options)

    monkeypatch.setattr(os, "makedirs", contended)
    monkeypatch.setattr(os.path, "lexists", lambda _: True)
    with exclusive(tmp_path / "x" / "out"):
        assert len(times) == 4


def test_a_folder_that_takes_no_files(tmp_path, monkeypatch):
    """Some file systems, such as /proc, answer the making of a file with "no such file"."""

    def refuse(*_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match="no file can be made in "), exclusive(tmp_path / "out"):
        pass


def test_the_lock_ends_with_a_killed_process(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def hold():
        with exclusive(tmp_path / "out"):
            ready.set()
            time.sleep(60)

    worker = context.Process(target=hold)
    worker.start()
    assert ready.wait(20)
    with pytest.raises(InputError), exclusive(tmp_path / "out"):
        pass
    worker.kill()
    worker.join()
    with exclusive(tmp_path / "out"):
        pass
    assert tree(tmp_path) == []


def test_staged_publishes_whole_or_not_at_all(tmp_path):
    final = tmp_path / "out"
    with pytest.raises(RuntimeError), staged(final) as aside:  # noqa: PT012
        write(aside)
        raise RuntimeError
    assert tree(tmp_path) == []
    with staged(final) as aside:
        write(aside)
        assert not final.exists()
    assert tree(tmp_path) == ["out", "out/part"]
    with pytest.raises(FileExistsError), staged(final):
        pytest.fail("an output that exists is refused before work")
    with staged(final, mode="overwrite") as aside:
        write(aside, "newer")
    assert (final / "part").read_text() == "newer"
    assert tree(tmp_path) == ["out", "out/part"]


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(FileExistsError), staged(tmp_path / "out") as aside:  # noqa: PT012
        write(aside)
        write(tmp_path / "out", "other")
    assert (tmp_path / "out" / "part").read_text() == "other"
    assert tree(tmp_path) == ["out", "out/part"]


def test_leftovers_of_killed_runs_are_cleared(tmp_path):
    aside = ".out.0123456789ab.tmp"
    for name in (aside, f"{aside}.located", f"{aside}.unfinished", f"{aside}.held", ".out.ba9876543210.tmp"):
        write(tmp_path / name)
    write(tmp_path / ".out2.0123456789ab.tmp")
    write(tmp_path / ".out.mine.tmp")
    with staged(tmp_path / "out") as aside:
        write(aside)
    assert sorted(os.listdir(tmp_path)) == [".out.mine.tmp", ".out2.0123456789ab.tmp", "out"]


def test_a_run_killed_while_publishing_gives_the_old_output_back(tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    real, calls = outputs.move, []

    def dies(source, target):
        calls.append(source)
        if len(calls) > 1:  # nothing moves in a process that is dead
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(outputs, "move", dies)
    aside = str(tmp_path / ".out.0123456789ab.tmp")
    write(aside)
    with pytest.raises(KeyboardInterrupt):
        publish(aside, str(tmp_path / "out"), mode="overwrite")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileExistsError), staged(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "part").read_text() == "old"
    assert tree(tmp_path) == ["out", "out/part"]


@pytest.mark.parametrize("on", ["store", "disk"])
def test_an_interrupt_while_publishing_gives_the_old_output_back(store, tmp_path, monkeypatch, on):
    """At once, not when the job is run again: a user who stops a cell still has the result of before."""
    folder = "memory://bucket" if on == "store" else str(tmp_path)
    fs, inner = filesystem(folder)
    fs.makedirs(f"{inner}/out", exist_ok=True)
    fill(fs, f"{inner}/out", "a", "c", text=b"old")
    real, moved = (type(fs).cp_file, []) if on == "store" else (os.rename, [])

    def stopped(*args, **options):
        moved.append(args)
        if len(moved) == (4 if on == "store" else 2):  # the new one is on its way in
            raise KeyboardInterrupt
        return real(*args, **options)

    with pytest.raises(KeyboardInterrupt), staged(f"{folder}/out", mode="overwrite") as aside:  # noqa: PT012
        place = filesystem(aside)[1]
        fs.makedirs(place, exist_ok=True)
        fill(fs, place, "a", "b")
        monkeypatch.setattr(*((type(fs), "cp_file") if on == "store" else (os, "rename")), stopped)
    there = {path[len(inner) + 1 :]: fs.cat_file(path) for path in fs.find(inner)}
    assert there == OLD


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    page = tmp_path / "new" / "page.html"
    write_whole(str(page), b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_whole(str(page), b"new")
    assert (page.read_bytes(), tree(tmp_path)) == (b"old", ["new", "new/page.html"])
    (tmp_path / "link").symlink_to(page)
    write_whole(str(tmp_path / "link"), b"newer")
    assert page.read_bytes() == b"newer"


def test_threads_of_one_process_do_not_share_an_output(tmp_path):
    seen = []

    def second():
        try:
            with exclusive(tmp_path / "out"):
                seen.append("held")
        except InputError:
            seen.append("refused")

    with exclusive(tmp_path / "out"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert seen == ["refused"]


def test_a_mount_point_is_refused_before_work(tmp_path, monkeypatch):
    """It cannot be renamed away, so the job would fail at its end."""
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path in ("/", str(tmp_path / "volume")))
    with pytest.raises(InputError, match=r"volume is a mount point.*name a folder below it"):
        check_output(tmp_path / "volume", mode="overwrite")
    filled = check_output(tmp_path / "volume", mode="overwrite", replaced=False)
    assert filled == str(tmp_path / "volume")
    assert check_output(tmp_path / "volume" / "out", mode="overwrite") == f"{tmp_path}/volume/out"


def test_an_error_at_the_last_moment_gives_the_old_output_back(tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    real = os.rename

    def busy(source, target):
        if os.path.basename(target) == "out" and not source.endswith(".old"):
            raise OSError(errno.EBUSY, "busy")
        real(source, target)

    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(OSError, match="busy"), staged(tmp_path / "out", mode="overwrite") as aside:
        write(aside)
    assert (tmp_path / "out" / "part").read_text() == "old"
    assert tree(tmp_path) == ["out", "out/part"]


def fill(fs, folder, *names, text=b"new"):
    for name in names:
        fs.pipe_file(f"{folder}/{name}", text)


def stored(fs):
    return {path.removeprefix("/bucket/"): fs.cat_file(path) for path in fs.find("/bucket")}


def failing(monkeypatch, fs, name, at, times=1):
    """Let the store's ``name`` fail ``times`` times where it meets a path that ends in ``at``."""
    real, left = getattr(type(fs), name), [times]

    def fails(self, *paths, **options):
        if left[0] and any(str(path).endswith(at) for path in paths):
            left[0] -= 1
            raise ConnectionError("gone")
        return real(self, *paths, **options)

    monkeypatch.setattr(type(fs), name, fails)


OLD, NEW = {"out/a": b"old", "out/c": b"old"}, {"out/a": b"new", "out/b": b"new"}


@pytest.mark.parametrize(("name", "at"), [("cp_file", "out/b"), ("rm_file", ".tmp/b")])
def test_a_store_that_fails_while_publishing_holds_no_part(store, monkeypatch, name, at):
    failing(monkeypatch, store, name, at)
    with pytest.raises(ConnectionError), staged("memory://bucket/out") as aside:
        fill(store, aside, "a", "b")
    assert stored(store) == {}
    with staged("memory://bucket/out") as aside:
        fill(store, aside, "a", "b")
    assert stored(store) == NEW


@pytest.mark.parametrize("at", ["old/a", "old/c", "out/a", "out/b"])
def test_a_store_that_fails_while_overwriting_keeps_the_old_output(store, monkeypatch, at):
    fill(store, "/bucket/out", "a", "c", text=b"old")
    failing(monkeypatch, store, "cp_file", at)
    with pytest.raises(ConnectionError), staged("memory://bucket/out", mode="overwrite") as aside:
        fill(store, aside, "a", "b")
    assert stored(store) == OLD
    with staged("memory://bucket/out", mode="overwrite") as aside:
        fill(store, aside, "a", "b")
    assert stored(store) == NEW


@pytest.mark.parametrize("on", ["store", "disk"])
def test_a_job_that_must_not_overwrite_never_does(store, tmp_path, monkeypatch, on):
    """The other job's output appears just after this one has looked for it."""
    folder = "memory://bucket" if on == "store" else str(tmp_path)
    fs, inner = filesystem(folder)
    fs.makedirs(f"{inner}/aside", exist_ok=True)
    fs.makedirs(f"{inner}/out", exist_ok=True)
    fill(fs, f"{inner}/aside", "b")
    fill(fs, f"{inner}/out", "a", text=b"old")
    answers = [False]
    monkeypatch.setattr(outputs, "exists", lambda path: answers.pop() if answers else exists(path))
    with pytest.raises(FileExistsError):
        publish(f"{folder}/aside", f"{folder}/out")
    assert {path[len(inner) :]: fs.cat_file(path) for path in fs.find(inner)} == {
        "/aside/b": b"new",
        "/out/a": b"old",
    }


@pytest.mark.parametrize(
    ("left", "mode", "then"),
    [
        # Killed between the moves; with the old result still whole in its place; while the new one moved in; at
        # the end, with only the old one left to delete.
        ({f"{KILLED}/a": b"new", f"{KILLED}.old/a": b"old", f"{KILLED}.old/c": b"old"}, "error", OLD),
        ({f"{KILLED}/b": b"new", f"{KILLED}.old/a": b"old", **OLD}, "overwrite", OLD),
        (
            {f"{KILLED}/b": b"new", f"{KILLED}.old/a": b"old", f"{KILLED}.old/c": b"old", "out/a": b"new"},
            "overwrite",
            OLD,
        ),
        ({f"{KILLED}.old/a": b"old", **NEW}, "error", NEW),
    ],
)
def test_a_store_where_a_run_was_killed_while_publishing(store, left, mode, then):
    for path, text in left.items():
        store.pipe_file(f"/bucket/{path}", text)
    with pytest.raises((FileExistsError, RuntimeError)), staged("memory://bucket/out", mode=mode):
        raise RuntimeError
    assert {path: text for path, text in stored(store).items() if not path.startswith(f"{KILLED}/")} == then


def test_a_new_result_on_a_store_is_not_taken_for_a_killed_runs(store):
    """Without a hold, that may be a job at work, even one that publishes now."""
    left = {f"{KILLED}/b": b"new", f"{KILLED}.old/a": b"old", "out/a": b"new"}
    for path, text in left.items():
        store.pipe_file(f"/bucket/{path}", text)
    with pytest.raises(FileExistsError), staged("memory://bucket/out"):
        pytest.fail("an output that exists is refused before work")
    assert stored(store) == left


@pytest.mark.parametrize("mode", ["error", "overwrite"])
def test_a_job_that_holds_its_output_clears_what_killed_ones_left(store, mode):
    other = KILLED.replace("0", "f")
    for path in (f"{KILLED}/b", f"{KILLED}.clone/b", f"{other}/b"):
        store.pipe_file(f"/bucket/{path}", b"new")
    store.pipe_file(f"/bucket/{other}.old/a", b"old")
    store.pipe_file("/bucket/out/b", b"new")
    problem = FileExistsError if mode == "error" else RuntimeError
    with exclusive("memory://bucket/out"), pytest.raises(problem), staged("memory://bucket/out", mode=mode):
        raise RuntimeError
    assert stored(store) == {"out/a": b"old"}


def test_marks_of_empty_folders_are_not_moved(store, monkeypatch):
    """Spark's S3 client makes an object ``_staged_commits/`` in a Delta log, which no copy can name."""
    fill(store, "/bucket/aside", "a")
    mark = "/bucket/aside/_delta_log/_staged_commits/"
    find, copy, marks = type(store).find, type(store).copy, [mark]  # deleting does not meet it again
    monkeypatch.setattr(
        type(store),
        "find",
        lambda self, path, **kw: [*find(self, path, **kw), *(marks.pop() for _ in marks[:])],
    )

    def refuse(self, source, target, **options):
        assert mark not in source
        return copy(self, source, target, **options)

    monkeypatch.setattr(type(store), "copy", refuse)
    publish("memory://bucket/aside", "memory://bucket/out")
    monkeypatch.undo()
    assert stored(store) == {"out/a": b"new"}


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("file:/data/x", "/data/x"),
        ("file:///data/a%20b", "/data/a b"),
        ("/data/a%20b", "/data/a%20b"),
        ("s3://bucket/x/", "s3://bucket/x"),
        ("s3a://bucket//x/./y/../z%20 ü//", "s3a://bucket/x/z%20 ü"),
        ("s3a://bucket/", "s3a://bucket"),
        ("hdfs:///x//y", "hdfs:///x/y"),
        ("abfss://c@account.dfs.core.windows.net/x//y", "abfss://c@account.dfs.core.windows.net/x/y"),
        ("/data/./y/../x", "/data/x"),
    ],
)
def test_paths_are_spelled_one_way(given, path):
    assert normalise_path(given) == path


def test_spark_paths_stand_for_themselves():
    assert spark_path("/data/a[1]*?{x}") == r"/data/a\[1\]\*\?\{x\}"
    assert spark_path("/data/a:b") == "file:///data/a:b"


def test_what_databricks_mounts_is_spelled_as_spark_reads_it(monkeypatch):
    """There ``/dbfs/x`` is a local file to Python, and to Spark a folder ``dbfs`` on the same store."""
    assert spark_path("/dbfs/a") == spark_location("/dbfs/a") == "/dbfs/a"
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "16.4")
    assert spark_path("/dbfs/a") == "/dbfs/a"
    monkeypatch.setattr(os.path, "ismount", lambda path: path == "/dbfs")
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/dbfs")
    assert normalise_path("dbfs:/a/[b]") == "/dbfs/a/[b]"
    assert spark_path("/dbfs/a/[b]") == r"dbfs:/a/\[b\]"
    assert spark_location("/dbfs/a/[b]") == "dbfs:/a/[b]"
    assert spark_location("/dbfsx/a") == "/dbfsx/a"
    assert path_relation("delta", "dbfs:/a/[b]") == "delta.`dbfs:/a/[b]`"


def test_a_scheme_without_a_store_is_no_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, says in (("dbfs:/x", "write /Volumes/x"), ("hdfs:/x/y", "write hdfs://HOST/x/y")):
        with pytest.raises(InputError, match=f"{given} names no store.*{says}"):
            normalise_path(given)
    for given in ("a:b/c", "ab:c", "C:/x", "x/ab:/c"):  # local names, as ever
        assert normalise_path(given) == f"{tmp_path}/{given}"
    (tmp_path / "ab:").mkdir()
    assert normalise_path("ab:/c") == f"{tmp_path}/ab:/c"
