"""One job holds an output on a store without file locks: two at once, a killed one, one that stood still."""

import os
import re
import subprocess
import sys
import threading
import time

import pytest

from spark_dedup import leases
from spark_dedup.errors import InputError
from spark_dedup.outputs import exclusive, staged

OUT = "memory://bucket/out"


@pytest.fixture
def quick(monkeypatch):
    """Seconds become tenths."""
    for name in ("RENEW_S", "GIVE_UP_S", "STALE_S"):
        monkeypatch.setattr(leases, name, getattr(leases, name) / 50)


def flags(fs):
    return fs.find("/bucket/.out.lock")


def test_a_second_job_is_told_and_nothing_is_left(store, quick):
    with exclusive(OUT):
        assert len(flags(store)) == 1
        with pytest.raises(InputError, match="another job is writing memory://bucket/out"), exclusive(OUT):
            pass
        with exclusive("memory://bucket/other"):
            pass
    assert store.find("/") == []


def test_a_job_waits_for_one_that_ends_soon(store, quick):
    order = []
    taken = threading.Event()

    def first():
        with exclusive(OUT):
            taken.set()
            time.sleep(0.6)
            order.append("first")

    other = threading.Thread(target=first)
    other.start()
    assert taken.wait(5)
    with exclusive(OUT, patience_s=10):
        order.append("second")
    other.join()
    assert order == ["first", "second"]


def test_many_jobs_never_hold_an_output_together(store, quick):
    inside, most, turns, lock, end = [0], [0], [0], threading.Lock(), time.monotonic() + 2

    def hold():
        while time.monotonic() < end:
            try:
                with exclusive(OUT, patience_s=2):
                    with lock:
                        inside[0] += 1
                        most[0], turns[0] = max(most[0], inside[0]), turns[0] + 1
                    time.sleep(0.001)
                    with lock:
                        inside[0] -= 1
            except InputError:
                continue

    workers = [threading.Thread(target=hold) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert most == [1]
    assert turns[0] > 10
    assert flags(store) == []


def test_the_flag_of_a_killed_job_goes_after_a_while(store, quick, caplog):
    store.pipe_file("/bucket/.out.lock/0123", b"0123 7")
    began = time.monotonic()
    with exclusive(OUT):
        assert time.monotonic() - began >= leases.STALE_S
        assert not any(place.endswith("/0123") for place in flags(store))
    assert "may have been killed holds memory://bucket/out" in caplog.text


def test_a_job_that_lives_is_never_taken_for_a_killed_one(store, quick):
    """The waiting job looks for longer than a flag may stay the same."""
    with exclusive(OUT):
        end = time.monotonic() + 3 * leases.STALE_S
        while time.monotonic() < end:
            with pytest.raises(InputError), exclusive(OUT):
                pass


def test_a_job_that_stood_still_publishes_nothing(store, quick):
    with pytest.raises(RuntimeError, match="was not renewed"), exclusive(OUT), staged(OUT) as aside:  # noqa: PT012
        store.pipe_file(f"{aside}/a", b"late")
        store.rm(flags(store)[0])  # as the one does that took it for dead
        time.sleep(3 * leases.RENEW_S)
    assert store.find("/") == []


def test_a_store_that_answers_late_is_asked_again(store, quick, monkeypatch):
    real, fails = type(store).pipe_file, [0]

    def flaky(self, path, value, **options):
        if ".lock/" in str(path) and fails[0]:
            fails[0] -= 1
            raise ConnectionError("gone")
        return real(self, path, value, **options)

    monkeypatch.setattr(type(store), "pipe_file", flaky)
    with exclusive(OUT):
        fails[0] = 1
        time.sleep(3 * leases.RENEW_S)
        leases.require_held(OUT)
        fails[0] = 1000
        time.sleep(1.5 * leases.GIVE_UP_S)
        with pytest.raises(RuntimeError, match="run the job again"):
            leases.require_held(f"{OUT}/part")
        fails[0] = 0
    assert flags(store) == []


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (
            FileNotFoundError("The specified bucket does not exist"),
            "out cannot be written (The specified bucket",
        ),
        (PermissionError("Access Denied"), "cannot reach memory://bucket/out from Python (Access Denied)"),
    ],
)
def test_an_output_that_cannot_be_written_is_named(store, monkeypatch, problem, says):
    def refuse(*_, **__):
        raise problem

    monkeypatch.setattr(type(store), "pipe_file", refuse)
    with pytest.raises(InputError, match=re.escape(says)), exclusive(OUT):
        pass


SHARED = """
import sys, time
import fsspec
from fsspec.implementations.local import LocalFileSystem

class Shared(LocalFileSystem):
    protocol = "shared"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("shared://"))

fsspec.register_implementation("shared", Shared, clobber=True)
"""
HOLD = """
from spark_dedup import leases
from spark_dedup.outputs import exclusive

leases.RENEW_S = 0.2
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_hold_of_a_killed_process_ends(tmp_path, quick):
    """Two processes meet in a folder that neither takes for a local disk."""
    namespace = {}
    exec(SHARED, namespace)
    place = f"shared://{tmp_path}/out"
    command = [sys.executable, "-c", SHARED + HOLD, place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another job is writing"), exclusive(place):
            pass
        other.kill()
    with exclusive(place):
        pass
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
