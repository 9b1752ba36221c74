"""Masking while fine-tuning: spans of latent steps and bands of latent channels.

wav2vec 2.0 masks its latents in fine-tuning as in pre-training, and channels too: a
SpecAugment in latent space (Baevski et al. 2020, arXiv:2006.11477, section 4.3 and
appendix B). In place of hidden steps stands the vector that the encoder has learnt to see
there; hidden channels are zero.

Legend: B batch, S latent steps.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class HidingConfig(BaseModel):
    """How much of the latents is hidden in training; the defaults hide nothing.

    data2vec's recipe for AudioSet, whose authors follow the paper: 0.45 in spans of 4
    steps of 20 ms (2 of 40 ms), channels 0.1 in bands of 64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_share: float = Field(
        default=0.0, ge=0, lt=1, description="spans begun, times their length, per latent step"
    )
    step_length: int = Field(default=2, ge=1, description="length of a span, in latent steps")
    channel_share: float = Field(
        default=0.0, ge=0, lt=1, description="bands begun, times their width, per latent channel"
    )
    channel_length: int = Field(default=64, ge=1, description="width of a band, in latent channels")


class Hidden(NamedTuple):
    """What is hidden of a batch's latents, for ``Tagger.forward``.

    Attributes:
        steps: bool, shape (B, S).
        channels: bool, shape (B, latent_dim): in every step.
    """

    steps: Bool[Tensor, "B S"]
    channels: Bool[Tensor, "B latent_dim"]


def draw_hidden(
    n_frames: Int[Tensor, " B"],
    config: HidingConfig,
    *,
    stride: int,
    n_steps: int,
    latent_dim: int,
    generator: torch.Generator,
) -> Hidden:
    """Draw what the tagger shall not see of each clip.

    A span begins at each step with the same probability, ``share / length``, and spans may
    overlap: ``1 - (1 - share / length) ** length`` of the steps are hidden on average.

    Args:
        n_frames: integer, shape (B,): valid log-mel frames. Steps past them are not hidden.
        config: shares and lengths.
        stride: log-mel frames per latent step.
        n_steps: S.
        latent_dim: channels of a latent.
        generator: on the device of ``n_frames``; the only source of randomness.

    Returns:
        Steps and channels to hide.
    """
    size = len(n_frames)
    steps = _spans((size, n_steps), config.step_share, config.step_length, generator)
    channels = _spans((size, latent_dim), config.channel_share, config.channel_length, generator)
    places = torch.arange(n_steps, device=n_frames.device)
    valid = places < (n_frames // stride)[:, None]
    return Hidden(valid & steps, channels)


def _spans(
    shape: tuple[int, int], share: float, length: int, generator: torch.Generator
) -> Bool[Tensor, "B size"]:
    n_samples, size = shape
    # Spans may begin before the first place too, so that every place is hidden as often.
    draws = torch.rand((n_samples, size + length - 1), generator=generator, device=generator.device)
    begins = (draws < share / length).float()
    return F.max_pool1d(begins[:, None], length, stride=1)[:, 0] > 0
