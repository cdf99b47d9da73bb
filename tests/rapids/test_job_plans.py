"""Whole jobs on a session with the plugin: every query that a job starts, judged."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gpu_plans import assert_on_gpu
from pyspark.sql import functions as F

from spark_dedup import CURATOR_DEDUP_ID_STR as ID
from spark_dedup import read_documents
from spark_dedup.removal import passes
from spark_dedup.workflows.exact import ExactDeduplicationWorkflow
from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow

pytestmark = pytest.mark.rapids

WRITE = ("DataWritingCommandExec", "InsertIntoHadoopFsRelationCommand", "WriteFilesExec")
EXACT = (*WRITE, "FilterExec", "WindowExec", "SortExec", "ShuffleExchangeExec", "Md5", "FileSourceScanExec")


@pytest.fixture
def run(spark, recorder):
    """Run a job; return its result and the plans of its queries."""

    def run(job):
        results = []
        plans = recorder.plans_of(lambda: results.append(job.run(spark)))
        return results[0], plans

    return run


@pytest.mark.parametrize("id_field", ["id", None], ids=["id column", "generated ids"])
def test_exact(run, documents, tmp_path, id_field):
    job = ExactDeduplicationWorkflow(
        input_path=documents, output_path=str(tmp_path / "out"), assign_id=id_field is None, id_field=id_field
    )
    result, plans = run(job)
    assert result["num_duplicates"] == 300
    assert result["num_groups"] == 300
    assert_on_gpu(plans, must=EXACT)


def test_exact_with_removal(run, documents, tmp_path):
    job = ExactDeduplicationWorkflow(
        input_path=documents, output_path=str(tmp_path / "out"), perform_removal=True
    )
    result, plans = run(job)
    assert result["num_duplicates_removed"] == 300
    assert_on_gpu(plans, must=(*EXACT, "BroadcastHashJoinExec"))


def test_exact_with_keep_and_verify(run, documents, tmp_path):
    job = ExactDeduplicationWorkflow(
        input_path=documents,
        output_path=str(tmp_path / "out"),
        assign_id=False,
        id_field="name",
        keep=[("quality", "desc"), "day"],
        verify=True,
        total_nparts=3,
    )
    _, plans = run(job)
    assert_on_gpu(plans, must=EXACT)


def test_exact_without_survivors(run, documents, tmp_path):
    job = ExactDeduplicationWorkflow(
        input_path=documents,
        output_path=str(tmp_path / "out"),
        assign_id=False,
        id_field="id",
        drop_all_copies=True,
    )
    result, plans = run(job)
    assert (result["num_duplicates"], result["num_groups"]) == (600, 300)
    assert_on_gpu(plans, must=EXACT)


def test_exact_over_jsonl_reads_lines_on_the_cpu(spark, run, documents, tmp_path):
    spark.read.parquet(documents).select("text").coalesce(1).write.json(str(tmp_path / "in"))
    job = ExactDeduplicationWorkflow(
        input_path=str(tmp_path / "in"), input_filetype="jsonl", output_path=str(tmp_path / "out")
    )
    result, plans = run(job)
    assert result["num_duplicates"] == 300
    allowed = {
        "FileSourceScanExec: JsonFileFormat does not support Corrupt Record": "malformed lines are to be named",
        "FileSourceScanExec: unsupported file format.*TextFileFormat": "they are shown as they stand in the file",
        "(Project|Filter)Exec: GPU plans may get incorrect file name.*from a CPU": "that scan stays there",
        "JsonToStructs": "parsed once more beside that scan, for what follows an object",
        "it avoids excess CPU and GPU transfers": "as they lie beside that scan",
    }
    assert_on_gpu(plans, must=(*WRITE, "WindowExec", "ShuffleExchangeExec"), allowed=allowed)


@pytest.mark.parametrize("id_field", ["id", "name"])
def test_removal(spark, run, documents, tmp_path, id_field):
    df = spark.read.parquet(documents)
    df.where("id % 3 = 0").select(F.col(id_field).alias("id")).write.parquet(str(tmp_path / "ids"))
    job = TextDuplicatesRemovalWorkflow(
        input_path=documents,
        ids_to_remove_path=str(tmp_path / "ids"),
        output_path=str(tmp_path / "out"),
        id_field=id_field,
    )
    result, plans = run(job)
    assert result["num_duplicates_removed"] == 334
    assert_on_gpu(plans, must=(*WRITE, "BroadcastHashJoinExec", "FileSourceScanExec"))


def test_removal_where_a_file_has_no_type_for_a_column(spark, run, tmp_path):
    (tmp_path / "in").mkdir()
    for number, values in enumerate((pa.nulls(2), ["a", "b"])):
        table = pa.table({"id": [2 * number, 2 * number + 1], "language": values})
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet")
    spark.range(2).write.parquet(str(tmp_path / "ids"))
    job = TextDuplicatesRemovalWorkflow(
        input_path=str(tmp_path / "in"),
        ids_to_remove_path=str(tmp_path / "ids"),
        output_path=str(tmp_path / "out"),
        id_field="id",
    )
    result, plans = run(job)
    assert result["num_duplicates_removed"] == 2
    assert_on_gpu(plans, must=(*WRITE, "BroadcastHashJoinExec", "FileSourceScanExec", "UnionExec"))


def test_removal_of_a_long_list_of_made_ids(spark, run, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "IDS_PER_PASS", 100)
    registry = str(tmp_path / "registry")
    numbered = read_documents(spark, documents, registry=registry)
    numbered.where(f"{ID} % 3 = 0").select(F.col(ID).alias("id")).write.parquet(str(tmp_path / "ids"))
    job = TextDuplicatesRemovalWorkflow(
        input_path=documents,
        ids_to_remove_path=str(tmp_path / "ids"),
        output_path=str(tmp_path / "out"),
        registry=registry,
    )
    result, plans = run(job)
    assert result["num_duplicates_removed"] == 334
    assert_on_gpu(plans, must=(*WRITE, "BroadcastHashJoinExec", "FileSourceScanExec"))


def test_removal_of_a_long_list_from_delta(spark, run, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "IDS_PER_PASS", 100)
    df = spark.read.parquet(documents)
    df.where("id % 3 = 0").select("id").write.parquet(str(tmp_path / "ids"))
    df.write.format("delta").save(str(tmp_path / "docs"))
    job = TextDuplicatesRemovalWorkflow(
        input_path=str(tmp_path / "docs"),
        ids_to_remove_path=str(tmp_path / "ids"),
        output_path=str(tmp_path / "out"),
        id_field="id",
    )
    result, plans = run(job)
    assert result["num_duplicates_removed"] == 334
    assert_on_gpu(plans, must=(*WRITE, "BroadcastHashJoinExec"))
