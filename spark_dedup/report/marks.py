"""Text as safe HTML, two texts with their differences marked, shares as words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from difflib import SequenceMatcher
from html import escape

__all__ = ["diff", "percent", "safe", "unified"]

_TOKENS = re.compile(r"\w+|\s+|[^\w\s]")
_LINE_BREAKS = "\n\t"


def safe(text: str) -> str:
    """Return text as HTML: markup escaped, and characters that hide or reorder others shown by their code."""
    return "".join(map(_visible, escape(text.replace("\r\n", "\n"), quote=True)))


def _visible(char: str) -> str:
    if char.isprintable() or char in _LINE_BREAKS or char == "\u00a0":
        return char
    # Control, format and surrogate characters: zero-width joins, direction overrides, NUL.
    if unicodedata.category(char) in ("Cc", "Cf", "Cs"):
        return f'<span class="code">U+{ord(char):04X}</span>'
    return char


def diff(kept: str, removed: str) -> tuple[str, str]:
    """Return both texts as HTML: words only in the first in ``<del>``, only in the second in ``<ins>``."""
    left, right = [], []
    for same, one, two in _changes(kept, removed):
        left.append(one if same else _wrapped("del", one))
        right.append(two if same else _wrapped("ins", two))
    return "".join(left), "".join(right)


def unified(kept: str, removed: str) -> str:
    """Return the second text as HTML, with what it adds in ``<ins>`` and what it lacks in ``<del>``."""
    parts = (
        two if same else _wrapped("del", one) + _wrapped("ins", two)
        for same, one, two in _changes(kept, removed)
    )
    return "".join(parts)


def _changes(kept: str, removed: str) -> Iterator[tuple[bool, str, str]]:
    a, b = _TOKENS.findall(kept), _TOKENS.findall(removed)
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        yield kind == "equal", safe("".join(a[i:j])), safe("".join(b[k:m]))


def _wrapped(tag: str, html: str) -> str:
    return f"<{tag}>{html}</{tag}>" if html else ""


def percent(share: float) -> str:
    """Return a share as a percentage; a small one is never shown as none."""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "under 0.1%"
