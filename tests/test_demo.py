"""What the demo takes as its input."""

import pyarrow.parquet as pq

from spark_dedup.demo import documents_of, run_exact


def test_texts_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("alpha")
    path, filetype, what = documents_of("~/notes", tmp_path / "out")
    assert (filetype, what) == ("parquet", f"1 text files below {tmp_path / 'notes'}")
    assert pq.read_table(path)["text"].to_pylist() == ["alpha"]


def test_a_second_run_into_the_same_folder(spark, tmp_path, capsys):
    """The texts are gathered anew, into other files."""
    notes, out = tmp_path / "notes", tmp_path / "out"
    notes.mkdir()
    for texts in (["alpha", "beta", "alpha"], ["alpha", "gamma", "gamma", "gamma"]):
        for number, text in enumerate(texts):
            (notes / f"{number}.txt").write_text(text)
        path, filetype, _ = documents_of(str(notes), out)
        run_exact(spark, path, filetype, out)
        assert f"{len(texts):,} documents, {len(texts) - 2} of them surplus copies" in capsys.readouterr().out
