"""Take turns among the processes of one machine. Only for speed and fairness: nothing relies on it."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["TURN_FILE", "turn"]

PATIENCE_S = 3.0
TURN_FILE = "_turn.lock"
"""In the folder of a table; Delta and Spark leave a name with an underscore alone."""


@contextlib.contextmanager
def turn(lock: Path | None) -> Iterator[None]:
    """Hold an advisory lock on a file, or go on without it where that fails or takes too long.

    Writers that compare and swap waste most of their attempts when many start at once; in turns, each succeeds
    with the first. The system frees the lock of a killed process, and a stopped one delays others by
    ``PATIENCE_S`` only.

    Args:
        lock: file to lock, made when missing; None takes no lock.
    """
    with contextlib.ExitStack() as held:
        if lock is not None:
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                file = held.enter_context(lock.open("ab"))
                deadline = time.monotonic() + PATIENCE_S
                while time.monotonic() < deadline:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        time.sleep(0.002 + 0.008 * random.random())
        yield
