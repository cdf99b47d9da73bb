"""Passes over files whose share of a long list fits: every file once, within the limit."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from spark_dedup.removal.passes import plan_passes

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
        assert (part.first_url, part.last_url) == (urls[part.paths[0]], urls[part.paths[-1]])
    # The bounds of one pass hold no file of another, so ids are told apart by them alone.
    for one, two in itertools.pairwise(passes):
        assert one.last_url < two.first_url


def test_one_pass_when_all_fits():
    urls = {f"/{n}": f"file:///{n}" for n in range(9)}
    assert len(plan_passes(urls, {"file:///3": 5}, ids_per_pass=5)) == 1
    assert plan_passes({}, {}) == []
