"""Files that are damaged or gone: an error, though the session, or an option, says to leave them out silently."""

import gzip
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spark_4 import OLD

from spark_dedup import (
    ExactDeduplicationWorkflow,
    ImageDuplicatesRemovalStage,
    SemanticDeduplicationWorkflow,
    TextDuplicatesRemovalWorkflow,
    read_documents,
)
from spark_dedup.errors import InputError

ROWS = 1000
LOSSY = {"ignoreCorruptFiles": "true", "ignoreMissingFiles": "true"}


@pytest.fixture
def lossy(spark):
    """The session, told to leave out what it cannot read."""
    for name, value in LOSSY.items():
        spark.conf.set(f"spark.sql.files.{name}", value)
    yield spark
    assert {name: spark.conf.get(f"spark.sql.files.{name}") for name in LOSSY} == LOSSY
    for name in LOSSY:
        spark.conf.unset(f"spark.sql.files.{name}")


def write(folder, *, damage=None):
    """Write two parquet files, and damage a page of a column in the second, whose footer stays good."""
    folder.mkdir()
    for number in range(2):
        ids = range(number * ROWS, (number + 1) * ROWS)
        table = pa.table(
            {
                "id": ids,
                "text": [f"text {i % 900}" for i in ids],
                "embeddings": pa.array([[1.0 + i % 7, 1.0] for i in ids], pa.list_(pa.float32())),
            }
        )
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=100, use_dictionary=False)
    if damage is not None:
        spoil(folder / "1.parquet", damage)
    return folder


def spoil(path, column):
    leaves = pq.read_metadata(path).row_group(5)
    found = next(
        leaf
        for leaf in map(leaves.column, range(leaves.num_columns))
        if leaf.path_in_schema.startswith(column)
    )
    content = bytearray(path.read_bytes())
    start = found.data_page_offset
    content[start + 30 : start + found.total_compressed_size] = bytes(found.total_compressed_size - 30)
    path.write_bytes(content)


def cut_lines(folder):
    folder.mkdir()
    lines = [
        json.dumps({"id": i, "text": f"text {i % 900}", "more": os.urandom(9).hex()}) for i in range(ROWS)
    ]
    packed = gzip.compress("\n".join(lines).encode())
    (folder / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    return folder


def remove(docs, ids, output, **arguments):
    return TextDuplicatesRemovalWorkflow(
        input_path=docs, ids_to_remove_path=ids, output_path=output, id_field="id", **arguments
    )


UNREAD = r"/in/1\.parquet cannot be read \(.+\): write it again or remove it$"
old_error = pytest.mark.skipif(OLD, reason="Spark 3 names a damaged file in other words")


@old_error
@pytest.mark.parametrize(
    ("damage", "given"), [("text", {}), ("text", {"assign_id": False, "id_field": "id"})]
)
def test_the_exact_job(lossy, tmp_path, damage, given):
    docs, out = write(tmp_path / "in", damage=damage), tmp_path / "out"
    with pytest.raises(InputError, match=UNREAD):
        ExactDeduplicationWorkflow(input_path=docs, output_path=out, **given).run(lossy)
    assert not (out / "ExactDuplicateIds").exists()


@old_error
@pytest.mark.parametrize(
    ("damage", "filetype"), [("text", "parquet"), ("text", "jsonl"), ("id", "delta"), ("id", "delta-clone")]
)
def test_the_removal_job(lossy, tmp_path, damage, filetype):
    docs, ids = write(tmp_path / "in", damage=damage), write(tmp_path / "ids")
    with pytest.raises(InputError, match=UNREAD):
        remove(docs, ids / "0.parquet", tmp_path / "out", output_filetype=filetype).run(lossy)
    assert not (tmp_path / "out").exists()


@old_error
@pytest.mark.parametrize("filetype", ["parquet", "delta-clone"])
def test_a_list_of_ids(lossy, tmp_path, filetype):
    """Else documents that are listed would stay."""
    docs, ids = write(tmp_path / "docs"), write(tmp_path / "in", damage="id")
    with pytest.raises(InputError, match=UNREAD):
        remove(docs, ids, tmp_path / "out", output_filetype=filetype).run(lossy)
    stage = ImageDuplicatesRemovalStage(removal_parquets_dir=ids)
    with pytest.raises(Exception, match="reading file"):
        stage.process(lossy.range(5), "id").count()


@pytest.mark.parametrize("damage", ["embeddings", "id"])
def test_the_semantic_job(lossy, tmp_path, damage):
    docs = write(tmp_path / "in", damage=damage)
    with pytest.raises(InputError, match=UNREAD.removesuffix("$")):
        SemanticDeduplicationWorkflow(
            input_path=docs, output_path=tmp_path / "out", n_clusters=2, eps=0.1
        ).run(lossy)


@pytest.mark.parametrize("filetype", ["jsonl", "parquet"])
def test_json_lines_that_are_cut_short(lossy, tmp_path, filetype):
    docs, ids = cut_lines(tmp_path / "in"), write(tmp_path / "ids")
    cut = "cannot be read to its end: write it again or remove it"
    with pytest.raises(InputError, match=cut):
        ExactDeduplicationWorkflow(
            input_path=docs, input_filetype="jsonl", output_path=tmp_path / "out", perform_removal=True
        ).run(lossy)
    given = {"input_filetype": "jsonl", "output_filetype": filetype}
    with pytest.raises(InputError, match=cut):
        remove(docs, ids, tmp_path / "kept", **given).run(lossy)
    assert not (tmp_path / "kept").exists()


def test_documents_that_are_read_later(lossy, tmp_path):
    docs = write(tmp_path / "in", damage="text")
    df = read_documents(lossy, docs, registry=tmp_path / "registry")
    with pytest.raises(Exception, match="reading file"):
        df.agg({"text": "max"}).collect()
    shutil.rmtree(docs)
    with pytest.raises(Exception, match="does not exist"):
        df.collect()
    lossy.range(3).write.format("delta").save(str(tmp_path / "table"))
    lost = (
        r"lose rows of tables silently: set spark\.sql\.files\.ignoreCorruptFiles and "
        r"spark\.sql\.files\.ignoreMissingFiles to false"
    )
    with pytest.raises(InputError, match=lost):
        read_documents(lossy, tmp_path / "table", registry=tmp_path / "registry")


def test_options_of_the_reader(spark, tmp_path):
    docs, kwargs = write(tmp_path / "in"), {"IgnoreCorruptFiles": True}
    lost = "option 'IgnoreCorruptFiles' would lose documents silently: leave it out"
    with pytest.raises(InputError, match=lost):
        ExactDeduplicationWorkflow(input_path=docs, output_path=tmp_path / "out", read_kwargs=kwargs).run(
            spark
        )
    with pytest.raises(InputError, match=lost):
        remove(docs, docs, tmp_path / "out", duplicate_id_read_kwargs=kwargs).run(spark)
    with pytest.raises(InputError, match=lost):
        read_documents(
            spark, cut_lines(tmp_path / "l"), filetype="jsonl", registry=tmp_path / "r", read_kwargs=kwargs
        )
    done = remove(docs, docs / "0.parquet", tmp_path / "out", input_kwargs={"ignoreCorruptFiles": "false"})
    assert done.run(spark)["num_documents_written"] == ROWS
