"""Passes over files whose share of a long list fits: every file once, within the limit."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_dedup.ids.files import FileRange
from spark_dedup.removal.passes import locate_by_range, plan_passes

COUNTS = st.dictionaries(st.integers(0, 60), st.integers(0, 9), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, limit=st.integers(1, 20))
def test_every_file_once_and_no_pass_too_large(counts, limit):
    urls = {f"/data/{n:02}": f"file:///data/{n:02}" for n in counts}
    listed = {f"file:///data/{n:02}": count for n, count in counts.items() if count}
    passes = plan_passes(urls, listed, ids_per_pass=limit)
    assert [path for part in passes for path in part.paths] == sorted(urls)
    for part in passes:
        assert sum(listed.get(urls[path], 0) for path in part.paths) <= limit or len(part.paths) == 1
        assert (part.first, part.last) == (urls[part.paths[0]], urls[part.paths[-1]])
    # The bounds of one pass hold no file of another, so ids are told apart by them alone.
    for one, two in itertools.pairwise(passes):
        assert one.last < two.first


def test_one_pass_when_all_fits():
    urls = {f"/{n}": f"file:///{n}" for n in range(9)}
    assert len(plan_passes(urls, {"file:///3": 5}, ids_per_pass=5)) == 1
    assert plan_passes({}, {}) == []


@pytest.mark.parametrize("counts", [[3, 0, 1, 900, 2, 70], [5], [0, 0], [1] * 40])
def test_ids_are_located_by_the_ranges_of_files(spark, counts):
    ranges, first = [], 7
    for number, count in enumerate(counts):
        ranges.append(FileRange(f"/data/{number}", first, count))
        first += count + number % 3  # ids between are of files that are elsewhere
    keys = {r.path: f"key of {r.path}" for r in ranges}
    listed = [*range(0, first + 9, 2), first - 1, 8, 8, -3, None]
    df = spark.createDataFrame([(i,) for i in listed], "d int")
    got = locate_by_range(df, ranges, keys, duplicate_id_field="d", near=None).collect()
    want = [
        (i, keys[r.path]) for r in ranges for i in range(r.first_id, r.first_id + r.count) if i in set(listed)
    ]
    assert sorted(map(tuple, got)) == sorted(want)
