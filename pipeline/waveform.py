"""Audio file to the waveform that features are made of: mono, at the spec's sample rate.

``load_waveform`` is the one way in for the build, training on the fly and ``melstream embed``, so a
file gives the same waveform, or the same refusal, in all of them. A loaded model, which knows
nothing of this package, reads files by itself (``model/sounds.py``).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr

from ..shards.errors import SampleError
from ..shards.spec import FeatureSpec
from .decode import Decoded, decode
from .quality import SILENCE_BLOCK_S, hash_samples, mean_squares, measure_levels, silence_share

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LoadedWaveform:
    """A waveform, and what is known of where it came from.

    Args:
        waveform: float32, shape (n_samples,), mono, at the spec's sample rate.
        sample_rate_original: rate of the file, in Hz.
        n_channels: channels of the file.
        duration_s: samples decoded over the original rate, in seconds.
        peak: largest absolute sample of any channel as decoded; 1.0 hints at clipping.
        rms_dbfs: level of ``waveform`` in dB; 0 is a full-scale square wave, -3.01 a
            full-scale sine.
        clipped_share: share of decoded samples, all channels, at or beyond 32767/32768 of
            full scale, in [0, 1].
        silence_share: share of the 10 ms blocks of ``waveform`` whose RMS is under -60 dBFS,
            in [0, 1].
        dc_offset: mean of the decoded samples; 1 is full scale.
        audio_hash: 64 bits, equal where decoded samples, channels and rate are.
    """

    waveform: Waveform
    sample_rate_original: int
    n_channels: int
    duration_s: float
    peak: float
    rms_dbfs: float
    clipped_share: float
    silence_share: float
    dc_offset: float
    audio_hash: int


def load_waveform(
    path: Path,
    spec: FeatureSpec,
    *,
    min_duration_s: float | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> LoadedWaveform:
    """Decode a file or a segment of it, mix it to mono and resample it.

    Args:
        path: an audio file that ``decode`` reads.
        spec: gives the sample rate, and the resampler's quality.
        min_duration_s: shortest duration accepted, in seconds; by default one window
            (25 ms in the presets), which makes sure of at least one whole frame.
        start_s: where the segment starts, in seconds.
        duration_s: its duration, in seconds; by default to the end.

    Returns:
        The waveform and the file's figures.

    Raises:
        SampleError: any reason of ``decode`` or ``prepare``.
        ValueError: ``start_s`` or ``duration_s`` cannot be.
    """
    decoded = decode(path, start_s=start_s, duration_s=duration_s)
    return prepare(decoded, spec, min_duration_s=min_duration_s)


def prepare(
    decoded: Decoded, spec: FeatureSpec, *, min_duration_s: float | None = None
) -> LoadedWaveform:
    """Take a recording's figures, mix it to mono and resample it.

    Args:
        decoded: what ``decode`` gave.
        spec: gives the sample rate, and the resampler's quality.
        min_duration_s: as in ``load_waveform``.

    Returns:
        The waveform and the figures.

    Raises:
        SampleError: ``too_short``; ``not_finite``; ``silent``: all samples are zero, or become
            so when mixed, as in stereo whose channels are each other's negative (the message tells
            which).
    """
    samples, rate = decoded.samples, decoded.sample_rate
    _require_duration(decoded, min_duration_s, spec)
    levels = measure_levels(samples)
    if not math.isfinite(levels.peak):
        raise SampleError(
            f"{decoded.path}: finite samples required, found NaN or inf", reason="not_finite"
        )
    waveform = resample(
        to_mono(samples), from_rate=rate, to_rate=spec.sample_rate, quality=spec.resampler_quality
    )
    _require_sound(decoded.path, waveform, levels.peak)
    powers = mean_squares(waveform, max(1, round(SILENCE_BLOCK_S * spec.sample_rate)))
    return LoadedWaveform(
        waveform=waveform,
        sample_rate_original=rate,
        n_channels=samples.shape[1],
        duration_s=decoded.duration_s,
        peak=levels.peak,
        rms_dbfs=_rms_dbfs(waveform),
        clipped_share=levels.clipped_share,
        silence_share=silence_share(powers),
        dc_offset=levels.dc_offset,
        audio_hash=hash_samples(samples, rate),
    )


def to_mono(samples: npt.NDArray[np.float32]) -> Waveform:
    """Average the channels.

    Args:
        samples: float32, shape (n_samples, n_channels).

    Returns:
        waveform: float32, shape (n_samples,); a view of ``samples`` if it has one channel.

    Raises:
        ValueError: ``samples`` is not two-dimensional, or has no channel.

    >>> to_mono(np.array([[1, 0], [0.5, -0.5]], dtype=np.float32))
    array([0.5, 0. ], dtype=float32)
    """
    if samples.ndim != 2 or not samples.shape[1]:
        raise ValueError(
            f"`samples` must have shape (n_samples, n_channels), found {samples.shape}"
        )
    if samples.shape[1] == 1:
        return samples[:, 0]
    # measured: 2026-11-22, 10 s of stereo: 0.4 ms; `mean(axis=1)` takes 8.7, more than decoding.
    mono = samples[:, 0] + samples[:, 1]
    for channel in samples.T[2:]:
        mono += channel
    mono /= np.float32(samples.shape[1])
    return mono


def resample(waveform: Waveform, *, from_rate: int, to_rate: int, quality: str = "HQ") -> Waveform:
    """Change the sample rate of a waveform.

    Args:
        waveform: float32, shape (n_samples,).
        from_rate: its sample rate, in Hz.
        to_rate: the sample rate required, in Hz.
        quality: soxr's quality word: ``QQ``, ``LQ``, ``MQ``, ``HQ`` or ``VHQ``.

    Returns:
        waveform: float32, about n_samples * to_rate / from_rate samples; the same array if
            the rates are equal. Where it was full scale it may overshoot [-1, 1] a little.

    >>> resample(np.zeros(44_100, np.float32), from_rate=44_100, to_rate=16_000).shape
    (16000,)
    """
    if from_rate == to_rate:
        return waveform
    return soxr.resample(waveform, from_rate, to_rate, quality=quality)


def _require_duration(decoded: Decoded, min_duration_s: float | None, spec: FeatureSpec) -> None:
    required_s = spec.win_length / spec.sample_rate if min_duration_s is None else min_duration_s
    if decoded.duration_s < required_s:
        raise SampleError(
            f"{decoded.path}: at least {required_s:g} s are required, found "
            f"{decoded.duration_s:g} s",
            reason="too_short",
        )


def _require_sound(path: Path, waveform: Waveform, peak: float) -> None:
    if waveform.any():
        return
    why = "every sample is zero" if peak == 0 else "its channels cancel out when mixed to mono"
    raise SampleError(f"{path}: sound is required, found silence: {why}", reason="silent")


def _rms_dbfs(waveform: Waveform) -> float:
    (mean_square,) = mean_squares(waveform, len(waveform))
    return 10 * math.log10(mean_square)
