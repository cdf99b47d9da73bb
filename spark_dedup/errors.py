"""Errors that name what is wrong, where, and how to mend it."""

__all__ = ["InputError", "first_line"]


class InputError(ValueError):
    """Input or settings that cannot be worked with; the message is one line a user can act on."""


def first_line(error: Exception) -> str:
    """Return what an error says, without the plan or trace that Spark adds below."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
