"""The ledger as persistent SQL views, and matching from SQL alone."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spark_dedup import ledger as ledgers
from spark_dedup.datasets import Source, find_source
from spark_dedup.errors import InputError, first_line
from spark_dedup.ledger import DONE, Ledger, describe_input
from spark_dedup.listing import list_files
from spark_dedup.names import literal, path_relation, quote_name, split_name
from spark_dedup.paths import on_databricks
from spark_dedup.settings import conf_of
from spark_dedup.sql_ids import id_ranges_query, numbered_query, registry_relation
from spark_dedup.tables import ID, quote

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["create_views", "register", "view_queries"]

logger = logging.getLogger(__name__)

COMMENTS = {
    "runs": "Deduplication runs, newest first by finished_at.",
    "duplicates": "Records to remove by the last good run: id, what it matched, its survivor, the score.",
    "duplicate_ids": "Ids to remove by the last good run, each once.",
    "duplicate_ids_any_run": "Ids that any good run found, with how many runs and when.",
    "groups": "Groups of the last good run: survivor, size with the survivor, weakest score.",
    "source_pairs": "Records of source_a that have a copy in source_b, by the last good run.",
    "id_ranges": "Which file an id stands for: row = id - first_id, counted from 0.",
    "documents": "The documents that remain after the last good run.",
}


def create_views(
    spark: SparkSession,
    *,
    ledger: str | os.PathLike[str],
    documents: str | os.PathLike[str] | None = None,
    prefix: str = "dedup_",
    id_field: str | None = None,
    input: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    filetype: str = "parquet",
) -> list[str]:
    """Create or replace persistent views over a ledger; they follow new runs by themselves.

    ``runs``, ``duplicates``, ``duplicate_ids``, ``duplicate_ids_any_run``, ``groups``, ``source_pairs``; with an id
    registry ``id_ranges``; with ``documents`` the documents that remain, as ``documents``.

    Args:
        spark: a session with Delta.
        ledger: folder or schema of the ledger.
        documents: path or table to show without its duplicates. Runs of other inputs then do not count.
        prefix: start of every view's name, after an optional catalog and schema: ``main.text.dedup_``.
        id_field: id column of ``documents``; the run's own by default.
        input: dataset whose runs count, when it is not ``documents`` (embeddings of them, for example).
        run_id: count this run only, now and later.
        filetype: of a ``documents`` path: ``parquet``, ``jsonl`` or ``delta``.

    Returns:
        The views' quoted names.

    Raises:
        InputError: no ledger, no run of ``documents``, a name that a table has, or no right to create views.
    """
    found = ledgers.open_ledger(spark, ledger)
    queries = view_queries(
        spark, found, documents=documents, id_field=id_field, input=input, run_id=run_id, filetype=filetype
    )
    parts = (*split_name(prefix[:-1]), "") if prefix.endswith(".") else split_name(prefix)
    names = {kind: quote_name((*parts[:-1], parts[-1] + kind)) for kind in queries}
    # Everything that can be wrong is found before the first view is made.
    for kind, query in queries.items():
        _analyse(spark, kind, query)
    before = {kind for kind, name in names.items() if spark.catalog.tableExists(name)}
    made: list[str] = []
    for kind, name in names.items():
        comment = literal(f"spark_dedup: {COMMENTS[kind]}")
        try:
            spark.sql(f"CREATE OR REPLACE VIEW {name} COMMENT {comment} AS {queries[kind]}")
        except Exception as error:
            for new in set(made) - before:
                spark.sql(f"DROP VIEW IF EXISTS {names[new]}")
            raise InputError(f"could not create the view {name}: {first_line(error)}") from error
        made.append(kind)
    catalog = conf_of(spark, "spark.sql.catalogImplementation", "in-memory")
    if len(parts) < 3 and catalog == "in-memory" and not on_databricks():
        logger.warning("the views end with this session: its catalog is in memory, no metastore keeps them")
    return list(names.values())


def view_queries(
    spark: SparkSession,
    ledger: Ledger,
    *,
    documents: str | os.PathLike[str] | None = None,
    id_field: str | None = None,
    input: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    filetype: str = "parquet",
) -> dict[str, str]:
    """Return the queries of ``create_views`` by view: plain SQL over the ledger's tables."""
    shown = _documents(spark, documents, filetype) if documents is not None else None
    scope = input if input is not None else documents
    conditions = {"status": DONE}
    if scope is not None:
        conditions["input"] = describe_input(scope)
    if run_id is not None:
        ledgers.find_run(spark, ledger, run_id)
        conditions["run_id"] = run_id
    good = " AND ".join(f"r.{column} = {literal(value)}" for column, value in conditions.items())
    last = f"(SELECT run_id FROM {ledger.runs} r WHERE {good} ORDER BY finished_at DESC, run_id DESC LIMIT 1)"
    rows = f"SELECT * FROM {ledger.duplicates} WHERE run_id = {last}"
    queries = {
        "runs": f"SELECT * FROM {ledger.runs}",
        "duplicates": rows,
        "duplicate_ids": f"SELECT DISTINCT id FROM {ledger.duplicates} WHERE run_id = {last}",
        "duplicate_ids_any_run": (
            "SELECT d.id, count(DISTINCT d.run_id) AS num_runs, min(r.finished_at) AS first_found_at, "
            f"max(r.finished_at) AS last_found_at FROM {ledger.duplicates} d "
            f"JOIN {ledger.runs} r ON d.run_id = r.run_id WHERE {good} "
            "GROUP BY d.id"
        ),
        "groups": (
            "SELECT kept_id, group_id, method, count(*) + count(DISTINCT kept_id) AS size, "
            f"count(*) AS num_removed, min(score) AS min_score FROM ({rows}) GROUP BY kept_id, group_id, method"
        ),
        "source_pairs": source_pairs_query(
            rows, f"SELECT documents_by_source FROM {ledger.runs} WHERE run_id = {last}"
        ),
    }
    run = spark.sql(f"SELECT id_field, registry FROM {ledger.runs} WHERE run_id = {last}").first()
    if run is None and scope is not None:
        known = [r[0] for r in spark.sql(f"SELECT DISTINCT input FROM {ledger.runs} LIMIT 5").collect()]
        raise InputError(
            f"the ledger {ledger.location} has no good run of {describe_input(scope)}, only of "
            f"{', '.join(known) or 'nothing'}: name the dataset that was matched as input="
        )
    if run is not None and run["registry"]:
        queries["id_ranges"] = id_ranges_query(registry_relation(run["registry"]))
    if run is not None and shown is not None:
        key = id_field or run["id_field"]
        removed = queries["duplicate_ids"]
        numbered = _with_ids(spark, shown, key, run["registry"], filetype)
        queries["documents"] = (
            f"SELECT d.* FROM {numbered} d LEFT ANTI JOIN ({removed}) r ON d.{quote(key)} = r.id"
        )
    return queries


def source_pairs_query(rows: str, documents_by_source: str) -> str:
    """Return how much of each source is in another; ``rows`` is a query of the ledger rows of one run."""
    return f"""
WITH rows AS ({rows}),
members AS (
  SELECT group_id, kept_id, source, count(*) AS n FROM rows GROUP BY group_id, kept_id, source
  UNION ALL
  SELECT group_id, kept_id, kept_source, 1L FROM rows WHERE kept_id IS NOT NULL
  GROUP BY group_id, kept_id, kept_source
),
sources AS (
  SELECT group_id, kept_id, source, sum(n) AS n FROM members WHERE source IS NOT NULL
  GROUP BY group_id, kept_id, source
)
SELECT a.source AS source_a, b.source AS source_b, sum(a.n) AS num_records, count(*) AS num_groups,
  round(sum(a.n) / try_element_at(({documents_by_source}), a.source), 6) AS fraction_of_a
FROM sources a JOIN sources b ON a.group_id = b.group_id AND a.kept_id <=> b.kept_id
WHERE a.source <> b.source OR a.n > 1
GROUP BY a.source, b.source"""


@dataclass(frozen=True)
class _Shown:
    """Documents to show: what they are, their relation in plain SQL, and a DataFrame of them."""

    source: Source
    relation: str
    df: DataFrame


def _documents(spark: SparkSession, documents: str | os.PathLike[str], filetype: str) -> _Shown:
    found = find_source(spark, documents, filetype=filetype)
    name = found.names[0]
    if found.kind == "table":
        relation = quote_name(split_name(name))
    elif found.kind == "delta":
        relation = path_relation("delta", name)
    else:
        folders = {os.path.dirname(file.path) for file in list_files(name, filetype=filetype)}
        below = [part for folder in folders for part in folder[len(name) :].split("/")[1:]]
        if any("=" not in part for part in below):
            raise InputError(
                f"{name} holds folders in folders, which SQL cannot name: "
                "register it as a table and give its name"
            )
        relation = path_relation("json" if filetype == "jsonl" else "parquet", name)
    try:
        df = spark.sql(f"SELECT * FROM {relation}")
        df.columns  # noqa: B018 - a Connect session reads only now
    except Exception as error:
        raise InputError(f"cannot read {relation}: {first_line(error)}") from error
    return _Shown(found, relation, df)


def _with_ids(spark: SparkSession, shown: _Shown, key: str, registry: str | None, filetype: str) -> str:
    """Return a relation of documents with their ids: those of the registry that gave them, else their column."""
    if key == ID and registry:
        numbered = numbered_query(
            spark, shown.relation, shown.df, shown.source, filetype=filetype, location=registry
        )
        return f"({numbered})"
    if key not in shown.df.columns:
        raise InputError(
            f"column {key!r} not found in {shown.relation}; it has {', '.join(shown.df.columns)}: give id_field="
        )
    return shown.relation


def _analyse(spark: SparkSession, kind: str, query: str) -> None:
    try:
        spark.sql(query).columns  # noqa: B018 - asking for the columns analyses the query
    except Exception as error:
        raise InputError(f"the view {kind} cannot be made: {first_line(error)}") from error


# The plan of exact.duplicate_rows, word for word: hash, spread by it, a running window that streams any group.
_HEAD = (
    "SELECT id, kept_id AS matched_id, kept_id, group_id, 'exact' AS method, 1.0D AS score FROM "
    "(SELECT id, group_id, row_number() OVER w AS place, first(id) OVER "
    "(PARTITION BY group_id ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS kept_id FROM "
    "(SELECT /*+ REPARTITION(group_id) */ "
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
    column = "concat('`', replace({0}, '`', '``'), '`')"
    # 92 is the backslash, 39 the quote: IDENTIFIER reads the escaped literal as a name and nothing else.
    table = (
        "concat('IDENTIFIER(', char(39), replace(replace({0}, char(92), concat(char(92), char(92))), "
        "char(39), concat(char(92), char(39))), char(39), ')')"
    )
    exact = ", ".join(
        [
            literal(_HEAD),
            column.format("id"),
            literal(" AS id, md5(coalesce("),
            column.format("text"),
            literal(", '')) AS group_id FROM "),
            table.format("documents"),
            literal(") WINDOW w AS (PARTITION BY group_id ORDER BY id)) WHERE place > 1"),
        ]
    )
    semantic = ", ".join(
        [
            literal("SELECT DISTINCT "),
            column.format("id"),
            literal(" AS id FROM "),
            table.format("pairs"),
            literal(" WHERE cosine_sim_score >= 1 - "),
            "cast(eps AS STRING)",
            # A record without an earlier one is listed with its own id and 0.
            literal(" - 1e-6D AND NOT isnan(cosine_sim_score) AND max_id <> "),
            column.format("id"),
        ]
    )
    for statement in (
        "FUNCTION text_key(text STRING) RETURNS STRING RETURN md5(coalesce(text, ''))",
        f"FUNCTION exact_duplicates_query(documents STRING, id STRING, text STRING) RETURNS STRING "
        f"RETURN concat({exact})",
        f"FUNCTION semantic_duplicates_query(pairs STRING, id STRING, eps DOUBLE) RETURNS STRING "
        f"RETURN concat({semantic})",
    ):
        spark.sql(f"CREATE OR REPLACE TEMPORARY {statement}")
    spark.sql("DECLARE OR REPLACE VARIABLE dedup_query STRING DEFAULT ''")
