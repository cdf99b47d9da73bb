import math

import numpy as np
import pytest

from spark_dedup.kernels.arrays import array_module, block_rows, normalise, row_norms, to_host


def test_normalise_the_published_vectors():
    unit = normalise(np.array([[3, 4, 5], [1, 2, 2]], np.float32))
    np.testing.assert_allclose(unit[0], [0.42426407, 0.565685, 0.707107], atol=1e-6)
    np.testing.assert_allclose(unit[1], [0.33333, 0.66667, 0.66667], atol=1e-5)
    assert unit.dtype == np.float32


def test_normalise_extreme_rows_of_float32():
    big, tiny, least = np.float32(3e38), np.float32(2e-38), np.finfo(np.float32).smallest_subnormal
    unit = normalise(np.array([[big, big], [tiny, -tiny], [least, 0]], np.float32))
    half = math.sqrt(0.5)
    np.testing.assert_allclose(unit, [[half, half], [half, -half], [1, 0]], rtol=1e-6)


def test_normalise_takes_float64_and_leaves_its_input():
    x = np.array([[1e200, 1e200]])
    np.testing.assert_allclose(normalise(x / 1e100), [[math.sqrt(0.5)] * 2], rtol=1e-7)
    assert x[0, 0] == 1e200


def test_row_norms_against_exact_sums():
    x = np.random.default_rng(0).standard_normal((300, 37)).astype(np.float32)
    exact = [math.sqrt(math.fsum(float(v) ** 2 for v in row)) for row in x]
    np.testing.assert_allclose(row_norms(x), exact, rtol=1e-14)


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65])
def test_rows_are_scaled_alone(rows):
    x = np.random.default_rng(1).standard_normal((65, 2100)).astype(np.float32)
    np.testing.assert_array_equal(normalise(x[:rows]), normalise(x)[:rows])


def test_array_module_follows_the_data():
    class Foreign:
        pass

    Foreign.__module__ = "cupyx.fake"
    assert array_module(np.zeros(1)) is np
    assert array_module(Foreign()) is np
    assert array_module() is np


def test_to_host_copies_from_a_device_array():
    class OnDevice:
        def get(self):
            return np.arange(3)

    np.testing.assert_array_equal(to_host(OnDevice()), [0, 1, 2])
    np.testing.assert_array_equal(to_host(np.arange(3)), [0, 1, 2])


def test_block_rows_stay_within_the_rows():
    assert block_rows(4, 10) == 10
    assert block_rows(1 << 30, 1000) == 64
    assert block_rows(1 << 30, 0) == 1
