"""Documents numbered in SQL, by the file and row that an id of the registry stands for."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import TYPE_CHECKING

from spark_dedup.errors import InputError, first_line
from spark_dedup.ids.batches import hash_files, named_few, spellings
from spark_dedup.ids.files import has_row_index
from spark_dedup.listing import list_files
from spark_dedup.names import is_table_name, path_relation, quote_name, split_name
from spark_dedup.paths import normalise_path
from spark_dedup.sources import Source, table_format
from spark_dedup.stores import is_s3
from spark_dedup.tables import ID, quote

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["id_ranges_query", "numbered_query", "registry_relation"]

# Spark spells the path as an encoded URI, the registry as a plain path; + is no blank in a path.
_PATH = "regexp_replace(url_decode(replace({file}, '+', '%2B')), '^file:/+', '/')"
_SPELLED = "regexp_replace({path}, '^s3a?://', '{scheme}://')"
_DIGEST = f"sha1(concat(unhex('{uuid.NAMESPACE_URL.hex}'), encode({{path}}, 'UTF-8')))"
# UUID version 5: the digest's first 16 bytes, with version and variant in their places.
_KEY = (
    "concat(left({h}, 8), '-', substr({h}, 9, 4), '-5', substr({h}, 14, 3), '-', "
    "translate(substr({h}, 17, 1), '0123456789abcdef', '89ab89ab89ab89ab'), substr({h}, 18, 3), '-', "
    "substr({h}, 21, 12))"
)


def registry_relation(location: str) -> str:
    """Return an id registry as SQL names it in FROM."""
    return quote_name(split_name(location)) if is_table_name(location) else path_relation("delta", location)


def id_ranges_query(registry: str) -> str:
    """Return which file holds which ids; ``registry`` is the relation of an id registry."""
    return (
        "SELECT files[0] AS file, min_id AS first_id, max_id AS last_id, max_id - min_id + 1 AS num_rows, "
        f"files FROM {registry} WHERE size(files) > 0"
    )


def _source_paths(df: DataFrame, source: Source, filetype: str) -> list[str]:
    """Return the data files of documents as a registry spells them."""
    if source.kind == "files":
        return [file.path for file in list_files(list(source.names), filetype=filetype)]
    return sorted(map(normalise_path, df.inputFiles()))


def numbered_query(
    spark: SparkSession, relation: str, df: DataFrame, source: Source, *, filetype: str, location: str
) -> str:
    """Return the query of documents with the ids that a registry gave. ``_metadata`` keeps its scan off the GPU.

    A file that comes later, or grows, is an error when the query runs.

    Args:
        spark: the session.
        relation: the documents.
        df: the same; an id column of old is left out, for ids are made anew.
        source: where they lie.
        filetype: of documents that lie in files.
        location: where the id registry lies.

    Raises:
        InputError: rows that SQL cannot number, up to five files that have no id range of their own, or a registry
            that is not there.
    """
    if source.kind == "files" and filetype == "jsonl":
        raise InputError(
            f"SQL cannot number JSON lines as the id registry {location} does: write what remains with "
            "TextDuplicatesRemovalWorkflow, or name a column of ids as id_field"
        )
    if not has_row_index(df):
        why = "a view or a table of other files than Delta's does not tell their places"
        mend = "write what remains with TextDuplicatesRemovalWorkflow"
        if table_format(spark, source) == "delta":
            why = "Delta tells their places only with delta.enableDeletionVectors=true"
            mend = "set it (ALTER TABLE)"
        raise InputError(
            f"SQL cannot number the rows of {relation}: {why}; {mend}, or name a column of ids as id_field"
        )
    registry = registry_relation(location)
    paths = _source_paths(df, source, filetype)
    by_key = _check_known(spark, paths, registry)
    shown = [f"d.{quote(name)}" for name in df.columns if name.lower() != ID]
    path, row = _PATH.format(file="d._metadata.file_path"), "d._metadata.row_index"
    known, wanted = _names(path, by_key=by_key, on_s3=any(map(is_s3, paths)))
    ranges = (
        f"SELECT {known} AS name, min_id, max_id FROM {registry} WHERE coalesce(size(files), -1) IN (-1, 1)"
    )
    joined = [f"r{i}" for i in range(len(wanted))]
    first, last = (f"coalesce({', '.join(f'{r}.{name}' for r in joined)})" for name in ("min_id", "max_id"))
    made = (
        f"CASE WHEN {row} <= {last} - {first} THEN {first} + {row} ELSE CAST(raise_error(concat("
        f"'no ids are registered for a row of a file that is new or has grown: ', {path})) AS BIGINT) END"
    )
    joins = " ".join(f"LEFT JOIN ({ranges}) r{i} ON {name} = r{i}.name" for i, name in enumerate(wanted))
    return (
        f"SELECT /*+ BROADCAST({', '.join(joined)}) */ {', '.join([*shown, f'{made} AS {quote(ID)}'])} "
        f"FROM {relation} d {joins}"
    )


def _names(path: str, *, by_key: bool, on_s3: bool) -> tuple[str, list[str]]:
    """Return by what a registry names a file, in SQL, and what a row's path may be named there."""
    ways = [_SPELLED.format(path=path, scheme=scheme) for scheme in ("s3", "s3a")] if on_s3 else [path]
    # Hashing every row's path is for imported registries, which name keys only.
    return (
        ("key", [_KEY.format(h=_DIGEST.format(path=way)) for way in ways]) if by_key else ("files[0]", ways)
    )


def _check_known(spark: SparkSession, paths: Collection[str], registry: str) -> bool:
    """Check that files have ids; return whether the registry knows some of them by nothing but their keys."""
    try:
        rows = spark.sql(f"SELECT key, files IS NULL FROM {registry}").collect()
    except Exception as error:
        raise InputError(f"cannot read the id registry {registry}: {first_line(error)}") from error
    imported = {row[0]: row[1] for row in rows}
    ways = {path: [hash_files(way) for way in spellings(path)] for path in paths}
    keys = {path: next((key for key in ways[path] if key in imported), None) for path in paths}
    unknown = [path for path, key in keys.items() if key is None]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(keys)} files have no id range of their own in the id registry {registry}: "
            f"{named_few(unknown)}. Run the job again if they are new; write what remains with "
            "TextDuplicatesRemovalWorkflow if their ids were given to several files at once; or name a column of "
            "ids as id_field"
        )
    return any(imported[key] for key in keys.values() if key is not None)
