"""What a session's Java machine says on stderr: why it did not start, and later what nobody should miss."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import deque
from collections.abc import Iterator

from spark_dedup.errors import InputError

__all__ = ["java_stderr"]

_RECORD = re.compile(r"\d\d:\d\d:\d\d (\w+) ([\w.$]+): ")
"""As ``log4j2.properties`` has it."""

_REPEATED = frozenset(
    (
        "DataWritingSparkTask",
        "Executor",
        "FileFormatWriter",
        "PythonRunner",
        "PythonUDFRunner",
        "TaskResultGetter",
        "TaskSetManager",
        "Utils",
    )
)
"""Loggers of what fails a task: the job raises it, in one line."""

_FATAL = re.compile(r"#|.*\b(OutOfMemoryError|StackOverflowError|InternalError)\b|.*\bStatusLogger\b")
_EMPTY = re.compile(
    r"\s|WARNING: |Picked up |Error: (Could not create the Java|A (fatal|JNI))|Error occurred during init"
)
_WAIT_S = 5.0


@contextlib.contextmanager
def java_stderr() -> Iterator[None]:
    """Keep what a Java machine that starts inside the block says on stderr; of what it says later, pass on errors.

    It chats before its logging is set up, and inherits stderr for good.

    Raises:
        InputError: it does not start; with its reason.
    """
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    source, sink = os.pipe()
    said, started = deque[str](maxlen=200), threading.Event()
    reader = threading.Thread(target=_relay, args=(source, said, started), daemon=True, name="java-stderr")
    reader.start()
    os.dup2(sink, 2)
    os.close(sink)
    try:
        yield
    except Exception as error:
        os.dup2(saved, 2)
        if "JAVA_GATEWAY_EXITED" not in str(error):
            raise
        reader.join(_WAIT_S)
        raise InputError(
            f"Spark's Java machine did not start ({_reason(said)}): mend the session's spark.driver.* settings, or "
            "JAVA_HOME"
        ) from error
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        started.set()


def _reason(said: deque[str]) -> str:
    lines = [line.strip() for line in said if line.strip() and not _EMPTY.match(line)]
    return "; ".join(lines[:2]) or "it gives no reason"


def _relay(source: int, said: deque[str], started: threading.Event) -> None:
    """Keep lines until the start is over, and then write those to stderr that nobody should miss."""
    goes_on = False
    with open(source, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not started.is_set():
                said.append(line)
                continue
            record = _RECORD.match(line)
            told = goes_on if record is None else not (record[1] == "ERROR" and record[2] in _REPEATED)
            if record is not None:
                goes_on = record[1] != "ERROR"  # a report has many lines, below an error stands its trace
            if told or _FATAL.match(line):
                with contextlib.suppress(OSError):
                    os.write(2, line.encode())
