"""Images without their duplicates: rows, folders of files, WebDataset shards."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from spark_dedup.datasets import read_dataset
from spark_dedup.errors import InputError
from spark_dedup.footers import parquet_footers
from spark_dedup.held import holding
from spark_dedup.listing import Named, list_files
from spark_dedup.outputs import check_output
from spark_dedup.paths import Location
from spark_dedup.removal.image_files import (
    copies,
    copy_file,
    list_keys,
    list_shards,
    places_below,
    rewrite_shard,
    roots_of,
)
from spark_dedup.removal.text import how_to_match
from spark_dedup.schemas import check_schemas
from spark_dedup.sources import find_source
from spark_dedup.tables import as_compared, col, have_char, require_columns
from spark_dedup.workers import in_worker

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

__all__ = ["IMAGE_ENDINGS", "ImageDuplicatesRemovalStage"]

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
_LISTED = "__spark_dedup_listed"
Batches = Iterable[pa.RecordBatch]


@dataclass
class ImageDuplicatesRemovalStage:
    """Keep the images whose id is not listed.

    Args:
        removal_parquets_dir: parquet files of ids to remove, nested folders included, or a table.
        duplicate_id_field: their id column.
        verbose: log how many ids are listed and removed.
        num_workers_per_node: accepted as in NeMo Curator; Spark places its tasks by itself.
        name: name in logs.
        cast_ids: compare ids as text where one side has integers and the other strings; warns. Without it that is
            an error: ``7`` and ``"007"`` are different ids, whoever made them.
    """

    removal_parquets_dir: Named
    duplicate_id_field: str = "id"
    verbose: bool = False
    num_workers_per_node: int | None = None
    name: str = "image_dedup_filter"
    cast_ids: bool = False
    _gone: DataFrame | None = field(default=None, init=False, repr=False)
    _removed: int | None = field(default=None, init=False, repr=False)

    def process(self, images: DataFrame, image_id_field: str = "image_id") -> DataFrame:
        """Return the rows whose id is not listed; lazy, with all columns and the order of rows as they were.

        The list is broadcast: the memory of an executor must hold it.

        Args:
            images: rows with an id, of any source: parquet with image bytes, ``binaryFile``, a table.
            image_id_field: their id column. Rows with a null id are kept. Where it or the listed ids are a CHAR,
                blanks at the end do not count, as in SQL.

        Raises:
            FileNotFoundError: there are no parquet files of ids.
            InputError: an absent id column, or id types that do not match.
        """
        from pyspark.sql import functions as F

        require_columns(images, [image_id_field], where="the images")
        spark = images.sparkSession
        kind, is_char = images.schema[image_id_field].dataType, have_char((images, image_id_field))
        listed, key = self._listed(spark, kind.simpleString(), is_char=is_char)
        image_id = col(image_id_field)
        is_listed = key(image_id) == F.col(_LISTED)
        self._gone = images.select(image_id).join(F.broadcast(listed), is_listed, "left_semi")
        self._removed = None
        return images.join(F.broadcast(listed), is_listed, "left_anti")

    @property
    def num_removed(self) -> int:
        """Rows that the latest ``process`` removes, counted in a job of its own, or what a ``filter_*`` removed.

        Raises:
            RuntimeError: nothing was processed yet.
        """
        if self._removed is None:
            if self._gone is None:
                raise RuntimeError(f"{self.name}: nothing was removed yet; call process() first")
            self._removed = int(self._gone.count())
        return self._removed

    def filter_folder(
        self, spark: SparkSession, folder: Named, output: Location, *, endings: Sequence[str] = IMAGE_ENDINGS
    ) -> int:
        """Copy the images that remain to a new folder, byte for byte, at the same places below it.

        An image's id is its path below ``folder``, without the ending.

        Args:
            spark: any session.
            folder: folder or folders of image files, nested ones included.
            output: new folder; it appears when all images are there.
            endings: of image files, in any case.

        Returns:
            Number of images copied.
        """
        from pyspark.sql import functions as F

        check_output(output, inputs=roots_of(folder), by_spark=False)
        found = list_files(folder, extensions=endings, ignore_case=True, by_spark=False)
        places = places_below(found, roots_of(folder))
        images = _frame(
            spark,
            [(file.path, place, place.rsplit(".", 1)[0]) for file, place in zip(found, places, strict=True)],
            "path string, place string, id string",
        )
        listed, _ = self._listed(spark, "string")
        kept = images.join(F.broadcast(listed), F.col("id") == F.col(_LISTED), "left_anti")
        with copies(output) as aside:

            def copy(batches: Batches) -> Iterator[pa.RecordBatch]:
                for batch in batches:
                    rows = batch.select(["path", "place"]).to_pylist()
                    for row in rows:
                        copy_file(row["path"], aside, row["place"])
                    yield pa.RecordBatch.from_pydict({"n": pa.array([len(rows)], pa.int64())})

            copied = kept.mapInArrow(in_worker(copy), "n bigint").agg(F.sum("n")).first()
        written = int(copied[0] or 0) if copied else 0
        self._settle(len(found) - written, output)
        return written

    def filter_shards(self, spark: SparkSession, shards: Named, output: Location) -> int:
        """Write WebDataset shards anew without the samples listed, every kept member byte for byte.

        A sample's id is its key: the path in the tar up to the first dot of the file name. All its members go with
        it; a link to one of these becomes a file. Each shard is streamed by one task, so its size does not matter.

        Args:
            spark: any session.
            shards: folder, folders or files of uncompressed ``.tar`` shards.
            output: new folder; it appears when all shards are there.

        Returns:
            Number of samples kept.

        Raises:
            InputError: naming shards that are compressed, truncated or no tar.
        """
        from pyspark.sql import functions as F

        check_output(output, inputs=roots_of(shards), by_spark=False)
        found = list_shards(shards)
        places = places_below(found, roots_of(shards))
        listed, _ = self._listed(spark, "string")
        rows = [(file.path, place) for file, place in zip(found, places, strict=True)]
        work = _frame(spark, rows, "path string, place string")
        with copies(output) as aside, holding(spark, f"{aside}.held") as hold:
            keys = hold(work.mapInArrow(in_worker(list_keys), "path string, key string, error string"))
            broken = keys.where("error IS NOT NULL").limit(5).collect()
            if broken:
                named = "; ".join(f"{row['path']} ({row['error']})" for row in broken)
                raise InputError(f"unreadable shard(s): {named}. Write them again or remove them")
            gone = keys.join(F.broadcast(listed), F.col("key") == F.col(_LISTED), "left_semi")
            by_shard = gone.groupBy("path").agg(F.collect_set("key").alias("keys"))
            tasks = work.join(by_shard, "path", "left")

            def rewrite(batches: Batches) -> Iterator[pa.RecordBatch]:
                for batch in batches:
                    for row in batch.to_pylist():
                        rewrite_shard(row["path"], aside, row["place"], frozenset(row["keys"] or ()))
                    yield pa.RecordBatch.from_pydict({"n": pa.array([batch.num_rows], pa.int64())})

            written = tasks.mapInArrow(in_worker(rewrite), "n bigint").agg(F.sum("n")).first()
            if not written or written[0] != len(found):
                raise RuntimeError(f"{written} shards written of {len(found)}; nothing was published")
            total, removed = int(keys.where("key IS NOT NULL").count()), int(gone.count())
        self._settle(removed, output)
        return total - removed

    def _listed(
        self, spark: SparkSession, own: str, *, is_char: bool = False
    ) -> tuple[DataFrame, Callable[[Column], Column]]:
        """Return the ids to remove in a column of ours, and what image ids are compared to it by."""
        from pyspark.sql import functions as F

        listed = self._read_list(spark)
        require_columns(listed, [self.duplicate_id_field], where="the list of duplicate ids")
        other = listed.schema[self.duplicate_id_field].dataType.simpleString()
        integers = ("tinyint", "smallint", "int", "bigint")
        ids = col(self.duplicate_id_field)
        key = F.rtrim if is_char else as_compared((listed, self.duplicate_id_field))
        if own == other or (own in integers and other in integers):
            return listed.select(key(ids).alias(_LISTED)), key
        mixed = {own, other} - set(integers)
        if mixed != {"string"}:
            raise InputError(
                f"image ids are {own}, the listed ids {other}: these never match; {how_to_match(own, other)}"
            )
        if not self.cast_ids:
            raise InputError(
                f"image ids are {own}, the listed ids {other}: cast one of them, or set cast_ids=True to compare "
                "them as text"
            )
        logger.warning("%s: image ids are %s, the listed ids %s: compared as text", self.name, own, other)
        return listed.select(key(ids.cast("string")).alias(_LISTED)), lambda own: key(own.cast("string"))

    def _read_list(self, spark: SparkSession) -> DataFrame:
        given = self.removal_parquets_dir
        try:
            source = find_source(spark, given)
            if source.kind == "files":  # Spark would read a column that a file lacks as nulls
                files = list_files(source.names)
                check_schemas(files, parquet_footers(files), columns=[self.duplicate_id_field])
            listed = read_dataset(spark, given)
        except FileNotFoundError as error:
            shown = ", ".join(map(str, [given] if isinstance(given, str | os.PathLike) else given))
            raise FileNotFoundError(f"No parquet files found in {shown}") from error
        if self.verbose:
            logger.info("%s: %s ids are listed", self.name, f"{int(listed.count()):,}")
        return listed

    def _settle(self, removed: int, output: Location) -> None:
        self._removed = removed
        if self.verbose:
            logger.info("%s: %s images removed, the others are in %s", self.name, f"{removed:,}", output)


def _frame(spark: SparkSession, rows: Sequence[tuple[Any, ...]], schema: str) -> DataFrame:
    return spark.createDataFrame(rows, schema).repartition(min(len(rows), 1024))
