"""JSON lines: the same rows in every pass, and malformed lines named by file and line."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spark_dedup.datasets import ANY_LENGTH, read_files
from spark_dedup.errors import InputError
from spark_dedup.ids.files import match_urls
from spark_dedup.ids.splits import Split, count_splits, text_of
from spark_dedup.listing import FileInfo
from spark_dedup.settings import WHOLE_FILES, given_options, reader_options
from spark_dedup.sources import Source
from spark_dedup.stores import store_options
from spark_dedup.tables import file_and_start

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructField, StructType

__all__ = ["BAD", "LINE", "as_text", "bad_text", "check_files", "lines", "open_jsonl", "parsed"]

logger = logging.getLogger(__name__)

BAD = "__spark_dedup_bad"
NONE = "__spark_dedup_none"
LINE = "__spark_dedup_line"
_ARRAY = (
    "InputError: a line is an array of objects: write each on a line of its own, or name all input_fields\n"
)
_GOES_ON, _IS_ARRAY, _IS_TORN = range(3)
"""What may be wrong with a line, the worst first."""

_OPTIONS = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": BAD, **ANY_LENGTH}
"""Reader options that the ids rely on."""


def open_jsonl(
    spark: SparkSession,
    source: Source,
    *,
    read_kwargs: Mapping[str, Any] | None,
    extensions: Sequence[str] | None,
    schema: StructType | None,
) -> tuple[list[str], DataFrame, DataFrame]:
    """Open JSON lines for counting and for reading.

    In mode PERMISSIVE every line but a blank one is a row whatever columns are read; in DROPMALFORMED the number
    of rows depends on the columns. So malformed lines are told by a column, ``BAD``, that holds their text.

    Args:
        spark: the session.
        source: where the files lie.
        read_kwargs: options for Spark's reader.
        extensions: endings of files to take instead of the filetype's own.
        schema: schema of the files, when it is known; else Spark infers it.

    Returns:
        The columns of the documents, a frame that parses as little as counting needs, and the one to read.
    """
    from pyspark.sql.types import StringType, StructField, StructType

    def read(wanted: StructType | None) -> DataFrame:
        reader = spark.read.options(**reader_options(read_kwargs)).options(**_OPTIONS)
        return read_files(reader, source, "jsonl", extensions, schema=wanted)

    whole = read(schema)
    names = [name for name in whole.columns if name != BAD]
    bad, none = StructField(BAD, StringType()), StructField(NONE, StringType())
    fields = [field for field in whole.schema.fields if field.name != BAD]
    return names, read(StructType([none, bad])), read(StructType([*fields, none, bad]))


def as_text(
    spark: SparkSession,
    source: Source,
    *,
    read_kwargs: Mapping[str, Any] | None,
    extensions: Sequence[str] | None,
) -> DataFrame | None:
    """Return the same files as text; None where options of the reader may say what a line is."""
    if given_options(read_kwargs):
        return None
    return read_files(spark.read.options(**WHOLE_FILES), source, "jsonl", extensions, as_text=True)


def bad_text() -> Column:
    """Return the text of a malformed line, null for a good one."""
    from pyspark.sql import functions as F

    # Spark 3 refuses to scan for malformed lines alone, so a column that no file has is asked for as well.
    return F.concat(F.col(BAD), F.coalesce(F.col(NONE), F.lit("")))


def lines(text: DataFrame) -> DataFrame:
    """Return the lines of JSON files as they stand, each a row as in any other pass: blank ones are none.

    Args:
        text: the files, read as text.

    Returns:
        ``LINE``, the text without a byte order mark, and ``BAD``, where it is malformed. A line that is an array
        of objects fails the action.
    """
    from pyspark.sql import functions as F

    rows = text.where(_is_filled()).select(_line().alias(LINE))
    # A column of text may hold what is no UTF-8, which the reader of JSON refuses; a replacement mends it.
    mended = F.regexp_replace(LINE, "^", "").cast("binary")
    is_text = F.col(LINE).cast("binary") == mended
    bad = F.when(is_text, parsed(F.col(LINE)).getField(BAD)).otherwise(F.col(LINE))
    rows = rows.withColumn(BAD, bad)
    # The reader makes a row of each object of an array: no line then has the ids that were counted.
    refused = F.raise_error(F.lit(_ARRAY)).cast("boolean")
    return rows.where(F.when(_is_array(F.col(LINE)), refused).otherwise(F.lit(True)))


def _is_array(line: Column) -> Column:
    from pyspark.sql import functions as F

    of_objects = F.get_json_object(line, "$[0]").startswith("{") | (F.json_array_length(line) == 0)
    return F.btrim(line, F.lit(" \t")).startswith("[") & of_objects


def _is_torn(line: Column) -> Column:
    r"""Return whether a string of a JSON line has half of a surrogate pair, as ``\ud800`` is."""
    from pyspark.sql import functions as F

    # Few lines have any: looking for bytes takes a fraction of a pattern's time.
    has_any = line.contains("\\ud") | line.contains("\\uD")
    plain = F.replace(line, F.lit("\\\\"), F.lit(" "))
    rest = F.regexp_replace(plain, r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}", " ")
    return has_any & line.rlike(r"\\u[dD][89a-fA-F]") & rest.rlike(r"\\u[dD][89a-fA-F]")


def _is_filled() -> Column:
    from pyspark.sql import functions as F

    return F.btrim("value", F.lit(" \t")) != ""


def _line() -> Column:
    """Return the text of a line without a byte order mark."""
    from pyspark.sql import functions as F

    value = F.col("value")
    return F.when(value.startswith("\ufeff"), F.substring(value, 2, 1 << 30)).otherwise(value)


def parsed(line: Column, *fields: StructField) -> Column:
    """Return some fields of a JSON line as the reader of JSON files would give them, and ``BAD``."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import StringType, StructField, StructType

    schema = StructType([*fields, StructField(NONE, StringType()), StructField(BAD, StringType())])
    return F.from_json(line, schema, _OPTIONS)


def check_files(
    df: DataFrame,
    to_count: DataFrame,
    text: DataFrame | None,
    files: Sequence[FileInfo],
    on_bad_lines: str,
    *,
    arrays: bool = True,
) -> tuple[list[Split], dict[str, str], int]:
    """Count the lines of each split, and check them.

    Args:
        df: the files, as ``open_jsonl`` reads them.
        to_count: the same for counting.
        text: ``as_text`` of them, to check that lines end with their object.
        files: the files.
        on_bad_lines: ``"error"`` or ``"skip"``.
        arrays: a line may be an array of objects.

    Returns:
        The splits, the URL that Spark reads each path by, and how many lines are malformed.

    Raises:
        InputError: malformed lines that are not to be skipped, lines that go on, or arrays; names files and lines.
    """
    urls = match_urls(df.inputFiles(), [file.path for file in files])
    paths = {url: path for path, url in urls.items()}
    splits = count_splits(to_count, bad=bad_text())
    skipped = _check_lines(splits, paths, on_bad_lines)
    if text is not None:
        _check_text(text, paths, arrays=arrays)
    return splits, urls, skipped


def _check_text(text: DataFrame, paths: Mapping[str, str], *, arrays: bool) -> None:
    """Check that lines end with their object; Spark's reader leaves the rest out, be it another document.

    So do lines of files that were joined where one did not end in a newline. Warn of halves of surrogate pairs.
    """
    from pyspark.sql import functions as F

    def is_one(line: Column) -> Column:
        array = F.from_json(
            F.concat(F.lit("["), line, F.lit("]")), f"array<struct<{NONE}:string>>", ANY_LENGTH
        )
        return F.coalesce(F.size(array) == 1, F.lit(False))

    line = _line()
    # A comma after the object does no harm, and malformed lines are told by others.
    goes_on = parsed(line).getField(BAD).isNull() & ~is_one(F.regexp_replace(line, r"[, \t]+$", ""))
    wrong = F.coalesce(
        F.when(~is_one(line) & goes_on, _GOES_ON),
        F.when(F.lit(not arrays) & _is_array(line), _IS_ARRAY),
        F.when(_is_torn(line), _IS_TORN),
    )
    found = text.where(_is_filled() & wrong.isNotNull())
    begun = F.substring(line, 1, 60).alias("text")
    shown = found.select(wrong.alias("wrong"), file_and_start(found)[0].alias("url"), begun)
    counted = shown.groupBy("wrong", "url").agg(F.count("*").alias("n"), F.min("text").alias("text"))
    rows = counted.orderBy("wrong", "url").limit(5).withColumn("digits", F.hex("text")).drop("text").collect()
    if not rows:
        return
    worst = rows[0]["wrong"]
    rows = [row for row in rows if row["wrong"] == worst]
    places = "; ".join(f"{paths[row['url']]}: {row['n']}, such as {text_of(row['digits'])!r}" for row in rows)
    if worst == _IS_TORN:
        logger.warning(
            "line(s) with halves of surrogate pairs, which UTF-8 does not have, in %s: Spark reads each as '?', so "
            "texts that differ in nothing else are equal",
            places,
        )
        return
    what = "go on after their object" if worst == _GOES_ON else "are arrays of objects"
    raise InputError(f"line(s) {what}, in {places}: give every document a line of its own")


def _check_lines(splits: Sequence[Split], paths: Mapping[str, str], on_bad_lines: str) -> int:
    """Return how many lines are malformed, and log them; an error unless they are to be skipped."""
    bad = sorted((s for s in splits if s.bad), key=lambda s: (s.url, s.start))
    total = sum(s.bad for s in bad)
    if not total:
        return 0
    first_in = {s.url: s for s in reversed(bad)}
    places = [_place(paths[url], first_in[url], splits) for url in sorted(first_in)[:5]]
    message = f"{total} malformed line(s) in {len(first_in)} file(s), the first at {'; '.join(places)}"
    if on_bad_lines != "skip":
        mend = 'Mend them, or leave them out with on_bad_lines="skip", if the job has it'
        if any(split.first_bad and split.first_bad[1].strip(" \t") in ("{", "[") for split in bad):
            mend = "JSON that goes over several lines is not read: write every document on a line of its own"
        raise InputError(f"{message}. {mend}")
    logger.warning("%s: skipped", message)
    return total


def _place(path: str, split: Split, splits: Sequence[Split]) -> str:
    assert split.first_bad is not None
    before = sum(s.count for s in splits if s.url == split.url and s.start < split.start)
    record = before + split.first_bad[0]
    line = _line_number(path, record)
    text = split.first_bad[1]
    shown = text if len(text) <= 60 else text[:57] + "..."
    return f"{path} {f'line {line}' if line else f'record {record + 1}'}: {shown!r}"


def _line_number(path: str, record: int) -> int | None:
    """Return the line, from 1, of a record, from 0, blank lines counted as Spark does; None when out of reach."""
    import fsspec

    try:
        with fsspec.open(path, "rb", compression="infer", **store_options(path)) as file:
            for number, line in enumerate(_lines(file), start=1):
                if line.strip(b" \t\r\n"):
                    if record == 0:
                        return number
                    record -= 1
    except (OSError, ImportError, ValueError, EOFError):
        return None
    return None


def _lines(file: Any, block: int = 1 << 20) -> Any:
    rest = b""
    while data := file.read(block):
        lines = (rest + data).splitlines(keepends=True)
        # The last one may go on in the next block, and a carriage return may be half of a line's end.
        rest = lines.pop()
        yield from lines
    yield from rest.splitlines(keepends=True)
