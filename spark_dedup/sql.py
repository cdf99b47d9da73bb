"""The ledger as persistent SQL views."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spark_dedup import ledger as ledgers
from spark_dedup.errors import InputError, first_line
from spark_dedup.ledger import DONE, Ledger
from spark_dedup.ledger_runs import describe_input
from spark_dedup.listing import list_files
from spark_dedup.names import literal, quote_name, split_name
from spark_dedup.paths import on_databricks
from spark_dedup.removal.delta import check_flat, shown_relation
from spark_dedup.settings import conf_of
from spark_dedup.sources import Source, find_source
from spark_dedup.sql_ids import id_ranges_query, numbered_query, registry_relation
from spark_dedup.tables import ID, have_char, quote

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["create_views"]

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
    queries = _view_queries(
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


def _view_queries(
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
    good = _good_runs(spark, ledger, scope, run_id)
    last = f"(SELECT run_id FROM {ledger.runs} r WHERE {good} ORDER BY finished_at DESC, run_id DESC LIMIT 1)"
    queries = _ledger_queries(ledger, good, last)
    run = spark.sql(f"SELECT id_field, registry FROM {ledger.runs} WHERE run_id = {last}").first()
    if run is None:
        if scope is not None:
            known = [r[0] for r in spark.sql(f"SELECT DISTINCT input FROM {ledger.runs} LIMIT 5").collect()]
            raise InputError(
                f"the ledger {ledger.location} has no good run of {describe_input(scope)}, only of "
                f"{', '.join(known) or 'nothing'}: name the dataset that was matched as input="
            )
        return queries
    if run["registry"]:
        queries["id_ranges"] = id_ranges_query(registry_relation(run["registry"]))
    if shown is not None:
        key = id_field or run["id_field"]
        removed = queries["duplicate_ids"]
        numbered = _with_ids(spark, shown, key, run["registry"], filetype)
        is_same = f"d.{quote(key)} = r.id"
        if key in shown.df.columns and have_char((shown.df, key)):
            is_same = f"rtrim(d.{quote(key)}) = rtrim(r.id)"
        queries["documents"] = f"SELECT d.* FROM {numbered} d LEFT ANTI JOIN ({removed}) r ON {is_same}"
    return queries


def _ledger_queries(ledger: Ledger, good: str, last: str) -> dict[str, str]:
    """Return the queries of the views of the ledger alone: ``good`` tells runs that count, ``last`` the last."""
    rows = f"SELECT * FROM {ledger.duplicates} WHERE run_id = {last}"
    return {
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


def _good_runs(
    spark: SparkSession, ledger: Ledger, scope: str | os.PathLike[str] | None, run_id: str | None
) -> str:
    """Return the condition of SQL on the runs, called ``r``, that count: of one input or all, pinned or not."""
    conditions = {"status": DONE}
    if scope is not None:
        conditions["input"] = describe_input(scope)
    if run_id is not None:
        ledgers.find_run(spark, ledger, run_id)
        conditions["run_id"] = run_id
    return " AND ".join(f"r.{column} = {literal(value)}" for column, value in conditions.items())


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
    relation = shown_relation(spark, found, filetype)
    if found.kind == "files":
        check_flat(list_files(list(found.names), filetype=filetype), found)
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
