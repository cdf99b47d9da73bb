"""The plans of this library, as the real RAPIDS plugin judges them, from scan to write."""

import pytest
from gpu_plans import assert_on_gpu
from pyspark.sql import functions as F

from spark_dedup.exact import duplicate_rows, identify_exact, ids_and_groups
from spark_dedup.ids import IdGenerator, IdRegistry, read_documents
from spark_dedup.removal.text import remove_duplicates

pytestmark = pytest.mark.rapids

WRITE = ("DataWritingCommandExec", "InsertIntoHadoopFsRelationCommand", "WriteFilesExec")
EXACT = (*WRITE, "FilterExec", "WindowExec", "SortExec", "ShuffleExchangeExec", "Md5", "FileSourceScanExec")
SMALL_TABLE = "the first ids of the splits, one row per split, made on the driver"


@pytest.fixture
def written(recorder, tmp_path):
    """Write a DataFrame as parquet and return the plans."""
    return lambda df, name="out": recorder.plans_of(lambda: df.write.parquet(str(tmp_path / name)))


@pytest.fixture
def df(spark, documents):
    return spark.read.parquet(documents)


@pytest.mark.parametrize("id_field", ["id", "name"])
def test_exact_with_an_id_column(df, written, id_field):
    found = identify_exact(df, text_field="text", id_field=id_field)
    ids = found.select(F.col("id").alias(id_field)).sortWithinPartitions(id_field)
    assert_on_gpu(written(ids), must=EXACT)


def test_exact_ledger_rows(df, written):
    assert_on_gpu(written(identify_exact(df, id_field="id")), must=EXACT)


def test_exact_as_the_job_runs_it(df, written):
    rows = duplicate_rows(df, text_field="text", id_field="id", n_partitions=3)
    assert_on_gpu(written(ids_and_groups(rows, id_field="id")), must=EXACT)


@pytest.mark.parametrize(
    "keep",
    ["day", [("quality", "desc"), "seen"], [("price", "desc"), "name"]],
    ids=["date", "double and timestamp", "decimal and string"],
)
def test_exact_with_keep_columns(df, written, keep):
    assert_on_gpu(written(identify_exact(df, id_field="id", keep=keep)), must=EXACT)


def test_exact_verifying_the_texts(df, written):
    assert_on_gpu(written(identify_exact(df, id_field="id", verify=True)), must=EXACT)


def test_exact_by_xxhash64(df, written):
    found = identify_exact(df, id_field="id", hash_method="xxhash64")
    assert_on_gpu(written(found), must=["XxHash64" if name == "Md5" else name for name in EXACT])


@pytest.mark.parametrize("ansi", ["true", "false"])
def test_exact_in_both_sql_modes(spark, df, written, ansi):
    before = spark.conf.get("spark.sql.ansi.enabled")
    spark.conf.set("spark.sql.ansi.enabled", ansi)
    try:
        assert_on_gpu(written(identify_exact(df, id_field="id")), must=EXACT)
    finally:
        spark.conf.set("spark.sql.ansi.enabled", before)


def test_exact_over_delta(spark, df, written, tmp_path):
    df.select("id", "text").write.format("delta").save(str(tmp_path / "delta"))
    delta = spark.read.format("delta").load(str(tmp_path / "delta"))
    assert_on_gpu(written(identify_exact(delta, id_field="id")), must=EXACT)


def test_exact_over_jsonl(spark, df, written, tmp_path):
    df.select("id", "text").write.json(str(tmp_path / "jsonl"))
    lines = spark.read.schema("id bigint, text string").json(str(tmp_path / "jsonl"))
    assert_on_gpu(written(identify_exact(lines, id_field="id")), must=EXACT)


def test_exact_with_generated_ids(spark, documents, recorder, written, tmp_path):
    registry = IdRegistry.open(spark, str(tmp_path / "registry"))
    numbered = read_documents(spark, documents, registry=registry)
    plans = written(identify_exact(numbered, id_field="_curator_dedup_id"))
    assert_on_gpu(plans, must=(*EXACT, "BroadcastHashJoinExec", "InputFileName", "MonotonicallyIncreasingID"))


def test_generated_ids_kept_in_memory_need_one_small_table_of_the_driver(spark, documents, written):
    numbered = read_documents(spark, documents, registry=IdGenerator())
    plans = written(identify_exact(numbered, id_field="_curator_dedup_id"))
    assert_on_gpu(
        plans, must=("WindowExec", "Md5"), allowed={"LocalTableScanExec: GPU does not": SMALL_TABLE}
    )


def test_ids_are_the_same_as_without_the_plugin(spark, documents, tmp_path):
    """The GPU's way of numbering rows, run on the CPU, against the row's true place in its file."""
    registry = IdRegistry.open(spark, str(tmp_path / "registry"))
    for size in ("1k", "4k", "128m"):
        spark.conf.set("spark.sql.files.maxPartitionBytes", size)
        try:
            numbered = read_documents(spark, documents, registry=registry, columns=["id"])
            got = {(row[0], row[1]) for row in numbered.collect()}
        finally:
            spark.conf.unset("spark.sql.files.maxPartitionBytes")
        assert got == expected_ids(spark, documents, registry)


def expected_ids(spark, documents, registry):
    """Ids from each file read alone with pyarrow."""
    from pathlib import Path

    import pyarrow.parquet as pq

    out = set()
    for file in sorted(Path(documents).glob("*.parquet")):
        first, last = registry.get_batch_range(files=str(file))
        ids = pq.read_table(file, columns=["id"])["id"].to_pylist()
        assert len(ids) == last - first + 1
        out |= {(value, first + place) for place, value in enumerate(ids)}
    return out


@pytest.mark.parametrize("id_field", ["id", "name"])
def test_removal(spark, df, written, id_field, tmp_path):
    df.where("id % 3 = 0").select(F.col(id_field).alias("id")).write.parquet(str(tmp_path / "ids"))
    listed = spark.read.parquet(str(tmp_path / "ids"))
    plans = written(remove_duplicates(df, listed, id_field=id_field))
    assert_on_gpu(plans, must=(*WRITE, "BroadcastHashJoinExec", "FileSourceScanExec"))


def test_removal_written_as_delta(spark, df, recorder, tmp_path):
    df.where("id % 3 = 0").select("id").write.parquet(str(tmp_path / "ids"))
    listed = spark.read.parquet(str(tmp_path / "ids"))
    kept = remove_duplicates(df.select("id", "text"), listed, id_field="id")
    plans = recorder.plans_of(lambda: kept.write.format("delta").save(str(tmp_path / "out")))
    assert_on_gpu(plans, must=("BroadcastHashJoinExec", "FileSourceScanExec"))
