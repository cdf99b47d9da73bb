"""Exact matching in SQL against the DataFrame form, and the report at 100,000 groups: ``python -m benchmarks.sql``.

The SQL form is what ``register`` gives: the same plan, made from a query. The candidates run in turn; the ratio of
medians counts.
"""

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.exact import timed
from spark_dedup import build_session, identify_exact, register
from spark_dedup.ledger import Run, write_run
from spark_dedup.report import make_report


def documents(spark, folder, count):
    """Texts of about 500 characters, a fifth of them copies."""
    text = "concat_ws(' ', transform(sequence(1, 16), i -> md5(concat(id % {0}, i)))) AS text"
    rows = spark.range(count).selectExpr("id", text.format(count * 4 // 5))
    rows.repartition(8).write.mode("overwrite").parquet(str(folder))


def sql_against_dataframe(spark, folder, rounds):
    docs = spark.read.parquet(str(folder))
    docs.createOrReplaceTempView("docs")
    register(spark)

    def by_dataframe():
        identify_exact(docs, id_field="id").write.format("noop").mode("overwrite").save()

    def by_sql():
        spark.sql("SET VAR dedup_query = exact_duplicates_query('docs', 'id', 'text')")
        spark.sql("EXECUTE IMMEDIATE dedup_query").write.format("noop").mode("overwrite").save()

    medians, seconds = timed({"dataframe": by_dataframe, "sql": by_sql}, rounds)
    return {
        "medians": medians,
        "seconds": seconds,
        "sql_over_dataframe": medians["sql"] / medians["dataframe"],
    }


def report_at(spark, folder, groups):
    """Make the report of as many groups of two, and say how long it took and how large the page is."""
    docs = str(folder / "docs")
    spark.range(2 * groups).selectExpr("id", f"concat('text ', id % {groups}) AS text").write.parquet(docs)
    found = identify_exact(spark.read.parquet(docs), id_field="id")
    run = Run(
        method="exact",
        input=docs,
        input_version="1",
        id_field="id",
        num_documents=2 * groups,
        num_groups=groups,
        num_duplicates=groups,
        started_at=datetime.now(UTC),
        parameters={"text_field": "text"},
    )
    write_run(spark, folder / "ledger", run, found)
    started = time.perf_counter()
    page = make_report(spark, ledger=folder / "ledger").html
    return {"groups": groups, "seconds": time.perf_counter() - started, "characters": len(page)}


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--groups", type=int, default=100_000)
    given = options.parse_args()
    spark = build_session("benchmark", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        documents(spark, Path(folder) / "corpus", given.rows)
        result = sql_against_dataframe(spark, Path(folder) / "corpus", given.rounds)
        result["report"] = report_at(spark, Path(folder), given.groups)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
