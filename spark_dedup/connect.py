"""The Spark Connect server that ``SPARK_REMOTE`` names, and what is said where it does not answer."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
import urllib.request
from collections.abc import Iterator

from spark_dedup.errors import InputError

__all__ = ["await_server", "named_silence"]

logger = logging.getLogger(__name__)

_PORT = 15002
_PATIENCE_S, _PAUSE_S, _ANSWER_S = 60.0, 1.0, 10.0


def await_server() -> None:
    """Wait a minute for the server's port to open: Spark's client would try for half an hour, without a word.

    Raises:
        InputError: it does not.
    """
    named = re.match(r"sc://(\[[^\]]+\]|[^:/;]+)(?::(\d+))?", _remote())
    if named is None or urllib.request.getproxies():  # behind a proxy only its client knows the way
        return
    place = named[1].strip("[]"), int(named[2] or _PORT)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection(place, timeout=_ANSWER_S).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise _no_answer(str(error)) from error
            logger.info("waiting for the Spark Connect server %s (%s)", _server(), error)
            time.sleep(_PAUSE_S)
        else:
            return


@contextlib.contextmanager
def named_silence() -> Iterator[None]:
    """Name the server where the calls of Spark's client are not answered."""
    try:
        yield
    except Exception as error:  # its class is there only where Connect is installed
        why = re.search(r'status = StatusCode\.\w+\s+details = "(.*)"', str(error))
        if why is None:
            raise
        raise _no_answer(why[1]) from error


def _remote() -> str:
    return os.environ.get("SPARK_REMOTE", "")


def _server() -> str:
    return _remote().partition("/;")[0]  # a token may follow


def _no_answer(why: str) -> InputError:
    return InputError(
        f"cannot connect to the Spark Connect server {_server()} ({why}): start it, or mend SPARK_REMOTE"
    )
