"""One line of an error: what it says, not what surrounds it."""

import pytest

from spark_dedup.errors import InputError, MissingInputError, first_line, innermost_reason


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (InputError("column 'a' not found\nplan below"), "column 'a' not found"),
        (KeyError("no such batch"), "no such batch"),
        (
            RuntimeError("An error occurred while calling o1.x.\n: org.x.SparkException: bad task\n\tat y"),
            "org.x.SparkException: bad task",
        ),
        (RuntimeError("the cause:\n disk full\nmore"), "the cause: disk full"),
        (ValueError(""), "ValueError"),
    ],
)
def test_first_line(error, says):
    assert first_line(error) == says


JAVA = """An error occurred while calling o1.save.
: org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed while writing rows to file:/x.
\tSuppressed: org.apache.hadoop.fs.FSError: java.io.IOException: No space left on device
\t\tCaused by: java.io.IOException: No space left on device
Caused by: org.apache.parquet.util.AutoCloseables$ParquetCloseResourceException: Unable to close resource
\tat org.apache.parquet.hadoop.ParquetFileWriter.close(ParquetFileWriter.java:1830)
Caused by: java.io.IOException: No space left on device
\t... 43 more
"""
PYTHON = """
  An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "x.py", line 27, in run
    raise OSError(28, "No space left on device")
OSError: [Errno 28] No space left on device
"""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(JAVA), "java.io.IOException: No space left on device"),
        (RuntimeError(PYTHON), "OSError: [Errno 28] No space left on device"),
        (RuntimeError("one line"), None),
    ],
)
def test_innermost_reason(error, reason):
    assert innermost_reason(error) == reason


def test_a_missing_input_is_caught_as_either_kind():
    assert issubclass(MissingInputError, ValueError)
    assert issubclass(MissingInputError, FileNotFoundError)
