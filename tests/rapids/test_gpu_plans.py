"""The harness itself: it must see each kind of fallback that is known, and read a report right."""

import pytest
from gpu_plans import assert_on_gpu, parse
from pyspark.sql import Window
from pyspark.sql import functions as F

pytestmark = pytest.mark.rapids


def write(recorder, df, path):
    return recorder.plans_of(lambda: df.write.parquet(str(path)))


def test_a_copy_of_a_table_is_on_gpu(spark, recorder, documents, tmp_path):
    plans = write(recorder, spark.read.parquet(documents), tmp_path / "out")
    assert len(plans) == 1
    assert plans[0].operators == [
        "DataWritingCommandExec",
        "InsertIntoHadoopFsRelationCommand",
        "WriteFilesExec",
        "FileSourceScanExec",
    ]
    assert_on_gpu(plans, must=("DataWritingCommandExec", "FileSourceScanExec"))


FALLBACKS = {
    "metadata column": (
        lambda df: df.select("id", "_metadata.file_path"),
        "FileSourceScanExec: hidden metadata columns are not supported on GPU",
    ),
    "binary key": (
        lambda df: df.select("id", "bytes").repartition(2, "bytes"),
        r"HashPartitioning: hash_key expression .* \(BinaryType is not supported\)",
    ),
    "expression on the CPU": (
        lambda df: df.select(F.unhex("name").alias("u")),
        "Unhex: GPU does not currently support the operator class",
    ),
    "aggregate that has no window form": (
        lambda df: df.select(F.min_by("id", "quality").over(Window.partitionBy("text")).alias("m")),
        "MinBy: this is not supported in the window context",
    ),
    "rows from the driver": (
        lambda df: df.sparkSession.createDataFrame([(1,), (2,)], "id bigint"),
        "RDDScanExec: GPU does not currently support",
    ),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_known_fallbacks_are_caught_with_their_reason(name, spark, recorder, documents, tmp_path):
    query, reason = FALLBACKS[name]
    plans = write(recorder, query(spark.read.parquet(documents)), tmp_path / "out")
    with pytest.raises(AssertionError, match=reason):
        assert_on_gpu(plans)


def test_a_write_that_cannot_run_is_caught(spark, recorder, documents, tmp_path):
    df = spark.read.parquet(documents).select("id", "text")
    plans = recorder.plans_of(lambda: df.write.json(str(tmp_path / "out")))
    with pytest.raises(AssertionError, match="JSON output is not supported"):
        assert_on_gpu(plans)


def test_a_query_the_plugin_breaks_on_is_caught(spark, recorder, documents):
    df = spark.read.parquet(documents).observe("seen", F.count(F.lit(1)).alias("n"))

    plans = recorder.plans_of(df.collect)
    with pytest.raises(
        AssertionError,
        match=r"the plugin failed on the query:\s.*in an unexpected context",
    ):
        assert_on_gpu(plans)


def test_an_empty_report_and_a_missing_operator_fail(spark, recorder, documents, tmp_path):
    with pytest.raises(AssertionError, match="no plan at all"):
        assert_on_gpu(recorder.plans_of(lambda: None))
    plans = write(recorder, spark.read.parquet(documents), tmp_path / "out")
    with pytest.raises(AssertionError, match=r"missing on the GPU: \['WindowExec'\]"):
        assert_on_gpu(plans, must=("WindowExec",))


def test_allowed_names_only_excuse_what_they_name(spark, recorder, documents, tmp_path):
    df = spark.read.parquet(documents).select("id", "_metadata.file_path", F.unhex("name").alias("u"))
    plans = write(recorder, df, tmp_path / "out")
    with pytest.raises(AssertionError, match="Unhex"):
        assert_on_gpu(plans, allowed={"FileSourceScanExec: hidden metadata": "known"})
    with pytest.raises(AssertionError, match="hidden metadata columns"):
        assert_on_gpu(plans, allowed={"FileSourceScanExec: another reason": "known", "Unhex": "known"})
    copy = write(recorder, spark.read.parquet(documents), tmp_path / "copy")
    with pytest.raises(AssertionError, match="no longer occur"):
        assert_on_gpu(copy, allowed={"FileSourceScanExec": "known"})


def test_a_report_that_reads_otherwise_is_an_error():
    with pytest.raises(ValueError, match="reads differently"):
        parse("@@GpuOverrides\n<<FileSourceScanExec>> runs on GPU\n")
