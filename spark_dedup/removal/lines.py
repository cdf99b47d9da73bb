"""JSON lines written as they were read: order of keys, nulls, ``{}`` and numbers of a document stay its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dedup.datasets import ANY_LENGTH

if TYPE_CHECKING:
    from pyspark.sql import Column

__all__ = ["one_object", "unescaped", "with_field"]

_PAIR = "\x01"
"""Stands for an escaped backslash; no JSON line holds this character as it is."""
_HIGH, _LOW = "[dD][89abAB][0-9a-fA-F]{2}", "[dD][c-fC-F][0-9a-fA-F]{2}"
_KEPT = "00[01]|0022|005[cC]|[dD][89a-fA-F]"
_DECODED = rf"u(?:{_HIGH}\\u{_LOW}|(?<=\\u{_HIGH}\\u){_LOW}|(?!{_KEPT})[0-9a-fA-F]{{4}})"
"""The escapes of characters that UTF-8 has and JSON takes as they are."""


def one_object(line: Column) -> Column:
    """Return a JSON line as it is, or its object anew where only Spark would take the line.

    Spark takes single quotes, and anything after the object, such as a comma.
    """
    from pyspark.sql import functions as F

    whole = F.btrim(line, F.lit(" \t"))
    plain = F.substring(whole, 1, 64).rlike(r'^\{\s*["}]') & whole.endswith("}")
    return F.when(plain, line).otherwise(F.coalesce(F.get_json_object(line, "$"), line))


def unescaped(line: Column) -> Column:
    r"""Return a JSON line with ``\uXXXX`` as the characters they stand for, all else as it is.

    What JSON needs escaped (quotes, backslashes, control characters) and lone surrogates stay escaped.
    """
    from pyspark.sql import functions as F

    # Escaped once more, but for what shall be decoded, the line is the content of a JSON string.
    text = F.replace(line, F.lit("\\\\"), F.lit(_PAIR))
    text = F.regexp_replace(text, rf'"|\\(?!{_DECODED})', r"\\$0")
    text = F.replace(text, F.lit(_PAIR), F.lit("\\" * 4))
    # Tabs may stand between tokens.
    options = {"allowUnquotedControlChars": "true", **ANY_LENGTH}
    decoded = F.from_json(F.concat(F.lit('["'), text, F.lit('"]')), "array<string>", options)[0]
    return F.when(line.contains("\\u"), F.coalesce(decoded, line)).otherwise(line)


def with_field(line: Column, name: str, number: Column) -> Column:
    """Return a JSON object, which has no field of that name, with one more at its end.

    Args:
        line: a valid JSON object.
        name: the field; it needs no escapes.
        number: its integer value.
    """
    from pyspark.sql import functions as F

    whole = F.btrim(line, F.lit(" \t"))
    opened = whole.substr(F.lit(1), F.length(whole) - 1)
    comma = F.when(opened.rlike(r"^\{\s*$"), "").otherwise(",")
    return F.concat(opened, comma, F.lit(f'"{name}":'), number.cast("string"), F.lit("}"))
