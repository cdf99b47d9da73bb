"""What jobs learn of their input before any work."""

import pyarrow as pa
import pyarrow.parquet as pq

from spark_dedup.settings import VECTORIZED, conf_of, parquet_as_it_is
from spark_dedup.workflows.inputs import inspect_input


def test_files_on_a_store_are_looked_at_as_local_ones(spark, store, monkeypatch):
    monkeypatch.setattr("spark_dedup.hadoop.require_client", lambda path: None)
    files = {
        "memory://bucket/in/0.parquet": {"id": [1, 2], "note": [None, None]},
        "memory://bucket/in/1.parquet": {"id": [3], "note": [0.5]},
    }
    for path, columns in files.items():
        with store.open(path, "wb") as file:
            pq.write_table(pa.table(columns), file, use_dictionary=False, use_byte_stream_split=["note"])
    with parquet_as_it_is(spark):
        assert conf_of(spark, VECTORIZED) == "true"
        found = inspect_input(spark, "memory://bucket/in", filetype="parquet", nulls_fit=True)
        assert conf_of(spark, VECTORIZED) == "false"
    assert found.num_rows == 3
    assert {file.path: rows for file, rows in found.rows.items()} == dict(zip(files, (2, 1), strict=True))
    assert found.parts == dict(zip(files, (frozenset({("note",)}), frozenset()), strict=True))
