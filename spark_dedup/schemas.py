"""Whether parquet files agree in their columns, by their footers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.parts import ELEMENT, Leaf, Parts

if TYPE_CHECKING:
    import pyarrow as pa

    from spark_dedup.listing import FileInfo

__all__ = ["check_schemas", "null_parts"]


def check_schemas(
    files: Sequence[FileInfo],
    footers: Sequence[pa.parquet.FileMetaData],
    *,
    columns: Sequence[str] | None = None,
    nulls_fit: bool = False,
) -> None:
    """Check that parquet files agree in the names and types of their columns, whatever their order.

    Args:
        files: the files.
        footers: their footers, in the same order.
        columns: the columns that matter; by default all.
        nulls_fit: a column of nulls alone, which has no type in its file, agrees with one of any type.

    Raises:
        InputError: naming a file, the column, and how it differs from the first file.
    """
    first = footers[0].schema
    fields = _fields(footers[0], columns)
    for file, footer in zip(files, footers, strict=True):
        if footer.schema.equals(first):
            continue
        own = _fields(footer, columns)
        name = next((n for n in (*fields, *own) if not _agree(fields.get(n), own.get(n), nulls_fit)), None)
        if name is None:
            fields = {n: _typed(fields[n], kind) for n, kind in own.items()}
            continue
        here, there = (_type_name(found[name]) if name in found else "absent" for found in (own, fields))
        nulls = re.search(r"\bnull\b", f"{here} {there}")
        why = " (null is the type of a column of nulls alone)" if nulls else ""
        empty = [f.path for f, m in ((file, footer), (files[0], footers[0])) if not m.num_rows]
        mend = "Read them apart or write them with one schema"
        if empty:
            mend = f"{empty[0]} has no rows: leave it out, or write it again with that schema"
        raise InputError(
            f"{file.path} has another schema: column {name!r} is {here}, in {files[0].path} it is {there}"
            f"{why}. {mend}"
        )


def null_parts(
    files: Sequence[FileInfo],
    footers: Sequence[pa.parquet.FileMetaData],
    *,
    columns: Sequence[str] | None = None,
) -> Parts:
    """Tell what has no type in parquet files: columns of nulls alone, or lists and structs of these.

    Returns:
        Such columns of each file; empty where they are the same in all files.
    """
    parts = {
        file.path: frozenset(
            leaf for name, kind in _fields(footer, columns).items() for leaf in _nulls(kind, (name,))
        )
        for file, footer in zip(files, footers, strict=True)
    }
    return parts if len(set(parts.values())) > 1 else {}


def _fields(footer: pa.parquet.FileMetaData, columns: Sequence[str] | None) -> dict[str, pa.DataType]:
    schema = footer.schema.to_arrow_schema()
    return {f.name: f.type for f in schema if columns is None or f.name in columns}


def _agree(one: pa.DataType | None, other: pa.DataType | None, nulls_fit: bool) -> bool:
    if one is None or other is None:
        return False
    return _type_name(one) == _type_name(other) or (nulls_fit and _typed(one, other) is not None)


def _nulls(found: pa.DataType, at: Leaf) -> Iterator[Leaf]:
    """Yield where a type that is found ``at`` some place, or one inside of it, is none."""
    from pyarrow import types

    if types.is_null(found):
        yield at
    elif _is_list(found):
        yield from _nulls(found.value_type, (*at, ELEMENT))
    elif types.is_struct(found):
        for field in found:
            yield from _nulls(field.type, (*at, field.name))


def _typed(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type of a column that has two in two files, where nulls have none; None if they do not fit."""
    import pyarrow as pa
    from pyarrow import types

    if _type_name(one) == _type_name(other):
        return one
    if types.is_null(one) or types.is_null(other):
        return other if types.is_null(one) else one
    if _is_list(one) and _is_list(other):
        inner = _typed(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if types.is_struct(one) and types.is_struct(other):
        fields = [
            (f.name, _typed(f.type, g.type)) for f, g in zip(one, other, strict=False) if f.name == g.name
        ]
        fits = len(fields) == one.num_fields == other.num_fields and all(
            kind is not None for _, kind in fields
        )
        return pa.struct(fields) if fits else None
    return None


def _is_list(found: pa.DataType) -> bool:
    return str(found).startswith(("list", "large_list", "fixed_size_list"))


def _type_name(found: pa.DataType) -> str:
    """Return a type as Spark reads it: Arrow's writers note widths, views and zones that the file does not have."""
    import pyarrow as pa
    from pyarrow import types

    if isinstance(found, pa.BaseExtensionType):
        return _type_name(found.storage_type)
    if types.is_dictionary(found):
        return _type_name(found.value_type)
    name = str(found)
    if name in ("string", "large_string", "string_view"):
        return "string"
    if name in ("binary", "large_binary", "binary_view") or types.is_fixed_size_binary(found):
        return "binary"
    if types.is_decimal(found):
        return f"decimal({found.precision}, {found.scale})"
    if types.is_timestamp(found) and found.tz:
        return f"timestamp[{found.unit}, tz=UTC]"
    if types.is_duration(found):
        return "int64"
    if types.is_map(found):
        return f"map<{_type_name(found.key_type)}, {_type_name(found.item_type)}>"
    if types.is_struct(found):
        fields = {f.name: _type_name(f.type) for f in found}
        if fields.keys() - {"typed_value"} == {"metadata", "value"} and fields["metadata"] == "binary":
            return "variant"  # of which each file types what its own rows share
        inner = (found.field(i) for i in range(found.num_fields))
        return f"struct<{', '.join(f'{f.name}: {_type_name(f.type)}' for f in inner)}>"
    if _is_list(found):
        return f"list<{_type_name(found.value_type)}>"
    return name
