"""The ledger's SQL views and functions, as the real RAPIDS plugin judges their plans."""

from datetime import UTC, datetime

import pytest
from gpu_plans import assert_on_gpu

from spark_dedup import CURATOR_DEDUP_ID_STR as ID
from spark_dedup.exact import identify_exact
from spark_dedup.ids import IdRegistry, read_documents
from spark_dedup.ledger import Run, write_run
from spark_dedup.sql import create_views
from spark_dedup.sql_functions import register

pytestmark = pytest.mark.rapids


@pytest.fixture(scope="module")
def views(spark, documents, tmp_path_factory):
    """Views over a ledger of one exact run, and the Delta documents that it ran on."""
    home = tmp_path_factory.mktemp("views")
    docs = str(home / "docs")
    spark.read.parquet(documents).select("id", "text", "name").write.format("delta").save(docs)
    found = identify_exact(spark.read.format("delta").load(docs), id_field="id")
    run = Run(
        method="exact",
        input=docs,
        input_version="delta:0",
        id_field="id",
        num_documents=1000,
        num_groups=300,
        num_duplicates=300,
        started_at=datetime.now(UTC),
    )
    write_run(spark, home / "ledger", run, found)
    yield create_views(spark, ledger=home / "ledger", documents=docs, prefix="gpu_")
    for name in spark.sql("SHOW VIEWS LIKE 'gpu_*'").collect():
        spark.sql(f"DROP VIEW {name['viewName']}")


def without_file_pruning(plans):
    """Leave out what Delta asks its log's statistics before a scan with a filter: driver work, not our plan."""
    return [plan for plan in plans if not any("DataSkippingReader" in node.said for node in plan.nodes)]


@pytest.mark.parametrize(
    "kind",
    ["runs", "duplicates", "duplicate_ids", "duplicate_ids_any_run", "groups", "source_pairs", "documents"],
)
def test_views(spark, views, recorder, tmp_path, kind):
    plans = recorder.plans_of(lambda: spark.table(f"gpu_{kind}").write.parquet(str(tmp_path / kind)))
    assert_on_gpu(without_file_pruning(plans), must=("FileSourceScanExec", "DataWritingCommandExec"))


def test_documents_with_ids_from_a_registry(spark, documents, recorder, tmp_path):
    """The only view that leaves the GPU: ids are the file's first id and the row, and those are `_metadata`."""
    folder = str(tmp_path / "docs")
    spark.read.parquet(documents).select("text", "name").coalesce(1).write.parquet(folder)
    registry = IdRegistry.open(spark, tmp_path / "registry")
    rows = read_documents(spark, folder, registry=registry)
    run = Run(
        method="exact",
        input=folder,
        input_version="1",
        id_field=ID,
        registry=str(tmp_path / "registry"),
        num_documents=1000,
        num_groups=300,
        num_duplicates=300,
        started_at=datetime.now(UTC),
    )
    write_run(spark, tmp_path / "ledger", run, identify_exact(rows, id_field=ID))
    made = create_views(spark, ledger=tmp_path / "ledger", documents=folder, prefix="gpu_given_")
    try:
        ranges = recorder.plans_of(
            lambda: spark.table("gpu_given_id_ranges").write.parquet(str(tmp_path / "r"))
        )
        assert_on_gpu(without_file_pruning(ranges), must=("FileSourceScanExec",))
        plans = recorder.plans_of(
            lambda: spark.table("gpu_given_documents").write.parquet(str(tmp_path / "d"))
        )
        assert spark.read.parquet(str(tmp_path / "d")).count() == 700
        assert any("metadata" in node.said for plan in plans for node in plan.nodes if node.is_fallback)
    finally:
        for name in made:
            spark.sql(f"DROP VIEW {name}")


def test_exact_in_sql(spark, views, documents, recorder, tmp_path):
    register(spark)
    spark.read.parquet(documents).createOrReplaceTempView("gpu_docs")
    spark.sql("SET VAR dedup_query = exact_duplicates_query('gpu_docs', 'id', 'text')")
    found = spark.sql("EXECUTE IMMEDIATE dedup_query")
    plans = recorder.plans_of(lambda: found.write.parquet(str(tmp_path / "out")))
    assert_on_gpu(plans, must=("WindowExec", "ShuffleExchangeExec", "Md5", "FileSourceScanExec"))
    assert spark.read.parquet(str(tmp_path / "out")).count() == 300
