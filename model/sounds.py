"""Sounds of any kind, files and waveforms, to mono waveforms at the rate of a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch
from torch import Tensor

from .logmel import FeatureConfig

Waveform: TypeAlias = npt.NDArray[np.float32]
Sound: TypeAlias = str | Path | npt.NDArray[np.floating] | Tensor
"""A file, or a waveform in [-1, 1], shape (n_samples,) or (1 or 2 channels, n_samples)."""

_MAX_CHANNELS = 2  # of a waveform; more are a batch, or the axes are swapped
_MAX_PEAK = 32.0  # louder than any overdriven waveform, and quieter than 16-bit samples


def read_sounds(
    sounds: Sound | Sequence[Sound], sample_rate: int | None, features: FeatureConfig
) -> list[Waveform]:
    """Read, mix to mono and resample.

    Args:
        sounds: one, or a sequence of them.
        sample_rate: of the waveforms, in Hz; files bring their own.
        features: give the rate that is wanted, the resampler's quality, and the shortest length.

    Returns:
        float32 waveforms of shape (n_samples,), in the order of the sounds.

    Raises:
        ValueError: no sound, an unreadable file, a waveform without a rate, of another shape, not
            finite, too loud to be in [-1, 1], or shorter than a frame's window.
    """
    is_one = isinstance(sounds, str | Path | np.ndarray | Tensor)
    given: Sequence[Sound] = [sounds] if is_one else sounds  # type: ignore[assignment]
    if not given:
        raise ValueError("`sounds` must hold at least one file or waveform, found none")
    return [_waveform(sound, sample_rate, number, features) for number, sound in enumerate(given)]


def _waveform(
    sound: Sound, sample_rate: int | None, number: int, features: FeatureConfig
) -> Waveform:
    if isinstance(sound, str | Path):
        where, (samples, rate) = str(sound), _read(sound)
    else:
        where, samples, rate = f"sound {number}", _as_array(sound, number), sample_rate
    if rate is None:
        raise ValueError("`sample_rate` of the waveforms is required, in Hz, found none")
    if rate <= 0:
        raise ValueError(f"`sample_rate` must be above 0 Hz, found {rate}")
    if not np.isfinite(samples).all():
        raise ValueError(f"{where}: finite samples required, found NaN or inf")
    if (peak := np.abs(samples).max(initial=0.0)) > _MAX_PEAK:
        raise ValueError(
            f"{where}: samples in [-1, 1] required, found a peak of {peak:g}; divide 16-bit "
            "samples by 32768"
        )
    mono = samples.mean(axis=0, dtype=np.float32) if samples.ndim == 2 else samples
    if rate != features.sample_rate:
        mono = soxr.resample(mono, rate, features.sample_rate, quality=features.resampler_quality)
    if len(mono) < features.win_length:
        raise ValueError(
            f"{where}: at least {features.win_length} samples at {features.sample_rate} Hz "
            f"(one window) are required, found {len(mono)}"
        )
    return mono


def _read(path: str | Path) -> tuple[Waveform, int]:
    """Decode a file: float32, shape (n_channels, n_samples), and its rate in Hz."""
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "none there"
        raise ValueError(f"{path} must be a file, found {found}")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(
            f"{path} must be a file that libsndfile reads (WAV, FLAC, OGG, MP3, AIFF ...), found: "
            f"{str(error).rstrip('.')}; turn it into one (ffmpeg -i {path} sound.wav), or give its "
            "waveform and sample_rate"
        ) from error
    return np.asarray(samples.T, np.float32), rate


def _as_array(sound: npt.NDArray[np.floating] | Tensor, number: int) -> Waveform:
    if not isinstance(sound, np.ndarray | Tensor):
        raise TypeError(
            f"sound {number} must be a path, an array or a tensor, found {type(sound).__name__}"
        )
    if isinstance(sound, Tensor):
        is_half = sound.dtype in (torch.bfloat16, torch.float16)  # NumPy has no bfloat16
        values = (sound.float() if is_half else sound).detach().cpu().numpy()
    else:
        values = sound
    is_mono, is_known = values.ndim == 1, values.ndim == 2 and values.shape[0] <= _MAX_CHANNELS
    found = f"found {values.dtype} of shape {values.shape}"
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"sound {number} must be floating, in [-1, 1], {found}; divide 16-bit samples by 32768"
        )
    if not (is_mono or is_known):
        raise ValueError(
            f"sound {number} must have shape (n_samples,) or (n_channels <= {_MAX_CHANNELS}, "
            f"n_samples), {found}; transpose what soundfile gives, average more channels, and give "
            "a batch as a list"
        )
    return values.astype(np.float32)
