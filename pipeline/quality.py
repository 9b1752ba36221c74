"""Figures that tell good recordings from bad ones, cheap enough for every clip of a build.

Level, clipping, offset and silence come from the samples; the bandwidth comes from the
log-mel, which shows that a 44.1 kHz file was once a telephone call. The hash finds copies:
it is equal where the samples are, whatever the files are called and however they are packed.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash
from numba import njit

from ..shards.mel import mel_edges_hz
from ..shards.spec import FeatureSpec
from .rounding import sum_float64, sum_squares_float64

Samples = npt.NDArray[np.float32]

CLIPPED = np.float32(32767 / 32768)
"""The largest 16-bit sample: a decoder's full scale, where recorders cut what is louder."""

SILENCE_DBFS = -60.0
SILENCE_BLOCK_S = 0.010
BANDWIDTH_DB = 60.0
"""How far under the loudest value a band still counts, in dB.

measured: 2026-11-22, 141 recordings of Debian's games and the ones that ship, resampled to
8 kHz and back, 16 bits: one is taken for more than 4.4 kHz (23 with the frames at the ends);
of the recordings as they are, five give less than 5 kHz.
"""
NEPERS_PER_DB = np.log(10) / 10  # of power
FLOOR_MARGIN = 1.0  # 4 dB: 16-bit quantisation noise lies just above kaldi128's floor


@dataclass(frozen=True, slots=True)
class Levels:
    """What all samples of a recording, all channels, say about its level.

    Args:
        peak: largest absolute sample; infinite or NaN if a sample is.
        clipped_share: share of samples at or beyond 32767/32768 of full scale, in [0, 1].
        dc_offset: mean of all samples, which is that of the channels' mean.
    """

    peak: float
    clipped_share: float
    dc_offset: float


def measure_levels(samples: Samples) -> Levels:
    """Measure peak, clipping and offset in one pass.

    Args:
        samples: float32, C-contiguous, shape (n_samples, n_channels), at least one.

    Raises:
        ValueError: no samples, or another type or layout.

    >>> measure_levels(np.array([[1, -0.5], [0.25, 0.25]], dtype=np.float32))
    Levels(peak=1.0, clipped_share=0.25, dc_offset=0.25)
    """
    if samples.dtype != np.float32 or not samples.flags.c_contiguous or not samples.size:
        raise ValueError(
            "`samples` must be float32, C-contiguous and not empty, found "
            f"{samples.dtype} of shape {samples.shape}"
        )
    values = samples.reshape(-1)
    peak_bits, n_clipped = _scan(values.view(np.int32), CLIPPED.view(np.int32))
    peak = float(np.int32(peak_bits).view(np.float32))
    return Levels(peak, n_clipped / values.size, sum_float64(values) / values.size)


def mean_squares(waveform: npt.NDArray[np.float32], block_samples: int) -> npt.NDArray[np.float64]:
    """Return the mean square of each block of a waveform; the last may be a shorter one.

    Args:
        waveform: float32, shape (n_samples,).
        block_samples: samples per block, at least 1.

    Returns:
        float64, shape (n_blocks,), so that no square is too small for it.

    Raises:
        ValueError: ``block_samples`` is under 1.

    >>> mean_squares(np.array([1, 1, 0, 2, 3], dtype=np.float32), 2)
    array([1., 2., 9.])
    """
    if block_samples < 1:
        raise ValueError(f"`block_samples` must be at least 1, found {block_samples}")
    powers = np.empty(-(-len(waveform) // block_samples), np.float64)
    _fill_mean_squares(waveform, block_samples, powers)
    return powers


def silence_share(powers: npt.NDArray[np.float64]) -> float:
    """Return the share of blocks whose RMS is under ``SILENCE_DBFS``, in [0, 1].

    Args:
        powers: mean squares of blocks of ``SILENCE_BLOCK_S``, see ``mean_squares``.

    >>> silence_share(np.array([0.01, 1.1e-6, 0.9e-6, 0.0]))
    0.5
    """
    return float(np.mean(powers < 10 ** (SILENCE_DBFS / 10)))


def hash_samples(samples: Samples, sample_rate: int) -> int:
    """Hash a recording's sound: 64 bits that are equal where samples, channels and rate are.

    Args:
        samples: float32, shape (n_samples, n_channels).
        sample_rate: Hz.

    Returns:
        xxh3_64 of the number of channels and the rate (two little-endian uint64) and of the
        samples in order of time, channels side by side, little-endian.

    >>> hash_samples(np.zeros((4, 2), np.float32), 8_000) == hash_samples(
    ...     np.zeros((8, 1), np.float32), 8_000
    ... )
    False
    """
    hasher = xxhash.xxh3_64(struct.pack("<QQ", samples.shape[1], sample_rate))
    hasher.update(np.ascontiguousarray(samples, "<f4").data)
    return hasher.intdigest()


def bandwidth_hz(logmel: npt.NDArray[np.float32], spec: FeatureSpec) -> float:
    """Return how far up a clip has sound: the effective bandwidth.

    The upper edge of the highest mel band whose loudest frame is within ``BANDWIDTH_DB`` of
    the loudest value of the clip, and over 4 dB above the spec's log floor. What was once
    sampled at 8 kHz gives about 4,000 Hz, whatever rate its file has now. Frames whose window
    reaches past an end of the clip do not count if there are others: a sound that is cut off
    is a click, which has all frequencies.

    Args:
        logmel: float32 (float16 will do), shape (n_frames, n_mels), natural log of power.
        spec: what ``logmel`` was made with.

    Returns:
        Hz, at most ``spec.fmax``; 0 where every value is at the floor.

    Raises:
        ValueError: ``logmel`` has no frame, or not ``spec.n_mels`` bands.

    >>> spec = FeatureSpec()
    >>> logmel = np.full((10, 64), np.log(spec.log_floor), np.float32)
    >>> bandwidth_hz(logmel, spec)
    0.0
    >>> logmel[3, :32] = -2
    >>> round(bandwidth_hz(logmel, spec))
    1851
    """
    if logmel.ndim != 2 or not len(logmel) or logmel.shape[1] != spec.n_mels:
        raise ValueError(
            f"`logmel` must have shape (n_frames, {spec.n_mels}), found {logmel.shape}"
        )
    n_edge = math.ceil(spec.win_length / 2 / spec.hop_length)
    inner = logmel[n_edge:-n_edge]
    loudest = (inner if len(inner) else logmel).max(axis=0).astype(np.float64)
    threshold = max(
        loudest.max() - BANDWIDTH_DB * NEPERS_PER_DB, np.log(spec.log_floor) + FLOOR_MARGIN
    )
    heard = np.flatnonzero(loudest > threshold)
    return float(mel_edges_hz(spec)[heard[-1] + 2]) if len(heard) else 0.0


@njit(cache=True, nogil=True)
def _scan(bits, clipped_bits):
    """Return bits of the largest |value|, number that are clipped.

    ``bits`` is ``values`` seen as int32: without their sign, floats compare as their bits do,
    NaN above all, and whole numbers let the compiler take eight at a time.
    """
    peak_bits = np.int32(0)
    n_clipped = 0
    for i in range(len(bits)):
        magnitude = bits[i] & np.int32(0x7FFF_FFFF)
        peak_bits = max(peak_bits, magnitude)
        n_clipped += magnitude >= clipped_bits
    return peak_bits, n_clipped


@njit(cache=True, nogil=True)
def _fill_mean_squares(waveform, block_samples, powers):
    for block in range(len(powers)):
        start = block * block_samples
        end = min(start + block_samples, len(waveform))
        powers[block] = sum_squares_float64(waveform[start:end]) / (end - start)
