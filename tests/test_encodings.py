"""Codecs, encodings and encryption of parquet files that Spark's readers do not all know."""

import base64
import os

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from spark_dedup import (
    ExactDeduplicationWorkflow,
    IdRegistry,
    KMeansStage,
    TextDuplicatesRemovalWorkflow,
    encodings,
    read_documents,
)
from spark_dedup.errors import InputError
from spark_dedup.footers import parquet_footers
from spark_dedup.listing import list_files
from spark_dedup.settings import VECTORIZED, settings

TABLE = pa.table({"id": [1, 2, 3], "text": ["a", "b", "a"], "score": [0.1, -0.0, float("inf")]})


@pytest.fixture
def written(tmp_path):
    """Write a table, and a list that names id 3."""

    def write(**options):
        (tmp_path / "in").mkdir()
        pq.write_table(TABLE, tmp_path / "in" / "a.parquet", **options)
        pq.write_table(pa.table({"id": [3]}), tmp_path / "ids.parquet")
        return tmp_path

    return write


def removal(folder, **arguments):
    job = {"input_path": folder / "in", "ids_to_remove_path": folder / "ids.parquet", "id_field": "id"}
    return TextDuplicatesRemovalWorkflow(**{**job, "output_path": folder / "out", **arguments})


def test_numbers_split_into_byte_streams(spark, tmp_path):
    """As DuckDB writes floats to parquet of its version 2."""
    (tmp_path / "in").mkdir()
    connection = duckdb.connect()
    connection.register("docs", TABLE)
    connection.execute(f"COPY docs TO '{tmp_path}/in/a.parquet' (FORMAT parquet, PARQUET_VERSION v2)")
    encodings = pq.read_metadata(tmp_path / "in" / "a.parquet").row_group(0).column(2).encodings
    assert "BYTE_STREAM_SPLIT" in encodings
    before = spark.conf.get(VECTORIZED)
    ExactDeduplicationWorkflow(
        input_path=tmp_path / "in", output_path=tmp_path / "out", perform_removal=True
    ).run(spark)
    kept = pq.read_table(tmp_path / "out" / "deduplicated")
    assert kept.drop_columns("_curator_dedup_id").equals(TABLE.slice(0, 2))
    assert spark.conf.get(VECTORIZED) == before


@pytest.mark.parametrize("shown", ["view", "delta-clone"])
def test_numbers_split_into_byte_streams_are_not_shown(spark, written, shown):
    folder = written(use_dictionary=False, use_byte_stream_split=["score"])
    output = "split_floats" if shown == "view" else folder / "out"
    with pytest.raises(InputError, match=r"a\.parquet: column 'score' is encoded as BYTE_STREAM_SPLIT"):
        removal(folder, output_filetype=shown, output_path=output).run(spark)
    assert sorted(os.listdir(folder)) == ["ids.parquet", "in"]


@pytest.mark.parametrize("known", [False, True])
def test_documents_that_are_read_as_they_are_named(spark, written, known):
    """A job that read them with another setting may have registered them."""
    folder = written(use_dictionary=False, use_byte_stream_split=["score"])
    registry = folder / "registry"
    if known:
        IdRegistry.open(spark, registry).register_batch(str(folder / "in" / "a.parquet"), 3)
    before = sorted(os.listdir(folder))
    with pytest.raises(
        InputError, match=rf"a\.parquet: column 'score' is .* only where {VECTORIZED} is false"
    ):
        read_documents(spark, folder / "in", registry=registry)
    assert sorted(os.listdir(folder)) == before
    assert read_documents(spark, folder / "in", registry=folder / "other", columns=["text"]).count() == 3
    with settings(spark, {VECTORIZED: "false"}):
        assert len(read_documents(spark, folder / "in", registry=registry).collect()) == 3


def test_ids_split_into_byte_streams(spark, tmp_path):
    """Spark compares ids of this type, though Arrow reads the embeddings."""
    ids = pa.array([f"{i:04}".encode() for i in range(8)], pa.binary(4))
    vectors = [[float(i), 1.0] for i in range(8)]
    pq.write_table(
        pa.table({"id": ids, "embeddings": vectors}), tmp_path / "a.parquet", use_dictionary=False,
        column_encoding={"id": "BYTE_STREAM_SPLIT", "embeddings.list.element": "PLAIN"},
    )  # fmt: skip
    job = KMeansStage(input_path=tmp_path / "a.parquet", output_path=tmp_path / "out", n_clusters=2)
    assert job.run(spark)["num_documents"] == 8


def test_numbers_split_between_the_first_and_the_last_row_group(spark, tmp_path, monkeypatch):
    """DuckDB takes for each row group what suits its values."""
    (tmp_path / "in").mkdir()
    rows = (
        "CASE WHEN i // 2048 = 1 THEN sqrt(i) ELSE 0.5 END AS score, i::VARCHAR AS text FROM range(6144) t(i)"
    )
    duckdb.execute(
        f"COPY (SELECT {rows} ORDER BY i) TO '{tmp_path}/in/a.parquet' "
        "(FORMAT parquet, PARQUET_VERSION v2, ROW_GROUP_SIZE 2048)"
    )
    files = list_files(tmp_path / "in")
    footers = parquet_footers(files)
    packed = [footers[0].row_group(i).column(0).encodings for i in range(3)]
    assert packed == [("RLE_DICTIONARY",), ("BYTE_STREAM_SPLIT",), ("RLE_DICTIONARY",)]
    job = {"input_path": tmp_path / "in", "output_path": tmp_path / "out", "perform_removal": True}
    assert ExactDeduplicationWorkflow(**job).run(spark)["num_documents_written"] == 6144
    assert encodings.check_packed(files, footers)
    monkeypatch.setattr(encodings, "_MOST_CHUNKS", 4)  # of 6
    assert not encodings.check_packed(files, footers)


def test_a_codec_that_spark_lacks(spark, written):
    folder = written(compression={"id": "zstd", "text": "gzip", "score": "brotli"})
    with pytest.raises(InputError, match=r"a\.parquet: column 'score' is compressed by BROTLI, for which"):
        ExactDeduplicationWorkflow(
            input_path=folder / "in", output_path=folder / "out", perform_removal=True
        ).run(spark)
    assert sorted(os.listdir(folder)) == ["ids.parquet", "in"]
    result = removal(folder, input_fields=["text"]).run(spark)
    assert result["num_documents_written"] == 2


class Keys(encryption.KmsClient):
    """Wraps no keys."""

    def __init__(self, _config):
        super().__init__()

    def wrap_key(self, key_bytes, _master_key_identifier):
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, _master_key_identifier):
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plain", [False, True])
def test_encrypted_columns_are_named(spark, written, plain):
    """With a footer that can be read, Arrow would end the process, and Spark fail in a task."""
    keys = encryption.EncryptionConfiguration("footer", column_keys={"key": ["text"]}, plaintext_footer=plain)
    factory = encryption.CryptoFactory(Keys)
    encrypted = factory.file_encryption_properties(encryption.KmsConnectionConfig(), keys)
    folder = written(encryption_properties=encrypted)
    with pytest.raises(InputError, match=r"1 unreadable parquet file\(s\): .*a\.parquet \(.*encrypted"):
        ExactDeduplicationWorkflow(input_path=folder / "in", output_path=folder / "out").run(spark)
    assert sorted(os.listdir(folder)) == ["ids.parquet", "in"]


def test_intervals_are_named(spark, tmp_path):
    (tmp_path / "in").mkdir()
    duckdb.execute(f"COPY (SELECT 'a' AS text, INTERVAL 3 MONTH AS i) TO '{tmp_path}/in/a.parquet'")
    with pytest.raises(InputError, match=r"a\.parquet: column 'i' has intervals of months, days and mill"):
        ExactDeduplicationWorkflow(input_path=tmp_path / "in", output_path=tmp_path / "out").run(spark)


class OfAStoreError(Exception):
    """Of a store's library, whose errors have no class in common with others, and often no words."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        # As of the integers of 128 bits that Polars writes.
        (
            pa.ArrowNotImplementedError("Integers with more than 64 bits not implemented"),
            "Integers with more",
        ),
        (TimeoutError(), "TimeoutError"),
        (OfAStoreError("slow down"), "slow down"),
    ],
)
def test_footers_that_cannot_be_read_are_named(tmp_path, monkeypatch, error, says):
    pq.write_table(TABLE, tmp_path / "a.parquet")

    def refuse(_source):
        raise error

    monkeypatch.setattr(pq, "read_metadata", refuse)
    with pytest.raises(InputError, match=rf"1 unreadable parquet file\(s\): .*a\.parquet \({says}"):
        parquet_footers(list_files(tmp_path))
