"""Waveform to log-mel, as one ``FeatureSpec`` defines it.

The same ``LogMel`` serves the build, training on the fly and inference. A block of frames
at a time stays in the cache: Numba cuts, windows and pads the frames, scipy transforms
them, Numba sums powers under the mel triangles, numpy takes the log.
"""

import numba
import numpy as np
import numpy.typing as npt
import scipy.fft

from ..shards.spec import FeatureSpec
from .mel import mel_filters

Waveform = npt.NDArray[np.float32]

BLOCK_FRAMES = 256
"""Frames per block: about 1.3 MB of work arrays, whatever the length of the waveform.

measured: 2026-11-22, AMD EPYC (512 kB L2), 10 s at 16 kHz: 1.38 ms with blocks of 64
frames, 1.22 with 128, 1.19 with 256, 1.13 with 336, 3.9 and more with all 1,001 at once.
"""


class LogMel:
    """The log-mel of a waveform.

    A call changes nothing in the object, and its kernels hold no GIL: one ``LogMel`` serves
    any number of threads. A frame's values depend on its own samples only: not on its place in
    the waveform, nor on what stands around it.

    Args:
        spec: the features' definition.

    >>> logmel = LogMel(FeatureSpec())(np.zeros(16_000, dtype=np.float32))
    >>> logmel.shape, logmel.dtype, round(float(logmel[0, 0]), 3)
    ((101, 64), dtype('float32'), -18.421)
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._window = window(spec)
        self._filters = mel_filters(spec)
        self._first_bins, self._end_bins = _bin_ranges(self._filters)

    def __call__(self, waveform: Waveform) -> npt.NDArray[np.float32]:
        """Compute the log-mel.

        Args:
            waveform: float32, shape (n_samples,), in [-1, 1], at ``spec.sample_rate``.

        Returns:
            logmel: float32, shape (n_frames, n_mels), natural log of power; n_frames is
                ``spec.n_frames(n_samples)``. A waveform shorter than the window has no
                frame with ``snip`` framing; with ``center`` framing even an empty one has a
                frame, of zeros.

        Raises:
            ValueError: ``waveform`` is not one-dimensional float32.
        """
        if waveform.ndim != 1 or waveform.dtype != np.float32:
            raise ValueError(
                "`waveform` must be float32 of shape (n_samples,), found "
                f"{waveform.dtype} of shape {waveform.shape}; see `to_mono`"
            )
        n_frames = self.spec.n_frames(waveform.size)
        logmel = np.empty((n_frames, self.spec.n_mels), np.float32)
        frames = np.zeros((min(n_frames, BLOCK_FRAMES), self.spec.n_fft), np.float32)
        for first in range(0, n_frames, BLOCK_FRAMES):
            block = logmel[first : first + BLOCK_FRAMES]
            self._fill(block, first, waveform, frames[: len(block)])
        return logmel

    def _fill(
        self,
        block: npt.NDArray[np.float32],
        first_frame: int,
        waveform: Waveform,
        frames: npt.NDArray[np.float32],
    ) -> None:
        """Compute the frames from ``first_frame`` on, into ``block``; ``frames`` is scratch."""
        spec = self.spec
        n_samples = (len(block) - 1) * spec.hop_length + spec.win_length
        samples = _cut(waveform, self._first_sample(first_frame), n_samples)
        preemphasis = np.float32(spec.preemphasis)
        _frame(samples, spec.hop_length, self._window, preemphasis, spec.remove_dc, frames)
        # The transposed view gives (n_bins, n_frames) in C order at no cost, and the
        # next kernel runs along the frames, eight at a time.
        spectrum = scipy.fft.rfft(frames.T, axis=0)
        powers = np.empty((spec.n_mels, len(block)), np.float32)
        _project(spectrum, self._filters, self._first_bins, self._end_bins, powers)
        np.maximum(powers, np.float32(spec.log_floor), out=powers)
        np.log(powers, out=powers)
        block[:] = powers.T

    def _first_sample(self, frame: int) -> int:
        """Return where a frame's window starts in the waveform; below 0 in the left padding."""
        start = frame * self.spec.hop_length
        if self.spec.framing == "snip":
            return start
        # The window stands in the middle of the FFT frame, and that on the sample.
        return start - self.spec.n_fft // 2 + (self.spec.n_fft - self.spec.win_length) // 2


def window(spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """Return the window's weights, float32, shape (win_length,).

    >>> window(FeatureSpec(win_length=4, hop_length=2, n_fft=4))
    array([0. , 0.5, 1. , 0.5], dtype=float32)
    """
    period = spec.win_length if spec.window == "hann" else max(spec.win_length - 1, 1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.win_length) / period)
    return (hann**0.85 if spec.window == "povey" else hann).astype(np.float32)


def _bin_ranges(
    filters: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return each band's first bin with a weight, and one past its last; equal if none."""
    has_weight = filters > 0
    first = has_weight.argmax(axis=1)
    end = filters.shape[1] - has_weight[:, ::-1].argmax(axis=1)
    return first, np.where(has_weight.any(axis=1), end, first)


def _cut(waveform: Waveform, start: int, n_samples: int) -> Waveform:
    """Return ``n_samples`` of the waveform from ``start`` on, with zeros outside it."""
    first, end = max(start, 0), min(start + n_samples, waveform.size)
    if end - first == n_samples:
        return np.ascontiguousarray(waveform[first:end])
    padded = np.zeros(n_samples, np.float32)
    padded[first - start : max(end, first) - start] = waveform[first:end]
    return padded


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})
def _mean(values):
    total = np.float32(0)
    for i in range(len(values)):
        total += values[i]
    return total / np.float32(len(values))


# Low frequencies lose 30 dB to the pre-emphasis: without the fused multiply-add, which rounds
# once, rounding of the samples would stand out against what is left.
@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _frame(samples, hop_length, window, preemphasis, remove_dc, frames):
    """Fill frames[:, :win_length]; what lies right of it stays zero."""
    win_length = len(window)
    kept = np.float32(1) - preemphasis
    for t in range(len(frames)):
        source = samples[t * hop_length : t * hop_length + win_length]
        offset = kept * _mean(source) if remove_dc else np.float32(0)
        # Kaldi takes the first sample as its own predecessor.
        frames[t, 0] = window[0] * (kept * source[0] - offset)
        for i in range(1, win_length):
            frames[t, i] = window[i] * (source[i] - preemphasis * source[i - 1] - offset)


@numba.njit(cache=True, nogil=True)
def _project(spectrum, filters, first_bins, end_bins, powers):
    """Sum |spectrum|², (n_bins, n_frames), into powers, (n_mels, n_frames)."""
    squares = np.empty(spectrum.shape, np.float32)
    for k in range(spectrum.shape[0]):
        for t in range(spectrum.shape[1]):
            value = spectrum[k, t]
            squares[k, t] = value.real * value.real + value.imag * value.imag
    for m in range(len(filters)):
        powers[m] = 0
        for k in range(first_bins[m], end_bins[m]):
            weight = filters[m, k]
            for t in range(spectrum.shape[1]):
                powers[m, t] += weight * squares[k, t]
