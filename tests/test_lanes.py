"""Operations on lanes are numpy's on slices, bit for bit."""

import numpy as np
import numpy.typing as npt
import pytest
from numba import TypingError, njit

from melstream.pipeline.lanes import LANES, fma_lanes, load_lanes, splat, store_lanes
from melstream.pipeline.rounding import fma

Array = npt.NDArray[np.float32]


@njit
def combine(values, first, factor, out):
    a, b, c = (
        load_lanes(values, first),
        load_lanes(values, first + LANES),
        load_lanes(values, first + 2 * LANES),
    )
    store_lanes(out, 0, a + b)
    store_lanes(out, LANES, a - b)
    store_lanes(out, 2 * LANES, a * b)
    store_lanes(out, 3 * LANES, -a)
    store_lanes(out, 4 * LANES, fma_lanes(a, b, c))
    store_lanes(out, 5 * LANES, splat(factor) * a)


@pytest.mark.parametrize("first", [0, 3])
def test_operations_are_those_on_each_value(first: int) -> None:
    values = np.random.default_rng(0).normal(0, 1, 4 * LANES).astype(np.float32)
    out = np.full((7, LANES), np.nan, np.float32)
    combine(values, first, np.float32(0.3), out)
    a, b, c = values[first : first + 3 * LANES].reshape(3, LANES)
    fused = np.array([fma(*triple) for triple in zip(a, b, c, strict=True)], np.float32)
    expected = np.stack([a + b, a - b, a * b, -a, fused, np.float32(0.3) * a])
    np.testing.assert_array_equal(out[:6], expected)
    assert np.isnan(out[6]).all()  # nothing is stored beyond the last lane


def test_what_is_not_finite_stays_in_its_lane() -> None:
    values = np.ones(3 * LANES, np.float32)
    values[[1, LANES + 2]] = np.nan, np.inf
    out = np.empty((6, LANES), np.float32)
    combine(values, 0, np.float32(1), out)
    assert np.isnan(out[:, 1]).all()
    assert np.isinf(out[[0, 1, 2, 4], 2]).all()
    assert np.isfinite(np.delete(out, [1, 2], axis=1)).all()


@pytest.mark.parametrize(
    "array", [np.zeros(64), np.zeros(128, np.float32)[::2], np.zeros((8, 64), np.float32).T]
)
def test_an_array_that_is_not_plain_float32_is_refused(array: Array) -> None:
    @njit
    def copy(array):
        store_lanes(array, 0, load_lanes(array, LANES))

    with pytest.raises((TypeError, TypingError), match="C-contiguous arrays of float32"):
        copy(array)
