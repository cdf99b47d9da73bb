"""The id registry: ranges of ids in a Delta table, safe for many writers in many processes."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from spark_dedup.errors import InputError, first_line
from spark_dedup.hadoop import require_client
from spark_dedup.ids.batches import (
    Batch,
    BatchIds,
    Files,
    as_batches,
    as_count,
    hash_files,
    named_few,
    spellings,
)
from spark_dedup.ids.generator import read_state, write_state
from spark_dedup.ids.rows import ORIGIN, Entry, origin_rows, raise_if_stale, state_rows
from spark_dedup.ids.turns import turn
from spark_dedup.names import is_table_name, spelled
from spark_dedup.paths import exists, is_local, normalise_path, spark_location
from spark_dedup.session import is_connect
from spark_dedup.settings import conf_of
from spark_dedup.stores import is_s3
from spark_dedup.tables import quote

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["IdRegistry", "others_registered"]

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0
MOUNTS = ("/Volumes/", "/dbfs/", "/Workspace/")
"""Mounts of Databricks: object stores, where a rename does not refuse to replace."""
UNSPEAKABLE = frozenset("%[]{}\\^|<>")
"""Characters in a path that delta-rs 1.6 misreads or does not take."""


class _Log(Protocol):
    """What a registry needs of its table; DeltaLog and SparkLog are the two ways to it."""

    location: str
    created: bool
    lock_file: Path | None

    def next_id(self) -> int: ...
    def find(self, keys: Sequence[str]) -> dict[str, Entry]: ...
    def ranges(self) -> pa.Table: ...
    def append(
        self, batches: Sequence[Batch], keys: Sequence[str], token: str
    ) -> dict[str, Entry] | None: ...
    def table(self, spark: SparkSession) -> DataFrame: ...


class IdRegistry(BatchIds):
    """Gives every batch of files a contiguous range of ids, kept in a Delta table. Make one with ``open``.

    Any number of processes may register at once: ranges never overlap and leave no gap, and a process killed at
    any moment has registered its whole commit or nothing. Calls are idempotent, so a job that died simply runs
    again. Thread-safe.
    """

    def __init__(self, spark: SparkSession | None, log: _Log) -> None:
        self._spark = spark
        self._log = log
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        spark: SparkSession | None,
        location: str | os.PathLike[str],
        *,
        start_id: int = 0,
        storage_options: Mapping[str, Any] | None = None,
    ) -> IdRegistry:
        """Open the registry at ``location``, creating it when missing.

        A local path, or any path with ``storage_options``, is worked on by delta-rs: milliseconds per call. A
        table name, another path, and every place on Spark Connect by single Spark statements: about a second.

        Args:
            spark: a session with Delta; None will do for a local path, to register from processes without Spark.
            location: path or table name.
            start_id: the first id of a registry that is created. An existing one keeps its own; 0 accepts any.
            storage_options: delta-rs options of a remote path.

        Raises:
            InputError: the table at ``location`` is no id registry, or starts at another id.
        """
        start = as_count(start_id, "start_id")
        registry = cls(spark, _open_log(spark, spelled(location), origin_rows(start), storage_options))
        if start and not registry._log.created:
            first = registry._log.find([ORIGIN])[ORIGIN].min_id
            if first != start:
                raise InputError(
                    f"the id registry {registry.location} starts at id {first}, not {start}; "
                    "leave start_id out to use it, or name another place"
                )
        return registry

    @classmethod
    def from_disk(
        cls,
        spark: SparkSession | None,
        path: str | os.PathLike[str],
        location: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
    ) -> IdRegistry:
        """Load a JSON state of ours or of NeMo Curator into a new registry, in one commit.

        Raises:
            InputError: the file is unsound, or ``location`` holds a registry with other ranges.
        """
        next_id, ranges = read_state(path, storage_options)
        rows = state_rows(next_id, ranges, uuid.uuid4().hex)
        registry = cls(spark, _open_log(spark, spelled(location), rows, None))
        if not registry._log.created and registry._state() != (next_id, ranges):
            raise InputError(
                f"{registry.location} already holds an id registry with other ranges than {os.fspath(path)}; "
                "name another place"
            )
        return registry

    @property
    def location(self) -> str:
        """Path or name of the table."""
        return self._log.location

    @property
    def next_id(self) -> int:
        """The first id not given out."""
        with self._lock:
            return self._log.next_id()

    def register_batches(self, batches: Iterable[tuple[Files, int]]) -> list[int]:
        """Return the first ids of many batches, registering all new ones in one commit.

        Args:
            batches: ``(files, count)`` pairs.
        """
        return self.register(as_batches(batches))

    def register(self, batches: Sequence[Batch]) -> list[int]:
        """Return the first ids of batches that also tell size and time; all are registered, or none.

        Raises:
            StaleBatchError: known batches have another row count, size or modification time than then.
            TimeoutError: other writers were first for ten minutes on end.
        """
        keys = [batch.key for batch in batches]
        wanted = dict(zip(keys, batches, strict=True))
        twice = [batch.name for key, batch in zip(keys, batches, strict=True) if batch != wanted[key]]
        if twice:
            raise InputError(f"given twice in one call, with different counts: {named_few(twice)}")
        token = uuid.uuid4().hex
        with self._lock, turn(self._log.lock_file):
            known = self._settle(wanted, token)
        return [known[key].min_id for key in keys]

    def _settle(self, wanted: Mapping[str, Batch], token: str) -> dict[str, Entry]:
        deadline = time.monotonic() + PATIENCE_S
        pause = 0.005
        while True:
            known = self._log.find(list(wanted))
            raise_if_stale((wanted[key], entry) for key, entry in known.items())
            fresh = {key: batch for key, batch in wanted.items() if key not in known}
            if not fresh:
                return known
            added = self._log.append(list(fresh.values()), list(fresh), token)
            if added is not None:
                return known | added
            # Looked up again: whoever registered the keys, their ranges are those in the table. That also settles
            # a failure that left open whether it committed.
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"other writers kept the id registry {self.location} busy for {PATIENCE_S:.0f} s: "
                    "run the job again"
                )
            time.sleep(pause * random.random())
            pause = min(2 * pause, 0.2)

    def lookup(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return what is registered under those of the keys that are known."""
        with self._lock:
            return self._log.find(keys)

    def _range(self, key: str) -> tuple[int, int] | None:
        entry = self.lookup([key]).get(key)
        return None if entry is None or key == ORIGIN else (entry.min_id, entry.max_id)

    def to_disk(self, path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
        """Write the registry as the JSON that ``IdGenerator`` and NeMo Curator read, through fsspec."""
        next_id, ranges = self._state()
        write_state(path, {"next_id": next_id, "batch_registry": ranges}, storage_options)

    def _state(self) -> tuple[int, dict[str, tuple[int, int]]]:
        with self._lock:
            rows = self._log.ranges()
        # One read gives both, so a writer beside us cannot come between them.
        keys, first, last = (rows[name].to_pylist() for name in ("key", "min_id", "max_id"))
        ranges = {k: (a, b) for a, b, k in sorted(zip(first, last, keys, strict=True)) if k != ORIGIN}
        return max(last) + 1, ranges

    def to_dataframe(self) -> DataFrame:
        """Return the registered batches: key, files, min_id, max_id, row_count, size, modified_ms, commit_token."""
        from pyspark.sql import functions as F

        table = self._log.table(_needed(self._spark))
        return table.where(F.col("key") != ORIGIN).select(
            "key",
            "files",
            "min_id",
            "max_id",
            (F.col("max_id") - F.col("min_id") + 1).alias("row_count"),
            "size",
            "modified_ms",
            "commit_token",
        )

    def __repr__(self) -> str:
        return f"IdRegistry({self.location!r})"


def others_registered(spark: SparkSession, location: str, files: Iterable[str]) -> bool:
    """Return whether the registry in a folder knows other batches than these files; True where it cannot tell."""
    if not exists(f"{location}/_delta_log"):
        return False
    own = {hash_files(way) for file in files for way in spellings(file)}
    try:
        return not IdRegistry.open(spark, location)._state()[1].keys() <= own
    except Exception as error:  # of the failing job's session, too
        logger.warning("the id registry %s stays, as it cannot be read now: %s", location, first_line(error))
        return True


def _open_log(
    spark: SparkSession | None, location: str, initial: pa.Table, storage_options: Mapping[str, Any] | None
) -> _Log:
    from spark_dedup.ids.delta_log import DeltaLog
    from spark_dedup.ids.spark_log import SparkLog

    if is_table_name(location):
        return SparkLog(_needed(spark), location, location, initial=initial)
    path = normalise_path(location)
    if not location.startswith("file:"):
        require_client(path)
    if storage_options is not None or _delta_rs_reaches(spark, location, path):
        return DeltaLog(path, initial=initial, storage_options=storage_options)
    folder = path if (is_local(path) and not path.startswith(MOUNTS)) or is_s3(path) else None
    return SparkLog(
        _needed(spark), f"delta.{quote(spark_location(path))}", path, initial=initial, folder=folder
    )


def _needed(spark: SparkSession | None) -> SparkSession:
    if spark is None:
        raise InputError("this needs a Spark session: only registering in a local path works without")
    return spark


def _delta_rs_reaches(spark: SparkSession | None, given: str, path: str) -> bool:
    """Return whether this process may commit to a path itself: a local disk that Spark too means by it."""
    if (spark is not None and is_connect(spark)) or not is_local(path) or path.startswith(MOUNTS):
        return False
    if UNSPEAKABLE.intersection(path):
        return False
    if spark is None or given.startswith("file:"):
        return True
    default = conf_of(spark, "spark.hadoop.fs.defaultFS", "file:///")
    return default.startswith("file:") and not {"HADOOP_CONF_DIR", "YARN_CONF_DIR"} & os.environ.keys()
