"""Hand-made ledger rows, shared by the tests of the ledger, its views and the report.

Documents 1..12 in three sources; groups a = {1, 5, 6}, b = {2, 7}, c = {3, 8, 9, 10}; 4, 11, 12 stand alone.
"""

from datetime import UTC, datetime

from spark_dedup.ledger import Run

SOURCES = {1: "web", 5: "web", 6: "books", 2: "web", 7: "books", 3: "news", 8: "news", 9: "news", 10: "web"}
SOURCES |= {4: "web", 11: "books", 12: "news"}
GROUPS = {"a": [1, 5, 6], "b": [2, 7], "c": [3, 8, 9, 10]}
ROWS = [(i, g[0], g[0], k, "exact", 1.0, SOURCES[i], SOURCES[g[0]]) for k, g in GROUPS.items() for i in g[1:]]
SCHEMA = (
    "id bigint, matched_id bigint, kept_id bigint, group_id string, method string, score double, "
    "source string, kept_source string"
)
REMOVED = {5, 6, 7, 8, 9, 10}


def rows(spark, chosen=None):
    return spark.createDataFrame(ROWS if chosen is None else chosen, SCHEMA)


def run(**changes):
    known = {
        "method": "exact",
        "input": "/data/docs",
        "input_version": "files:1:aa",
        "id_field": "id",
        "num_documents": 12,
        "num_groups": 3,
        "num_duplicates": 6,
        "started_at": datetime(2026, 1, 2, tzinfo=UTC),
        "parameters": {"text_field": "text"},
        "documents_by_source": {"web": 5, "books": 3, "news": 4},
        "times": {"identification": 1.5},
    }
    return Run(**{**known, **changes})
