"""Paths and the stores behind them: local file systems by the os module, any other through fsspec."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import shutil
import uuid
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from spark_dedup.errors import InputError

if TYPE_CHECKING:
    import fsspec

__all__ = [
    "Location",
    "aside_of",
    "delete",
    "exists",
    "filesystem",
    "find_files",
    "has_folders",
    "is_local",
    "make_folder",
    "move",
    "normalise_path",
    "on_databricks",
    "spark_location",
    "spark_path",
    "write_whole",
]

Location = str | PathLike[str]
_FOLDERLESS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory")
"""Schemes of stores where fsspec, asked for a folder, makes nothing, or a bucket that someone misspelt."""
_SCHEME_ONLY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")


def is_local(path: str) -> bool:
    """Return whether a path lies on this machine's file system."""
    return urlsplit(path).scheme in ("", "file") or bool(re.match(r"^[A-Za-z]:[\\/]", path))


def on_databricks() -> bool:
    """Return whether this process runs on Databricks."""
    return "DATABRICKS_RUNTIME_VERSION" in os.environ


def normalise_path(path: Location) -> str:
    """Return a local path absolute and without ``file:``, ``dbfs:/`` as its mount, a remote one as Hadoop reads it.

    Of HDFS without a host, it is given that of the session.

    Raises:
        InputError: ``scheme:/path``, which Spark takes and no other library here does.
    """
    text = os.fspath(path)
    if re.match(r"^file:/", text):
        text = unquote(urlsplit(text).path) if "%" in text and not os.path.exists(text[5:]) else text[5:]
        text = "/" + text.lstrip("/")
    elif text.startswith("dbfs:/") and os.path.isdir("/dbfs"):
        text = "/dbfs/" + text[len("dbfs:/") :].lstrip("/")
    elif re.match(r"hdfs:(//)?/(?!/)", text) and (store := _default_hdfs()):
        return _as_hadoop(store + re.sub(r"^hdfs:(//)?", "", text))
    elif "://" in text:
        return text.rstrip("/") if "::" in text else _as_hadoop(text)
    elif _SCHEME_ONLY.match(text) and not os.path.isdir(text.split("/", 1)[0]):
        scheme, _, rest = text.partition(":")
        instead = f"/Volumes{rest}, or mount /dbfs" if scheme == "dbfs" else f"{scheme}://HOST{rest}"
        raise InputError(f"{text} names no store that can be reached from here: write {instead}")
    return os.path.abspath(os.path.expanduser(text))


def _default_hdfs() -> str:
    """Return what a path of HDFS without a host stands for."""
    from spark_dedup.hadoop import default_store

    store = default_store()
    return store if store.startswith("hdfs://") else ""


def _as_hadoop(path: str) -> str:
    """Return a remote path without the empty parts and dots that Hadoop takes out, and object stores do not."""
    scheme, _, rest = path.partition("://")
    host, slash, below = rest.partition("/")
    below = posixpath.normpath(f"/{below}").lstrip("/")
    return f"{scheme}://{host}{slash}{below}" if below else f"{scheme}://{host}"


def spark_location(path: str) -> str:
    """Return a path as Spark's writers take it, and Delta: as it is, but for Databricks' mount ``/dbfs``."""
    if on_databricks() and path.startswith("/dbfs/") and os.path.ismount("/dbfs"):
        return f"dbfs:/{path.removeprefix('/dbfs/')}"
    return path


def spark_path(path: str) -> str:
    """Return a path as Spark's readers take it: glob characters escaped, so that a name stands for itself."""
    place = spark_location(path)
    escaped = re.sub(r"([\\*?\[\]{}])", r"\\\1", place)
    return "file://" + escaped if is_local(place) and ":" in place else escaped


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec file system of a path and the path on it.

    Raises:
        InputError: naming what a remote scheme needs.
    """
    import fsspec

    from spark_dedup.stores import refusal, store_options

    if is_local(path):  # url_to_fs would take "::" in a name for a chain of stores
        return fsspec.filesystem("file"), normalise_path(path)
    try:
        found: tuple[fsspec.AbstractFileSystem, str] = fsspec.core.url_to_fs(path, **store_options(path))
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot reach {path}: {error}") from error
    except OSError as error:  # HDFS, without Hadoop's libraries or a server
        raise refusal(path, error) from error
    return found


def exists(path: str) -> bool:
    """Return whether a path exists on its store.

    Raises:
        InputError: the store cannot be asked from Python.
    """
    if is_local(path):
        return os.path.exists(path)
    from spark_dedup.stores import named_refusal

    fs, inner = filesystem(path)
    with named_refusal(path):
        fs.invalidate_cache()  # Spark and other processes write there too
        return _is_there(fs, inner)


def _is_there(fs: fsspec.AbstractFileSystem, inner: str) -> bool:
    """Return whether a path of a store exists; pyarrow says no of HDFS where it had no answer, too."""
    if fs.exists(inner):
        return True
    if not _is_hadoop(fs):
        return False
    try:
        fs.ls(inner)
    except FileNotFoundError:
        return False
    return True


def _is_hadoop(fs: fsspec.AbstractFileSystem) -> bool:
    from fsspec.implementations.arrow import ArrowFSWrapper

    return isinstance(fs, ArrowFSWrapper)


def find_files(fs: fsspec.AbstractFileSystem, inner: str) -> dict[str, Any]:
    """Return what a store tells of the files below a path of its own, or of the file there; nothing of none.

    Raises:
        OSError: a folder cannot be listed, which fsspec's own walk takes for an empty one.
    """
    from fsspec import AbstractFileSystem

    if type(fs).find is not AbstractFileSystem.find:
        by_store: dict[str, Any] = fs.find(inner, detail=True)
        return by_store
    if fs.isfile(inner):  # which pyarrow does not list
        return {inner: fs.info(inner)}
    found, folders = {}, [inner]
    while folders:
        folder = folders.pop()
        with contextlib.suppress(FileNotFoundError):
            for info in fs.ls(folder, detail=True):
                if info["type"] != "directory":
                    found[info["name"]] = info
                elif info["name"].rstrip("/") != folder.rstrip("/"):
                    folders.append(info["name"])
    return dict(sorted(found.items()))


def has_folders(path: str) -> bool:
    """Return whether a path's store has folders to be made; in others a file's name makes them."""
    return urlsplit(path).scheme not in _FOLDERLESS


def make_folder(path: str) -> None:
    """Make a folder, where the store has such a thing without files in it."""
    if has_folders(path):
        fs, inner = filesystem(path)
        fs.makedirs(inner, exist_ok=True)


def move(source: str, target: str) -> None:
    """Move a folder or file to a free place on its store; after an error all is where it was.

    A local file system and HDFS rename. A store that cannot copies file by file and deletes the source at the end:
    until then a reader sees a part of the target.

    Raises:
        FileExistsError: the place is not free, or a local folder with something in it (or OSError, by the system).
    """
    if is_local(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.rename(source, target)
        return
    from fsspec import AbstractFileSystem

    fs, inner = filesystem(source)
    place = filesystem(target)[1]
    fs.invalidate_cache()
    if _is_there(fs, place):
        raise FileExistsError(f"{target} exists")
    # Spark marks an empty folder by an empty object of its name and a slash, which cannot be copied.
    copies = {file: place + file[len(inner) :] for file in find_files(fs, inner) if not file.endswith("/")}
    try:
        if type(fs).mv is not AbstractFileSystem.mv or not copies:
            fs.mv(inner, place, recursive=True)
        else:
            fs.copy(list(copies), list(copies.values()), on_error="raise")
            fs.rm(inner, recursive=True)
    except BaseException:  # a copy takes long enough to be interrupted
        _take_back(fs, copies)
        raise


def _take_back(fs: fsspec.AbstractFileSystem, copies: Mapping[str, str]) -> None:
    fs.invalidate_cache()
    there = {file: copy for file, copy in copies.items() if fs.exists(copy)}
    gone = [file for file in there if not fs.exists(file)]
    if gone:
        fs.copy([there[file] for file in gone], gone, on_error="raise")
    if there:
        fs.rm(list(there.values()))


def aside_of(path: str) -> str:
    """Return a free place beside a path, hidden; ``outputs.clear_killed`` knows it for what a killed run left."""
    parent, name = path.rsplit("/", 1)
    return f"{parent}/.{name}.{uuid.uuid4().hex[:12]}.tmp"


def write_whole(path: str, data: bytes) -> None:
    """Write a file and the folders above it; a local one is written aside and renamed: no reader meets half of it.

    What stands there and is no plain file, such as a link or ``/dev/stdout``, is written to as it is.
    """
    fs, inner = filesystem(path)
    if has_folders(path):
        fs.makedirs(fs._parent(inner), exist_ok=True)
    special = (
        is_local(path) and os.path.lexists(inner) and (os.path.islink(inner) or not os.path.isfile(inner))
    )
    if special or not is_local(path):
        fs.pipe_file(inner, data)
        return
    aside = aside_of(inner)
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, inner)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def delete(path: str) -> None:
    """Delete a folder or file; one that is not there is no error."""
    if is_local(path):
        if os.path.isdir(path) and not os.path.islink(path):
            for _ in range(3):  # a task that is about to end may add a file meanwhile
                shutil.rmtree(path, ignore_errors=True)
                if not os.path.lexists(path):
                    break
        elif os.path.lexists(path):
            os.unlink(path)
    elif exists(path):
        fs, inner = filesystem(path)
        fs.rm(inner, recursive=True)
