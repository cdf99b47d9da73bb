"""The record of finished steps: going on after a kill, refusing what is finished, leaving things as they were."""

import errno
import json
import os

import pytest
from fsspec.implementations.local import LocalFileSystem

from spark_dedup.listing import FileInfo
from spark_dedup.workflows.steps import Steps, fingerprint, steps_of

OWNED = ["ids", "list.json"]


def make(folder, *names):
    for name in names:
        os.makedirs(f"{folder}/{name}")


def names(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def test_fingerprint_tells_parameters_and_files():
    file = FileInfo("/a", 1, 2)
    base = fingerprint({"a": 1}, [file])
    assert base == fingerprint({"a": 1}, [FileInfo("/a", 1, 2)])
    others = [
        fingerprint({"a": 2}, [file]),
        fingerprint({"a": 1}, [FileInfo("/a", 1, 3)]),
        fingerprint({"a": 1}),
    ]
    assert len({base, *others}) == 4


def test_a_killed_run_goes_on(tmp_path):
    out = tmp_path / "out"
    killed = Steps(out, "d", owned=OWNED)
    make(out, "ids")
    killed.finish("identify", {"n": 3}, wrote=["ids"])
    again = Steps(out, "d", owned=OWNED)
    assert again.result("identify") == {"n": 3}
    assert again.result("remove") is None
    again.close()
    assert names(out) == ["ids"]
    with pytest.raises(FileExistsError, match="holds ids of a finished run"):
        Steps(out, "d", owned=OWNED)


def test_a_run_killed_before_its_first_step_is_run_again(tmp_path):
    out = tmp_path / "out"
    Steps(out, "d", owned=OWNED)
    make(out, "ids")
    assert Steps(out, "d", owned=OWNED).result("identify") is None


def test_another_input_starts_over(tmp_path):
    out = tmp_path / "out"
    Steps(out, "d", owned=OWNED).finish("identify", {"n": 3})
    make(out, "ids", "other")
    again = Steps(out, "changed", owned=OWNED)
    assert again.result("identify") is None
    again.close()
    assert names(out) == ["other"]


def test_what_a_step_wrote_and_a_user_deleted_is_made_again(tmp_path, caplog):
    """As after ``rm -r out/*``, which leaves the record."""
    killed = Steps(tmp_path, "d", owned=OWNED)
    make(tmp_path, "ids")
    killed.finish("identify", {"n": 3}, wrote=["ids", "elsewhere"])
    assert Steps(tmp_path, "d", owned=OWNED).resumed
    os.rmdir(tmp_path / "ids")
    again = Steps(tmp_path, "d", owned=OWNED)
    assert (again.resumed, again.result("identify")) == (False, None)
    assert f"ids of the unfinished run in {tmp_path} was deleted: starting over" in caplog.text


def test_what_no_run_of_ours_wrote_is_refused(tmp_path):
    make(tmp_path, "ids")
    with pytest.raises(FileExistsError):
        Steps(tmp_path, "d", owned=OWNED)
    assert os.listdir(tmp_path) == ["ids"]


def test_a_torn_record_counts_as_unfinished(tmp_path):
    Steps(tmp_path, "d", owned=OWNED).finish("identify", {"n": 3})
    (tmp_path / ".spark_dedup_steps.json").write_text('{"finished": tr')
    assert Steps(tmp_path, "d", owned=OWNED).result("identify") is None


def test_failing_before_the_first_step_leaves_things_as_they_were(tmp_path):
    fresh, there = tmp_path / "fresh", tmp_path / "there"
    there.mkdir()
    for out in (fresh, there):
        with (  # noqa: PT012
            pytest.raises(ValueError, match="bad"),
            steps_of(out, "d", owned=OWNED, beside=["registry"]),
        ):
            make(out, "ids", "registry")
            raise ValueError("bad")
    assert not fresh.exists()
    assert os.listdir(there) == []


def test_an_interrupted_overwriting_leaves_a_finished_run_finished(tmp_path):
    """Else the next job, not told to overwrite, would."""
    with steps_of(tmp_path, "d", owned=OWNED) as steps:
        make(tmp_path, "ids")
        steps.finish("identify", {}, wrote=["ids"])
        steps.close()
    with pytest.raises(KeyboardInterrupt), steps_of(tmp_path, "e", owned=OWNED, mode="overwrite"):
        raise KeyboardInterrupt
    with pytest.raises(FileExistsError, match="holds ids of a finished run"):
        Steps(tmp_path, "e", owned=OWNED)


def test_jobs_of_two_kinds_in_one_folder(tmp_path):
    """They share the record: while one is unfinished, the other neither replaces it nor is replaced through it."""
    other = ["clusters", "list.json"]
    with steps_of(tmp_path, "d", owned=OWNED) as steps:
        make(tmp_path, "ids")
        steps.finish("identify", {}, wrote=["ids"])
        steps.close()
    Steps(tmp_path, "e", owned=other, mode="overwrite").finish("cluster", {})
    for mode in ("error", "overwrite"):
        with pytest.raises(FileExistsError, match="unfinished run of another job"):
            Steps(tmp_path, "d", owned=OWNED, mode=mode)
    assert not Steps(tmp_path, "f", owned=other[:1]).resumed  # a stage of that job
    again = Steps(tmp_path, "e", owned=other)
    again.close()
    with pytest.raises(FileExistsError, match="finished run"):
        Steps(tmp_path, "d", owned=OWNED)
    assert names(tmp_path) == ["ids"]


def test_a_disk_that_is_full_at_the_start(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "mv", full)
    for out in (tmp_path / "new", tmp_path):
        with pytest.raises(OSError, match="No space"), steps_of(out, "d", owned=OWNED):
            pytest.fail("no work without a record of it")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fresh", [True, False])
def test_what_others_use_by_now_stays(tmp_path, fresh):
    out = tmp_path / "out"
    if not fresh:
        out.mkdir()
    asked = []

    def shared(path):
        asked.append(path)
        return path.endswith("/used")

    with (  # noqa: PT012
        pytest.raises(ValueError, match="bad"),
        steps_of(out, "d", owned=OWNED, beside=["used", "unused", "absent"], shared=shared),
    ):
        make(out, "ids", "used", "unused")
        raise ValueError("bad")
    assert os.listdir(out) == ["used"]
    assert asked == [f"{out}/used", f"{out}/unused"]


def test_a_failed_overwrite_keeps_the_finished_output(tmp_path):
    with steps_of(tmp_path, "d", owned=OWNED) as steps:
        make(tmp_path, "ids", "list.json")
        steps.finish("identify", {"n": 3}, wrote=OWNED)
        steps.close()
    record = (tmp_path / ".spark_dedup_steps.json").read_bytes()
    with pytest.raises(ValueError, match="bad"), steps_of(tmp_path, "e", owned=OWNED, mode="overwrite"):
        raise ValueError("bad")
    assert names(tmp_path) == OWNED
    assert json.loads((tmp_path / ".spark_dedup_steps.json").read_bytes()) == json.loads(record)
    with pytest.raises(FileExistsError):
        Steps(tmp_path, "d", owned=OWNED)


def test_overwriting_clears_at_the_end_what_is_not_written_anew(tmp_path):
    with steps_of(tmp_path, "d", owned=OWNED) as steps:
        make(tmp_path, "ids", "list.json")
        steps.finish("identify", {}, wrote=OWNED)
        steps.close()
    with steps_of(tmp_path, "e", owned=OWNED, mode="overwrite") as steps:
        assert names(tmp_path) == OWNED
        steps.finish("identify", {}, wrote=["ids"])
        steps.close()
    assert names(tmp_path) == ["ids"]
