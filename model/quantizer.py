"""The Gumbel product quantizer of wav2vec 2.0: latents become entries of codebooks.

Each of G codebooks gives one of its V entries, chosen by a straight-through Gumbel
softmax; the entries stand side by side (Baevski et al. 2020, arXiv:2006.11477, section
2 and equations 1 and 4). The temperature is a function of the step.

Legend: B batch, M masked steps, G codebooks, V entries of a codebook.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class QuantizerConfig(BaseModel):
    """Sizes and temperature; the defaults are those of the BASE model of wav2vec 2.0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_groups: int = Field(default=2, gt=0, description="G; divides `latent_dim`")
    n_codes: int = Field(default=320, gt=1, description="V, entries of a codebook")
    gumbel_temperature_start: float = Field(
        default=2.0, gt=0, description="of the softmax, at step 0"
    )
    gumbel_temperature_end: float = Field(
        default=0.5, gt=0, description="it never falls below this"
    )
    gumbel_temperature_decay: float = Field(
        default=0.999995, gt=0, le=1, description="the temperature's factor per step"
    )


class Quantized(NamedTuple):
    """What the quantizer makes of latents.

    Args:
        values: float32, shape (B, M, latent_dim): the entries side by side.
        codes: int64, shape (B, M, G): which entries.
        diversity_loss: float32 scalar in [0, 1): 0 when all entries are used alike.
        perplexity: float32 scalar, detached, in 1..V: of the mean distribution, without
            noise or temperature; mean over codebooks.
        code_perplexity: the same of the entries that were chosen.
        temperature: float32 scalar.
    """

    values: Float32[Tensor, "B M latent_dim"]
    codes: Int64[Tensor, "B M G"]
    diversity_loss: Float32[Tensor, ""]
    perplexity: Float32[Tensor, ""]
    code_perplexity: Float32[Tensor, ""]
    temperature: Float32[Tensor, ""]


class GumbelQuantizer(nn.Module):
    """Choose an entry of each codebook for each latent.

    In training the choice is drawn, and gradients take the way of the softmax; in
    evaluation the likeliest entry is taken.

    Args:
        latent_dim: channels of a latent, and of what comes out.
        config: sizes and temperature.

    Raises:
        ValueError: codebooks that do not divide ``latent_dim``.
    """

    def __init__(self, latent_dim: int, config: QuantizerConfig) -> None:
        super().__init__()
        if latent_dim % config.n_groups:
            raise ValueError(
                f"`n_groups` must divide `latent_dim` ({latent_dim}), found {config.n_groups}"
            )
        self.config = config
        self.choose = nn.Linear(latent_dim, config.n_groups * config.n_codes)
        width = latent_dim // config.n_groups
        # fairseq's initial values: logits of unit scale, entries in [0, 1).
        self.entries = nn.Parameter(torch.empty(config.n_groups, config.n_codes, width).uniform_())
        nn.init.normal_(self.choose.weight)
        nn.init.zeros_(self.choose.bias)

    def forward(self, latents: Float[Tensor, "B M latent_dim"], step: Int[Tensor, ""]) -> Quantized:
        """Quantize, in float32 whatever autocast says.

        Args:
            latents: floating, shape (B, M, latent_dim).
            step: integer, no dimension: the optimiser step, from 0.
        """
        with torch.autocast(latents.device.type, enabled=False):
            logits = self.choose(latents.float()).unflatten(-1, (self.config.n_groups, -1))
            temperature = self.temperature(step)
            chosen = self._draw(logits, temperature)  # (B, M, G, V), one-hot
            values = torch.einsum("bmgv,gvw->bmgw", chosen, self.entries).flatten(2)
            mean = logits.softmax(dim=-1).mean(dim=(0, 1))  # (G, V)
            perplexity = _perplexity(mean).mean()
            code_perplexity = _perplexity(chosen.detach().mean(dim=(0, 1))).mean()
        return Quantized(
            values,
            chosen.detach().argmax(dim=-1),
            # (GV - sum_g perplexity_g) / GV: the form that the paper's own code minimises
            diversity_loss=1 - perplexity / self.config.n_codes,
            perplexity=perplexity.detach(),
            code_perplexity=code_perplexity,
            temperature=temperature,
        )

    def temperature(self, step: Int[Tensor, ""]) -> Float32[Tensor, ""]:
        """Give the temperature of a step, on the step's device."""
        config = self.config
        # As an exponential: float32 has no 0.999995 to take a large power of.
        falling = config.gumbel_temperature_start * torch.exp(
            step * math.log(config.gumbel_temperature_decay)
        )
        return falling.clamp(min=config.gumbel_temperature_end)

    def _draw(
        self, logits: Float32[Tensor, "B M G V"], temperature: Float32[Tensor, ""]
    ) -> Float32[Tensor, "B M G V"]:
        if not self.training:
            return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
        noise = -torch.empty_like(logits).exponential_().log()
        soft = ((logits + noise) / temperature).softmax(dim=-1)
        hard = F.one_hot(soft.argmax(dim=-1), logits.shape[-1]).to(soft.dtype)
        # The bracket is 0 to the last bit, as torch's own gumbel_softmax is not: equal
        # codes give equal values.
        return hard + (soft - soft.detach())


def _perplexity(distribution: Float32[Tensor, "G V"]) -> Float32[Tensor, " G"]:
    return torch.special.entr(distribution).sum(dim=-1).exp()
