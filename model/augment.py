"""Augmentation of labelled log-mels on the device of the batch: mixup, roll, SpecAugment.

Every draw comes from one ``torch.Generator`` and nothing waits for the device. A trainer
that seeds the generator from its own seed and the step gives the same batch after a
resume as without one.

torchaudio's masks are not used: they take no generator, and know nothing of padding.

Legend: B batch, T log-mel frames, C classes.
"""

import torch
from jaxtyping import Bool, Float, Float32, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

_SILENCE = -1e4  # a log-power that adds nothing to any other, and finite: no NaN


class AugmentConfig(BaseModel):
    """Which augmentations, and how strong; the defaults change nothing.

    data2vec's recipe for AudioSet, whose authors follow the paper, is
    ``mixup_share=0.7``; AST's is ``frequency_masks=1`` of up to 48 of 128 bands and
    ``time_masks=1`` of up to 0.19 of the frames.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mixup_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the clips that another one is mixed into"
    )
    rolls: bool = Field(
        default=False, description="turn each clip's frames by a random number of places"
    )
    frequency_masks: int = Field(default=0, ge=0, description="masks over mel bands per clip")
    frequency_mask_share: float = Field(
        default=0.375, gt=0, le=1, description="widest mask over mel bands, as a share of them"
    )
    time_masks: int = Field(default=0, ge=0, description="masks over time per clip")
    time_mask_share: float = Field(
        default=0.19, gt=0, le=1, description="longest mask, as a share of the clip's valid frames"
    )


def augment(
    logmel: Float[Tensor, "B T n_mels"],
    n_frames: Int[Tensor, " B"],
    labels: Float[Tensor, "B C"],
    config: AugmentConfig,
    *,
    fill: Float[Tensor, " n_mels"],
    generator: torch.Generator,
) -> tuple[Float32[Tensor, "B T n_mels"], Int[Tensor, " B"], Float32[Tensor, "B C"]]:
    """Roll, mix and mask a batch, in this order, as far as the config asks for it.

    Args:
        logmel: float16 or float32, shape (B, T, n_mels), natural log of power, not
            normalised.
        n_frames: integer, shape (B,): valid frames. The frames beyond play no part.
        labels: shape (B, C), multi-hot or soft.
        config: what to do.
        fill: shape (n_mels,): what stands in masked places, usually the normaliser's
            mean, so that they are zero after it.
        generator: on the device of the batch; the only source of randomness.

    Returns:
        logmel: float32, shape (B, T, n_mels).
        n_frames: integer, shape (B,); a mixed clip is as long as the longer of the two.
        labels: float32, shape (B, C).
    """
    logmel, labels = logmel.float(), labels.float()
    if config.rolls:
        logmel = roll(logmel, n_frames, generator=generator)
    if config.mixup_share:
        logmel, n_frames, labels = mixup(
            logmel, n_frames, labels, share=config.mixup_share, generator=generator
        )
    hidden = spec_masks(n_frames, (logmel.shape[1], logmel.shape[2]), config, generator=generator)
    return torch.where(hidden, fill, logmel), n_frames, labels


def roll(
    logmel: Float[Tensor, "B T n_mels"], n_frames: Int[Tensor, " B"], *, generator: torch.Generator
) -> Float[Tensor, "B T n_mels"]:
    """Turn each clip's valid frames by a random number of places; padding stays where it is.

    Args:
        logmel: floating, shape (B, T, n_mels).
        n_frames: integer, shape (B,).
        generator: on the device of the batch.

    Returns:
        Same shape and dtype.
    """
    n_valid = n_frames.clamp(min=1)[:, None]  # (B, 1)
    shift = (_uniform(n_valid.shape, generator) * n_valid).long()
    places = torch.arange(logmel.shape[1], device=logmel.device)[None]  # (1, T)
    sources = torch.where(places < n_valid, (places + shift) % n_valid, places)
    return logmel.take_along_dim(sources[..., None], dim=1)


def mixup(
    logmel: Float[Tensor, "B T n_mels"],
    n_frames: Int[Tensor, " B"],
    labels: Float[Tensor, "B C"],
    *,
    share: float,
    generator: torch.Generator,
) -> tuple[Float32[Tensor, "B T n_mels"], Int[Tensor, " B"], Float32[Tensor, "B C"]]:
    """Mix the next clip of the batch into a share of the clips, sounds and labels.

    data2vec mixes waveforms, x = (r a + (1 - r) b) / sqrt(r² + (1 - r)²) with
    r ~ U(0.5, 1) per clip, and labels r y_a + (1 - r) y_b. Sounds that have nothing to
    do with each other add up by power, so its log-mel is, up to the cross term of zero
    mean, log((r² A + (1 - r)² B) / (r² + (1 - r)²)) of the powers A and B. The mean of
    two log-mels, as AST and EAT take it, would be the log-mel of no sound.

    Args:
        logmel: floating, shape (B, T, n_mels), natural log of power.
        n_frames: integer, shape (B,).
        labels: floating, shape (B, C).
        share: expected share of mixed clips, in [0, 1].
        generator: on the device of the batch.

    Returns:
        logmel: float32, shape (B, T, n_mels); what lies past ``n_frames`` means nothing.
        n_frames: integer, shape (B,): the larger of the two, of mixed clips.
        labels: float32, shape (B, C).

    Source:
        Baevski et al. 2022, data2vec (arXiv:2202.03555), fairseq's
        audio_classification.py; Tokozume et al. 2018, between-class learning
        (arXiv:1711.10282); Niizumi et al. 2021, BYOL-A (arXiv:2103.06695), mixes
        log-mels by their powers too.
    """
    shape = (logmel.shape[0], 1, 1)
    is_mixed = _uniform(shape, generator) < share
    ratio = torch.where(is_mixed, 0.5 + 0.5 * _uniform(shape, generator), 1.0)  # (B, 1, 1)
    valid = torch.arange(logmel.shape[1], device=logmel.device) < n_frames[:, None]
    own = logmel.float().masked_fill(~valid[..., None], _SILENCE)
    other = own.roll(1, dims=0)
    energy = (ratio.square() + (1 - ratio).square()).log()
    mixed = torch.logaddexp(own + 2 * ratio.log(), other + 2 * (1 - ratio).log()) - energy
    ratio = ratio[:, :, 0]
    return (
        torch.where(is_mixed, mixed, logmel.float()),
        torch.where(is_mixed[:, 0, 0], torch.maximum(n_frames, n_frames.roll(1)), n_frames),
        ratio * labels.float() + (1 - ratio) * labels.float().roll(1, dims=0),
    )


def spec_masks(
    n_frames: Int[Tensor, " B"],
    shape: tuple[int, int],
    config: AugmentConfig,
    *,
    generator: torch.Generator,
) -> Bool[Tensor, "B T n_mels"]:
    """Draw SpecAugment's masks, other ones for each clip, within its valid frames.

    Args:
        n_frames: integer, shape (B,).
        shape: (T, n_mels).
        config: numbers and widths; a width is uniform from 0 to the widest.
        generator: on the device of ``n_frames``.

    Returns:
        hidden: bool, shape (B, T, n_mels); True = to be masked.

    Source:
        Park et al. 2019, SpecAugment (arXiv:1904.08779), with time masks bounded by
        the clip's length as in Park et al. 2020 (arXiv:1912.05533).
    """
    n_times, n_mels = shape
    bands = torch.full_like(n_frames, n_mels)
    in_time = _bands(
        n_frames, n_times, n=config.time_masks, share=config.time_mask_share, generator=generator
    )
    in_frequency = _bands(
        bands, n_mels, n=config.frequency_masks, share=config.frequency_mask_share,
        generator=generator,
    )  # fmt: skip
    return in_time[:, :, None] | in_frequency[:, None, :]


def _bands(
    lengths: Int[Tensor, " B"], size: int, *, n: int, share: float, generator: torch.Generator
) -> Bool[Tensor, "B size"]:
    """Draw the union of n bands, each inside the first ``lengths`` of ``size`` places."""
    draws = _uniform((2, len(lengths), n, 1), generator)
    widest = (lengths[:, None, None] * share).floor()
    widths = (draws[0] * (widest + 1)).floor()
    starts = (draws[1] * (lengths[:, None, None] - widths + 1)).floor()
    places = torch.arange(size, device=lengths.device)
    return ((places >= starts) & (places < starts + widths)).any(dim=1)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Float32[Tensor, "..."]:
    return torch.rand(shape, generator=generator, device=generator.device)
