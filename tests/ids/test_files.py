"""Files and the ids that a registry has for them."""

import contextlib
import types
from datetime import UTC, datetime
from typing import ClassVar
from uuid import NAMESPACE_URL, uuid5

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from spark_dedup.ids.batches import Batch, StaleBatchError
from spark_dedup.ids.files import file_ranges, table_files
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.listing import FileInfo, list_files


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_files_on_s3_have_curators_keys_however_spark_spells_them(scheme):
    """The keys are uuid5(NAMESPACE_URL, …) of the paths in quotes, joined by ``;``."""
    files = [FileInfo(f"{scheme}://b/{name}.parquet", 10, 5) for name in "abc"]
    one, two = (
        "8aa87dd2-ebed-5a55-837a-2baad327c0b4",
        str(uuid5(NAMESPACE_URL, "s3://b/b.parquet;s3://b/c.parquet")),
    )
    groups = [files[:1], files[1:]]

    def ranges(ids, **kwargs):
        return [
            (r.path, r.first_id, r.count) for r in file_ranges(groups, ids, lambda f: [3] * len(f), **kwargs)
        ]

    placed = [(file.path, 3 * i, 3) for i, file in enumerate(files)]
    ids = IdGenerator()
    assert ranges(ids) == placed
    assert ids.batch_registry == {one: (0, 2), two: (3, 8)}  # "s3://b/a.parquet"
    curators = IdGenerator(batch_registry={one: (10, 12), two: (0, 5)})
    assert ranges(curators, register_new=False) == [
        (f.path, i, 3) for f, i in zip(files, (10, 0, 3), strict=True)
    ]
    assert curators.get_batch_range(files[0].path) == (10, 12)
    old = str(uuid5(NAMESPACE_URL, "s3a://b/a.parquet"))
    ids = IdGenerator(batch_registry={old: (0, 2)})
    assert ranges(ids) == placed
    assert ids.batch_registry == {old: (0, 2), two: (3, 8)}
    assert ids.get_batch_range([files[0].path]) == (0, 2)


class Timed(MemoryFileSystem):
    """A store that tells when a file changed as S3's and Azure's clients do, or, as others, does not."""

    protocol = "timed"
    store, pseudo_dirs = {}, [""]
    told: ClassVar = {}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("timed://", "memory://"))

    def info(self, path, **kwargs):
        return {**super().info(path, **kwargs), **self.told}

    def find(self, path, **kwargs):
        return {name: {**info, **self.told} for name, info in super().find(path, **kwargs).items()}


@pytest.mark.parametrize(
    ("told", "ms"),
    [
        ({"LastModified": datetime(2024, 1, 2, tzinfo=UTC)}, 1704153600000),
        ({"mtime": 5.5}, 5500),
        ({"last_modified": datetime(1970, 1, 1, 0, 0, 7, tzinfo=UTC)}, 7000),
        ({}, None),
    ],
)
def test_a_table_and_its_path_tell_one_time_of_a_file(tmp_path, monkeypatch, told, ms):
    fsspec.register_implementation("timed", Timed, clobber=True)
    monkeypatch.setattr(Timed, "told", told)
    fsspec.filesystem("timed").pipe_file("/b/a.parquet", b"12")
    table = types.SimpleNamespace(inputFiles=lambda: ["timed://b/a.parquet"])
    registry = IdRegistry.open(None, tmp_path / "registry")
    for files in (list_files("timed://b"), table_files(table)[0]):
        ranges = file_ranges([files], registry, lambda files: [3])
        assert [(r.path, r.first_id, r.count) for r in ranges] == [("timed://b/a.parquet", 0, 3)]
    (entry,) = registry.lookup([IdRegistry.hash_files("timed://b/a.parquet")]).values()
    assert (entry.size, entry.modified_ms) == (2, ms)


def test_a_registry_of_old_that_says_no_time_knows_its_files(tmp_path):
    registry = IdRegistry.open(None, tmp_path / "registry")
    registry.register([Batch(("gs://b/a.parquet",), 3, 10, 0)])
    (found,) = file_ranges([[FileInfo("gs://b/a.parquet", 10, 5)]], registry, lambda files: [3])
    assert (found.first_id, found.count) == (0, 3)


@pytest.mark.parametrize(
    ("path", "then", "now", "is_one"),
    [
        ("gs://b/a.parquet", 5123, 5000, True),
        ("gs://b/a.parquet", 5000, 5999, True),
        ("gs://b/a.parquet", 5123, 5124, False),
        ("gs://b/a.parquet", 5000, 6000, False),
        ("/b/a.parquet", 5000, 5999, False),
    ],
)
def test_a_store_may_leave_out_the_milliseconds(tmp_path, path, then, now, is_one):
    registry = IdRegistry.open(None, tmp_path / "registry")
    registry.register([Batch((path,), 3, 10, then)])
    with (
        contextlib.nullcontext() if is_one else pytest.raises(StaleBatchError, match=f"{then} ms .*{now} now")
    ):
        file_ranges([[FileInfo(path, 10, now)]], registry, lambda files: [3])
