"""What the demo takes as its input."""

import pyarrow.parquet as pq

from spark_dedup.demo import documents_of


def test_texts_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("alpha")
    path, filetype, what = documents_of("~/notes", tmp_path / "out")
    assert (filetype, what) == ("parquet", f"1 text files below {tmp_path / 'notes'}")
    assert pq.read_table(path)["text"].to_pylist() == ["alpha"]
