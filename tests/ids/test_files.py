"""Files and the ids that a registry has for them."""

from uuid import NAMESPACE_URL, uuid5

import pytest

from spark_dedup.ids.files import file_ranges
from spark_dedup.ids.generator import IdGenerator
from spark_dedup.listing import FileInfo


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
