"""A session with the real RAPIDS plugin in explainOnly mode, shared by all tests of this folder.

A process has one JVM, and the plugin must be there from its start: `make test-rapids` runs these tests in a process
of their own.
"""

import pytest
from gpu_plans import LOG4J, Recorder

from spark_dedup import runtime
from spark_dedup.session import build_session

EXPLAIN_ONLY = {
    "spark.rapids.sql.mode": "explainOnly",
    "spark.rapids.sql.explain": "ALL",
    # With adaptive execution each stage is planned anew after the last one ran on the CPU, and the plugin then
    # says of shuffle reads and broadcast joins that it cannot tell. Without it the whole plan is judged at once.
    "spark.sql.adaptive.enabled": "false",
    "spark.driver.memory": "2g",
    "spark.sql.shuffle.partitions": "4",
    "spark.databricks.delta.snapshotPartitions": "1",
}


def pytest_collection_modifyitems(config, items):
    """Leave these tests out when others run in the same process, whose session lacks the plugin."""
    ours = [item for item in items if item.get_closest_marker("rapids")]
    if len(ours) < len(items) and config.option.markexpr != "rapids":
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


@pytest.fixture(scope="session")
def report_log(tmp_path_factory):
    return tmp_path_factory.mktemp("report") / "plans.txt"


@pytest.fixture(scope="session")
def spark(tmp_path_factory, report_log):
    """The session that `build_session(device="gpu")` makes, on a machine that need not have a GPU."""
    log4j = report_log.with_name("log4j2.properties")
    log4j.write_text(LOG4J.format(report=report_log))
    report_log.touch()
    patch = pytest.MonkeyPatch()
    patch.setattr(runtime, "has_gpu", lambda: True)
    session = build_session(
        "rapids",
        device="gpu",
        master="local[2]",
        conf={
            **EXPLAIN_ONLY,
            "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile=file:{log4j}",
            "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
        },
    )
    patch.undo()
    yield session
    session.stop()


@pytest.fixture(scope="session")
def recorder(spark, report_log):
    return Recorder(report_log)


@pytest.fixture(scope="session")
def documents(spark, tmp_path_factory):
    """1,000 documents of 700 texts in three parquet files, with columns of every kind."""
    path = str(tmp_path_factory.mktemp("data") / "documents")
    spark.range(1000).selectExpr(
        "id",
        "cast(id as string) as name",
        "concat('text ', id % 700) as text",
        "cast(id as double) as quality",
        "date_add(date'2026-01-01', cast(id % 30 as int)) as day",
        "timestamp_seconds(id) as seen",
        "cast(id as decimal(10, 2)) as price",
        "array('x', name) as products",
        "named_struct('a', id, 'b', array(name)) as details",
        "map('k', name) as labels",
        "cast(name as binary) as bytes",
        "array(cast(id as float), cast(id % 7 as float), 1f) as embeddings",
    ).repartition(3).write.parquet(path)
    return path
