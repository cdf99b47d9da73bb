import numpy as np
import pytest

from spark_dedup.kernels import seeding
from spark_dedup.kernels.seeding import choose, draw, uniform


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
    chosen = choose(points, np.ones(120), 6, seed=3)
    assert sorted(chosen.argmax(axis=1).tolist()) == [0, 1, 2, 3, 4, 5]
    assert {tuple(c) for c in chosen} <= {tuple(p) for p in points}


def test_plus_plus_never_draws_without_weight():
    points = np.arange(20, dtype=np.float32)[:, None]
    weights = np.where(np.arange(20) % 2, 0.0, 1.0)
    assert (choose(points, weights, 10, seed=0)[:, 0] % 2 == 0).all()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_plus_plus_gives_distinct_points_even_where_weights_run_out(k):
    points = np.arange(5, dtype=np.float32)[:, None]
    chosen = choose(points, np.array([1.0, 0, 0, 0, 0]), k, seed=0)
    assert len(np.unique(chosen)) == k


def cost_of(points, weights, centres):
    """Weighted sum of squared distances to the nearest centre, by brute force."""
    nearest = [((points - centre) ** 2).sum(axis=1) for centre in centres.astype(np.float64)]
    return float(weights @ np.min(nearest, axis=0))


@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_starts_of_parts_are_about_as_good(monkeypatch, spread):
    """Against choosing from all points, in groups and without any; half the points lie in one, which is divided."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 16))
    group = np.where(rng.random(3000) < 0.5, 0, rng.integers(0, 60, 3000))
    points = (centres[group] + spread * rng.standard_normal((3000, 16))).astype(np.float32)
    weights = rng.integers(0, 5, 3000).astype(float)
    theirs = [choose(points, weights, 400, seed) for seed in range(3)]
    monkeypatch.setattr(seeding, "UNDIVIDED", 120)
    monkeypatch.setattr(seeding, "CLUSTERS_PER_PART", 50)
    ours = [choose(points, weights, 400, seed) for seed in range(3)]
    counted = {tuple(point) for point in points[weights > 0]}
    for chosen in ours:
        assert len(np.unique(chosen, axis=0)) == 400
        assert {tuple(centre) for centre in chosen} <= counted
    costs = [np.median([cost_of(points, weights, c) for c in chosen]) for chosen in (ours, theirs)]
    uniform_cost = cost_of(points, weights, points[:400])
    assert costs[0] - costs[1] <= 0.25 * (uniform_cost - costs[1])


@pytest.mark.parametrize(
    ("cost", "limits", "total"),
    [
        ([1.0, 1.0, 2.0], [10, 10, 10], 8),
        ([0.0, 0.0], [3, 4], 7),
        ([5.0, 0.0, 1.0], [2, 9, 0], 6),
        ([1.0, 1.0, 1.0], [9, 9, 9], 10),
    ],
)
def test_shares_add_up(cost, limits, total):
    shares = seeding._shares(np.array(cost), np.array(limits), total)
    assert shares.sum() == total
    assert (shares <= limits).all()
    assert ((shares > 0) == (np.array(limits) > 0)).all()


def test_shares_follow_the_cost():
    assert seeding._shares(np.array([1.0, 1.0, 2.0]), np.array([99, 99, 99]), 43).tolist() == [11, 11, 21]
