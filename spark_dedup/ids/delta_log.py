"""The id registry's Delta table through delta-rs: milliseconds per commit, no Spark job.

A commit is compare-and-swap: it is made on the version that it was computed from, and fails when another writer
was first. So no two writers give out one range, whatever dies when; a killed one leaves at most a data file that
no version of the table mentions.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from spark_dedup.errors import InputError
from spark_dedup.ids.batches import Batch
from spark_dedup.ids.rows import COLUMNS, LOOKUP, TABLE_SETTINGS, Entry, check_layout, rows_of
from spark_dedup.ids.turns import TURN_FILE
from spark_dedup.outputs import clear_killed
from spark_dedup.paths import aside_of, is_local

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["DeltaLog"]

logger = logging.getLogger(__name__)

COMPACT_FROM_FILES = 100


class DeltaLog:
    """Registry rows in a Delta table at a path that delta-rs reaches. Not thread-safe.

    Keys, ranges, sizes and times are kept in memory (about 70 bytes a batch), so that a call reads only the data
    files that were added since the last one.
    """

    def __init__(
        self, path: str, *, initial: pa.Table, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        """Open the table at ``path``, or create it with the rows ``initial`` in its first version."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        self.location = path
        self.created = False
        self._options = {k: str(v) for k, v in (storage_options or {}).items()}
        try:
            self._table = DeltaTable(_uri(path), storage_options=self._options)
        except TableNotFoundError:
            try:
                self._create(initial)
            except (DeltaError, OSError) as error:
                try:  # another process may have made it in the meantime
                    self._table = DeltaTable(_uri(path), storage_options=self._options)
                except TableNotFoundError:
                    raise error from None
        check_layout([field.name for field in self._table.schema().fields], path)
        self._forget()
        self.lock_file = Path(path) / TURN_FILE if is_local(path) else None

    def _create(self, initial: pa.Table) -> None:
        """Create the table with its first rows; on a local disk aside, then renamed: it is there whole or not."""
        from deltalake import DeltaTable, write_deltalake

        local = Path(self.location) if is_local(self.location) else None
        if local and local.exists() and (not local.is_dir() or any(local.iterdir())):
            raise InputError(
                f"{local} exists and is no Delta table; name an empty or new folder for the id registry"
            )
        aside = Path(aside_of(str(local))) if local else None
        try:
            write_deltalake(
                _uri(str(aside or self.location)),
                initial,
                mode="error",
                name="spark_dedup id registry",
                description="Ranges of document ids, one row per batch of files",
                configuration=TABLE_SETTINGS,
                storage_options=self._options,
            )
            if aside and local:
                aside.rename(local)
                # Of killed processes; one that is still at it will find the table, as whoever comes late.
                clear_killed(str(local))
        finally:
            if aside:
                shutil.rmtree(aside, ignore_errors=True)
        self._table = DeltaTable(_uri(self.location), storage_options=self._options)
        self.created = True

    def _forget(self) -> None:
        self._seen: set[str] = set()
        self._rows = pa.schema([COLUMNS.field(name) for name in LOOKUP]).empty_table()

    def next_id(self) -> int:
        """Return the first id not given out, from the statistics in the log: no data file is opened."""
        self._table.update_incremental()
        return self._next_id(self._actions())

    def _actions(self) -> pa.Table:
        return pa.table(self._table.get_add_actions(flatten=True))

    def _next_id(self, actions: pa.Table) -> int:
        if "max.max_id" in actions.column_names and not actions["max.max_id"].null_count:
            return int(pc.max(actions["max.max_id"]).as_py()) + 1
        self._load(actions)  # a writer without statistics was here
        return int(pc.max(self._rows["max_id"]).as_py()) + 1

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return what is registered under the keys, as of now."""
        hits = self._fresh_rows()
        hits = hits.filter(pc.is_in(hits["key"], value_set=pa.array(keys, pa.string())))
        return {row["key"]: Entry(**row) for row in hits.to_pylist()}

    def ranges(self) -> pa.Table:
        """Return key, min_id and max_id of every batch, the origin row included."""
        return self._fresh_rows().select(["key", "min_id", "max_id"])

    def table(self, spark: SparkSession) -> DataFrame:
        """Return the table as it is now."""
        return spark.read.format("delta").load(self.location)

    def _fresh_rows(self) -> pa.Table:
        self._table.update_incremental()
        self._load(self._actions())
        return self._rows

    def _load(self, actions: pa.Table) -> None:
        """Read the data files that were not read before. Rows never change; compaction moves them."""
        from deltalake.fs import DeltaStorageHandler
        from pyarrow import dataset, fs

        paths = actions["path"].to_pylist()
        if not self._seen.issubset(paths):
            self._forget()
        unseen = [path for path in paths if path not in self._seen]
        if unseen:
            store = fs.PyFileSystem(DeltaStorageHandler(self._table.table_uri, self._options))
            files = dataset.dataset([unquote(p) for p in unseen], COLUMNS, format="parquet", filesystem=store)
            self._rows = pa.concat_tables([self._rows, files.to_table(columns=list(LOOKUP))])
            if self._rows["key"].num_chunks > 64:
                self._rows = self._rows.combine_chunks()
            self._seen.update(unseen)

    def append(self, batches: Sequence[Batch], keys: Sequence[str], token: str) -> dict[str, Entry] | None:
        """Register batches that the last ``find`` did not know, in one commit on the version that it saw.

        Returns:
            The new entries, or None when another writer was first or the outcome is unclear: look them up again.

        Raises:
            DeltaError, OSError: the place cannot be written, and nobody else wrote either.
        """
        from deltalake import CommitProperties, write_deltalake
        from deltalake.exceptions import DeltaError

        version, actions = self._table.version(), self._actions()
        rows = rows_of(batches, keys, token, first=self._next_id(actions))
        once = CommitProperties(max_commit_retries=0, custom_metadata={"spark_dedup": token})
        try:
            write_deltalake(self._table, rows, mode="append", commit_properties=once)
        except (DeltaError, OSError):
            self._table.update_incremental()
            if self._table.version() == version:
                raise
            return None
        if actions.num_rows >= COMPACT_FROM_FILES:
            self._compact()
        return {row["key"]: Entry(**row) for row in rows.select(LOOKUP).to_pylist()}

    def _compact(self) -> None:
        """Merge many small data files. Harmless beside other writers: it changes no row, and may simply fail."""
        from deltalake.exceptions import DeltaError

        try:
            self._table.optimize.compact(target_size=256 << 20)
        except (DeltaError, OSError) as error:
            logger.debug("id registry %s not compacted now: %s", self.location, error)


def _uri(path: str) -> str:
    """Return a local path as a URI: delta-rs would read ``%20`` in a plain one as a space."""
    return Path(path).as_uri() if is_local(path) else path
