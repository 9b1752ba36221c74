"""How much of a GPU's arithmetic a run uses: model FLOPs utilisation (MFU).

Counted are the floating-point operations that the model needs (matrix products, convolutions
and attention; a backward pass as two forward passes), not those that recomputing adds.

Source:
    Chowdhery et al. 2022, PaLM, appendix B (arXiv:2204.02311).
"""

import re

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..model.encoder import AudioEncoder, EncoderConfig

PEAK_FLOPS: dict[str, float] = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 products per second of a GPU by a part of its name, from its data sheet."""


def training_flops(config: EncoderConfig, n_frames: int) -> int:
    """Count the operations that one sample costs in a training step.

    Args:
        config: of the encoder; heads and objectives are small beside it and not counted.
        n_frames: log-mel frames of the sample.

    Returns:
        Floating-point operations, a multiply and an add being two.

    >>> training_flops(EncoderConfig(), 1_000) / 1e9  # CF-S, 10 s
    29.707776
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        AudioEncoder(config).eval()(torch.empty(1, n_frames, config.n_mels))
    return 3 * counter.get_total_flops()


def samples_per_s_at_peak(
    config: EncoderConfig, n_frames: int, *, device: torch.device, precision: str
) -> float | None:
    """Return how many samples per second would use all of a device's arithmetic.

    Args:
        config: of the encoder.
        n_frames: log-mel frames of a sample.
        device: where a run trains.
        precision: of ``train.precision``.

    Returns:
        Samples per second in training; None where the device's peak is not known.
    """
    peak = peak_flops(device, precision)
    return None if peak is None else peak / training_flops(config, n_frames)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return what a device can do per second; None where it is not known.

    Args:
        device: where a run trains.
        precision: of ``train.precision``; only bfloat16 products have a peak in the table.
    """
    if device.type != "cuda" or precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = (peak for part, peak in PEAK_FLOPS.items() if re.search(rf"\b{part}\b", name))
    return next(peaks, None)
