"""From log-mel frames to context: normaliser, feature encoder, context encoder.

The encoder of Srivastava et al. 2022 (arXiv:2110.07313): log-mel frames are
stacked by four and projected to latents, and conformer blocks turn latents into
context. Nothing in here waits for a device, and no Python branch that is traced
depends on data, so ``torch.compile`` traces it as one graph.

Legend: B batch, T log-mel frames, S = T // stride latent steps, D model width.
"""

from typing import Self

import torch
from jaxtyping import Bool, Float, Float32, Int
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .conformer import ConformerBlock
from .dropout import none_if_all_valid
from .hiding import Hidden


class EncoderConfig(BaseModel):
    """Sizes of an audio encoder; the defaults are those of CF-S."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_mels: int = Field(default=64, gt=0, description="mel bands of a log-mel frame")
    stride: int = Field(default=4, gt=0, description="log-mel frames per latent step")
    latent_dim: int = Field(default=256, gt=0, description="width of the latents, in channels")
    dim: int = Field(default=256, gt=0, description="width D of the context, in channels")
    n_layers: int = Field(default=12, gt=0, description="conformer blocks")
    n_heads: int = Field(default=8, gt=0, description="attention heads; divides `dim`")
    ffn_dim: int = Field(
        default=1024, gt=0, description="inner width of a feed-forward module, channels"
    )
    first_kernel_size: int = Field(
        default=31, gt=0, description="depthwise kernel of the first block, in latent steps; odd"
    )
    kernel_size: int = Field(
        default=15, gt=0, description="depthwise kernel of the other blocks, in latent steps; odd"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="probability of a zero in training")
    layer_drop: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that a block does nothing for a sample, in training",
    )
    checkpoints_activations: bool = Field(
        default=False,
        description="compute the blocks again in the backward pass instead of keeping what is "
        "inside them: less memory, a third more work",
    )
    hides_padding: bool = Field(
        default=True,
        description="padding enters no convolution and no norm, so that a clip gives the same "
        "context however much it is padded; False = as torchaudio's reference",
    )

    @field_validator("first_kernel_size", "kernel_size")
    @classmethod
    def _check_odd(cls, kernel_size: int) -> int:
        if kernel_size % 2 == 0:
            raise ValueError(f"a kernel must be odd to keep the step count, found {kernel_size}")
        return kernel_size

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.dim % self.n_heads:
            raise ValueError(
                f"`dim` must be a multiple of `n_heads`, found {self.dim} and {self.n_heads}"
            )
        return self


PRESETS: dict[str, EncoderConfig] = {
    "tiny": EncoderConfig(latent_dim=96, dim=96, n_layers=3, n_heads=4, ffn_dim=256, dropout=0.0),
    "cf-s": EncoderConfig(),
    "cf-l": EncoderConfig(dim=768, n_heads=12),
}
"""Encoder sizes by name: for tests and the demo, and the paper's small and large one.

"tiny" has no dropout: drawing its zeros would take as long as the matrix products.
"""


class AudioEncoder(nn.Module):
    """Log-mel frames in, context out; masking in between is the objective's business.

    A fresh one takes log-mels as they are: give ``normalizer.set_statistics`` the mean and
    deviation of each mel band in the training data, which a data set's manifest has.

    Args:
        config: the sizes.

    Attributes:
        mask_embedding: shape (latent_dim,), a buffer: what pre-training put in place of masked
            latents, and fine-tuning puts in place of hidden ones. Zeros, the mean of a
            layer-normed latent, where there was no pre-training.
    """

    mask_embedding: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.normalizer = BandNormalizer(config.n_mels)
        self.feature_encoder = FeatureEncoder(config)
        self.context_encoder = ContextEncoder(config)
        self.register_buffer("mask_embedding", torch.zeros(config.latent_dim))
        self.register_load_state_dict_pre_hook(_complete_older_weights)

    def forward(
        self,
        logmel: Float[Tensor, "B T n_mels"],
        n_frames: Int[Tensor, " B"] | None = None,
        hidden: Hidden | None = None,
    ) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"] | None]:
        """Encode log-mel frames; masking for an objective is the objective's business.

        Args:
            logmel: as in ``latents``.
            n_frames: as in ``latents``.
            hidden: of ``draw_hidden``: steps and channels that are not to be seen while
                fine-tuning. None: none.

        Returns:
            context: floating, shape (B, S, D); what stands on padding means nothing.
            padding_mask: bool, shape (B, S), True = padding; None if ``n_frames`` is.
        """
        latents, padding_mask = self.latents(logmel, n_frames)
        if hidden is not None:
            steps, channels = hidden
            latents = torch.where(steps[..., None], self.mask_embedding.to(latents), latents)
            latents = latents.masked_fill(channels[:, None], 0.0)
        return self.context_encoder(latents, padding_mask), padding_mask

    def cut_above(self, layer: int) -> None:
        """Take out the conformer blocks above one, whose output becomes the context.

        Args:
            layer: the block, counted from 1.

        Raises:
            ValueError: there is no such block.
        """
        if not 1 <= layer <= self.config.n_layers:
            raise ValueError(
                f"`layer` must be one of the encoder's 1 to {self.config.n_layers}, found {layer}"
            )
        del self.context_encoder.blocks[layer:]
        self.config = self.config.model_copy(update={"n_layers": layer})

    def latents(
        self,
        logmel: Float[Tensor, "B T n_mels"],
        n_frames: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B S latent_dim"], Bool[Tensor, "B S"] | None]:
        """Normalise, clear the padding, stack and project.

        Args:
            logmel: float16 or float32, shape (B, T, n_mels), not normalised.
            n_frames: integer, shape (B,): valid log-mel frames of each sample. What
                lies beyond is set to zero after the normalisation, whatever it was, unless
                the config lets padding be seen;
                a latent step with only some valid frames counts as padding, but for
                the first, so that the shortest clip has a step.
                None: every frame is valid.

        Returns:
            latents: floating, shape (B, S, latent_dim), layer-normed.
            padding_mask: bool, shape (B, S); True = padding. None if ``n_frames`` is.

        Raises:
            ValueError: not three dimensions, another number of mel bands, or fewer than
                ``stride`` frames.
        """
        _check_shape(logmel.shape, self.config)
        logmel = self.normalizer(logmel).to(self.feature_encoder.projection.weight.dtype)
        if n_frames is None:
            return self.feature_encoder(logmel), None
        if self.config.hides_padding:
            frame_padding = _padding_mask(n_frames, logmel.shape[1])
            logmel = logmel.masked_fill(frame_padding[..., None], 0.0)
        latents = self.feature_encoder(logmel)
        n_steps = (n_frames // self.config.stride).clamp(min=1)
        return latents, _padding_mask(n_steps, latents.shape[1])


def _complete_older_weights(
    encoder: AudioEncoder, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Give weights that were saved before there was a mask embedding one of zeros."""
    state.setdefault(f"{prefix}mask_embedding", torch.zeros_like(encoder.mask_embedding))


class BandNormalizer(nn.Module):
    """Bring each mel band to zero mean and unit deviation, with a data set's statistics.

    Mean and standard deviation are buffers: they travel in the state dict, so a
    trained model carries the statistics that it was trained with. They start as the
    identity, 0 and 1.

    Args:
        n_mels: mel bands.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, n_mels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_mels))
        self.register_buffer("std", torch.ones(n_mels))

    def set_statistics(self, mean: Float[Tensor, " n_mels"], std: Float[Tensor, " n_mels"]) -> None:
        """Take the statistics of a data set.

        Args:
            mean: shape (n_mels,), in the unit of the log-mel.
            std: shape (n_mels,), same unit, above zero.

        Raises:
            ValueError: a wrong shape, a value that is not finite, a ``std`` of zero or less.
        """
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != self.mean.shape:
                raise ValueError(
                    f"`{name}` must have shape {tuple(self.mean.shape)}, one value per mel band, "
                    f"found {tuple(values.shape)}"
                )
            if not values.isfinite().all():
                raise ValueError(f"`{name}` must be finite, found {values.tolist()}")
        if not (std > 0).all():
            raise ValueError(
                f"`std` must be above 0 in every mel band, found a minimum of {std.min():g}; "
                "a constant band says nothing: rebuild the data set with fewer bands"
            )
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, logmel: Float[Tensor, "B T n_mels"]) -> Float32[Tensor, "B T n_mels"]:
        """Normalise float16 or float32 log-mel to float32."""
        return (logmel.float() - self.mean) / self.std


class FeatureEncoder(nn.Module):
    """Stack ``stride`` frames, project them, layer-norm: one latent per step.

    Args:
        config: the sizes.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.projection = nn.Linear(config.n_mels * config.stride, config.latent_dim)
        self.norm = nn.LayerNorm(config.latent_dim)

    def forward(self, logmel: Float[Tensor, "B T n_mels"]) -> Float[Tensor, "B S latent_dim"]:
        """Turn (B, T, n_mels) normalised log-mel into (B, T // stride, latent_dim) latents."""
        return self.norm(self.stack_and_project(logmel))

    def stack_and_project(
        self, logmel: Float[Tensor, "B T n_mels"]
    ) -> Float[Tensor, "B S latent_dim"]:
        """Give the latents before their layer norm; frames that fill no step are left out."""
        n_samples, n_frames, n_mels = logmel.shape
        shape = n_samples, n_frames // self.stride, self.stride * n_mels
        stacked = logmel[:, : shape[1] * self.stride].reshape(shape)
        return self.projection(stacked)  # -> (B, S, latent_dim)


class ContextEncoder(nn.Module):
    """Project latents to the model width and run the conformer blocks.

    In training a block may be dropped (LayerDrop, Fan et al. 2019, arXiv:1909.11556),
    here for each sample by itself. It is computed nevertheless and then not taken, so
    that every step has the same graph and gives every parameter a gradient:
    ``DistributedDataParallel`` and ``torch.compile`` see nothing of it. It regularises
    and saves no time.

    Args:
        config: the sizes.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.latent_dim, config.dim)
        self.blocks = nn.ModuleList(
            ConformerBlock(
                config.dim,
                n_heads=config.n_heads,
                ffn_dim=config.ffn_dim,
                kernel_size=config.kernel_size if layer else config.first_kernel_size,
                dropout=config.dropout,
                hides_padding=config.hides_padding,
            )
            for layer in range(config.n_layers)
        )

    def forward(
        self,
        latents: Float[Tensor, "B S latent_dim"],
        padding_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Turn latents, masked or not, into context.

        Args:
            latents: floating, shape (B, S, latent_dim).
            padding_mask: bool, shape (B, S); True = padding. None: nothing is padded.

        Returns:
            context: floating, shape (B, S, D).
        """
        padding_mask = none_if_all_valid(padding_mask)
        context = self.projection(latents)
        for block in self.blocks:
            context = self._drop(self._run(block, context, padding_mask), context)
        return context

    def _run(
        self,
        block: nn.Module,
        context: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B S D"]:
        if self.config.checkpoints_activations and torch.is_grad_enabled():
            output = checkpoint(block, context, padding_mask, use_reentrant=False)
            assert output is not None
            return output
        return block(context, padding_mask)

    def _drop(
        self, output: Float[Tensor, "B S D"], context: Float[Tensor, "B S D"]
    ) -> Float[Tensor, "B S D"]:
        """Take a block's output, or for some samples what went in."""
        if not (self.training and self.config.layer_drop):
            return output
        draws = torch.rand(len(output), 1, 1, device=output.device)
        return torch.where(draws < self.config.layer_drop, context, output)


def _padding_mask(lengths: Int[Tensor, " B"], max_length: int) -> Bool[Tensor, "B max_length"]:
    return torch.arange(max_length, device=lengths.device) >= lengths[:, None]


def _check_shape(shape: torch.Size, config: EncoderConfig) -> None:
    if len(shape) != 3 or shape[2] != config.n_mels or shape[1] < config.stride:
        raise ValueError(
            f"`logmel` must have shape (batch, n_frames >= {config.stride}, {config.n_mels}), "
            f"found {tuple(shape)}; `n_mels` and `stride` stand in the encoder's config"
        )
