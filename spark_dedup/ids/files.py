"""Files and their id ranges, and how Spark spells the files it reads."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from spark_dedup.errors import InputError, UnknownBatchError
from spark_dedup.ids.batches import Batch, hash_files, named_few, spellings
from spark_dedup.ids.counting import CountRows
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.ids.rows import Entry, raise_if_stale
from spark_dedup.listing import FileInfo, modified_ms
from spark_dedup.paths import filesystem, is_local, normalise_path
from spark_dedup.tables import hidden_metadata

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["FileRange", "file_ranges", "has_row_index", "match_urls", "path_of", "table_files", "url_of"]


@dataclass(frozen=True)
class FileRange:
    """A file's rows and the id of its first one."""

    path: str
    first_id: int
    count: int


def file_ranges(
    groups: Sequence[Sequence[FileInfo]],
    registry: IdRegistry | IdGenerator,
    count_rows: CountRows,
    *,
    register_new: bool = True,
) -> list[FileRange]:
    """Return the id range of each file, registering those that are new in one commit.

    Only files are counted that the registry does not know, or of which it knows neither size nor time.

    Args:
        groups: the files that are read, those of a batch together.
        registry: who gives out ids.
        count_rows: counts the rows of files.
        register_new: False makes an unknown file an error.

    Raises:
        StaleBatchError: naming files that changed since they were registered.
        UnknownBatchError: naming unknown files, when ``register_new`` is False.
    """
    spelled = [{hash_files(way): way for way in spellings([file.path for file in group])} for group in groups]
    known = _lookup(registry, [key for ways in spelled for key in ways])
    keys = [next((key for key in ways if key in known), next(iter(ways))) for ways in spelled]
    batches = dict(zip(keys, map(tuple, groups), strict=True))
    names = {key: ways[key] for key, ways in zip(keys, spelled, strict=True)}
    unknown = [batch[0].path for key, batch in batches.items() if key not in known]
    if unknown and not register_new:
        raise UnknownBatchError(
            f"the id registry does not know {len(unknown)} of {len(batches)} batches of files: {named_few(unknown)}"
            "; were files batched together (NeMo Curator), give its input_files_per_partition or input_blocksize"
        )
    known = {key: entry for key, entry in known.items() if key in batches}
    raise_if_stale((_batch(names[key], batches[key], entry.count), entry) for key, entry in known.items())
    counts = _count(batches, known, count_rows)
    counted = [
        _batch(names[key], batch, sum(counts[file.path] for file in batch)) for key, batch in batches.items()
    ]
    if isinstance(registry, IdRegistry):
        firsts = registry.register(counted)
    else:
        firsts = registry.register_batches([(batch.files, batch.count) for batch in counted])
    return [
        placed
        for first, batch in zip(firsts, batches.values(), strict=True)
        for placed in _spread(first, batch, counts)
    ]


def _count(
    batches: Mapping[str, Sequence[FileInfo]], known: Mapping[str, Entry], count_rows: CountRows
) -> dict[str, int]:
    """Return the rows of each file: as the registry knows them, where size and time told that nothing changed."""
    told = [key for key, entry in known.items() if len(batches[key]) == 1 and entry.size is not None]
    counts = {batches[key][0].path: known[key].count for key in told}
    asked = [file for batch in batches.values() for file in batch if file.path not in counts]
    if asked:
        counts |= dict(zip((file.path for file in asked), count_rows(asked), strict=True))
    return counts


def _lookup(registry: IdRegistry | IdGenerator, keys: Sequence[str]) -> dict[str, Entry]:
    if isinstance(registry, IdRegistry):
        return registry.lookup(keys)
    ranges = registry.batch_registry
    return {key: Entry(key, *ranges[key], None, None) for key in keys if key in ranges}


def _batch(names: tuple[str, ...], files: Sequence[FileInfo], count: int) -> Batch:
    return Batch(
        names,
        count,
        sum(file.size for file in files),
        max((file.modified_ms for file in files), default=0) or None,
    )


def _spread(first: int, files: Sequence[FileInfo], counts: dict[str, int]) -> Iterator[FileRange]:
    for file in files:
        yield FileRange(file.path, first, counts[file.path])
        first += counts[file.path]


def path_of(url: str, paths: Collection[str]) -> str | None:
    """Return which of ``paths`` Spark means by ``url``, a percent-encoded URI; None when it is none of them."""
    plain = unquote(url)
    scheme, _, rest = plain.partition(":")
    inner = "/" + rest.lstrip("/")
    candidates = [plain, inner] if scheme == "file" else [plain]
    if scheme == "dbfs":
        candidates += [inner, "/dbfs" + inner]
    return next((path for path in candidates if path in paths), None)


def match_urls(urls: Sequence[str], paths: Collection[str]) -> dict[str, str]:
    """Return path → the URI that Spark reads it by.

    Raises:
        InputError: when Spark reads other files than were listed.
    """
    found = {path: url for url in urls if (path := path_of(url, paths)) is not None}
    strange = [url for url in urls if path_of(url, paths) is None]
    missing = sorted(set(paths) - found.keys())
    if strange or missing:
        what = (
            f"Spark would not read {named_few(missing)}"
            if missing
            else f"Spark also reads {named_few(strange)}"
        )
        why = "the folder changed while it was listed, or holds names that Spark cannot take"
        if not all(map(str.isascii, missing)):
            why += ": Java takes letters beyond ASCII if the session starts with LC_ALL=C.UTF-8 in its environment"
        raise InputError(f"{what}: {why}")
    return found


def url_of(path: str) -> str:
    """Return a path as Spark's scan of a table spells it: what Java's URI does not allow is percent-encoded."""
    scheme, _, inner = path.rpartition("://")
    encoded = "".join(quote(c, safe="/!$&'()*+,;=:@~") if ord(c) < 128 else c for c in inner)
    return f"{scheme}://{encoded}" if scheme else f"file:///{encoded.lstrip('/')}"


def has_row_index(df: DataFrame) -> bool:
    """Return whether a scan tells each row's place in its file; Delta's does where rows may be deleted in place."""
    from pyspark.errors import AnalysisException

    try:
        return bool(df.select(f"{hidden_metadata(df)}.row_index").columns)
    except AnalysisException:
        return False


def table_files(df: DataFrame) -> list[tuple[FileInfo, ...]]:
    """Return the data files that a table is read from, each a batch of its own."""
    files: list[tuple[FileInfo, ...]] = []
    for url in sorted(df.inputFiles()):
        # Delta does not encode what it names here, other tables do; normalise_path looks which one exists.
        path = normalise_path(url)
        if is_local(path):
            stat = os.stat(path)
            files.append((FileInfo(path, stat.st_size, stat.st_mtime_ns // 1_000_000),))
        else:
            fs, inner = filesystem(path)
            info = fs.info(inner)
            files.append((FileInfo(path, int(info["size"]), modified_ms(info)),))
    return files
