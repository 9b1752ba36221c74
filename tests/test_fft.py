"""The powers equal numpy's in float64, for every kind of size."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melstream.pipeline import fft as module
from melstream.pipeline.fft import LANES, PowerSpectrum

TOLERANCE = 3e-6
"""Largest difference from numpy's float64, as a share of the frame's largest power. Roundings of
2**-24 add up: found are 2e-7 for powers of two, 9e-7 for twice the prime 509."""

SIZES = [2, 4, 6, 8, 10, 12, 16, 30, 32, 64, 128, 256, 400, 402, 480, 512, 1018, 1024, 2048]


def noise(n_groups: int, n_fft: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(n_fft)
    return rng.uniform(-1, 1, (n_groups, n_fft, LANES)).astype(np.float32)


def numpy_powers(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    powers = np.abs(np.fft.rfft(frames.astype(np.float64), axis=1)) ** 2
    return np.concatenate(powers, axis=1)


def assert_close(ours: npt.NDArray[np.float32], expected: npt.NDArray[np.float64]) -> None:
    assert (ours.shape, ours.dtype) == (expected.shape, np.float32)
    assert (np.abs(ours - expected) <= TOLERANCE * expected.max(axis=0)).all()


@pytest.mark.parametrize("n_fft", SIZES)
def test_powers_equal_numpys(n_fft: int) -> None:
    frames = noise(3, n_fft)
    assert_close(PowerSpectrum(n_fft)(frames), numpy_powers(frames))


@settings(max_examples=30, deadline=None)
@given(half=st.integers(1, 300))
def test_powers_equal_numpys_for_any_even_size(half: int) -> None:
    frames = noise(1, 2 * half)
    assert_close(PowerSpectrum(2 * half)(frames), numpy_powers(frames))


@pytest.mark.parametrize("n_fft", [8, 60, 512])
def test_a_sine_on_a_bin_is_in_that_bin_alone(n_fft: int) -> None:
    bins = np.arange(LANES) % (n_fft // 2 - 1) + 1
    angles = 2 * np.pi * np.outer(np.arange(n_fft), bins) / n_fft
    powers = PowerSpectrum(n_fft)(np.sin(angles).astype(np.float32)[None])
    expected = np.zeros((n_fft // 2 + 1, LANES))
    expected[bins, np.arange(LANES)] = (n_fft / 2) ** 2
    assert_close(powers, expected)


@pytest.mark.parametrize("n_fft", [30, 512])
def test_a_frame_does_not_depend_on_its_place_or_its_neighbours(n_fft: int) -> None:
    """Bit for bit; also beside frames that hold no numbers."""
    frame = noise(1, n_fft)[0, :, 0]
    alone = np.full((3, n_fft, LANES), np.nan, np.float32)
    alone[1, :, 7] = frame
    powers = PowerSpectrum(n_fft)
    expected = powers(np.tile(frame[None, :, None], (1, 1, LANES)))
    np.testing.assert_array_equal(expected, np.tile(expected[:, :1], LANES))
    np.testing.assert_array_equal(powers(alone)[:, LANES + 7], expected[:, 0])


@pytest.mark.parametrize("n_fft", [2, 6, 16, 24])
def test_the_kernels_give_the_same_uncompiled(n_fft: int, monkeypatch) -> None:
    frames = noise(2, n_fft)
    compiled = PowerSpectrum(n_fft)(frames)
    for name in ("_transform", "_pass", "_pass_of_4", "_split"):
        monkeypatch.setattr(module, name, getattr(module, name).py_func)
    plain = PowerSpectrum(n_fft)(frames)
    assert_close(plain, numpy_powers(frames))
    np.testing.assert_allclose(compiled, plain, atol=TOLERANCE * plain.max())


def test_a_pass_of_4_is_a_pass() -> None:
    frames = noise(1, 128)[0]
    ours, expected = np.empty((2, 128, LANES), np.float32)
    angles = 2 * np.pi * np.arange(128) / 128
    turns = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    for n_done in (1, 4, 16):
        module._pass_of_4(frames, n_done, *turns, ours)
        module._pass(frames, 4, n_done, *turns, expected)
        np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 16, LANES), (1, 8, LANES - 1), (8, LANES)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`frames` must have shape \(n_groups, 8, \d+\), found"):
        PowerSpectrum(8)(np.zeros(shape, np.float32))
