"""What a Python task does first."""

import importlib
import sys
import zipfile
from zipimport import zipimporter

from spark_dedup.workers import in_worker


def test_archives_on_the_path_are_not_read_again_but_still_import(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("from_archive_1.py", "x = 1")
        archive.writestr("from_archive_2.py", "x = 2")
    path = str(tmp_path / "a.zip")
    monkeypatch.syspath_prepend(path)
    assert importlib.import_module("from_archive_1").x == 1
    assert isinstance(sys.path_importer_cache[path], zipimporter)
    assert list(in_worker(iter)([1, 2])) == [1, 2]
    assert not any(isinstance(finder, zipimporter) for finder in sys.path_importer_cache.values())
    assert importlib.import_module("from_archive_2").x == 2


def test_workers_start_their_second_task_without_archives(spark):
    def archives(batches):
        import pyarrow as pa

        held = [path for path, finder in sys.path_importer_cache.items() if isinstance(finder, zipimporter)]
        for batch in batches:
            yield pa.record_batch([pa.array([str(held)] * batch.num_rows)], ["held"])

    held = spark.range(0, 4, 1, 4).mapInArrow(in_worker(archives), "held string").collect()
    assert {row.held for row in held} == {"[]"}
