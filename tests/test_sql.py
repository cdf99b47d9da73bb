import re

import pytest
from ledger_rows import REMOVED, ROWS, rows, run
from pyspark.sql import functions as F
from sessions import another, plan_of

from spark_dedup.errors import InputError
from spark_dedup.exact import identify_exact
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.ledger import STOPPED, write_run
from spark_dedup.sql import create_views
from spark_dedup.sql_functions import register


def ids(df):
    return sorted(row["id"] for row in df.collect())


@pytest.fixture(scope="module")
def home(spark, tmp_path_factory):
    """A ledger over a Delta folder of documents, with three runs of it and one of other data."""
    home = tmp_path_factory.mktemp("l e`d'g") / "a.b"
    docs = home / "docs"
    spark.range(1, 13).selectExpr("id AS `my``id.`", "'t' AS text").write.format("delta").save(str(docs))
    mine = {"input": str(docs), "id_field": "my`id."}
    write_run(spark, home / "ledger", run(input_version="0", **mine), rows(spark, ROWS[:2]))
    write_run(spark, home / "ledger", run(input_version="1", **mine), rows(spark))
    write_run(spark, home / "ledger", run(input_version="2", status=STOPPED, **mine), rows(spark, ROWS[:1]))
    return home


def test_views_of_the_last_good_run(spark, home, views):
    views += create_views(spark, ledger=home / "ledger", documents=home / "docs", prefix="t1_")
    assert ids(spark.table("t1_duplicate_ids")) == sorted(REMOVED)
    assert {(r["group_id"], r["kept_id"], r["size"]) for r in spark.table("t1_groups").collect()} == {
        ("a", 1, 3),
        ("b", 2, 2),
        ("c", 3, 4),
    }
    any_run = {r["id"]: r["num_runs"] for r in spark.table("t1_duplicate_ids_any_run").collect()}
    assert any_run == {5: 2, 6: 2, 7: 1, 8: 1, 9: 1, 10: 1}
    assert sorted(r[0] for r in spark.table("t1_documents").collect()) == [1, 2, 3, 4, 11, 12]
    assert spark.table("t1_runs").count() == 3


def test_views_outlive_the_session_that_made_them(spark, home, views):
    views += create_views(spark, ledger=home / "ledger", documents=home / "docs", prefix="default.t2_")
    other = another(spark)
    assert ids(other.table("t2_duplicate_ids")) == sorted(REMOVED)
    assert other.sql("SHOW VIEWS LIKE 't2_*'").where("isTemporary").count() == 0
    assert "spark_dedup: Ids to remove" in str(other.sql("DESCRIBE EXTENDED t2_duplicate_ids").collect())


def test_how_much_of_a_is_in_b(spark, home, views):
    # By hand: a = web 2, books 1; b = web 1, books 1; c = news 3, web 1; sources hold web 5, books 3, news 4.
    views += create_views(spark, ledger=home / "ledger", prefix="t3_")
    found = {
        (r["source_a"], r["source_b"]): (r["num_records"], r["num_groups"], r["fraction_of_a"])
        for r in spark.table("t3_source_pairs").collect()
    }
    assert found == {
        ("web", "web"): (2, 1, 0.4),
        ("web", "books"): (3, 2, 0.6),
        ("books", "web"): (2, 2, 0.666667),
        ("news", "news"): (3, 1, 0.75),
        ("news", "web"): (3, 1, 0.75),
        ("web", "news"): (1, 1, 0.2),
    }


def test_views_follow_new_runs(spark, tmp_path, views):
    write_run(spark, tmp_path / "l", run(), rows(spark))
    views += create_views(spark, ledger=tmp_path / "l", prefix="t4_")
    pinned = create_views(spark, ledger=tmp_path / "l", prefix="t4p_", run_id=run().run_id)
    views += pinned
    write_run(spark, tmp_path / "l", run(input_version="new"), rows(spark, ROWS[:1]))
    assert ids(spark.table("t4_duplicate_ids")) == [5]
    assert ids(spark.table("t4p_duplicate_ids")) == sorted(REMOVED)


def test_documents_with_given_ids(spark, tmp_path, views):
    folder = tmp_path / "do cs+%41"
    spark.range(8).selectExpr("string(id) AS text").coalesce(1).write.parquet(str(folder))
    file = next(str(p) for p in folder.iterdir() if p.suffix == ".parquet")
    registry = IdRegistry.open(spark, tmp_path / "reg", start_id=3)
    assert registry.register_batch([file], 8) == 3
    given = run(input=str(folder), id_field="_curator_dedup_id", registry=str(tmp_path / "reg"))
    write_run(spark, tmp_path / "l", given, rows(spark))
    views += create_views(spark, ledger=tmp_path / "l", documents=folder, prefix="t5_")
    left = {(r["text"], r["_curator_dedup_id"]) for r in spark.table("t5_documents").collect()}
    assert left == {("0", 3), ("1", 4)}
    ranges = spark.table("t5_id_ranges").collect()
    assert [(r["file"], r["first_id"], r["last_id"], r["num_rows"]) for r in ranges] == [(file, 3, 10, 8)]


def test_documents_whose_ids_are_a_char(spark, tmp_path, views):
    """The ledger is of embeddings, whose ids nobody padded."""
    spark.sql("CREATE TABLE char_documents (id CHAR(3)) USING delta")
    try:
        spark.sql("INSERT INTO char_documents SELECT string(id) FROM range(1, 13)")
        write_run(spark, tmp_path / "l", run(), rows(spark).withColumn("id", F.col("id").cast("string")))
        views += create_views(
            spark, ledger=tmp_path / "l", documents="char_documents", input="/data/docs", prefix="t6_"
        )
        left = [r["id"] for r in spark.table("t6_documents").collect()]
        assert sorted(left) == ["1  ", "11 ", "12 ", "2  ", "3  ", "4  "]
    finally:
        spark.sql("DROP TABLE char_documents")


class TestErrors:
    def test_input_without_a_run(self, spark, home, tmp_path):
        spark.range(1).write.parquet(str(tmp_path / "other"))
        with pytest.raises(InputError, match=r"no good run of .*other, only of .*docs"):
            create_views(spark, ledger=home / "ledger", documents=tmp_path / "other", prefix="e1_")
        assert spark.sql("SHOW VIEWS LIKE 'e1_*'").count() == 0

    def test_a_dropped_table(self, spark, home):
        with pytest.raises(FileNotFoundError, match="gone"):
            create_views(spark, ledger=home / "ledger", documents="gone", prefix="e2_")

    def test_a_view_over_a_dropped_table(self, spark, home, tmp_path):
        spark.sql("CREATE TABLE e2_below USING parquet AS SELECT 1L AS id")
        spark.sql("CREATE VIEW e2_over AS SELECT * FROM e2_below")
        write_run(spark, tmp_path / "l", run(input="`e2_over`"), rows(spark))
        spark.sql("DROP TABLE e2_below")
        try:
            with pytest.raises(InputError, match=r"cannot read `e2_over`: .*e2_below") as caught:
                create_views(spark, ledger=tmp_path / "l", documents="e2_over", prefix="e2_")
            assert "\n" not in str(caught.value)
            assert spark.sql("SHOW VIEWS LIKE 'e2_*'").count() == 1
        finally:
            spark.sql("DROP VIEW e2_over")

    @pytest.mark.parametrize("at", [0, 3])
    def test_no_right_to_create_views(self, spark, home, monkeypatch, at):
        """As Unity Catalog says it; new views go again, one that stood there before stays."""
        spark.sql("CREATE OR REPLACE VIEW e7_runs AS SELECT 1 AS mine")
        real, asked = type(spark).sql, []

        def sql(self, query, *args, **kwargs):
            if query.startswith("CREATE OR REPLACE VIEW"):
                asked.append(query)
                if len(asked) > at:
                    raise RuntimeError(
                        "[INSUFFICIENT_PERMISSIONS] Insufficient privileges:\nUser does not have permission "
                        "CREATE TABLE on Schema 'main.locked'. SQLSTATE: 42501"
                    )
            return real(self, query, *args, **kwargs)

        monkeypatch.setattr(type(spark), "sql", sql)
        with pytest.raises(
            InputError, match=r"could not create the view .*INSUFFICIENT_PERMISSIONS"
        ) as caught:
            create_views(spark, ledger=home / "ledger", prefix="e7_")
        monkeypatch.undo()
        assert "CREATE TABLE on Schema 'main.locked'" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert [r["viewName"] for r in spark.sql("SHOW VIEWS LIKE 'e7_*'").collect()] == ["e7_runs"]
        spark.sql("DROP VIEW e7_runs")

    def test_a_catalog_without_views(self, spark, home):
        for key, value in {
            "": "org.apache.spark.sql.execution.datasources.v2.jdbc.JDBCTableCatalog",
            ".url": "jdbc:derby:memory:without_views;create=true",
            ".driver": "org.apache.derby.iapi.jdbc.AutoloadedDriver",
        }.items():
            spark.conf.set(f"spark.sql.catalog.viewless{key}", value)
        with pytest.raises(InputError, match="could not create the view `viewless`") as caught:
            create_views(spark, ledger=home / "ledger", prefix="viewless.APP.v_")
        assert "\n" not in str(caught.value)

    def test_a_table_has_the_name(self, spark, home):
        spark.sql("CREATE TABLE e3_source_pairs USING parquet AS SELECT 1 AS a")
        try:
            with pytest.raises(InputError, match=r"could not create the view `e3_source_pairs`"):
                create_views(spark, ledger=home / "ledger", prefix="e3_")
            assert spark.sql("SHOW VIEWS LIKE 'e3_*'").count() == 0
            assert spark.table("e3_source_pairs").count() == 1
        finally:
            spark.sql("DROP TABLE e3_source_pairs")

    def test_no_such_schema(self, spark, home):
        with pytest.raises(InputError, match="could not create the view `nosuch`"):
            create_views(spark, ledger=home / "ledger", prefix="nosuch.v_")

    def test_names_are_never_sql(self, spark, home):
        hostile = "x` AS SELECT 1; DROP VIEW y; --"
        with pytest.raises(InputError):
            create_views(spark, ledger=home / "ledger", prefix=hostile)
        with pytest.raises(InputError):
            create_views(spark, ledger=home / "ledger", input="' OR 1=1 --", prefix="e5_")

    def test_a_temporary_view_cannot_be_kept(self, spark, home, tmp_path):
        spark.range(3).createOrReplaceTempView("fleeting")
        write_run(spark, tmp_path / "l", run(input="`fleeting`"), rows(spark))
        with pytest.raises(InputError, match="could not create the view `e6_documents`"):
            create_views(spark, ledger=tmp_path / "l", documents="fleeting", prefix="e6_")
        assert spark.sql("SHOW VIEWS LIKE 'e6_*'").count() == 0


class TestFunctions:
    @pytest.fixture(autouse=True)
    def docs(self, spark):
        register(spark)
        texts = [(1, "a"), (2, None), (3, "a"), (4, ""), (5, "b"), (6, "a")]
        spark.createDataFrame(texts, "`my ``id` int, `te'xt` string").createOrReplaceTempView("docs")

    def query(self, spark, call):
        spark.sql(f"SET VAR dedup_query = {call}")
        return spark.sql("EXECUTE IMMEDIATE dedup_query")

    def test_exact(self, spark):
        found = self.query(spark, "exact_duplicates_query('docs', 'my `id', 'te\\'xt')").collect()
        assert {(r["id"], r["kept_id"]) for r in found} == {(3, 1), (6, 1), (4, 2)}
        assert found[0].__fields__ == ["id", "matched_id", "kept_id", "group_id", "method", "score"]

    def test_exact_has_the_plan_of_the_dataframe_form(self, spark, tmp_path):
        spark.range(3).selectExpr("id", "'x' AS text").write.parquet(str(tmp_path / "docs"))
        docs = spark.read.parquet(str(tmp_path / "docs"))
        docs.createOrReplaceTempView("planned")
        by_sql = self.query(spark, "exact_duplicates_query('planned', 'id', 'text')")

        def operators(df):
            return [re.match(r"[\s:+\-]*(\w+)", line)[1] for line in plan_of(df).splitlines()]

        assert operators(by_sql) == operators(identify_exact(docs, id_field="id"))
        assert "Window" in operators(by_sql)

    def test_a_view_from_sql_alone(self, spark, tmp_path, views):
        spark.sql("CREATE OR REPLACE TABLE fn_docs USING delta AS SELECT id, 'x' AS text FROM range(3)")
        views.append("fn_dups")
        spark.sql("SET VAR dedup_query = exact_duplicates_query('fn_docs', 'id', 'text')")
        spark.sql("EXECUTE IMMEDIATE 'CREATE VIEW fn_dups AS ' || dedup_query")
        assert ids(spark.table("fn_dups")) == [1, 2]
        spark.sql("INSERT INTO fn_docs VALUES (7, 'x')")
        assert ids(another(spark).table("fn_dups")) == [1, 2, 7]
        spark.sql("DROP TABLE fn_docs")

    def test_semantic(self, spark):
        pairs = [(1, 1, 0.0), (2, 1, 0.95), (3, 1, 0.9499), (4, 1, 0.99)]
        spark.createDataFrame(pairs, "id int, max_id int, cosine_sim_score float").createOrReplaceTempView(
            "p"
        )
        assert ids(self.query(spark, "semantic_duplicates_query('p', 'id', 0.05)")) == [2, 4]
        assert ids(self.query(spark, "semantic_duplicates_query('p', 'id', 0.9999995)")) == [2, 3, 4]

    def test_text_key(self, spark):
        row = spark.sql("SELECT text_key('Grüße') AS a, text_key(NULL) AS b").first()
        assert row["a"] == __import__("hashlib").md5("Grüße".encode()).hexdigest()
        assert row["b"] == "d41d8cd98f00b204e9800998ecf8427e"

    def test_a_hostile_name_stays_a_name(self, spark):
        spark.range(1).createOrReplaceTempView("victim")
        with pytest.raises(Exception, match=r"PARSE|NOT_FOUND"):
            self.query(spark, r"exact_duplicates_query('docs\') WHERE 1=1 --', 'id', 'text')").collect()
        with pytest.raises(Exception, match="UNRESOLVED_COLUMN"):
            self.query(spark, "exact_duplicates_query('docs', 'id` FROM victim --', 'text')").collect()
