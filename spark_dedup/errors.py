"""Errors that name what is wrong, where, and how to mend it."""

import contextlib
import re
from collections.abc import Iterator

__all__ = [
    "HeldError",
    "InputError",
    "MissingInputError",
    "UnknownBatchError",
    "first_line",
    "innermost_reason",
    "named_errors",
]


class InputError(ValueError):
    """Input or settings that cannot be worked with; the message is one line a user can act on."""


class HeldError(InputError):
    """An output that another job is writing."""


class MissingInputError(InputError, FileNotFoundError):
    """An input that is not there, or holds no data files; caught as either kind."""


class UnknownBatchError(InputError, KeyError):
    """Files, or a key, that a registry of ids does not know; caught as either kind."""

    __str__ = Exception.__str__  # that of KeyError adds quotes


def first_line(error: Exception) -> str:
    """Return what an error says, without the plan or trace that Spark adds below."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("An error occurred while calling") and len(lines) > 1:
        return lines[1].lstrip(": ")  # py4j tells first what it called; Spark 3 leaves task errors to it
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def innermost_reason(error: Exception) -> str | None:
    """Return the last reason in the traces below an error's first line: a full disk hides there."""
    reasons = re.findall(
        r"^(?:\s*Caused by: |(?=[\w.]+(?:Error|Exception): ))(.+)$", str(error), re.MULTILINE
    )
    return reasons[-1].strip() if reasons else None


@contextlib.contextmanager
def named_errors() -> Iterator[None]:
    """Turn an ``InputError`` that a task raised, which Spark wraps in its own, back into one.

    Files that Spark cannot read to their end, and workers with another Python, without the package, are named so as
    well.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        found = re.search(r"InputError: (.+)", str(error))
        if found is not None:
            raise InputError(found[1].strip()) from error
        torn = re.search(r"FAILED_READ_FILE\.(?:NO_HINT|FILE_NOT_EXIST)\].* file (\S.*?)\. ", str(error))
        if torn is not None:
            from spark_dedup.paths import normalise_path

            reason = innermost_reason(error) or "Spark does not say why"
            raise InputError(
                f"{normalise_path(torn[1])} cannot be read ({reason}): write it again or remove it"
            ) from error
        absent = re.search(r"ModuleNotFoundError: No module named '(\w+)", str(error))
        if absent is None:
            raise
        raise InputError(
            f"the Python of Spark's workers has no {absent[1]}: install spark_dedup there, or set PYSPARK_PYTHON "
            "to the Python that has it before the session starts"
        ) from error
