"""SQL text from names that users give: every part quoted, so that no name can be read as SQL."""

from __future__ import annotations

import os
import re
from typing import Any, TypeGuard

from spark_dedup.errors import InputError
from spark_dedup.paths import Location, normalise_path, spark_location, spark_path
from spark_dedup.tables import quote

__all__ = ["is_table_name", "literal", "path_relation", "quote_name", "spelled", "split_name"]

_NAME = r"(?:`(?:[^`]|``)+`|\w+)"
_TABLE = re.compile(rf"{_NAME}(?:\.{_NAME}){{0,2}}")
_PART = re.compile(r"`((?:[^`]|``)+)`|([^`.]+)")


def is_table_name(source: Any) -> TypeGuard[str]:
    """Return whether ``source`` is written like a table name and is not an existing local path."""
    return isinstance(source, str) and bool(_TABLE.fullmatch(source)) and not os.path.exists(source)


def spelled(location: Location) -> str:
    """Return as text what names a table or a folder; a ``Path`` is a folder, though it read like a table's name."""
    return location if isinstance(location, str) else normalise_path(location)


def split_name(name: str) -> tuple[str, ...]:
    """Split ``catalog.schema.table`` at its dots; a part in backticks may hold dots, doubled backticks, anything.

    Raises:
        InputError: for a name with an empty part or an open backtick.
    """
    parts, at = [], 0
    while True:
        found = _PART.match(name, at)
        end = found.end() if found else at
        if not found or (end < len(name) and name[end] != "."):
            raise InputError(
                f"{name!r} is no name of a table or schema: write it as schema.name, "
                "with a part that holds dots or backticks as `my.name`, its backticks doubled"
            )
        parts.append(found[1].replace("``", "`") if found[1] is not None else found[2])
        if end == len(name):
            return tuple(parts)
        at = end + 1


def quote_name(parts: tuple[str, ...]) -> str:
    """Return the parts of a name as SQL, each in backticks."""
    return ".".join(map(quote, parts))


def path_relation(kind: str, path: str) -> str:
    """Return the SQL relation of a path: ``delta.`/data/docs` ``; ``kind`` is delta, parquet or json."""
    found = normalise_path(path)
    # Only Spark's own sources take a name for a pattern.
    return f"{kind}.{quote(spark_location(found) if kind == 'delta' else spark_path(found))}"


def literal(text: str) -> str:
    """Return a SQL string literal that stands for exactly ``text``."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
