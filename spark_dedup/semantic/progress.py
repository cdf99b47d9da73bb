"""A line of progress from the tasks of a long job to the driver's log, where the tasks can reach it."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from spark_dedup.semantic.lloyd import Iteration
from spark_dedup.semantic.peers import STRANGER, accept, dial, listen
from spark_dedup.settings import conf_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


@dataclass
class Reporter:
    """Sends iterations to the driver; silent once the driver cannot be reached."""

    address: tuple[str, int] | None = None
    secret: bytes = b""
    _connection: Connection[Any, Any] | None = field(default=None, init=False)

    def report(self, iteration: Iteration) -> None:
        """Send one iteration."""
        if self.address is None:
            return
        try:
            if self._connection is None:
                self._connection = dial(self.address, 0, self.secret, timeout=3)
            self._connection.send(iteration)
        except STRANGER:
            self.address = None


@contextlib.contextmanager
def progress(spark: SparkSession, max_iter: int) -> Iterator[Reporter]:
    """Log every iteration that the tasks report inside the block."""
    host = conf_of(spark, "spark.driver.host", "127.0.0.1")
    try:
        listener = listen(host)
    except OSError:
        yield Reporter()
        return
    secret = secrets.token_hex(32).encode()
    watcher = threading.Thread(target=_watch, args=(listener, secret, max_iter), daemon=True)
    watcher.start()
    try:
        yield Reporter((host, listener.getsockname()[1]), secret)
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        watcher.join(timeout=1)


def _watch(listener: socket.socket, secret: bytes, max_iter: int) -> None:
    with contextlib.suppress(*STRANGER), accept(listener, 1, secret, timeout=None)[0] as connection:
        while True:
            entry: Iteration = connection.recv()
            left = entry.seconds / entry.number * (max_iter - entry.number)
            logger.info(
                "k-means iteration %d of at most %d: inertia %.6g, %s rows moved, at most %.0f s left",
                entry.number, max_iter, entry.inertia, f"{entry.moved:,}", left,
            )  # fmt: skip
