import numpy as np
import pytest

from spark_dedup.kernels.similarity import (
    NO_MATCH,
    best_among,
    best_earlier,
    dot_rows,
    first_occurrences,
    nearest_rows,
)


def unit(n, dim, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def reference(x, earlier=None):
    """Row by row in float64; equal float32 scores go to the first."""
    scores, places = [], []
    for i, row in enumerate(x):
        others = x[:i] if earlier is None else earlier
        if not len(others):
            scores.append(-np.inf)
            places.append(NO_MATCH)
            continue
        similar = np.array([np.clip(np.float32(row.astype(float) @ o.astype(float)), -1, 1) for o in others])
        scores.append(similar.max())
        places.append(int(similar.argmax()))
    return np.array(scores, np.float32), np.array(places)


TILES = (1, 3, 16, 64, 1024)


@pytest.mark.parametrize(("n", "dim"), [(0, 3), (1, 3), (2, 3), (3, 1), (130, 3), (90, 384), (97, 64)])
def test_matches_the_row_by_row_reference_for_any_tile(n, dim):
    x = unit(n, dim)
    score, place = reference(x)
    for tile in TILES:
        best = best_earlier(x, tile=tile)
        np.testing.assert_array_equal(best.score, score)
        np.testing.assert_array_equal(best.index, place)


def test_a_tile_far_larger_than_the_rows_takes_no_memory():
    best = best_earlier(unit(3, 4), tile=1 << 24)
    np.testing.assert_array_equal(best.index, reference(unit(3, 4))[1])


def test_matches_a_published_table():
    x = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [1, 2, 3], [1, 2, 3]], np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    best = best_earlier(x)
    np.testing.assert_allclose(best.score[1:], [0.974631, 0.998190, 0.999618, 1, 1], atol=1e-6)
    assert best.index[1:].tolist() == [0, 1, 2, 0, 0]


def test_first_row_has_no_match():
    best = best_earlier(unit(1, 4))
    assert best.score[0] == -np.inf
    assert best.index[0] == NO_MATCH


def test_negative_similarities_are_kept():
    best = best_earlier(np.array([[1, 0], [-1, 0]], np.float32))
    assert best.score[1] == -1
    assert best.index[1] == 0


@pytest.mark.parametrize("dim", [2, 7, 384])
def test_exact_copies_match_the_earliest_for_any_tile(dim):
    x = np.repeat(unit(8, dim), 22, axis=0)
    order = np.random.default_rng(1).permutation(len(x))
    x = x[order]
    first = {}
    expected = [first.setdefault(row.tobytes(), i) for i, row in enumerate(x)]
    copies = np.array([place < i for i, place in enumerate(expected)])
    for tile in TILES:
        best = best_earlier(x, tile=tile)
        np.testing.assert_array_equal(best.index[copies], np.array(expected)[copies])
        np.testing.assert_allclose(best.score[copies], 1, atol=2e-7)


def test_all_rows_equal():
    x = np.tile(unit(1, 48), (90, 1))
    for tile in TILES:
        assert (best_earlier(x, tile=tile).index[1:] == 0).all()


def test_many_rivals_within_rounding_change_the_score_by_less_than_1e6():
    x = unit(1, 384) + 1e-6 * unit(400, 384, seed=2)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    score, _ = reference(x)
    for tile in (16, 128, 1024):
        np.testing.assert_allclose(best_earlier(x, tile=tile).score[1:], score[1:], atol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 3), (40, 90), (90, 40)])
def test_best_among_matches_the_reference_for_any_tile(n, m):
    x, earlier = unit(n, 24), unit(m, 24, seed=1)
    score, place = reference(x, earlier)
    for tile in TILES:
        best = best_among(x, earlier, tile=tile)
        np.testing.assert_array_equal(best.score, score)
        np.testing.assert_array_equal(best.index, place)


def test_only_a_larger_score_than_the_floor_counts():
    x, earlier = unit(40, 8), unit(60, 8, seed=1)
    free = best_among(x, earlier)
    same = best_among(x, earlier, floor=free.score)
    assert (same.index == NO_MATCH).all()
    assert (same.score == -np.inf).all()
    lower = best_among(x, earlier, floor=np.nextafter(free.score, -1))
    np.testing.assert_array_equal(lower.index, free.index)


def test_blocks_of_a_triangle_give_the_whole():
    x = unit(150, 16)
    x[100] = x[10]
    x[140] = x[10]
    whole = best_earlier(x)
    for cut in (1, 10, 75, 149):
        above = best_among(x[cut:], x[:cut])
        inside = best_earlier(x[cut:])
        later = inside.score > above.score
        score = np.where(later, inside.score, above.score)
        place = np.where(later, inside.index + cut, above.index)
        np.testing.assert_array_equal(score, whole.score[cut:])
        np.testing.assert_array_equal(place, whole.index[cut:])


def test_input_is_not_changed():
    x = unit(50, 8)
    before = x.copy()
    x.setflags(write=False)
    best_earlier(x)
    best_among(x, x, floor=np.zeros(50, np.float32))
    nearest_rows(x, x, 2)
    np.testing.assert_array_equal(x, before)


def test_nearest_rows_are_the_nearest_by_distance():
    x, others = unit(90, 5) * 3, unit(30, 5, seed=1) * np.linspace(0.5, 2, 30, dtype=np.float32)[:, None]
    distance = ((x[:, None, :].astype(float) - others[None]) ** 2).sum(axis=2)
    expected = np.argsort(distance, axis=1, kind="stable")[:, :4]
    for tile in (1, 7, 1024):
        np.testing.assert_array_equal(nearest_rows(x, others, 4, tile=tile), expected)


def test_first_occurrences_marks_the_first_of_each_row():
    x = unit(6, 9)[[0, 1, 0, 2, 1, 3]]
    assert first_occurrences(x).tolist() == [True, True, False, True, False, True]


def test_dot_rows_stays_within_one():
    x = unit(500, 3)
    assert (dot_rows(x, x) <= 1).all()
    assert (dot_rows(x, -x) >= -1).all()
