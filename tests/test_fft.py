"""The powers equal numpy's in float64, for every kind of size."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melstream.pipeline import fft as module
from melstream.pipeline.fft import fill_powers, make_turns
from melstream.pipeline.lanes import LANES

TOLERANCE = 3e-6
"""Largest difference from numpy's float64, as a share of the frame's largest power. Roundings of
2**-24 add up: found are 2e-7 for powers of two, 9e-7 for twice the prime 509."""

SIZES = [2, 4, 6, 8, 10, 12, 16, 30, 32, 64, 128, 256, 400, 402, 480, 512, 1018, 1024, 2048]


def noise(n_fft: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(n_fft).uniform(-1, 1, (n_fft, LANES)).astype(np.float32)


def compute_powers(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    powers = np.full((len(frames) // 2 + 1, LANES), np.nan, np.float32)
    fill_powers(frames.copy(), make_turns(len(frames)), powers)
    return powers


def numpy_powers(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return np.abs(np.fft.rfft(frames.astype(np.float64), axis=0)) ** 2


def assert_close(ours: npt.NDArray[np.float32], expected: npt.NDArray[np.float64]) -> None:
    assert (ours.shape, ours.dtype) == (expected.shape, np.float32)
    assert (np.abs(ours - expected) <= TOLERANCE * expected.max(axis=0)).all()


@pytest.mark.parametrize("n_fft", SIZES)
def test_powers_equal_numpys(n_fft: int) -> None:
    frames = noise(n_fft)
    assert_close(compute_powers(frames), numpy_powers(frames))


@settings(max_examples=30, deadline=None)
@given(half=st.integers(1, 300))
def test_powers_equal_numpys_for_any_even_size(half: int) -> None:
    frames = noise(2 * half)
    assert_close(compute_powers(frames), numpy_powers(frames))


@pytest.mark.parametrize("n_fft", [8, 60, 512])
def test_a_sine_on_a_bin_is_in_that_bin_alone(n_fft: int) -> None:
    bins = np.arange(LANES) % (n_fft // 2 - 1) + 1
    angles = 2 * np.pi * np.outer(np.arange(n_fft), bins) / n_fft
    expected = np.zeros((n_fft // 2 + 1, LANES))
    expected[bins, np.arange(LANES)] = (n_fft / 2) ** 2
    assert_close(compute_powers(np.sin(angles).astype(np.float32)), expected)


@pytest.mark.parametrize("n_fft", [30, 512])
def test_a_frame_does_not_depend_on_its_place_or_its_neighbours(n_fft: int) -> None:
    """Bit for bit; also beside frames that hold no numbers."""
    frame = noise(n_fft)[:, :1]
    expected = compute_powers(np.tile(frame, LANES))
    np.testing.assert_array_equal(expected, np.tile(expected[:, :1], LANES))
    alone = np.full((n_fft, LANES), np.nan, np.float32)
    alone[:, 7] = frame[:, 0]
    np.testing.assert_array_equal(compute_powers(alone)[:, 7], expected[:, 0])


@pytest.mark.parametrize("part_size", [4, 16, 64])
def test_a_pass_of_4_is_a_pass(part_size: int) -> None:
    ours, turns = noise(128), make_turns(128)
    expected = ours.copy()
    module._pass_of_4(ours, part_size, turns.cos, turns.sin)
    module._pass(expected, 4, part_size, turns.cos, turns.sin)
    np.testing.assert_allclose(ours, expected, atol=2e-6)
