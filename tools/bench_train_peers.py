"""Encoders of one shape side by side: ours, torchaudio's Conformer, transformers' conformer.

Forward and backward in training mode, with dropout, on latents of the model's width. Each
round runs every contender once, so that all meet the same load. The kernel is 15 in every
layer, since the peers know one size only.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torchaudio
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ..model.encoder import ContextEncoder, EncoderConfig
from .bench_train import TrainSettings, timed
from .train_step import COMPILER_OPTIONS


@dataclass(frozen=True, slots=True)
class EncoderTimes:
    """What one encoder took.

    Args:
        name: of the contender.
        fastest_s, median_s: seconds of forward and backward, of all rounds.
        x_ours: its median over ours.
    """

    name: str
    fastest_s: float
    median_s: float
    x_ours: float

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def bench_encoders(settings: TrainSettings, batch_size: int) -> list[EncoderTimes]:
    """Time the encoders that are installed; ours comes first."""
    torch.manual_seed(0)
    config = settings.encoder
    update = {"latent_dim": config.dim, "first_kernel_size": config.kernel_size}
    contenders = _contenders(config.model_copy(update=update), settings, batch_size)
    times_s: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(1 + settings.n_steps):  # the first one warms up
        for name, step in contenders.items():
            seconds = timed(step, settings.device)
            if round_number:
                times_s[name].append(seconds)
    ours_s = statistics.median(next(iter(times_s.values())))
    medians = {name: statistics.median(values) for name, values in times_s.items()}
    return [
        EncoderTimes(name, min(times_s[name]), median_s, median_s / ours_s)
        for name, median_s in medians.items()
    ]


def print_encoder_times(found: list[EncoderTimes], console: Console) -> None:
    """Print the table."""
    table = Table("encoder, forward and backward", "fastest s", "median s", "x ours")
    table.box, table.pad_edge = None, False
    for times in found:
        figures = f"{times.fastest_s:.3f}", f"{times.median_s:.3f}", f"{times.x_ours:.2f}"
        table.add_row(times.name, *figures)
    console.print(table)
    if find_spec("transformers") is None:
        console.print("without transformers' encoder: pip install transformers")


def _contenders(
    config: EncoderConfig, settings: TrainSettings, batch_size: int
) -> dict[str, Callable[[], None]]:
    latents = torch.randn(batch_size, settings.n_latent_steps, config.dim, device=settings.device)
    lengths = torch.full((batch_size,), settings.n_latent_steps, device=settings.device)
    ours = ContextEncoder(config)
    theirs = _torchaudio(config)
    found = {
        "melstream": _step(ours, lambda m: m(latents, None), settings),
        "torchaudio Conformer": _step(theirs, lambda m: m(latents, lengths)[0], settings),
    }
    if find_spec("transformers") is not None:
        name = "transformers Wav2Vec2ConformerEncoder"
        found[name] = _step(_transformers(config), lambda m: m(latents)[0], settings)
    return found


def _step(
    module: nn.Module, forward: Callable[[nn.Module], Tensor], settings: TrainSettings
) -> Callable[[], None]:
    module.to(settings.device).train()
    runs = torch.compile(module, options=COMPILER_OPTIONS) if settings.compiles else module

    def step() -> None:
        with settings.autocast():
            context = forward(runs)  # type: ignore[arg-type]  # compiled, it is called the same
        context.float().sum().backward()
        module.zero_grad(set_to_none=True)

    return step


def _torchaudio(config: EncoderConfig) -> nn.Module:
    return torchaudio.models.Conformer(
        config.dim, config.n_heads, config.ffn_dim, config.n_layers, config.kernel_size,
        dropout=config.dropout, use_group_norm=True, convolution_first=True,
    )  # fmt: skip


def _transformers(config: EncoderConfig) -> nn.Module:
    from transformers import (  # pyright: ignore[reportMissingImports]  # a peer, not a dependency
        Wav2Vec2ConformerConfig,
    )
    from transformers.models.wav2vec2_conformer import (  # pyright: ignore[reportMissingImports]
        modeling_wav2vec2_conformer,
    )

    theirs = Wav2Vec2ConformerConfig(
        hidden_size=config.dim, num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads, intermediate_size=config.ffn_dim,
        conv_depthwise_kernel_size=config.kernel_size, position_embeddings_type=None,
        hidden_dropout=config.dropout, activation_dropout=config.dropout,
        attention_dropout=config.dropout, conformer_conv_dropout=config.dropout, layerdrop=0.0,
        attn_implementation="sdpa",
    )  # fmt: skip
    return modeling_wav2vec2_conformer.Wav2Vec2ConformerEncoder(theirs)
