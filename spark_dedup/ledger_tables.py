"""The two Delta tables of a ledger: where they lie, what they hold, and whether they can be read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import spark_dedup
from spark_dedup.errors import InputError
from spark_dedup.names import literal, path_relation, quote_name, split_name
from spark_dedup.paths import delete, exists, filesystem, find_files, normalise_path

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["DUPLICATE_COLUMNS", "RUN_COLUMNS", "Ledger", "check_ids", "check_layout", "create", "locate"]

LAYOUT = "1"
LAYOUT_KEY = "spark_dedup.ledger.layout"
ROLE_KEY = "spark_dedup.ledger.table"

RUN_COLUMNS = {
    "run_id": ("STRING", "Name of the run: its method and a hash of what it ran on and how"),
    "method": ("STRING", "Matcher that ran: exact, semantic"),
    "status": ("STRING", "done, or stopped when a safety limit was met and nothing was removed"),
    "message": ("STRING", "Why a run was stopped; empty otherwise"),
    "started_at": ("TIMESTAMP", "When the run began"),
    "finished_at": ("TIMESTAMP", "When its rows were complete; the newest done run is the current one"),
    "input": ("STRING", "Dataset that was matched: path, table, or a JSON list of them"),
    "input_version": (
        "STRING",
        "Version of a Delta input, or a hash of the names, sizes and times of the files",
    ),
    "id_field": ("STRING", "Column of the input that holds the ids"),
    "registry": ("STRING", "Id registry that gave the ids; empty when the input brought its own"),
    "parameters": ("MAP<STRING, STRING>", "Settings of the run"),
    "num_documents": ("BIGINT", "Records of the input"),
    "num_groups": ("BIGINT", "Groups of duplicates"),
    "num_duplicates": ("BIGINT", "Records to remove"),
    "documents_by_source": ("MAP<STRING, BIGINT>", "Records of the input by source, where sources are known"),
    "times": ("MAP<STRING, DOUBLE>", "Seconds by step"),
    "device": ("STRING", "cpu or gpu"),
    "library_version": ("STRING", "Version of spark_dedup"),
}
DUPLICATE_COLUMNS = {
    "run_id": ("STRING", "Run that found it: a row of the table runs"),
    "id": ("", "Record to remove"),
    "matched_id": ("", "Record that it matched"),
    "kept_id": ("", "Survivor that represents it, never itself removed; null when all copies are dropped"),
    "group_id": ("STRING", "md5 of the text for exact matches, the survivor's centroid for semantic ones"),
    "method": ("STRING", "Matcher that found it: exact, semantic"),
    "score": ("DOUBLE", "Similarity to matched_id; 1.0 for exact matches"),
    "source": ("STRING", "Source of the record, where sources are known"),
    "kept_source": ("STRING", "Source of its survivor, where sources are known"),
}
TABLE_COMMENTS = {
    "duplicates": "spark_dedup: one row per record to remove. Only rows whose run is in the table runs count.",
    "runs": "spark_dedup: one row per finished deduplication run.",
}


@dataclass(frozen=True)
class Ledger:
    """A ledger's two tables as SQL relations, quoted."""

    location: str
    runs: str
    duplicates: str


def locate(location: str | os.PathLike[str], spark: SparkSession) -> Ledger:
    """Return the ledger at a folder or schema, whether or not its tables exist.

    Raises:
        InputError: for a schema that does not exist.
    """
    text = os.fspath(location)
    if not text.strip():
        raise InputError("no ledger was named: give a folder or a schema")
    if os.path.exists(text) or "/" in text or text.startswith((".", "~")) or not isinstance(location, str):
        path = normalise_path(text)
        return Ledger(
            path, path_relation("delta", f"{path}/runs"), path_relation("delta", f"{path}/duplicates")
        )
    parts = split_name(text)
    schema = quote_name(parts)
    if len(parts) > 2:
        raise InputError(f"ledger {text} has more than two parts: name a schema or catalog.schema")
    if not spark.catalog.databaseExists(schema):
        raise InputError(
            f"no schema {schema} in this session's catalog: CREATE SCHEMA {schema}, "
            f"or write ./{text} for a folder"
        )
    return Ledger(schema, f"{schema}.`runs`", f"{schema}.`duplicates`")


def create(spark: SparkSession, ledger: Ledger, id_type: str) -> None:
    """Create the tables that are missing, for ids of a SQL type; what stands there is checked before.

    Raises:
        InputError: tables that are no ledger, or of another layout.
    """
    tables = (
        ("duplicates", ledger.duplicates, DUPLICATE_COLUMNS, "PARTITIONED BY (run_id)"),
        ("runs", ledger.runs, RUN_COLUMNS, ""),
    )
    missing = [table for table in tables if not check_layout(spark, table[1], table[0])]
    for role, relation, columns, partitions in missing:
        spelled = ", ".join(
            f"{name} {kind or id_type} COMMENT {literal(comment)}"
            for name, (kind, comment) in columns.items()
        )
        statement = (
            f"CREATE TABLE IF NOT EXISTS {relation} ({spelled}) USING delta {partitions} "
            f"COMMENT {literal(TABLE_COMMENTS[role])} "
            f"TBLPROPERTIES ({literal(LAYOUT_KEY)} = {literal(LAYOUT)}, {literal(ROLE_KEY)} = {literal(role)}, "
            "'delta.appendOnly' = 'false')"  # whatever the session's default is: a run may be recorded anew
        )
        if "/" in ledger.location:
            _clear_torn(f"{ledger.location}/{role}")
        try:
            spark.sql(statement)
        except Exception:
            # Another job may have made it at the same moment; any other failure is the caller's to see.
            if not check_layout(spark, relation, role):
                raise


def _clear_torn(table: str) -> None:
    """Clear a table that a killed job began: a log without a commit, which Delta neither reads nor makes anew."""
    fs, inner = filesystem(table)
    if exists(table) and all("/_delta_log/." in file for file in find_files(fs, inner)):
        delete(table)


def check_layout(spark: SparkSession, relation: str, role: str) -> bool:
    """Return whether the table exists.

    Raises:
        InputError: it is not this library's, or of another layout.
    """
    try:
        detail = spark.sql(f"DESCRIBE DETAIL {relation}").first()
    except Exception as error:
        if any(word in str(error) for word in ("NOT_FOUND", "MISSING_DELTA_TABLE", "doesn't exist")):
            return False
        raise
    properties = (detail["properties"] if detail else None) or {}
    if properties.get(ROLE_KEY) != role:
        raise InputError(
            f"{relation} exists and is no spark_dedup ledger: name another folder or schema for the ledger"
        )
    found = properties.get(LAYOUT_KEY)
    if found != LAYOUT:
        newer = found is not None and found.isdigit() and int(found) > int(LAYOUT)
        raise InputError(
            f"the ledger table {relation} has layout {found or 'unknown'}, spark_dedup {spark_dedup.__version__} "
            f"works with layout {LAYOUT}: "
            + (
                "update spark_dedup"
                if newer
                else "name a new ledger and run the job again; this one stays as it is"
            )
        )
    return True


def check_ids(spark: SparkSession, ledger: Ledger, id_type: str) -> None:
    """Check that a ledger takes ids of a SQL type.

    Raises:
        InputError: it holds ids of another one.
    """
    has = dict(spark.table(ledger.duplicates).dtypes)["id"].upper()
    if has != id_type:
        raise InputError(
            f"the ledger {ledger.location} holds {has.lower()} ids, these are {id_type.lower()}: "
            "name another ledger for them"
        )
