import numpy as np
import pytest

from spark_dedup.kernels.seeding import draw, plus_plus, uniform


def splitmix(key, offset):
    """SplitMix64's output function in plain integers."""
    mask = 2**64 - 1
    z = ((key ^ offset) + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_draw_is_splitmix_of_key_seed_and_stream():
    assert splitmix(0, 0) == 0xE220A8397B1DCDAF  # the published first output for seed 0
    keys = np.array([0, 1, -1, 2**62], np.int64)
    seed, stream = 42, 3
    offset = splitmix((splitmix(seed, 0) + stream), 0)
    assert draw(keys, seed, stream).tolist() == [splitmix(int(k) % 2**64, offset) for k in keys]


def test_draws_depend_on_the_key_alone():
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000)
    order = np.random.default_rng(1).permutation(1000)
    np.testing.assert_array_equal(draw(keys[order], 1, 2), draw(keys, 1, 2)[order])
    assert (draw(keys, 1, 2) != draw(keys, 1, 3)).all()
    assert (draw(keys, 1, 2) != draw(keys, 2, 2)).all()


def test_uniform_is_uniform_even_for_consecutive_keys():
    values = uniform(np.arange(100_000), 42, 16)
    assert values.min() >= 0
    assert values.max() < 1
    counts, _ = np.histogram(values, 100, (0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # chi-squared with 99 degrees: 150 has p = 0.0007
    assert abs(np.corrcoef(values, uniform(np.arange(100_000), 42, 17))[0, 1]) < 0.02


def test_plus_plus_finds_separate_groups():
    centres = np.eye(6, dtype=np.float32) * 10
    rng = np.random.default_rng(0)
    points = np.repeat(centres, 20, axis=0) + rng.normal(0, 0.1, (120, 6)).astype(np.float32)
    chosen = plus_plus(points, np.ones(120), 6, seed=3)
    assert sorted(chosen.argmax(axis=1).tolist()) == [0, 1, 2, 3, 4, 5]
    assert {tuple(c) for c in chosen} <= {tuple(p) for p in points}


def test_plus_plus_never_draws_without_weight():
    points = np.arange(20, dtype=np.float32)[:, None]
    weights = np.where(np.arange(20) % 2, 0.0, 1.0)
    assert (plus_plus(points, weights, 10, seed=0)[:, 0] % 2 == 0).all()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_plus_plus_gives_distinct_points_even_where_weights_run_out(k):
    points = np.arange(5, dtype=np.float32)[:, None]
    chosen = plus_plus(points, np.array([1.0, 0, 0, 0, 0]), k, seed=0)
    assert len(np.unique(chosen)) == k
