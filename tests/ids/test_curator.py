import pytest

from spark_dedup.errors import InputError
from spark_dedup.ids.curator import group_files, parse_bytes
from spark_dedup.listing import FileInfo

# The sizes of dask's own documentation of this notation, which Curator uses.
SIZES = {
    "100": 100,
    "100 MB": 100_000_000,
    "100M": 100_000_000,
    "5kB": 5000,
    "5.4 kB": 5400,
    "1kiB": 1024,
    "1e6": 1_000_000,
    "1e6 kB": 1_000_000_000,
    "MB": 1_000_000,
    "2GiB": 2 * 1024**3,
    "512MB": 512_000_000,
    "1 Ki": 1024,
    "7b": 7,
}


@pytest.mark.parametrize("text", SIZES)
def test_sizes(text):
    assert parse_bytes(text) == SIZES[text]


@pytest.mark.parametrize("text", ["5 foos", "", "1.2.3", "-3MB", "iB"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match="not a size"):
        parse_bytes(text)


def files(**sizes):
    return [FileInfo(path, size, 0) for path, size in sizes.items()]


def names(groups):
    return [[file.path for file in group] for group in groups]


def test_one_file_each_by_default():
    assert names(group_files(files(b=1, a=2))) == [["a"], ["b"]]


def test_by_number_of_files():
    assert names(group_files(files(c=1, a=9, b=5), files_per_partition=2)) == [["a", "b"], ["c"]]


def test_by_size_smallest_first():
    given = files(a=50, b=10, c=40, d=30, e=10)
    assert names(group_files(given, blocksize=60)) == [["b", "e", "d"], ["c"], ["a"]]


def test_a_group_may_fill_the_size_exactly_and_a_larger_file_stands_alone():
    assert names(group_files(files(a=100, b=30, c=30), blocksize=60)) == [["b", "c"], ["a"]]


def test_no_files():
    assert group_files([], blocksize="1MB") == []


@pytest.mark.parametrize(
    "how", [{"blocksize": 1, "files_per_partition": 1}, {"blocksize": 0}, {"files_per_partition": 0}]
)
def test_bad_groupings(how):
    with pytest.raises(InputError):
        group_files(files(a=1), **how)
