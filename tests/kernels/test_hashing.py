import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_dedup.kernels.hashing import xxhash64_ints, xxhash64_longs, xxhash64_strings


def strings(values):
    data = np.frombuffer(b"".join(values), np.uint8)
    return data, np.cumsum([0, *map(len, values)], dtype=np.int32)


def plain(data, seed):
    """XXH64 of one string in plain integers, written from its specification."""
    mask = 2**64 - 1
    p1, p2, p3 = 11400714785074694791, 14029467366897019727, 1609587929392839161
    p4, p5 = 9650029242287828579, 2870177450012600261

    def left(x, by):
        return ((x << by) | (x >> (64 - by))) & mask

    def number(start, size):
        return int.from_bytes(data[start : start + size], "little")

    def turn(lane, word):
        return left((lane + word * p2) & mask, 31) * p1 & mask

    place, size = 0, len(data)
    if size >= 32:
        lanes = [(seed + p1 + p2) & mask, (seed + p2) & mask, seed, (seed - p1) & mask]
        while place + 32 <= size:
            lanes = [turn(lane, number(place + 8 * i, 8)) for i, lane in enumerate(lanes)]
            place += 32
        h = sum(left(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & mask
        for lane in lanes:
            h = ((h ^ turn(0, lane)) * p1 + p4) & mask
    else:
        h = (seed + p5) & mask
    h = (h + size) & mask
    while place + 8 <= size:
        h = (left(h ^ turn(0, number(place, 8)), 27) * p1 + p4) & mask
        place += 8
    if place + 4 <= size:
        h = (left(h ^ (number(place, 4) * p1 & mask), 23) * p2 + p3) & mask
        place += 4
    for byte in data[place:]:
        h = left(h ^ (byte * p5 & mask), 11) * p1 & mask
    h = (h ^ (h >> 33)) * p2 & mask
    h = (h ^ (h >> 29)) * p3 & mask
    return h ^ (h >> 32)


def test_published_values():
    expected = [0xEF46DB3751D8E999, 0xD24EC4F1A98C6E5B, 0x44BC2CF5AD770999]
    assert xxhash64_strings(*strings([b"", b"a", b"abc"]), 0).tolist() == expected


@given(st.lists(st.binary(max_size=140), max_size=20), st.integers(0, 2**63 - 1))
def test_strings(values, seed):
    assert xxhash64_strings(*strings(values), seed).tolist() == [plain(value, seed) for value in values]


def test_integers_are_strings_of_their_bytes():
    values = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 50)
    assert xxhash64_longs(values, 7).tolist() == [plain(v.tobytes(), 7) for v in values]
    assert xxhash64_ints(values.astype(np.int32), 7).tolist() == [
        plain(v.tobytes(), 7) for v in values.astype(np.int32)
    ]
    seeds = np.arange(50, dtype=np.uint64)
    assert xxhash64_longs(values, seeds).tolist() == [plain(v.tobytes(), s) for s, v in enumerate(values)]


@pytest.mark.parametrize("offset", [0, 2])
def test_strings_of_a_slice(offset):
    array = pa.array(["one", "two", "three", "four"])[offset:]
    _, offsets, data = array.buffers()
    places = np.frombuffer(offsets, np.int32)[offset : offset + len(array) + 1]
    found = xxhash64_strings(np.frombuffer(data, np.uint8), places)
    assert found.tolist() == [plain(text.encode(), 42) for text in array.to_pylist()]
