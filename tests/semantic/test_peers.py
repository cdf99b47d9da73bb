"""How tasks find each other: whatever else listens or calls, and whoever starts first."""

import contextlib
import itertools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from spark_dedup.semantic import peers
from spark_dedup.semantic.lloyd import Iteration
from spark_dedup.semantic.peers import Alone, Gathering, Meeting, Star, connect
from spark_dedup.semantic.progress import Reporter


def task_of(rank, size):
    """Return the part of a barrier's context that the tasks use."""
    return SimpleNamespace(
        partitionId=lambda: rank,
        getTaskInfos=lambda: [SimpleNamespace(address="127.0.0.1:1")] * size,
    )


@pytest.fixture
def meeting():
    return Meeting.arrange()


def meet(meeting, size, delay=lambda rank: 0.0):
    """Connect ``size`` tasks; every one gives its rank, and the root tells all what it was given."""

    def task(rank):
        time.sleep(delay(rank))
        with connect(task_of(rank, size), meeting) as found:
            given = list(found.gather(rank))
            return type(found), found.from_root(given)

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(task, range(size)))


@contextlib.contextmanager
def strangers(count, behave):
    """Listen on ``count`` free ports and treat every caller with ``behave``; gives the ports."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    held = []

    def serve(listener):
        with contextlib.suppress(OSError):
            while True:
                caller = listener.accept()[0]
                held.append(caller)
                behave(caller)

    for listener in listeners:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
    yield tuple(listener.getsockname()[1] for listener in listeners)
    for sock in [*listeners, *held]:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


def test_a_meeting_is_drawn_anew(meeting):
    other = Meeting.arrange()
    assert meeting.secret != other.secret
    assert set(meeting.ports) != set(other.ports)
    assert len(set(meeting.ports)) == 8
    assert all(1024 < port < 65536 for port in meeting.ports)


def test_one_task_is_alone(meeting):
    with connect(task_of(0, 1), meeting) as found:
        assert isinstance(found, Alone)


@pytest.mark.parametrize("late", [0, 1, 4], ids=["root last", "a task late", "another late"])
def test_all_meet_whoever_starts_last(meeting, late):
    found = meet(meeting, 5, lambda rank: 0.4 * (rank == late))
    assert found == [(Star, [0, 1, 2, 3, 4])] * 5


@pytest.mark.parametrize(
    "behave",
    [
        lambda caller: None,
        lambda caller: caller.close(),
        lambda caller: caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    ],
    ids=["silent", "closing", "talking"],
)
def test_strangers_on_the_first_ports_are_passed_by(meeting, behave, monkeypatch):
    monkeypatch.setattr(peers, "_HANDSHAKE_SECONDS", 1)
    with strangers(2, behave) as taken:
        assert meet(Meeting(taken + meeting.ports, meeting.secret), 3) == [(Star, [0, 1, 2])] * 3


@pytest.mark.parametrize("says", [b"", b"GET / HTTP/1.0\r\n\r\n"], ids=["silent", "talking"])
def test_strangers_that_call_are_turned_away(meeting, says, monkeypatch):
    monkeypatch.setattr(peers, "_HANDSHAKE_SECONDS", 1)

    def call():
        for port in itertools.islice(itertools.cycle(meeting.ports), 2000):
            with contextlib.suppress(OSError):
                sock = socket.create_connection(("127.0.0.1", port))
                sock.sendall(says)
                return sock
            time.sleep(0.001)
        raise AssertionError("nobody listened")

    with ThreadPoolExecutor(1) as thread:
        caller = thread.submit(call)
        assert meet(meeting, 3, lambda rank: 0.2 * (rank > 0)) == [(Star, [0, 1, 2])] * 3
        caller.result().close()


def test_tasks_of_another_stage_are_strangers(meeting):
    other = Meeting(meeting.ports, b"another secret")
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(meet, m, 3) for m in (meeting, other)]
        assert [b.result() for b in both] == [[(Star, [0, 1, 2])] * 3] * 2


def test_a_task_that_ends_in_the_midst_is_named_by_the_others(meeting):
    other = connect(task_of(1, 2), meeting)
    with ThreadPoolExecutor(1) as thread:
        entered = thread.submit(other.__enter__)
        with connect(task_of(0, 2), meeting) as root:
            entered.result()
            other.__exit__(None, None, None)
            with pytest.raises(ConnectionError, match="another task of the stage has ended"):
                list(root.gather(0))


def test_a_task_that_never_comes_leaves_the_barriers_own_exchange(meeting, monkeypatch):
    monkeypatch.setattr(peers, "_CONNECT_SECONDS", 0.3)
    with connect(task_of(0, 2), meeting) as found:
        assert isinstance(found, Gathering)


def test_no_free_port_leaves_the_barriers_own_exchange(monkeypatch, caplog):
    monkeypatch.setattr(peers, "_CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(peers, "_HANDSHAKE_SECONDS", 1)
    with strangers(3, lambda caller: caller.close()) as taken:
        for rank in (0, 1):
            with connect(task_of(rank, 2), Meeting(taken, b"secret")) as found:
                assert isinstance(found, Gathering)
    assert "none of the ports" in caplog.text


def test_whoever_listens_in_the_drivers_place_does_not_stop_a_fit():
    """A host may have another service on the port: it speaks another language, or asks for another secret."""
    for behave in (lambda caller: caller.sendall(b"HTTP/1.1 400\r\n\r\n"), None):
        ready = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            def serve(listener=listener, behave=behave, ready=ready):
                with contextlib.suppress(*peers.STRANGER):
                    if behave is None:
                        peers.accept(listener, 1, b"another secret", timeout=5)
                    else:
                        behave(listener.accept()[0])
                ready.set()

            threading.Thread(target=serve, daemon=True).start()
            reporter = Reporter(("127.0.0.1", port), b"secret")
            reporter.report(Iteration(1, 1.0, 0, 0.1))
            assert ready.wait(10)
            assert reporter.address is None
