import numpy as np
import pytest

from spark_dedup.errors import InputError
from spark_dedup.semantic.sweep import sweep

SCHEMA = "id long, max_id long, cosine_sim_score float"


@pytest.fixture(scope="module")
def swept(spark):
    """A first record, and 100 with similarities .00, .01 … .99 to it."""
    rows = [(0, 0, 0.0)] + [(i + 1, 0, i / 100) for i in range(100)]
    pairs = spark.createDataFrame(rows, SCHEMA).repartition(3)
    return sweep(pairs, eps=[0.3, 0.05, 0.1], samples=2)


def test_counts(swept):
    assert swept.num_documents == 101
    assert [(r.eps, r.removed, r.kept) for r in swept.rows] == [(0.05, 5, 96), (0.1, 10, 91), (0.3, 30, 71)]
    assert swept.rows[0].fraction == pytest.approx(5 / 101)
    assert "0.05" in swept.table
    assert len(swept.table.splitlines()) == 4


def test_samples_lie_just_above_and_just_below(swept):
    near = [(s.eps, s.side, s.id, round(s.score, 2)) for s in swept.samples]
    assert near[:4] == [
        (0.05, "above", 96, 0.95),
        (0.05, "above", 97, 0.96),
        (0.05, "below", 95, 0.94),
        (0.05, "below", 94, 0.93),
    ]
    assert len(near) == 12


def test_eps_for_a_fraction(swept):
    assert swept.eps_for(10 / 101) == pytest.approx(0.1099)  # the eleventh goes at .11
    assert swept.eps_for(0) == pytest.approx(0.0099)
    assert swept.eps_for(1) == pytest.approx(0.9999)
    with pytest.raises(InputError, match="fraction"):
        swept.eps_for(1.5)


def test_exact_copies_alone_are_too_many(spark):
    found = sweep(spark.createDataFrame([(0, 0, 0.0), (1, 0, 1.0), (2, 0, 1.0)], SCHEMA), samples=0)
    assert found.samples == ()
    with pytest.raises(InputError, match="exact copies alone"):
        found.eps_for(0.5)


def test_plot(swept, tmp_path):
    pytest.importorskip("matplotlib")
    swept.plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_to_compare(spark):
    empty = sweep(spark.createDataFrame([], SCHEMA))
    assert [r.removed for r in empty.rows] == [0] * len(empty.rows)
    assert np.isfinite(empty.eps_for(0.1))


def test_bad_thresholds(spark):
    pairs = spark.createDataFrame([], SCHEMA)
    with pytest.raises(InputError, match="at least one"):
        sweep(pairs, eps=[])
    with pytest.raises(InputError, match="eps must be"):
        sweep(pairs, eps=[0.1, 1.0])
