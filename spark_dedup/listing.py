"""Files that a user's paths stand for, on any store."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from os import PathLike
from pathlib import PurePosixPath
from typing import Any

from spark_dedup.errors import InputError, MissingInputError
from spark_dedup.names import is_table_name
from spark_dedup.paths import Location, exists, filesystem, find_files, is_local, normalise_path
from spark_dedup.runtime import GIVEN_SESSION
from spark_dedup.stores import named_refusal

__all__ = [
    "EXTENSIONS",
    "FileInfo",
    "Named",
    "check_there",
    "endings_of",
    "is_small",
    "list_files",
    "modified_ms",
    "named_paths",
    "no_such_path",
    "outermost",
]

Named = Location | Sequence[Location]

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "jsonl": tuple(
        f".{name}{packed}" for packed in ("", ".gz", ".bz2", ".zst") for name in ("jsonl", "json")
    ),
}
_UNREAD = {
    "jsonl": tuple(
        f".{name}.{packed}"
        for packed in ("xz", "lzma", "lz4", "br", "snappy", "deflate", "zstd", "zip", "7z")
        for name in ("jsonl", "json")
    )
}
"""Endings of packed files that the filetype's own do not name: without a word their documents would be missing."""
_SMALL_BYTES, _SMALL_FILES = 8 << 20, 1000


@dataclass(frozen=True, order=True)
class FileInfo:
    """One input file.

    Attributes:
        path: as NeMo Curator lists it: a local path absolute and without ``file:``, a remote one with its scheme.
        size: bytes.
        modified_ms: modification time in milliseconds since 1970; 0 where a store does not tell.
    """

    path: str
    size: int
    modified_ms: int


def named_paths(source: Named) -> list[Location]:
    """Return what a user named, one path or several, as a list."""
    return [source] if isinstance(source, str | PathLike) else list(source)


def list_files(
    source: Named,
    *,
    filetype: str = "parquet",
    extensions: Sequence[str] | None = None,
    ignore_case: bool = False,
    by_spark: bool = True,
) -> list[FileInfo]:
    """List the data files under paths, recursively, sorted by path.

    Names that Spark does not read - with a leading ``_`` or ``.`` - are left out. A path that is a file itself
    is taken whatever its ending; with such a name it is an error.

    Args:
        source: a path or paths.
        filetype: ``parquet`` or ``jsonl``.
        extensions: endings to take instead of the filetype's own.
        ignore_case: take ``.JPG`` and ``.Jpg`` for ``.jpg``.
        by_spark: Spark's reader will read them. Else a leading ``_`` hides nothing and a name may hold ``:``, as
            those of pictures do that cameras and screens name ``_DSC0001.JPG`` or by the time.

    Raises:
        MissingInputError: when a path does not exist or holds no such file, or a file is a link that leads nowhere.
        InputError: when a Delta table lies below a path: its files hold deleted rows too; a linked folder holds the
            link to it; for a path that is a file which Spark does not read; for JSON lines that are packed in a way
            that is not read, unless ``extensions`` say what is.
    """
    endings = endings_of(filetype, extensions)
    fold = str.lower if ignore_case else str
    unread = _unread_endings(filetype, extensions)
    folded = tuple(map(fold, (*endings, *unread)))

    def wanted(name: str) -> bool:
        return fold(name).endswith(folded)

    found: set[FileInfo] = set()
    roots = [normalise_path(path) for path in named_paths(source)]
    for path in roots:
        if not exists(path):
            raise no_such_path(path)
        walk = _walk_local if is_local(path) else _walk_remote
        here = set(walk(path, wanted, by_spark))
        if not here:
            raise MissingInputError(f"no input files: {path} holds no file ending in {', '.join(endings)}")
        unseen = by_spark and _hidden(PurePosixPath(path).name, by_spark, is_folder=False)
        if unseen and any(file.path == path for file in here):
            raise InputError(f"{path}: Spark reads no file whose name begins with '_' or '.': rename it")
        found |= here
    packed = sorted({file.path for file in found if file.path.endswith(unread)} - set(roots))
    if packed:
        raise InputError(
            f"packed files that are not read: {', '.join(packed[:5])}{', …' if packed[5:] else ''}. Pack them by "
            "gzip, bzip2 or zstandard (.gz, .bz2, .zst), or name the endings to read (input_file_extensions)"
        )
    return sorted(found)


def endings_of(filetype: str, extensions: Sequence[str] | None) -> tuple[str, ...]:
    """Return the endings of files to take, with their dots: those asked for, else the filetype's own."""
    asked = (extensions,) if isinstance(extensions, str) else extensions
    return tuple(e if e.startswith(".") else f".{e}" for e in asked or EXTENSIONS[filetype])


def _unread_endings(filetype: str, extensions: Sequence[str] | None) -> tuple[str, ...]:
    return () if extensions else _UNREAD.get(filetype, ())


def outermost(paths: Sequence[str], filetype: str, extensions: Sequence[str] | None) -> tuple[str, ...]:
    """Return paths without those below others whose listing has their files: Spark would read them twice."""
    endings = *endings_of(filetype, extensions), *_unread_endings(filetype, extensions)
    above = {path: [other for other in paths if path.startswith(f"{other}/")] for path in paths}
    others = [p for p in paths if above[p] and not any(_is_listed(p, folder, endings) for folder in above[p])]
    return (*(path for path in paths if not above[path]), *others)


def _is_listed(path: str, folder: str, endings: tuple[str, ...]) -> bool:
    *folders, name = path.removeprefix(f"{folder}/").split("/")
    fs, inner = filesystem(path)
    is_folder = fs.isdir(inner)
    hidden = any(_hidden(part, True, is_folder=True) for part in folders)
    return (
        not hidden and not _hidden(name, True, is_folder=is_folder) and (is_folder or name.endswith(endings))
    )


def check_there(source: Named) -> None:
    """Check that local paths exist, without a session; what may be a table's name is left to ``find_source``.

    So is everything where Hadoop's settings, or a session that is given, may say that paths are of another store.

    Raises:
        MissingInputError: naming the first that does not.
    """
    if {"HADOOP_CONF_DIR", "YARN_CONF_DIR", *GIVEN_SESSION} & os.environ.keys():
        return
    for path in (normalise_path(path) for path in named_paths(source) if not is_table_name(path)):
        if is_local(path) and not os.path.exists(path):
            raise no_such_path(path)


def no_such_path(path: str) -> MissingInputError:
    """Return the error of a path that is not there; where Delta takes it for an older version, how to read that."""
    travel = re.fullmatch(r"(.+)@(?:v(\d+)|\d{17})", path)
    if travel is None or not exists(f"{travel[1]}/_delta_log"):
        return MissingInputError(f"no such path: {path}")
    option = f"versionAsOf={travel[2]}" if travel[2] else "timestampAsOf"
    return MissingInputError(
        f"no such path: {path}; name the table {travel[1]} and, for its rows of then, the reader's option {option} "
        "(read_kwargs, of removal input_kwargs)"
    )


def is_small(source: Named) -> bool:
    """Return whether a source is local files of a few megabytes together, without looking at more of them."""
    held, seen = 0, 0
    for path in map(normalise_path, named_paths(source)):
        if not is_local(path) or not os.path.exists(path):
            return False
        files = (
            [path] if os.path.isfile(path) else (f"{d}/{f}" for d, _, names in os.walk(path) for f in names)
        )
        for file in files:
            held, seen = held + os.lstat(file).st_size, seen + 1
            if held > _SMALL_BYTES or seen > _SMALL_FILES:
                return False
    return True


def _hidden(name: str, by_spark: bool, *, is_folder: bool) -> bool:
    if is_folder and name.startswith(("_metadata", "_common_metadata")):
        return False  # Spark looks into these
    return name.startswith(".") or (by_spark and name.startswith("_") and "=" not in name)


def _walk_local(root: str, wanted: Callable[[str], bool], by_spark: bool) -> Iterator[FileInfo]:
    if os.path.isfile(root):
        stat = os.stat(root)
        yield FileInfo(root, stat.st_size, stat.st_mtime_ns // 1_000_000)
        return
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name == "_delta_log" and _is_folder(entry):
                    raise _delta_below(root, os.path.dirname(entry.path))
                is_folder = _is_folder(entry)
                if _hidden(entry.name, by_spark, is_folder=is_folder):
                    continue
                if is_folder:
                    if entry.is_symlink():
                        _check_ends(entry.path, root)
                    folders.append(entry.path)
                elif wanted(entry.name):
                    if by_spark and ":" in entry.name:
                        raise InputError(
                            f"{entry.path}: Hadoop cannot read a local file whose name holds ':' (folders' names "
                            "may): rename the file"
                        )
                    stat = _stat(entry)
                    yield FileInfo(entry.path, stat.st_size, stat.st_mtime_ns // 1_000_000)


def _delta_below(root: str, table: str) -> InputError:
    return InputError(f"{table} below {root} is a Delta table: read it on its own")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # links in a circle lead nowhere, as do those to what is gone


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise
        raise MissingInputError(
            f"{entry.path} is a link that leads nowhere ({error.strerror}): mend it or remove it"
        ) from error


def _check_ends(link: str, root: str) -> None:
    """Check that a linked folder is none of those that the way from ``root`` to the link went through."""
    target, above = os.path.realpath(link), link
    while above != root:
        above = os.path.dirname(above)
        if os.path.commonpath([target, os.path.realpath(above)]) == target:
            raise InputError(f"{link} is a link to {target}, which holds it, without end: remove the link")


def _walk_remote(root: str, wanted: Callable[[str], bool], by_spark: bool) -> Iterator[FileInfo]:
    fs, inner = filesystem(root)
    single = fs.isfile(inner)
    with named_refusal(root):
        found = find_files(fs, inner)
    for path, info in found.items():
        *folders, name = PurePosixPath(path[len(inner) :].lstrip("/")).parts or ("",)
        seen = list(takewhile(lambda part: not _hidden(part, by_spark, is_folder=True), folders))
        if "_delta_log" in folders[: len(seen) + 1]:
            table = "/".join((root, *folders[: folders.index("_delta_log")]))
            raise _delta_below(root, table)
        hidden = len(seen) < len(folders)
        if single or (wanted(path) and not hidden and not _hidden(name, by_spark, is_folder=False)):
            # A store's own name of a path may lack what Spark needs, such as HDFS's host or Azure's account.
            spelled = root + path[len(inner.rstrip("/")) :]
            yield FileInfo(spelled, int(info["size"]), modified_ms(info))


def modified_ms(info: Mapping[str, Any]) -> int:
    """Return when a file changed, by what fsspec tells of it, in milliseconds since 1970; 0 if it does not."""
    modified = info.get("LastModified") or info.get("mtime") or info.get("last_modified") or 0
    seconds = modified.timestamp() if hasattr(modified, "timestamp") else float(modified)
    return int(seconds * 1000)
