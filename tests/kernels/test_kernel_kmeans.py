from fractions import Fraction

import numpy as np
import pytest

from spark_dedup.kernels.arrays import normalise
from spark_dedup.kernels.kmeans import Totals, assign, label_sums, moved_sums, nearest

RNG = np.random.default_rng(7)


def unit_rows(n, dim, seed=0):
    return normalise(np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32))


def exact_squared(row, centroid):
    return sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(row, centroid, strict=True))


def plain_nearest(x, centroids):
    """Distances in exact arithmetic; the first of equal ones."""
    return [min(range(len(centroids)), key=lambda k: (exact_squared(r, centroids[k]), k)) for r in x]


def test_assign_the_published_points():
    centroids = np.array([[1, 0], [0, 1]], np.float32)
    labels, l2, cosine = assign(np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32), centroids)
    np.testing.assert_array_equal(labels, [0, 1, 1])
    np.testing.assert_allclose(l2, [0, 0, np.sqrt(0.4)], atol=1e-7)
    np.testing.assert_allclose(cosine, [0, 0, 0.2], atol=1e-7)
    assert (labels.dtype, l2.dtype, cosine.dtype) == (np.int32, np.float32, np.float32)


@pytest.mark.parametrize(("n", "dim", "k"), [(1, 1, 1), (50, 3, 7), (130, 8, 40), (0, 4, 3)])
def test_nearest_against_exact_arithmetic(n, dim, k):
    x, centroids = unit_rows(n, dim), unit_rows(k, dim, 1) * np.float32(0.7)
    np.testing.assert_array_equal(nearest(x, centroids), plain_nearest(x, centroids))


def test_near_ties_are_settled_exactly():
    """Centroids so close together that float32 products cannot tell them apart."""
    x = unit_rows(200, 64)
    base = unit_rows(1, 64, 5)[0]
    centroids = np.stack(
        [base + np.float32(1e-6) * RNG.standard_normal(64).astype(np.float32) for _ in range(6)]
    )
    np.testing.assert_array_equal(nearest(x, centroids), plain_nearest(x, centroids))


def test_ties_go_to_the_smallest_centroid():
    x = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    opposite = np.array([[0, -1], [0, 1]], np.float32)
    np.testing.assert_array_equal(nearest(x, opposite), [0, 1, 0])
    equal = np.array([[0.5, 0.5], [1, 0], [1, 0], [0.5, 0.5]], np.float32)
    np.testing.assert_array_equal(nearest(x, equal), [1, 0, 0])
    np.testing.assert_array_equal(nearest(x, np.zeros((3, 2), np.float32)), [0, 0, 0])


def test_nearest_does_not_depend_on_where_a_row_lies():
    x, centroids = unit_rows(3000, 48), unit_rows(300, 48, 1)
    whole = nearest(x, centroids)
    order = RNG.permutation(len(x))
    np.testing.assert_array_equal(nearest(x[order], centroids), whole[order])
    for step in (1, 17, 999):
        parts = [nearest(x[i : i + step], centroids) for i in range(0, 300, step)]
        np.testing.assert_array_equal(np.concatenate(parts)[:300], whole[:300])


def test_distances_against_float64():
    x, centroids = unit_rows(500, 32), unit_rows(20, 32, 1) * np.float32(3)
    labels, l2, cosine = assign(x, centroids)
    c = centroids.astype(np.float64)[labels]
    np.testing.assert_allclose(l2, np.linalg.norm(x - c, axis=1), rtol=1e-6)
    expected = 1 - (x * c).sum(axis=1) / np.linalg.norm(c, axis=1)
    np.testing.assert_allclose(cosine, expected, atol=1e-7)


def test_distance_to_a_zero_centroid():
    labels, l2, cosine = assign(np.array([[0.6, 0.8]], np.float32), np.zeros((1, 2), np.float32))
    np.testing.assert_allclose([labels[0], l2[0], cosine[0]], [0, 1, 1], atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 700])
def test_label_sums_against_a_loop(k):
    x, labels = unit_rows(1000, 9), RNG.integers(0, k, 1000).astype(np.int32)
    sums, counts = label_sums(x, labels, k)
    expected = np.zeros((k, 9))
    for row, label in zip(x, labels, strict=True):
        expected[label] += row
    np.testing.assert_allclose(sums / 2.0**30, expected, atol=1e-6)
    np.testing.assert_array_equal(counts, [(labels == i).sum() for i in range(k)])


def test_label_sums_are_the_same_in_any_order():
    x, labels = unit_rows(5000, 16), RNG.integers(0, 13, 5000).astype(np.int32)
    order = RNG.permutation(5000)
    whole = label_sums(x, labels, 13)[0]
    np.testing.assert_array_equal(label_sums(x[order], labels[order], 13)[0], whole)
    halves = label_sums(x[:1234], labels[:1234], 13)[0] + label_sums(x[1234:], labels[1234:], 13)[0]
    np.testing.assert_array_equal(halves, whole)


def test_moved_sums_add_up_without_drift():
    x, labels, total = unit_rows(800, 6), None, 0
    for seed in range(30):
        new = np.random.default_rng(seed).integers(0, 5, 800).astype(np.int32)
        change, _, moved = moved_sums(x, labels, new, 5)
        assert moved == (800 if labels is None else (labels != new).sum())
        total, labels = total + change, new
    np.testing.assert_array_equal(total, label_sums(x, labels, 5)[0])
    assert moved_sums(x, labels, labels, 5)[2] == 0


def test_totals_against_the_definitions():
    x, labels = unit_rows(400, 12), RNG.integers(0, 4, 400).astype(np.int32)
    totals = Totals(*label_sums(x, labels, 5), float((x.astype(np.float64) ** 2).sum()))
    previous = unit_rows(5, 12, 3)
    means = totals.centroids(previous)
    for k in range(4):
        np.testing.assert_allclose(means[k], x[labels == k].mean(axis=0, dtype=np.float64), atol=1e-7)
    np.testing.assert_array_equal(means[4], previous[4])
    inertia = ((x - means.astype(np.float64)[labels]) ** 2).sum()
    assert totals.inertia(means) == pytest.approx(inertia, rel=1e-8)
    assert totals.mean_variance() == pytest.approx(x.astype(np.float64).var(axis=0).mean(), rel=1e-7)


def test_equal_rows_have_no_inertia():
    x = np.repeat(unit_rows(1, 24), 1000, axis=0)
    totals = Totals(*label_sums(x, np.zeros(1000, np.int32), 1), float((x.astype(np.float64) ** 2).sum()))
    assert totals.inertia(totals.centroids(x[:1])) == pytest.approx(0, abs=1e-4)
