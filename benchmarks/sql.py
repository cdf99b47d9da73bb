"""Exact matching in SQL against the DataFrame form: ``python -m benchmarks.sql``.

The SQL form is what ``register`` gives: the same plan, made from a query. The candidates run in turn; the ratio of
medians counts.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.exact import timed
from spark_dedup import build_session, identify_exact, register


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


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    spark = build_session("benchmark", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        documents(spark, Path(folder) / "corpus", given.rows)
        result = sql_against_dataframe(spark, Path(folder) / "corpus", given.rounds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
