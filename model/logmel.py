"""Waveforms to log-mels on any device, as the feature spec of a model's card defines them.

The card of a trained model says which log-mels it knows. Here they are computed by torch
and torchaudio on a whole batch at once, also on a GPU.

Legend: B batch, N waveform samples, T log-mel frames.
"""

from typing import Literal

import torch
import torch.nn.functional as F
import torchaudio
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


class FeatureConfig(BaseModel):
    """What a card says of its log-mels; a field that is missing or unknown is an error.

    How the log-mels of the training set were stored changes no number here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sample_rate: int
    n_fft: int
    win_length: int
    hop_length: int
    n_mels: int
    fmin: float
    fmax: float
    window: Literal["hann", "hann_symmetric", "povey"]
    preemphasis: float
    remove_dc: bool
    framing: Literal["center", "snip"]
    mel_scale: Literal["htk", "slaney"]
    mel_triangles: Literal["hz", "mel"]
    log_floor: float
    storage_dtype: str
    resampler: Literal["soxr"]
    resampler_quality: Literal["QQ", "LQ", "MQ", "HQ", "VHQ"]

    def n_frames(self, n_samples: int) -> int:
        """Count the frames of a waveform of ``n_samples`` samples."""
        if self.framing == "center":
            return 1 + n_samples // self.hop_length
        return max(0, 1 + (n_samples - self.win_length) // self.hop_length)


class TorchLogMel(nn.Module):
    """Natural log of mel band powers, time first.

    Args:
        config: which log-mel.

    Raises:
        ValueError: triangles over mel on a scale that torchaudio has none for.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", _window(config), persistent=False)
        self.register_buffer("filters", _filters(config), persistent=False)

    def forward(self, waveforms: Float32[Tensor, "B N"]) -> Float32[Tensor, "B T n_mels"]:
        """Compute log-mels.

        Args:
            waveforms: float32, shape (B, N), in [-1, 1], at ``config.sample_rate``;
                zeros behind the end of a shorter one.

        Returns:
            logmel: float32, shape (B, T, n_mels); T is ``config.n_frames(N)``.
        """
        config = self.config
        if config.framing == "center":
            # The window stands in the middle of the FFT frame, and that on the sample.
            left = config.n_fft // 2 - (config.n_fft - config.win_length) // 2
            right = (config.n_frames(waveforms.shape[1]) - 1) * config.hop_length
            right += config.win_length - left - waveforms.shape[1]
            waveforms = F.pad(waveforms, (left, max(right, 0)))
        frames = waveforms.unfold(1, config.win_length, config.hop_length)  # (B, T, win_length)
        if config.remove_dc:
            frames = frames - frames.mean(dim=2, keepdim=True)
        if config.preemphasis:
            # Kaldi takes the first sample as its own predecessor.
            before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
            frames = frames - config.preemphasis * before
        spectrum = torch.fft.rfft(frames * self.window, config.n_fft)
        powers = spectrum.real.square() + spectrum.imag.square()
        return (powers @ self.filters).clamp(min=config.log_floor).log()


def _window(config: FeatureConfig) -> Float32[Tensor, " win_length"]:
    is_periodic = config.window == "hann"
    hann = torch.hann_window(config.win_length, periodic=is_periodic, dtype=torch.float64)
    return (hann**0.85 if config.window == "povey" else hann).float()


def _filters(config: FeatureConfig) -> Float32[Tensor, "n_bins n_mels"]:
    if config.mel_triangles == "hz":
        return torchaudio.functional.melscale_fbanks(
            config.n_fft // 2 + 1, config.fmin, config.fmax, config.n_mels, config.sample_rate,
            norm=None, mel_scale=config.mel_scale,
        )  # fmt: skip
    if config.mel_scale != "htk":
        raise ValueError(
            f"`mel_triangles='mel'` is known on the htk scale only, found {config.mel_scale!r}"
        )
    filters, _ = torchaudio.compliance.kaldi.get_mel_banks(
        config.n_mels, config.n_fft, config.sample_rate, config.fmin, config.fmax,
        vtln_low=100.0, vtln_high=-500.0, vtln_warp_factor=1.0,
    )  # fmt: skip
    return F.pad(filters, (0, 1)).T.contiguous()  # Kaldi leaves the bin at half the rate out
