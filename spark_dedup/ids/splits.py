"""Place of a row in its file from the split it was read in: for JSON lines, and for parquet on a GPU.

Spark cuts files into splits and reads the splits of a task one after the other. ``monotonically_increasing_id``
counts the rows of a task, so within a split the place of a row is that count less the count at the split's start.
One pass over the files learns, for each split, that start and its number of rows; then the place of the split in
its file is known too. All functions used here run on RAPIDS, where ``_metadata.row_index`` does not.

Both passes must cut the files alike. That is verified row by row: a row of an unknown split, or one whose place is
not inside its split, is an error, so another cutting never gives wrong ids.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from spark_dedup.errors import InputError
from spark_dedup.ids.batches import named_few, stale_error
from spark_dedup.ids.files import FileRange, path_of
from spark_dedup.ids.rows import as_frame
from spark_dedup.names import is_table_name
from spark_dedup.paths import filesystem, make_folder, spark_path
from spark_dedup.session import task_slots
from spark_dedup.settings import conf_of, settings
from spark_dedup.tables import file_and_start

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

__all__ = [
    "Split",
    "count_splits",
    "cut_alike",
    "number_rows",
    "on_gpu",
    "placed",
    "rows_by_url",
    "small_table",
    "split_table",
    "text_of",
]

URL, START, SEEN, BASE, FIRST, COUNT = (
    f"__spark_dedup_{name}" for name in ("url", "start", "seen", "base", "first", "count")
)
ROWS_OF_TASK = (1 << 33) - 1
_LEAST_SPLITS = "spark.sql.files.minPartitionNum"


@dataclass(frozen=True)
class Split:
    """A piece of a file that one task reads at a stretch.

    Attributes:
        url: the file, as Spark's ``input_file_name`` spells it.
        start: first byte.
        base: rows that its task reads before it.
        count: rows.
        bad: malformed records among them.
        first_bad: place in the split and text of the first of these.
    """

    url: str
    start: int
    base: int
    count: int
    bad: int = 0
    first_bad: tuple[int, str] | None = None


def placed(df: DataFrame, columns: Sequence[Column]) -> DataFrame:
    """Select columns of a file scan, and where each row was read; ``df`` has to hold every row that is counted."""
    from pyspark.sql import functions as F

    url, start = file_and_start(df)
    return df.select(
        *columns,
        url.alias(URL),
        start.alias(START),
        F.monotonically_increasing_id().bitwiseAND(F.lit(ROWS_OF_TASK)).alias(SEEN),
    )


def count_splits(df: DataFrame, bad: Column | None = None) -> list[Split]:
    """Count the rows of each split, in one pass that reads no column but those of ``bad``.

    Args:
        df: a file scan.
        bad: column with the text of malformed records, null for good ones.
    """
    from pyspark.sql import functions as F

    text = (bad if bad is not None else F.lit(None)).cast("string").alias("text")
    rows = placed(df, [text])
    found = F.when(F.col("text").isNotNull(), F.struct(F.col(SEEN), F.col("text")))
    counted = rows.groupBy(URL, START).agg(
        F.min(SEEN).alias(BASE),
        F.count(F.lit(1)).alias(COUNT),
        F.count("text").alias("bad"),
        F.min(found).alias("first_bad"),
    )
    first = F.col("first_bad")
    shown = counted.select(
        URL, START, BASE, COUNT, "bad", first[SEEN].alias("place"), F.hex(first["text"]).alias("digits")
    )
    return [
        Split(
            row[URL],
            row[START],
            row[BASE],
            row[COUNT],
            row["bad"],
            (row["place"] - row[BASE], text_of(row["digits"])) if row["bad"] else None,
        )
        for row in shown.collect()
    ]


def cut_alike(spark: SparkSession, filetype: str) -> AbstractContextManager[None]:
    """Have files whose splits are counted cut alike inside the block, where the session takes the setting.

    Otherwise Spark cuts them by the cores it has when it plans a scan, which come and go with executors.
    """
    if conf_of(spark, _LEAST_SPLITS) or not (filetype == "jsonl" or on_gpu(spark)):
        return settings(spark, {})
    cores = conf_of(spark, "spark.sql.leafNodeDefaultParallelism") or str(task_slots(spark))
    return settings(spark, {_LEAST_SPLITS: cores})


def text_of(digits: str) -> str:
    """Return text that Spark gave as ``hex``: a Connect session gives no text that is no UTF-8."""
    return bytes.fromhex(digits).decode("utf-8", "replace")


def rows_by_url(splits: Sequence[Split]) -> dict[str, int]:
    """Return the rows of each file that has any."""
    counts: dict[str, int] = {}
    for split in splits:
        counts[split.url] = counts.get(split.url, 0) + split.count
    return counts


def on_gpu(spark: SparkSession) -> bool:
    """Return whether RAPIDS plans the queries of a session, be it only to explain them."""
    if "com.nvidia.spark.SQLPlugin" not in conf_of(spark, "spark.plugins"):
        return False
    return conf_of(spark, "spark.rapids.sql.enabled", "true").lower() == "true"


def small_table(spark: SparkSession, rows: pa.Table, near: str | None) -> DataFrame:
    """Return a table of the driver's as a DataFrame, on a GPU as one that does not take the plan off it.

    RAPIDS reads a parquet file on the GPU, but no relation made on the driver. The file lies below ``near`` under
    a hash of its content, hidden from table readers, as the DataFrame may be used long after.
    """
    if not on_gpu(spark) or near is None or is_table_name(near):
        return as_frame(spark, rows)
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    content = sink.getvalue().to_pybytes()
    fs, folder = filesystem(near)
    name = f"_splits/{hashlib.sha256(content).hexdigest()[:32]}.parquet"
    if not fs.exists(f"{folder}/{name}"):
        make_folder(f"{near}/_splits")
        aside = f"{folder}/_splits/.{uuid.uuid4().hex}"
        fs.pipe_file(aside, content)
        fs.mv(aside, f"{folder}/{name}")
    return spark.read.parquet(spark_path(f"{near}/{name}"))


def split_table(splits: Sequence[Split], ranges: Sequence[FileRange]) -> pa.Table:
    """Return the first id of each split.

    Args:
        splits: all splits of the files that are read.
        ranges: the files and their ids.

    Raises:
        StaleBatchError: a file has another number of rows than were registered.
        InputError: a split belongs to none of the files.
    """
    files = _ranges_by_url(splits, ranges)
    ordered = sorted(splits, key=lambda s: (s.url, s.start))
    firsts: list[int] = []
    before: dict[str, int] = {}  # rows of each file in earlier splits
    for split in ordered:
        place = before.get(split.url, 0)
        firsts.append(files[split.url].first_id + place)
        before[split.url] = place + split.count
    return pa.table(
        {
            URL: pa.array([s.url for s in ordered], pa.string()),
            START: pa.array([s.start for s in ordered], pa.int64()),
            BASE: pa.array([s.base for s in ordered], pa.int64()),
            FIRST: pa.array(firsts, pa.int64()),
            COUNT: pa.array([s.count for s in ordered], pa.int64()),
        }
    )


def _ranges_by_url(splits: Sequence[Split], ranges: Sequence[FileRange]) -> dict[str, FileRange]:
    """Return the file of each URL that splits have, when all files are there with the rows they should have."""
    by_path = {r.path: r for r in ranges}
    rows = rows_by_url(splits)
    if "" in rows:
        raise InputError(
            "rows that come from no file, as those of some views, cannot be given ids: name their own id column "
            "(assign_id=False, id_field=...), or write them to files or a table first"
        )
    files = {url: by_path[path] for url in rows if (path := path_of(url, by_path)) is not None}
    if len(files) < len(rows):
        raise InputError(f"Spark also reads {named_few(sorted(rows.keys() - files.keys()))}: read it anew")
    now = {files[url].path: count for url, count in rows.items()}
    stale = [
        f"{r.path} ({r.count} rows then, {now.get(r.path, 0)} now)"
        for r in ranges
        if now.get(r.path, 0) != r.count
    ]
    if stale:
        raise stale_error(stale)
    return files


def number_rows(rows: DataFrame, table: DataFrame) -> tuple[DataFrame, Column]:
    """Join the rows of ``placed`` with the split table; return them and the expression of their id."""
    from pyspark.sql import functions as F

    joined = rows.join(F.broadcast(table), [URL, START], "left")
    place = F.col(SEEN) - F.col(BASE)
    cut = (
        "a file is cut into other splits than when it was counted, as settings or executors changed: read it anew, "
        f"with {_LEAST_SPLITS} set: "
    )
    wrong = F.raise_error(F.concat(F.lit(cut), F.col(URL))).cast("bigint")
    good = F.col(FIRST).isNotNull() & (place >= 0) & (place < F.col(COUNT))
    return joined, F.when(good, F.col(FIRST) + place).otherwise(wrong)
