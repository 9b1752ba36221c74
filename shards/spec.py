"""What a log-mel is: every choice that changes its numbers, in one hashed object.

The hash of a ``FeatureSpec`` stands in each manifest and each checkpoint. Features
made with one spec and read with another are an error that shows both, never a
silent resample: differing features between training and use are a classic way to
lose several points of accuracy without a message.
"""

import hashlib
import json
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .affine import AffineCode, affine_code
from .errors import DatasetError

KALDI_FLOOR = 2.0**-23
"""Kaldi's log floor, float32 epsilon: 1.1920928955078125e-07 (a power)."""


class FeatureSpec(BaseModel):
    """The definition of a log-mel: natural log of mel band powers, time first.

    A waveform in [-1, 1] at ``sample_rate`` is cut into frames of ``win_length``
    samples every ``hop_length``. Each frame loses its mean (``remove_dc``), is
    pre-emphasised, windowed, padded with zeros to ``n_fft`` and transformed; the
    powers |X|² are summed under triangles of peak 1 (no area normalisation), and the
    log-mel is ``log(max(power, log_floor))``, shape (n_frames, n_mels).

    Raises:
        pydantic.ValidationError: an unknown field, or a value that cannot be, such as
            ``win_length`` above ``n_fft`` or ``fmax`` above half the sample rate.

    Source:
        Kaldi's feature-fbank.cc and mel-computations.cc, as torchaudio.compliance.kaldi
        states them; torchaudio.transforms.MelSpectrogram; librosa.feature.melspectrogram.

    >>> spec = FeatureSpec()
    >>> spec.n_frames(160_000), spec.frame_rate_hz, spec.duration_s(1000)
    (1001, 100.0, 10.0)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sample_rate: int = Field(default=16_000, gt=0, description="rate of the waveform, in Hz")
    n_fft: int = Field(default=512, gt=0, description="FFT size, in waveform samples; even")
    win_length: int = Field(default=400, gt=0, description="window, in waveform samples")
    hop_length: int = Field(
        default=160, gt=0, description="from frame to frame, in waveform samples"
    )
    n_mels: int = Field(default=64, gt=0, description="number of mel bands")
    fmin: float = Field(default=20.0, ge=0, description="lower edge of the lowest band, in Hz")
    fmax: float = Field(default=8000.0, gt=0, description="upper edge of the highest band, in Hz")
    window: Literal["hann", "hann_symmetric", "povey"] = Field(
        default="hann",
        description="hann: periodic, as MelSpectrogram and librosa; hann_symmetric: as Kaldi's "
        "'hanning'; povey: hann_symmetric to the power 0.85, Kaldi's own",
    )
    preemphasis: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the previous sample that is taken off; 0: none",
    )
    remove_dc: bool = Field(
        default=False, description="take off each frame's mean before anything else"
    )
    framing: Literal["center", "snip"] = Field(
        default="center",
        description="center: frame t is centred on sample t * hop_length, with zeros outside the "
        "waveform; snip: only frames that lie inside it, as Kaldi's snip_edges",
    )
    mel_scale: Literal["htk", "slaney"] = Field(
        default="htk",
        description="htk: 1127 ln(1 + f/700), also Kaldi's; slaney: linear up to 1 kHz",
    )
    mel_triangles: Literal["hz", "mel"] = Field(
        default="hz",
        description="where the triangles' sides are straight. hz: MelSpectrogram, librosa; "
        "mel: Kaldi, whose weights differ from theirs by up to 0.005 at 64 bands",
    )
    log_floor: float = Field(
        default=1e-8,
        ge=1e-30,
        le=1e30,
        description="band powers below it count as it, for a waveform in [-1, 1]. The default is "
        "16-bit quantisation noise in one FFT bin, and above what float32 rounding leaks",
    )
    storage_dtype: Literal["float16", "uint8"] = Field(
        default="float16",
        description="type of logmel.npy; uint8: half the bytes, an affine code (see `code`)",
    )
    resampler: Literal["soxr"] = Field(default="soxr", description="library that resamples")
    resampler_quality: Literal["QQ", "LQ", "MQ", "HQ", "VHQ"] = Field(
        default="HQ", description="soxr's quality word, from quick to very high"
    )

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.n_fft % 2:
            raise ValueError(f"`n_fft` must be even, found {self.n_fft}")
        if self.win_length > self.n_fft:
            raise ValueError(
                f"`win_length` must be at most n_fft ({self.n_fft}), found {self.win_length}"
            )
        shortest = 2 if self.window == "hann" else 3
        if self.win_length < shortest:
            raise ValueError(
                f"`win_length` must be at least {shortest} with window {self.window!r}, or all "
                f"weights of the window are 0; found {self.win_length}"
            )
        if self.hop_length > self.win_length:
            raise ValueError(
                f"`hop_length` must be at most win_length ({self.win_length}), or samples "
                f"between frames are lost; found {self.hop_length}"
            )
        return self

    @model_validator(mode="after")
    def _check_band(self) -> Self:
        nyquist = self.sample_rate / 2
        if not self.fmin < self.fmax <= nyquist:
            raise ValueError(
                f"`fmin` < `fmax` <= {nyquist:g} Hz (half the sample rate) is required, "
                f"found fmin={self.fmin:g}, fmax={self.fmax:g}"
            )
        return self

    @property
    def hash(self) -> str:
        """Sixteen hex characters that stand for all fields.

        The start of the sha256 of the fields as JSON: keys sorted, no spaces, floats in
        Python's shortest form that reads back the same. A field added later must leave
        the hashes of old specs as they are; the golden test holds both presets to that.
        """
        canonical = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def code(self) -> AffineCode | None:
        """What ``uint8`` codes stand for; None where log-mels are stored as float16.

        >>> code = FeatureSpec(storage_dtype="uint8").code
        >>> round(code.max_error, 4), round(float(code.decode(np.uint8(255))), 2)
        (0.0587, 11.54)
        """
        return None if self.storage_dtype == "float16" else self.value_code

    @property
    def value_code(self) -> AffineCode:
        """The affine code that spans every log-mel of these features, however they are stored."""
        return affine_code(
            log_floor=self.log_floor,
            n_fft=self.n_fft,
            win_length=self.win_length,
            preemphasis=self.preemphasis,
        )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one stored frame."""
        return self.n_mels * np.dtype(self.storage_dtype).itemsize

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    def n_frames(self, n_samples: int) -> int:
        """Count the frames of a waveform.

        ``center`` gives ``1 + n_samples // hop_length``, so even an empty waveform has
        one frame (of zeros); ``snip`` gives ``1 + (n_samples - win_length) //
        hop_length``, and none for a waveform shorter than the window.

        Args:
            n_samples: length of the waveform at ``sample_rate``, in samples.

        Raises:
            ValueError: ``n_samples`` is negative.
        """
        if n_samples < 0:
            raise ValueError(f"`n_samples` must be 0 or more, found {n_samples}")
        if self.framing == "center":
            return 1 + n_samples // self.hop_length
        return max(0, 1 + (n_samples - self.win_length) // self.hop_length)

    def duration_s(self, n_frames: int) -> float:
        """Return the time that ``n_frames`` frames stand for, in seconds."""
        return n_frames * self.hop_length / self.sample_rate

    def differing(self, other: "FeatureSpec") -> list[str]:
        """Name the fields that give other log-mels; how they are stored is none of them."""
        names = [name for name in type(self).model_fields if name != "storage_dtype"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def require_same(self, other: "FeatureSpec", where: str) -> None:
        """Insist that ``other``, found at ``where``, gives the same log-mels.

        How they are stored may differ: what was learnt from float16 holds for uint8, within
        the code's error.

        Args:
            other: the spec of a data set or a checkpoint.
            where: its place, for the message, such as ``data/train`` or ``runs/a/best``.

        Raises:
            DatasetError: they differ; the message shows each differing field of both.
        """
        differing = self.differing(other)
        if not differing:
            return
        raise DatasetError(
            f"features differ: {where} has {_shown(other, differing)}, required is "
            f"{_shown(self, differing)}; build the shards again with the required features, "
            f"or use those of {where}"
        )


def _shown(spec: FeatureSpec, names: list[str]) -> str:
    return ", ".join(f"{name}={getattr(spec, name)!r}" for name in names)


PRESETS: dict[str, FeatureSpec] = {
    "conformer64": FeatureSpec(),
    "kaldi128": FeatureSpec(
        n_mels=128,
        window="povey",
        preemphasis=0.97,
        remove_dc=True,
        framing="snip",
        mel_triangles="mel",
        log_floor=KALDI_FLOOR,
    ),
}
"""The named specs.

``conformer64`` is the default: 64 bands, periodic Hann, centred frames.

``kaldi128`` is ``torchaudio.compliance.kaldi.fbank(waveform, num_mel_bins=128)``. BEATs
calls just that on a waveform times 2**15: where the floor does not bite, its values are
these plus 2 ln(2**15) = 20.79. AST, SSAST, AudioMAE and EAT pass ``window_type="hanning"``:
theirs is ``window="hann_symmetric"`` with all else as here. At 128 bands one band (the
fourth, 63 to 93 Hz) lies between two FFT bins and is always at the floor; so is theirs.
"""
