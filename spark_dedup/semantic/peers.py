"""How the tasks of one barrier stage talk: everything goes to the first task and comes back from it.

Sums travel over sockets between the Python workers, authenticated by a secret that the tasks bring along:
``allGather`` goes through the driver, answers only after a second of polling, and hands every message to every
task, which costs tasks squared times the size of the centroids. Where the workers cannot reach each other,
``allGather`` does the work.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import pickle
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyspark import BarrierTaskContext

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 30.0
_RETRY_SECONDS = 0.02
_HANDSHAKE_SECONDS = 5
_PORTS = 8
_PORT_RANGE = range(32768, 61000)  # where Linux itself takes ports for callers, so firewalls treat them alike
_ALL_HERE = "all here"
GONE = "another task of the stage has ended"

# A stranger on a port may close, be silent, or speak another language.
STRANGER = (OSError, EOFError, AuthenticationError, AssertionError, ValueError)


@dataclass(frozen=True)
class Meeting:
    """How the tasks of one stage find each other: ports of the root's machine, tried in turn, and a secret."""

    ports: tuple[int, ...]
    secret: bytes

    @classmethod
    def arrange(cls) -> Meeting:
        """Draw ports and a secret; on the driver, once per stage."""
        ports = secrets.SystemRandom().sample(_PORT_RANGE, _PORTS)
        return cls(tuple(ports), secrets.token_hex(32).encode())


class Peers(Protocol):
    """The tasks of a stage; task 0 is the root."""

    rank: int
    size: int

    def gather(self, value: Any) -> Iterator[Any]:
        """Give a value; the root gets all of them in the order of ranks, the others nothing."""

    def from_root(self, value: Any) -> Any:
        """Return the root's value in every task."""


class Alone:
    """A single task."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> Iterator[Any]:
        """Return the value given."""
        return iter([value])

    def from_root(self, value: Any) -> Any:
        """Return the value given."""
        return value


class Gathering:
    """Tasks that exchange through ``BarrierTaskContext.allGather``."""

    def __init__(self, context: BarrierTaskContext) -> None:
        self.rank = context.partitionId()
        self.size = len(context.getTaskInfos())
        self._context = context

    def gather(self, value: Any) -> Iterator[Any]:
        """See :class:`Peers`."""
        parts = self._context.allGather(base64.b64encode(pickle.dumps(value)).decode("ascii"))
        if self.rank:
            return iter(())
        return (pickle.loads(base64.b64decode(part)) for part in parts)

    def from_root(self, value: Any) -> Any:
        """See :class:`Peers`."""
        message = "" if self.rank else base64.b64encode(pickle.dumps(value)).decode("ascii")
        return pickle.loads(base64.b64decode(self._context.allGather(message)[0]))


class Later:
    """Peers that are still meeting; whoever exchanges first waits for them."""

    def __init__(self, rank: int, size: int, meeting: Future[Peers]) -> None:
        self.rank = rank
        self.size = size
        self._meeting = meeting

    def gather(self, value: Any) -> Iterator[Any]:
        """See :class:`Peers`."""
        return self._meeting.result().gather(value)

    def from_root(self, value: Any) -> Any:
        """See :class:`Peers`."""
        return self._meeting.result().from_root(value)


class Star:
    """Tasks that each hold a connection to the root; the root holds one to every other task."""

    def __init__(self, rank: int, size: int, connections: list[Connection[Any, Any]]) -> None:
        self.rank = rank
        self.size = size
        self._connections = connections

    def gather(self, value: Any) -> Iterator[Any]:
        """See :class:`Peers`; the root receives one value at a time, so it holds no more than two."""
        if self.rank:
            with _company():
                self._connections[0].send(value)
            return iter(())
        return self._receive(value)

    def _receive(self, value: Any) -> Iterator[Any]:
        yield value
        for connection in self._connections:
            with _company():
                received = connection.recv()
            yield received

    def from_root(self, value: Any) -> Any:
        """See :class:`Peers`."""
        with _company():
            if self.rank:
                return self._connections[0].recv()
            for connection in self._connections:
                connection.send(value)
        return value


@contextlib.contextmanager
def _company() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise ConnectionError(GONE) from error


@contextlib.contextmanager
def connect(context: BarrierTaskContext, meeting: Meeting) -> Iterator[Peers]:
    """Connect the tasks of a barrier stage; every one of them must call this.

    Yields:
        Sockets where all tasks can open them, else the barrier's own exchange.
    """
    rank, hosts = context.partitionId(), _hosts(context)
    if len(hosts) == 1:
        yield Alone()
        return
    connections: list[Connection[Any, Any]] = []
    peers: Peers = Star(rank, len(hosts), connections)
    try:
        if rank == 0:
            with listen(hosts[0], meeting.ports) as listener:
                connections += accept(listener, len(hosts) - 1, meeting.secret, timeout=_CONNECT_SECONDS)
            for connection in connections:
                connection.send(_ALL_HERE)
        else:
            connections.append(_find_root(hosts[0], rank, meeting))
            connections[0].recv()
    except STRANGER as error:
        logger.warning("task %d: no way to the others (%s): exchanging through the driver", rank, error)
        for connection in connections:
            connection.close()
        peers = Gathering(context)
    with contextlib.ExitStack() as stack:
        for connection in connections:
            stack.callback(connection.close)
        yield peers


def _find_root(host: str, rank: int, meeting: Meeting) -> Connection[Any, Any]:
    """Try the ports in turn until the root, which may start later, answers on one."""
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        for port in meeting.ports:
            try:
                return dial((host, port), rank, meeting.secret, timeout=_CONNECT_SECONDS)
            except STRANGER as error:
                if time.monotonic() > deadline:
                    raise
                logger.debug("task %d: %s:%d is not the root: %s", rank, host, port, error)
        time.sleep(_RETRY_SECONDS)


@contextlib.contextmanager
def connect_meanwhile(context: BarrierTaskContext, meeting: Meeting) -> Iterator[Peers]:
    """As ``connect``, beside other work."""
    connecting = connect(context, meeting)
    with ThreadPoolExecutor(1, "spark-dedup-peers") as thread:
        met = thread.submit(connecting.__enter__)
        try:
            yield Later(context.partitionId(), len(_hosts(context)), met)
        finally:
            met.result()
            connecting.__exit__(None, None, None)


def _hosts(context: BarrierTaskContext) -> list[str]:
    return [info.address.rsplit(":", 1)[0] for info in context.getTaskInfos()]


def threads_per_task(context: BarrierTaskContext) -> int:
    """Return this machine's cores divided by the tasks of the stage that run on it."""
    hosts = _hosts(context)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // hosts.count(hosts[context.partitionId()]))


def listen(host: str, ports: Sequence[int] = (0,)) -> socket.socket:
    """Open the first free port, on the named address where it is this machine's own; 0 stands for any.

    Raises:
        OSError: all are taken.
    """
    for address in (host, ""):  # the name that other machines use may be none of this machine's own
        for port in ports:
            with contextlib.suppress(OSError):
                return socket.create_server((address, port), backlog=1024)
    raise OSError(f"none of the ports {', '.join(map(str, ports))} is free")


def accept(
    listener: socket.socket, count: int, secret: bytes, *, timeout: float | None
) -> list[Connection[Any, Any]]:
    """Return ``count`` connections in the order of the ranks that the callers give; strangers are turned away."""
    deadline = None if timeout is None else time.monotonic() + timeout
    by_rank: dict[int, Connection[Any, Any]] = {}
    try:
        while len(by_rank) < count:
            listener.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            caller, _ = listener.accept()
            with contextlib.suppress(*STRANGER), _shaking_hands(caller) as connection:
                deliver_challenge(connection, secret)
                answer_challenge(connection, secret)
                by_rank[connection.recv()] = connection
    except BaseException:  # those who are here must not wait for an answer
        for connection in by_rank.values():
            connection.close()
        raise
    return [by_rank[rank] for rank in sorted(by_rank)]


def dial(
    address: tuple[str, int], rank: int, secret: bytes, *, timeout: float = _CONNECT_SECONDS
) -> Connection[Any, Any]:
    """Connect to a listener as ``rank``; both sides prove that they know the secret."""
    with _shaking_hands(socket.create_connection(address, timeout=timeout)) as connection:
        answer_challenge(connection, secret)
        deliver_challenge(connection, secret)
        connection.send(rank)
        return connection


@contextlib.contextmanager
def _shaking_hands(sock: socket.socket) -> Iterator[Connection[Any, Any]]:
    """Give a connection that waits a few seconds for an answer inside the block, and for ever after it."""
    sock.setblocking(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection: Connection[Any, Any] = Connection(sock.detach())
    try:
        _wait_at_most(connection, _HANDSHAKE_SECONDS)
        yield connection
        _wait_at_most(connection, 0)
    except BaseException:
        connection.close()
        raise


def _wait_at_most(connection: Connection[Any, Any], seconds: int) -> None:
    sock = socket.socket(fileno=connection.fileno())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))
    sock.detach()
