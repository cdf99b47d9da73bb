"""Column names and schemas: the contracts between the modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.settings import conf_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

__all__ = [
    "ID",
    "LEDGER_COLUMNS",
    "as_compared",
    "col",
    "file_and_start",
    "have_char",
    "hidden_metadata",
    "id_text",
    "quote",
    "require_columns",
]

ID = "_curator_dedup_id"

LEDGER_COLUMNS = ("id", "matched_id", "kept_id", "group_id", "method", "score")
"""One row per record to remove: ids in their own type, group_id and method string, score double."""


def quote(name: str) -> str:
    """Quote one column or table name part for Spark SQL."""
    return "`" + name.replace("`", "``") + "`"


def col(name: str) -> Column:
    """Return the top-level column called exactly ``name``, whatever characters it holds."""
    from pyspark.sql import functions as F

    return F.col(quote(name))


def id_text(df: DataFrame, name: str) -> Column:
    """Return the ids in a column as text: bytes, which may be no UTF-8, as hexadecimal digits."""
    from pyspark.sql import functions as F

    return F.hex(col(name)) if dict(df.dtypes)[name] == "binary" else col(name).cast("string")


def have_char(*columns: tuple[DataFrame, str]) -> bool:
    """Return whether one of some columns is a ``CHAR(n)``, which Spark fills up with blanks as it reads it."""
    kinds = (df.schema[name].metadata.get("__CHAR_VARCHAR_TYPE_STRING", "") for df, name in columns)
    return any(kind.startswith("char(") for kind in kinds)


def as_compared(*ids: tuple[DataFrame, str]) -> Callable[[Column], Column]:
    """Return what ids are compared by: where one of them is a CHAR, blanks at the end do not count, as in SQL."""
    from pyspark.sql import functions as F

    return F.rtrim if have_char(*ids) else lambda column: column


def hidden_metadata(df: DataFrame) -> str:
    """Return the name of Spark's hidden column of a scan; it has more underscores than those of the files' own."""
    names = {name.lower() for name in df.columns}
    if conf_of(df.sparkSession, "spark.sql.caseSensitive") == "true":
        names = set(df.columns)
    hidden = "_metadata"
    while hidden in names:
        hidden = f"_{hidden}"
    return hidden


def file_and_start(rows: DataFrame) -> tuple[Column, Column]:
    """Return the URL of the file that a row of a scan lies in, and the first byte of the split it was read in.

    Unity Catalog takes the functions for neither: there, and only there, hidden columns tell, which a GPU lacks.
    """
    from pyspark.sql import functions as F

    named = F.input_file_name(), F.input_file_block_start()
    try:
        rows.select(*named).columns  # noqa: B018 - a Connect session looks only now
    except Exception:  # its class differs between classic and Connect
        hidden = hidden_metadata(rows)
        path = F.regexp_replace(
            F.col(f"{hidden}.file_path"), "^file:/(?!/)", "file:///"
        )  # as the function does
        return path, F.col(f"{hidden}.file_block_start")
    return named


def require_columns(df: DataFrame | Sequence[str], names: Sequence[str], *, where: str) -> None:
    """Check that ``df``, or a list of columns, has the top-level columns ``names``.

    Raises:
        InputError: naming the first that is absent, ``where`` it was looked for, and the columns there are.
    """
    there = df if isinstance(df, Sequence) else df.columns
    missing = [n for n in names if n not in there]
    if missing:
        raise InputError(f"column {missing[0]!r} not found in {where}; it has {', '.join(there)}")
