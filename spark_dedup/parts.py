"""Parquet files of one schema but for columns of nulls alone, which have no type there: read as one frame.

Spark fails at a file whose column has no type, or another than it was told of. So files are read in parts, those
together that lack the same types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

from spark_dedup.listing import FileInfo
from spark_dedup.paths import spark_path
from spark_dedup.tables import col, quote

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, DataFrameReader
    from pyspark.sql.types import DataType, StructType

__all__ = ["ELEMENT", "Leaf", "Parts", "parts_of", "read_parts"]

Leaf: TypeAlias = tuple[str, ...]
"""A column, or what lies inside of one: names of its fields, ``ELEMENT`` for what a list holds."""
Parts: TypeAlias = Mapping[str, frozenset[Leaf]]
"""Path of each file → what has no type in it."""

ELEMENT = "element"
_ABSENT = "__spark_dedup_absent_"


def parts_of(parts: Parts, columns: Iterable[str]) -> Parts:
    """Return what has no type in files of which only some columns, of whatever case, are read."""
    names = {name.lower() for name in columns}
    some = {
        path: frozenset(leaf for leaf in part if leaf[0].lower() in names) for path, part in parts.items()
    }
    return some if len(set(some.values())) > 1 else {}


def read_parts(
    reader: DataFrameReader, files: Sequence[FileInfo], parts: Parts, schema: StructType | None
) -> DataFrame:
    """Read files by parts, with the types that columns have in some of them.

    Args:
        reader: a reader of parquet without a schema.
        files: the files to read.
        parts: what has no type, of these files and maybe others.
        schema: the schema to read them with; None infers it.
    """
    by_part: dict[frozenset[Leaf], list[str]] = {}
    for file in files:
        # One that came since is read as it is: the job tells of it when it looks at its input again.
        by_part.setdefault(parts.get(file.path, frozenset()), []).append(spark_path(file.path))
    if schema is None:
        some = [reader.parquet(by_part[part][0]) for part in _with_all_types(by_part)]
        schema = reduce(_union_by_name, some).schema
    frames = [_read(reader, paths, part, schema) for part, paths in by_part.items()]
    while len(frames) > 1:  # each union is analysed whole, so a chain of many would take long
        frames = [reduce(_union, frames[i : i + 2]) for i in range(0, len(frames), 2)]
    return frames[0]


def _union(one: DataFrame, other: DataFrame) -> DataFrame:
    return one.union(other)


def _union_by_name(one: DataFrame, other: DataFrame) -> DataFrame:
    return one.unionByName(other)


def _with_all_types(parts: Iterable[frozenset[Leaf]]) -> list[frozenset[Leaf]]:
    """Return few parts whose files have every type that is anywhere."""
    missing = frozenset[Leaf]().union(*parts)
    chosen: list[frozenset[Leaf]] = []
    for part in sorted(parts, key=len):
        found = {leaf for leaf in missing if not any(leaf[: len(own)] == own for own in part)}
        if found or not chosen:
            chosen.append(part)
        missing -= found
    return chosen


def _read(
    reader: DataFrameReader, paths: Sequence[str], part: frozenset[Leaf], schema: StructType
) -> DataFrame:
    from pyspark.sql.types import StructField, StructType

    fields = []
    for number, field in enumerate(schema.fields):
        # Spark gives nulls for a column that files do not have.
        name = f"{_ABSENT}{number}" if (field.name,) in part else field.name
        fields.append(StructField(name, _untyped(field.dataType, part, (field.name,))))
    df = reader.schema(StructType(fields)).parquet(*paths)
    names = [field.name for field in fields]
    inner = {
        own.name: _with_types(col(own.name), own.dataType, field.dataType)
        for own, field in zip(fields, schema.fields, strict=True)
        if own.dataType != field.dataType
    }
    df = df.withColumns(inner) if inner else df
    return df.select(*map(quote, names)).toDF(*schema.names)


def _untyped(kind: DataType, part: frozenset[Leaf], at: Leaf) -> DataType:
    """Return a type as Spark reads it where types inside of it are lacking; ``at`` says of what it is the type."""
    from pyspark.sql.types import ArrayType, IntegerType, StructField, StructType

    if len(at) > 1 and at in part:
        return IntegerType()  # as parquet stores such nulls; Spark 3 knows no other type of theirs
    if isinstance(kind, ArrayType):
        return ArrayType(_untyped(kind.elementType, part, (*at, ELEMENT)), kind.containsNull)
    if isinstance(kind, StructType):
        fields = [(f, _untyped(f.dataType, part, (*at, f.name))) for f in kind.fields]
        return StructType([StructField(f.name, own, f.nullable) for f, own in fields])
    return kind


def _with_types(column: Column, own: DataType, wanted: DataType) -> Column:
    """Return a column whose nulls have the wanted type in the place of their own."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import ArrayType, StructType

    if own == wanted:
        return column
    if isinstance(own, ArrayType) and isinstance(wanted, ArrayType):
        inner = own.elementType, wanted.elementType
        return F.transform(column, lambda element: _with_types(element, *inner))
    if isinstance(own, StructType) and isinstance(wanted, StructType):
        fields = [
            _with_types(column.getField(f.name), o.dataType, f.dataType).alias(f.name)
            for o, f in zip(own.fields, wanted.fields, strict=True)
        ]
        return F.when(column.isNotNull(), F.struct(*fields))
    return F.lit(None).cast(wanted)
