"""The tasks' programs, run by threads that talk over pipes: no Spark."""

import itertools
import threading
from multiprocessing import Pipe

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from spark_dedup.kernels.arrays import normalise
from spark_dedup.semantic.lloyd import lloyd, parallel_start, random_start
from spark_dedup.semantic.peers import Alone, Star


def run_tasks(work, count):
    """Run `work(peers)` in `count` connected threads; the root's result."""
    pipes = [Pipe() for _ in range(count - 1)]
    peers = [Star(0, count, [a for a, _ in pipes])] + [
        Star(i + 1, count, [b]) for i, (_, b) in enumerate(pipes)
    ]
    results = [None] * count

    def body(rank):
        results[rank] = work(peers[rank])

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert all(result is None for result in results[1:])
    return results[0]


def blobs(n=1200, dim=6, centers=9, seed=3):
    x, _ = make_blobs(n, dim, centers=centers, cluster_std=2.5, random_state=seed)
    return normalise(x.astype(np.float32)), np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, n)


def fit(x, start, peers, share, **options):
    options = {"max_iter": 300, "tol": 1e-4} | options
    squares = float((x.astype(np.float64) ** 2).sum())
    return lloyd(share, start, peers, squares=squares, report=lambda _: None, **options)


@pytest.mark.parametrize(
    "options", [{}, {"tol": 0}, {"max_iter": 1}, {"max_iter": 4, "tol": 0}, {"tol": 0.05}]
)
def test_lloyd_is_scikit_learns(options):
    x, _ = blobs()
    start = x[:9].copy()
    ours = fit(x, start, Alone(), x, **options)
    theirs = KMeans(9, init=start, n_init=1, algorithm="lloyd", **({"tol": 1e-4} | options)).fit(
        x.astype(np.float64)
    )
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-5)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    assert ours.n_iter == theirs.n_iter_
    np.testing.assert_array_equal(ours.sizes, np.bincount(theirs.labels_, minlength=9))


@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_any_number_of_tasks_gives_the_same_bits(tasks):
    x, keys = blobs()
    order = np.random.default_rng(tasks).permutation(len(x))
    shares = np.array_split(order, tasks)
    shares[1] = shares[1][:0] if tasks == 7 else shares[1]  # a task without rows
    kept = np.sort(np.concatenate(shares))

    def work(peers):
        rows = shares[peers.rank]
        start = parallel_start(x[rows], keys[rows], peers, n_clusters=9, oversampling_factor=2.0, seed=5)
        return fit(x[kept], start, peers, x[rows])

    def alone(peers):
        start = parallel_start(x[kept], keys[kept], peers, n_clusters=9, oversampling_factor=2.0, seed=5)
        return fit(x[kept], start, peers, x[kept])

    spread, single = run_tasks(work, tasks), alone(Alone())
    np.testing.assert_array_equal(spread.centroids, single.centroids)
    np.testing.assert_array_equal(spread.sizes, single.sizes)
    assert spread.n_iter == single.n_iter
    assert [e.moved for e in spread.history] == [e.moved for e in single.history]


def test_random_start_draws_rows_by_key():
    x, keys = blobs()
    whole = random_start(x, keys, Alone(), n_clusters=20, seed=1)
    spread = run_tasks(lambda p: random_start(x[p.rank :: 3], keys[p.rank :: 3], p, n_clusters=20, seed=1), 3)
    np.testing.assert_array_equal(whole, spread)
    assert {tuple(r) for r in whole} <= {tuple(r) for r in x}
    assert len(np.unique(whole, axis=0)) == 20
    assert (random_start(x, keys, Alone(), n_clusters=20, seed=2) != whole).any()
    every = random_start(x, keys, Alone(), n_clusters=len(x), seed=1)
    np.testing.assert_array_equal(np.sort(every, axis=0), np.sort(x, axis=0))


def test_parallel_start_is_about_as_good_as_plus_plus():
    x, keys = blobs(4000, 16, 40, 8)
    costs = []
    for seed in range(5):
        start = parallel_start(x, keys, Alone(), n_clusters=40, oversampling_factor=2.0, seed=seed)
        assert len(np.unique(start, axis=0)) == 40
        costs.append(fit(x, start, Alone(), x).inertia)
    theirs = [KMeans(40, n_init=1, random_state=seed).fit(x).inertia_ for seed in range(5)]
    assert np.median(costs) <= 1.03 * np.median(theirs)


@pytest.mark.parametrize("distinct", [1, 2, 6])
def test_fewer_distinct_rows_than_clusters(distinct):
    """The rest of the clusters stay empty and keep their centroids."""
    rows = normalise(np.random.default_rng(0).standard_normal((distinct, 4)).astype(np.float32))
    x, keys = np.repeat(rows, 10, axis=0), np.arange(10 * distinct)
    start = parallel_start(x, keys, Alone(), n_clusters=7, oversampling_factor=2.0, seed=0)
    assert start.shape == (7, 4)
    found = fit(x, start, Alone(), x)
    assert sorted(found.sizes.tolist()) == [0] * (7 - distinct) + [10] * distinct
    assert found.inertia == pytest.approx(0, abs=1e-5)
    assert np.isfinite(found.centroids).all()


def test_an_emptied_cluster_keeps_its_centroid():
    x = normalise(np.array([[1, 0.1], [1, -0.1], [1, 0]], np.float32))
    start = np.array([[1, 0], [-1, 0]], np.float32)
    found = fit(x, start, Alone(), x)
    np.testing.assert_array_equal(found.centroids[1], [-1, 0])
    np.testing.assert_array_equal(found.sizes, [3, 0])


def test_history_tells_falling_inertia():
    x, _ = blobs()
    seen = []
    squares = float((x.astype(np.float64) ** 2).sum())
    found = lloyd(x, x[:9], Alone(), squares=squares, max_iter=50, tol=0, report=seen.append)
    assert tuple(seen) == found.history
    assert [e.number for e in seen] == list(range(1, found.n_iter + 1))
    assert all(a.inertia >= b.inertia for a, b in itertools.pairwise(seen))
    assert seen[0].moved == len(x)
