"""Folders named ``column=value``: whether they partition files, and what they say of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

from spark_dedup.errors import InputError
from spark_dedup.listing import FileInfo
from spark_dedup.paths import spark_location

__all__ = ["are_partitioned", "base_of", "partition_values"]


def are_partitioned(files: Sequence[FileInfo], roots: Sequence[str]) -> bool:
    """Return whether folders named ``column=value`` partition files that lie below ``roots``.

    Spark silently leaves out files that lie beside partition folders, so all must be partitioned alike.

    Raises:
        InputError: for a folder ``column=`` or ``=value``, at which Spark fails.
    """
    layouts = {tuple(part.partition("=")[:2] for part in _below(file.path, roots)) for file in files}
    first = next(iter(layouts), ())
    if len(layouts) != 1 or first == () or not all(equals for _, equals in first):
        return False
    parts = {part: file.path for file in files for part in _below(file.path, roots)}
    torn = next((part for part in parts if part.startswith("=") or part.endswith("=")), None)
    if torn is not None:
        raise InputError(
            f"{parts[torn]} lies in a folder {torn!r}, which lacks a column or its value: name it column=value "
            "(a null is __HIVE_DEFAULT_PARTITION__), or without '='"
        )
    return True


def base_of(files: Sequence[FileInfo], roots: Sequence[str]) -> dict[str, str]:
    """Return the reader option by which some files below ``roots`` keep the columns that their folders give.

    Unlike a path to read, it may hold no escaped glob characters: Spark takes it as it is.
    """
    return {"basePath": spark_location(roots[0])} if are_partitioned(files, roots) else {}


def partition_values(file: FileInfo, roots: Sequence[str]) -> dict[str, str | None]:
    """Return what the folders named ``column=value`` above a file say, as Spark writes it."""
    named = [part.partition("=")[::2] for part in _below(file.path, roots)]
    return {
        unquote(name): None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        for name, value in named
    }


def _below(path: str, roots: Sequence[str]) -> tuple[str, ...]:
    root = next((r for r in roots if path.startswith(r + "/")), None)
    return PurePosixPath(path[len(root) + 1 :]).parts[:-1] if root else ()
