"""Errors that name what is wrong, where, and how to mend it."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Input or settings that cannot be worked with; the message is one line a user can act on."""
