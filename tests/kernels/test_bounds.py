"""Labels by bounds are those of the plain kernel, in every iteration, whatever the data."""

import numpy as np
import pytest
from sklearn.datasets import make_blobs

from spark_dedup.kernels import bounds
from spark_dedup.kernels.arrays import normalise
from spark_dedup.kernels.bounds import Labels
from spark_dedup.kernels.kmeans import Totals, nearest


def blobs(n, dim, centers, spread, seed):
    x, _ = make_blobs(n, dim, centers=centers, cluster_std=spread, random_state=seed)
    return normalise(x.astype(np.float32))


def check(x, start, iterations=25):
    """Run Lloyd by both; return in how many iterations bounds were used."""
    labels, sums, counts = Labels(x), 0, 0
    centroids, before, bounded = start, np.full(len(x), -1), 0
    for _ in range(iterations):
        bounded += labels._bounds is not None
        change, more, moved = labels.update(centroids)
        sums, counts = sums + change, counts + more
        want = nearest(x, centroids)
        fixed = np.zeros((len(start), x.shape[1]), np.int64)
        np.add.at(fixed, want, (x * np.float32(2**30)).astype(np.int64))
        np.testing.assert_array_equal(sums, fixed)
        np.testing.assert_array_equal(counts, np.bincount(want, minlength=len(start)))
        assert moved == (want != before).sum()
        before = want
        centroids = Totals(sums, counts, float(len(x))).centroids(centroids)
    return bounded


@pytest.mark.parametrize("n", [1, 255, 256, 257, 3000])
@pytest.mark.parametrize("dim", [2, 3, 64])
def test_same_labels(n, dim, monkeypatch):
    monkeypatch.setattr(bounds, "_SETTLED", 2.0)  # from the first iteration on, when they hold least
    x = blobs(n, dim, centers=30, spread=3.0, seed=n + dim)
    assert check(x, x[: min(n, 40)].copy()) == (24 if min(n, 40) > 1 else 0)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(bounds, "_BLOCK", block)
    x = blobs(1500, 16, centers=12, spread=4.0, seed=block)
    assert check(x, x[:12].copy(), 40) > 20


def test_bounds_that_are_not_worth_it_rest(monkeypatch):
    """A first look, one that was not worth it, four iterations without, and again."""
    monkeypatch.setattr(bounds, "_SETTLED", 2.0)
    monkeypatch.setattr(bounds, "_WORTH", -1.0)
    used = []
    real = bounds._Bounds.labels
    monkeypatch.setattr(bounds._Bounds, "labels", lambda *a: used.append(1) or real(*a))
    x = normalise(np.random.default_rng(4).standard_normal((2000, 64)).astype(np.float32))
    check(x, x[:50].copy(), 19)
    assert len(used) == 6


def test_equal_and_empty_centroids(monkeypatch):
    """A centroid that is there twice, then moves away; one that no row is near to; equal rows."""
    monkeypatch.setattr(bounds, "_SETTLED", 2.0)
    x = blobs(600, 8, centers=5, spread=2.0, seed=1)
    x[100:150] = x[99]
    start = x[:10].copy()
    start[7] = start[2]
    start[9] = -5
    check(x, start)
    labels = Labels(x)
    for shift in (0.0, 0.0, 0.3, -0.2):
        start[7] = start[2] + np.float32(shift)
        labels.update(start)
        order = np.lexsort(labels._x.T)
        np.testing.assert_array_equal(labels._labels[order], nearest(labels._x[order], start))


def test_far_centroids_are_left_alone():
    """Well separated clusters, once settled: hardly any block has another's centroid to look at."""
    x = blobs(5000, 32, centers=20, spread=0.3, seed=5)
    labels, sums, counts = Labels(x), 0, 0
    centroids = x[np.unique(nearest(x, x[:200].copy()), return_index=True)[1][:40]]
    for _ in range(25):
        change, more, moved = labels.update(centroids)
        sums, counts = sums + change, counts + more
        centroids = Totals(sums, counts, float(len(x))).centroids(centroids)
    assert moved == 0
    assert (labels._bounds._gap <= 0).mean() < 0.2


def test_rows_may_be_put_elsewhere():
    x = blobs(900, 4, centers=3, spread=1.0, seed=2)
    asked = []

    def reorder(rows, order):
        asked.append(np.sort(order).tolist() == list(range(900)))
        return rows[order]

    labels = Labels(x, reorder)
    for _ in range(4):
        labels.update(x[:3].copy())
    assert asked == [True]
