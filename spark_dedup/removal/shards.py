"""WebDataset shards: samples of a tar file, and a new tar without some of them, byte for byte."""

from __future__ import annotations

import copy
import posixpath
import re
import shutil
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import IO

__all__ = ["Member", "copy_without", "members", "sample_keys"]

_KEY = re.compile(r"(?:\./)*((?:.*/)?[^./][^./]*)\.[^/]*", re.DOTALL)
_BLOCK = 1 << 20
_RECORD = 10240


@dataclass(frozen=True)
class Member:
    """A member of a tar file: its sample's key, and the bytes that hold it with its headers.

    Attributes:
        key: path up to the first dot of the file name, as WebDataset groups members; None for what is no sample.
        start: first byte, of an extended header where there is one.
        end: first byte after its padded data.
        name: its path.
        linked: path of the member whose content a link stands for.
    """

    key: str | None
    start: int
    end: int
    name: str
    linked: str | None = None


def members(file: IO[bytes]) -> Iterator[Member]:
    """Yield the members of an uncompressed tar file, in order.

    Raises:
        tarfile.TarError: the file is no tar, truncated or damaged.
    """
    size = file.seek(0, 2)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (found := tar.next()) is not None:
            end = tar.offset
            if end > size:
                raise tarfile.ReadError(f"truncated in {found.name!r}")
            linked = _linked(found)
            match = _KEY.fullmatch(found.name) if found.isfile() or linked else None
            key = _utf8(match[1]) if match else None
            yield Member(key, found.offset, end, posixpath.normpath(found.name), linked)
            tar.members.clear()  # type: ignore[attr-defined]  # of a large shard, tarfile would keep every one
        # tarfile takes a header that it cannot read for the end, but for the first, and stops at the end of the
        # first of joined archives.
        file.seek(tar.offset)
        while block := file.read(_BLOCK):
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"joined to another tar, or damaged at byte {tar.offset:,}")


def sample_keys(file: IO[bytes]) -> list[str]:
    """Return the keys of a shard's samples, each once, in order."""
    return list(dict.fromkeys(member.key for member in members(file) if member.key is not None))


def _linked(info: tarfile.TarInfo) -> str | None:
    if info.islnk():
        return posixpath.normpath(info.linkname)
    if info.issym():
        return posixpath.normpath(posixpath.join(posixpath.dirname(info.name), info.linkname))
    return None


def _utf8(key: str) -> str:
    """Return a key whose bytes are not UTF-8, which no id can be, with these written as escapes."""
    return key.encode("utf-8", "backslashreplace").decode()


def copy_without(source: IO[bytes], target: IO[bytes], keys: Collection[str]) -> None:
    """Copy a tar file but for the members of some samples; all other bytes, global headers too, as they are.

    A link that stays, to a member that goes, becomes the file it stood for.
    """
    written = end = 0
    found = [(member, member.key is not None and member.key in keys) for member in members(source)]
    lost = {member.name for member, gone in found if gone} - {
        member.name for member, gone in found if not gone
    }
    while (
        found and found[-1][1]
    ):  # with them a global header that nothing follows: tarfile takes it for damage
        found.pop()
    tar = None
    for member, gone in found:
        is_anew = not gone and member.linked in lost
        # What lies between two members is a global header, which holds for all that follow.
        written += _copy(source, target, end, member.start if gone or is_anew else member.end)
        end = member.end
        if is_anew:
            tar = tar or _opened(source)
            written += _copy_linked(tar, target, member)
    target.write(b"\0" * (1024 + -(written + 1024) % _RECORD))


def _opened(source: IO[bytes]) -> tarfile.TarFile:
    source.seek(0)
    return tarfile.open(fileobj=source, mode="r:")


def _copy_linked(tar: tarfile.TarFile, target: IO[bytes], link: Member) -> int:
    """Write a link as a file; return the bytes written."""
    info = next(info for info in tar.getmembers() if info.offset == link.start)
    content = tar.extractfile(info)
    if content is None:
        raise tarfile.ReadError(f"{link.name!r} is a link to what is no file")
    size = content.seek(0, 2)
    content.seek(0)
    head = copy.copy(info)
    head.type, head.size, head.linkname = tarfile.REGTYPE, size, ""
    head.pax_headers = {k: v for k, v in info.pax_headers.items() if k not in ("linkpath", "size")}
    header = head.tobuf()
    target.write(header)
    shutil.copyfileobj(content, target, _BLOCK)
    padding = -size % tarfile.BLOCKSIZE
    target.write(b"\0" * padding)
    return len(header) + size + padding


def _copy(source: IO[bytes], target: IO[bytes], start: int, end: int) -> int:
    source.seek(start)
    left = end - start
    while left:
        block = source.read(min(left, _BLOCK))
        if not block:
            raise tarfile.ReadError("truncated")
        target.write(block)
        left -= len(block)
    return end - start
