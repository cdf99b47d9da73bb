"""One line of an error: what it says, not what surrounds it."""

import pytest

from spark_dedup.errors import InputError, MissingInputError, first_line


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


def test_a_missing_input_is_caught_as_either_kind():
    assert issubclass(MissingInputError, ValueError)
    assert issubclass(MissingInputError, FileNotFoundError)
