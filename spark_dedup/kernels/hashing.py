"""Spark's two hashes on whole arrays, for tasks that must agree with what Spark SQL computes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SPARK_SEED", "murmur3_ints", "xxhash64_ints", "xxhash64_longs", "xxhash64_strings"]

SPARK_SEED = 42
"""The seed of Spark's ``hash`` and ``xxhash64``."""

Hashes = NDArray[np.uint64]

_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)
_STRIPE = 32


def xxhash64_longs(values: NDArray[np.int64], seed: int | Hashes = SPARK_SEED) -> Hashes:
    """XXH64 (Collet's specification, version 0.1.1) of 8-byte integers.

    Args:
        values: (n,) int64.
        seed: one seed, or (n,) uint64, such as the hashes of the columns before.

    Returns:
        (n,) uint64; Spark shows the same bits as a signed long.
    """
    h = _seeded(seed, len(values)) + _P5 + np.uint64(8)
    return _avalanche(_eight(h, values.view(np.uint64)))


def xxhash64_ints(values: NDArray[np.int32], seed: int | Hashes = SPARK_SEED) -> Hashes:
    """XXH64 of 4-byte integers, as Spark hashes its types ``tinyint``, ``smallint`` and ``int``."""
    h = _seeded(seed, len(values)) + _P5 + np.uint64(4)
    return _avalanche(_four(h, values.view(np.uint32)))


def xxhash64_strings(
    data: NDArray[np.uint8], offsets: NDArray[np.int32 | np.int64], seed: int = SPARK_SEED
) -> Hashes:
    """XXH64 of strings of bytes.

    Args:
        data: the bytes of all strings.
        offsets: (n + 1,) string ``i`` is ``data[offsets[i]:offsets[i + 1]]``.
        seed: the seed.

    Returns:
        (n,) uint64.
    """
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets)
    found = np.empty(len(starts), np.uint64)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        letters = data[starts[rows, None] + np.arange(length)]
        found[rows] = _same_length(letters, seed)
    return found


def murmur3_ints(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Murmur3 (x86, 32 bits) of 4-byte integers with Spark's seed."""

    def rotate(x: NDArray[np.uint32], by: int) -> NDArray[np.uint32]:
        return (x << np.uint32(by)) | (x >> np.uint32(32 - by))

    k = rotate(values * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    h = rotate(np.uint32(SPARK_SEED) ^ k, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    h ^= np.uint32(4)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def _same_length(letters: NDArray[np.uint8], seed: int) -> Hashes:
    """XXH64 of the rows of an (n, length) matrix."""
    n, length = letters.shape
    h = _seeded(seed, n)
    done = length // _STRIPE * _STRIPE
    if done:
        words = np.ascontiguousarray(letters[:, :done]).view("<u8").reshape(n, -1, 4)
        lanes = [h + _P1 + _P2, h + _P2, h, h - _P1]
        for stripe in range(words.shape[1]):
            lanes = [_round(lane, words[:, stripe, i]) for i, lane in enumerate(lanes)]
        turned = [_rotate(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)]
        h = turned[0] + turned[1] + turned[2] + turned[3]
        for lane in lanes:
            h = (h ^ _round(np.zeros_like(lane), lane)) * _P1 + _P4
    else:
        h = h + _P5
    h = h + np.uint64(length)
    for start in range(done, length - 7, 8):
        h = _eight(h, np.ascontiguousarray(letters[:, start : start + 8]).view("<u8")[:, 0])
    done += (length - done) // 8 * 8
    if length - done >= 4:
        h = _four(h, np.ascontiguousarray(letters[:, done : done + 4]).view("<u4")[:, 0])
        done += 4
    for place in range(done, length):
        h = _rotate(h ^ (letters[:, place].astype(np.uint64) * _P5), 11) * _P1
    return _avalanche(h)


def _seeded(seed: int | Hashes, n: int) -> Hashes:
    return np.full(n, seed % (1 << 64), np.uint64) if isinstance(seed, int) else seed


def _rotate(x: Hashes, by: int) -> Hashes:
    return (x << np.uint64(by)) | (x >> np.uint64(64 - by))


def _round(lane: Hashes, words: Hashes) -> Hashes:
    return _rotate(lane + words * _P2, 31) * _P1


def _eight(h: Hashes, words: Hashes) -> Hashes:
    return _rotate(h ^ _round(np.zeros_like(h), words), 27) * _P1 + _P4


def _four(h: Hashes, words: NDArray[np.uint32]) -> Hashes:
    return _rotate(h ^ (words.astype(np.uint64) * _P1), 23) * _P2 + _P3


def _avalanche(h: Hashes) -> Hashes:
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))
