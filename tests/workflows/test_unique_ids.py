"""Ids are unique or named: whatever the order, the files and the size of the numbers."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_dedup.errors import InputError
from spark_dedup.listing import list_files
from spark_dedup.workflows import unique_ids
from spark_dedup.workflows.unique_ids import check_unique_ids

BIG = (1 << 63) - 1


def write(folder: Path, files, type_=None):
    folder.mkdir()
    type_ = type_ or pa.int64()
    for number, ids in enumerate(files):
        table = pa.table({"id": pa.array(ids, type_)})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=3)
    return str(folder)


@pytest.mark.parametrize(
    "files",
    [
        [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10]],  # counting up
        [[8, 9, 10], [0, 1, 2, 3], []],
        [[5, 3, 9], [1, 0, 40]],  # close together, in no order
        [[-BIG - 1, BIG], [0, BIG - 1]],  # at the ends of what fits
        [[10**12, 5], [-(10**15)]],  # far apart
        [[7]],
        [[], []],
    ],
)
@pytest.mark.parametrize("split", [1 << 27, 60])
def test_unique(spark, tmp_path, files, split):
    before = spark.conf.get("spark.sql.files.maxPartitionBytes")
    spark.conf.set("spark.sql.files.maxPartitionBytes", str(split))
    try:
        folder = write(tmp_path / "ids", files)
        df = spark.read.schema("id bigint").parquet(folder)
        assert check_unique_ids(spark, df, "id") == sum(map(len, files))
        assert check_unique_ids(spark, df, "id", files=list_files([folder])) == sum(map(len, files))
    finally:
        spark.conf.set("spark.sql.files.maxPartitionBytes", before)


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        ([[0, 1, 2, 3], [3, 4, 5]], "3:"),  # ranges that meet
        ([[0, 1, 2, 3, 4, 5], [2, 3]], "2, 3:"),  # a range inside another
        ([[4, 5, 6], [4, 5, 6]], "4, 5, 6:"),
        ([[1, 1], [2, 3]], "1:"),
        ([[BIG, 0], [BIG]], f"{BIG}:"),
        ([[0, 1, 2], [9, 10], [1, 2], [20]], "1, 2:"),
    ],
)
def test_repeated_ids_are_named(spark, tmp_path, files, shown):
    folder = write(tmp_path / "ids", files)
    df = spark.read.parquet(folder)
    for known in ([], list_files([folder])):
        with pytest.raises(InputError, match=f"has duplicate ids, such as {shown}"):
            check_unique_ids(spark, df, "id", files=known)


def test_nulls_are_counted(spark, tmp_path):
    folder = write(tmp_path / "ids", [[None, None], [0, 1, None]], pa.int32())
    df = spark.read.parquet(folder)
    for known in ([], list_files([folder])):
        with pytest.raises(InputError, match=r"has 3 null\(s\) in 5 rows"):
            check_unique_ids(spark, df, "id", files=known)


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_strings_in_files(spark, tmp_path, type_):
    folder = write(tmp_path / "ids", [["a", "", "é"], ["A", "e\u0301"]], type_)
    df = spark.read.parquet(folder)
    assert check_unique_ids(spark, df, "id", files=list_files([folder])) == 5
    folder = write(tmp_path / "twice", [["a", "b"], ["c", "a"]], type_)
    with pytest.raises(InputError, match="such as a:"):
        check_unique_ids(spark, spark.read.parquet(folder), "id", files=list_files([folder]))


def test_few_ids_need_no_spark_job_and_many_do(spark, tmp_path, monkeypatch):
    """The frame here holds other rows than the files, which shows who was asked."""
    folder = write(tmp_path / "ids", [[1, 2], [3]])
    other = spark.range(7)
    assert check_unique_ids(spark, other, "id", files=list_files([folder])) == 3
    monkeypatch.setattr(unique_ids, "_MOST_BYTES", 23)
    assert check_unique_ids(spark, other, "id", files=list_files([folder])) == 7
    # Short in the file, where a page of one value is a few bytes, long in memory.
    monkeypatch.setattr(unique_ids, "_MOST_BYTES", 1500)
    folder = write(tmp_path / "long", [["x" * 1000, "y" * 1000]], pa.string())
    named = spark.createDataFrame([("a",)], "id string")
    assert check_unique_ids(spark, named, "id", files=list_files([folder])) == 1


def test_a_name_with_a_dot_is_no_field_of_another_column(tmp_path):
    table = pa.table({"s": [{"id": 1}, {"id": 1}], "s.id": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    files = list_files([str(tmp_path)])
    assert unique_ids._count_few(files, "s.id", "string") == 2


def test_ids_that_a_folder_gives_are_sparks(spark, tmp_path):
    write(tmp_path / "id=5", [[1, 2]])
    df = spark.read.parquet(str(tmp_path))
    with pytest.raises(InputError, match="such as 5:"):
        check_unique_ids(spark, df, "id", files=list_files([str(tmp_path)]))


def test_a_frame_that_reads_no_file(spark):
    assert check_unique_ids(spark, spark.range(100).repartition(3), "id") == 100
    twice = spark.range(5).union(spark.range(4, 6))
    with pytest.raises(InputError, match="such as 4:"):
        check_unique_ids(spark, twice, "id")


def test_rows_of_a_join_come_from_several_files(spark, tmp_path):
    left = spark.read.parquet(write(tmp_path / "left", [[0, 1, 2], [7, 8]]))
    right = spark.read.parquet(write(tmp_path / "right", [[8, 1, 0, 7, 2]]))
    assert check_unique_ids(spark, left.join(right, "id"), "id") == 5
    with pytest.raises(InputError, match="such as 0, 1, 2, 7, 8:"):
        check_unique_ids(spark, left.crossJoin(right.select((right.id % 2).alias("odd"))), "id")
