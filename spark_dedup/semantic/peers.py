"""How the tasks of one barrier stage talk: everything goes to the first task and comes back from it.

Sums travel over sockets between the Python workers, authenticated by a secret that the barrier shares:
``allGather`` goes through the driver and hands every message to every task, which costs tasks squared times
the size of the centroids. Where the workers cannot reach each other, ``allGather`` does the work.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import pickle
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyspark import BarrierTaskContext

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
_ALL_HERE = "all here"


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
            self._connections[0].send(value)
            return iter(())
        return self._receive(value)

    def _receive(self, value: Any) -> Iterator[Any]:
        yield value
        for connection in self._connections:
            yield connection.recv()

    def from_root(self, value: Any) -> Any:
        """See :class:`Peers`."""
        if self.rank:
            return self._connections[0].recv()
        for connection in self._connections:
            connection.send(value)
        return value


@contextlib.contextmanager
def connect(context: BarrierTaskContext) -> Iterator[Peers]:
    """Connect the tasks of a barrier stage; every one of them must call this.

    Yields:
        Sockets where all tasks can open them, else the barrier's own exchange.
    """
    rank, hosts = context.partitionId(), _hosts(context)
    if len(hosts) == 1:
        yield Alone()
        return
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(hosts[0])) if rank == 0 else None
        offer = f"{listener.getsockname()[1]}:{secrets.token_hex(32)}" if listener else ""
        port, secret = context.allGather(offer)[0].split(":")
        connections: list[Connection[Any, Any]] = []
        # The sockets tell by themselves whether all are there: another allGather would cost its polling second.
        peers: Peers = Star(rank, len(hosts), connections)
        try:
            if listener:
                connections += accept(listener, len(hosts) - 1, secret.encode())
                for connection in connections:
                    connection.send(_ALL_HERE)
            else:
                connections.append(dial((hosts[0], int(port)), rank, secret.encode()))
                connections[0].recv()
        except (OSError, EOFError, AuthenticationError) as error:
            logger.warning("task %d: no way to the others (%s): exchanging through the driver", rank, error)
            for connection in connections:
                connection.close()
            peers = Gathering(context)
        for connection in connections:
            stack.callback(connection.close)
        yield peers


@contextlib.contextmanager
def connect_meanwhile(context: BarrierTaskContext) -> Iterator[Peers]:
    """As ``connect``, beside other work: the barrier answers only after a second of polling."""
    meeting = connect(context)
    with ThreadPoolExecutor(1, "spark-dedup-peers") as thread:
        met = thread.submit(meeting.__enter__)
        try:
            yield Later(context.partitionId(), len(_hosts(context)), met)
        finally:
            met.result()
            meeting.__exit__(None, None, None)


def _hosts(context: BarrierTaskContext) -> list[str]:
    return [info.address.rsplit(":", 1)[0] for info in context.getTaskInfos()]


def threads_per_task(context: BarrierTaskContext) -> int:
    """Return this machine's cores divided by the tasks of the stage that run on it."""
    hosts = _hosts(context)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // hosts.count(hosts[context.partitionId()]))


def listen(host: str) -> socket.socket:
    """Open a free port, on the named address where it is this machine's own."""
    try:
        return socket.create_server((host, 0), backlog=1024)
    except OSError:  # the name that other machines use is not one of this machine's own
        return socket.create_server(("", 0), backlog=1024)


def accept(
    listener: socket.socket, count: int, secret: bytes, *, timeout: float | None = _CONNECT_SECONDS
) -> list[Connection[Any, Any]]:
    """Return ``count`` connections in the order of the ranks that the callers give."""
    listener.settimeout(timeout)
    by_rank: dict[int, Connection[Any, Any]] = {}
    try:
        while len(by_rank) < count:
            connection = _wrap(listener.accept()[0])
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
    connection = _wrap(socket.create_connection(address, timeout=timeout))
    answer_challenge(connection, secret)
    deliver_challenge(connection, secret)
    connection.send(rank)
    return connection


def _wrap(sock: socket.socket) -> Connection[Any, Any]:
    sock.setblocking(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(sock.detach())
