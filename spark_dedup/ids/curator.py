"""Batches of files as NeMo Curator makes them, so that its id registries can be read here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spark_dedup.errors import InputError
from spark_dedup.listing import FileInfo

__all__ = ["group_files", "parse_bytes"]

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}


def parse_bytes(size: int | float | str) -> int:
    """Return a size in bytes: ``"512MB"``, ``"2GiB"``, ``"1.5 g"``, ``"MB"`` or a number. k is 1000, Ki is 1024.

    Raises:
        InputError: for anything else.
    """
    if isinstance(size, int | float):
        return int(size)
    match = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:e\d+)?)?([kmgtp]?)(i?)b?", size.replace(" ", "").lower())
    if match is None or not match[0] or (match[3] and not match[2]):
        raise InputError(f"not a size in bytes: {size!r}; write it like 512MB or 2GiB")
    units = _BINARY if match[3] else _DECIMAL
    return int(float(match[1] or 1) * units[match[2]])


def group_files(
    files: Sequence[FileInfo], *, blocksize: int | str | None = None, files_per_partition: int | None = None
) -> list[tuple[FileInfo, ...]]:
    """Group files as Curator's reader does; each group is one batch of its id generator.

    By ``files_per_partition``: as many at a time, in order of path. By ``blocksize``: in order of size, equal sizes
    in order of path, a group closed before it would exceed the size. By neither: one file each.

    Args:
        files: the files of one folder.
        blocksize: largest sum of sizes of a group.
        files_per_partition: files of a group.

    Raises:
        InputError: both are given, or one is not positive.
    """
    if blocksize is not None and files_per_partition is not None:
        raise InputError("give only one of input_blocksize and input_files_per_partition")
    by_path = sorted(files, key=lambda file: file.path)
    if blocksize is None:
        n = 1 if files_per_partition is None else files_per_partition
        if n < 1:
            raise InputError(f"input_files_per_partition must be positive, not {n}")
        return [tuple(by_path[i : i + n]) for i in range(0, len(by_path), n)]
    limit = parse_bytes(blocksize)
    if limit < 1:
        raise InputError(f"input_blocksize must be positive, not {blocksize!r}")
    groups: list[list[FileInfo]] = []
    filled = 0
    for file in sorted(by_path, key=lambda file: file.size):
        if not groups or filled + file.size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(file)
        filled += file.size
    return [tuple(group) for group in groups]
