"""A Spark Connect server that is not there is named in one line, without the token of its address."""

import socket

import pytest

from spark_dedup import connect
from spark_dedup.errors import InputError


@pytest.fixture
def port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setattr(connect.urllib.request, "getproxies", dict)
    monkeypatch.setattr(connect, "_PAUSE_S", 0.01)


def test_a_server_that_is_not_there_is_waited_for_and_named(monkeypatch, port):
    monkeypatch.setattr(connect, "_PATIENCE_S", 0.05)
    monkeypatch.setenv("SPARK_REMOTE", f"sc://127.0.0.1:{port}/;token=secret")
    with pytest.raises(
        InputError, match=rf"server sc://127\.0\.0\.1:{port} \(.*refused\): start it"
    ) as error:
        connect.await_server()
    assert "secret" not in str(error.value)


def test_a_server_that_comes_later_is_met(monkeypatch):
    monkeypatch.setenv("SPARK_REMOTE", "sc://[::1]")
    answers = iter([ConnectionRefusedError("refused"), TimeoutError("late"), None])

    def create_connection(place, timeout):
        assert place == ("::1", 15002)
        answer = next(answers)
        if answer is not None:
            raise answer
        return socket.socket()

    monkeypatch.setattr(connect.socket, "create_connection", create_connection)
    connect.await_server()
    assert next(answers, "none left") == "none left"


@pytest.mark.parametrize("remote", ["", "local[2]", "unix:///run/spark"])
def test_other_remotes_are_not_looked_for(monkeypatch, remote):
    monkeypatch.setenv("SPARK_REMOTE", remote)
    monkeypatch.setattr(connect.socket, "create_connection", lambda *_, **__: pytest.fail("asked"))
    connect.await_server()


def test_behind_a_proxy_the_client_finds_the_way(monkeypatch):
    monkeypatch.setenv("SPARK_REMOTE", "sc://somewhere:443/;use_ssl=true")
    monkeypatch.setattr(connect.urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    monkeypatch.setattr(connect.socket, "create_connection", lambda *_, **__: pytest.fail("asked"))
    connect.await_server()


def test_a_call_that_is_not_answered_is_named(monkeypatch):
    monkeypatch.setenv("SPARK_REMOTE", "sc://here:1/;token=secret")
    told = '<_InactiveRpcError with:\n\tstatus = StatusCode.UNAVAILABLE\n\tdetails = "no way"\n'
    with pytest.raises(InputError, match=r"server sc://here:1 \(no way\): start it"), connect.named_silence():
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="other"), connect.named_silence():
        raise RuntimeError("other")
