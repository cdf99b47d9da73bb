"""Matching from SQL alone: functions that give queries, for EXECUTE IMMEDIATE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dedup.errors import InputError
from spark_dedup.names import literal

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["register"]

# The plan of exact.duplicate_rows, word for word: hash, spread by it, a running window that streams any group.
_HEAD = (
    "SELECT id, kept_id AS matched_id, kept_id, group_id, 'exact' AS method, 1.0D AS score FROM "
    "(SELECT id, group_id, row_number() OVER w AS place, first(id) OVER "
    "(PARTITION BY key, key_2 ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS kept_id FROM "
    "(SELECT /*+ REPARTITION(key, key_2) */ id, group_id, xxhash64(group_id) AS key, "
    "xxhash64(1, group_id) AS key_2 FROM (SELECT "
)
_COLUMN = "concat('`', replace({0}, '`', '``'), '`')"
# 92 is the backslash, 39 the quote: IDENTIFIER reads the escaped literal as a name and nothing else.
_TABLE = (
    "concat('IDENTIFIER(', char(39), replace(replace({0}, char(92), concat(char(92), char(92))), "
    "char(39), concat(char(92), char(39))), char(39), ')')"
)
_EXACT = (
    literal(_HEAD),
    _COLUMN.format("id"),
    literal(" AS id, md5(coalesce("),
    _COLUMN.format("text"),
    literal(", '')) AS group_id FROM "),
    _TABLE.format("documents"),
    literal(")) WINDOW w AS (PARTITION BY key, key_2 ORDER BY id)) WHERE place > 1"),
)
_SEMANTIC = (
    literal("SELECT DISTINCT "),
    _COLUMN.format("id"),
    literal(" AS id FROM "),
    _TABLE.format("pairs"),
    literal(" WHERE cosine_sim_score >= 1 - "),
    "cast(eps AS STRING)",
    # A record without an earlier one is listed with its own id and 0.
    literal(" - 1e-6D AND NOT isnan(cosine_sim_score) AND max_id <> "),
    _COLUMN.format("id"),
)


def register(spark: SparkSession) -> None:
    """Register SQL functions for matching without Python; they live as long as the session.

    Spark cannot plan a SQL table function over a table argument, and a Python one receives every text in a Python
    worker. So these functions give the *query* and EXECUTE IMMEDIATE runs it: the plan is the DataFrame form's own.

    - ``text_key(text)``: the md5 that exact matching groups by.
    - ``exact_duplicates_query(documents, id, text)``: query of the ledger rows of exact duplicates.
    - ``semantic_duplicates_query(pairs, id, eps)``: query of the ids to remove among pairwise results.

    The variable ``dedup_query`` takes such a query::

        SET VAR dedup_query = exact_duplicates_query('docs', 'id', 'text');
        EXECUTE IMMEDIATE dedup_query;
        EXECUTE IMMEDIATE 'CREATE VIEW dups AS ' || dedup_query;

    ``documents`` and ``pairs`` are names of tables or views; nothing in them or in a column's name can inject SQL.

    Raises:
        InputError: on Spark 3.5, which has no SQL functions.
    """
    if int(spark.version.split(".")[0]) < 4:
        raise InputError(
            f"SQL functions need Spark 4.0 or newer, this session is {spark.version}: use identify_exact"
        )
    for statement in (
        "FUNCTION text_key(text STRING) RETURNS STRING RETURN md5(coalesce(text, ''))",
        f"FUNCTION exact_duplicates_query(documents STRING, id STRING, text STRING) RETURNS STRING "
        f"RETURN concat({', '.join(_EXACT)})",
        f"FUNCTION semantic_duplicates_query(pairs STRING, id STRING, eps DOUBLE) RETURNS STRING "
        f"RETURN concat({', '.join(_SEMANTIC)})",
    ):
        spark.sql(f"CREATE OR REPLACE TEMPORARY {statement}")
    spark.sql("DECLARE OR REPLACE VARIABLE dedup_query STRING DEFAULT ''")
