"""Contrastive learning of masked steps, as wav2vec 2.0, with or without a quantizer.

Every masked step must pick its own target, a linear view of the latent that was
hidden from it, among distractors from other masked steps of the same sample
(Baevski et al. 2020, arXiv:2006.11477, equation 3; for log-mel and conformers
Srivastava et al. 2022, arXiv:2110.07313, who leave the quantizer out).

Legend: B batch, T log-mel frames, S latent steps, M masked steps per sample,
N distractors per masked step, D model width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..encoder import AudioEncoder, EncoderConfig
from ..quantizer import GumbelQuantizer, Quantized, QuantizerConfig

# SplitMix64's, as torch's signed numbers (Steele, Lea, Flood 2014, OOPSLA).
_GOLDEN, _MIX_1, _MIX_2 = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class Wav2Vec2Config(BaseModel):
    """Options of the objective."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(
        default=0.1,
        gt=0,
        description="divides the cosine similarity; no unit (fairseq: `logit_temp`)",
    )
    quantizer: QuantizerConfig | None = Field(
        default=None, description="codebooks that the targets are taken from; None: as the paper"
    )
    diversity_weight: float = Field(
        default=0.1, ge=0, description="of the diversity loss, which only a quantizer has"
    )


class Wav2Vec2(nn.Module):
    """The mask embedding, the target projection and the loss.

    Args:
        config: options.
        encoder_config: sizes of the encoder that is trained.
    """

    def __init__(self, config: Wav2Vec2Config, encoder_config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_embedding = nn.Parameter(torch.empty(encoder_config.latent_dim).uniform_())
        self.quantizer = (
            None
            if config.quantizer is None
            else GumbelQuantizer(encoder_config.latent_dim, config.quantizer)
        )
        self.target_projection = nn.Linear(encoder_config.latent_dim, encoder_config.dim)

    def forward(
        self,
        encoder: AudioEncoder,
        *,
        logmel: Float[Tensor, "B T n_mels"],
        n_frames: Int[Tensor, " B"] | None,
        mask: Bool[Tensor, "B S"],
        distractors: Int[Tensor, "B M N"],
        step: Int[Tensor, ""],
    ) -> dict[str, Float32[Tensor, ""]]:
        """Compute the loss of one batch and what to watch beside it.

        Gradients flow into the targets too; nothing but masked steps enters the loss.

        Args:
            encoder: the encoder to train.
            logmel: float16 or float32, shape (B, T, n_mels), not normalised.
            n_frames: integer, shape (B,): valid log-mel frames. None: all.
            mask: bool, shape (B, S), True = masked; the same count M >= 1 in every
                row, none on padding. On a CPU the count is checked; on other
                devices that would stall the step, and the caller answers for it.
            distractors: int32 or int64, shape (B, M, N), values in 0..M-1: the
                distractors of a masked step, counted among the masked steps of
                its sample in order of time.
            step: integer, no dimension: the optimiser step, from 0.

        Returns:
            Scalars, float32; all but the loss are detached:
            ``loss``: mean InfoNCE over all masked steps, in nats; with a quantizer plus
            ``diversity_weight`` times the diversity loss.
            ``accuracy``: share of masked steps whose target beats each distractor;
            ``chance``: that of a guess.
            ``target_std``: standard deviation of a target channel over all masked
            steps, mean over channels; near zero when the targets collapse.
            ``masked_share``: masked steps per valid step.
            With a quantizer also ``contrastive_loss`` and ``diversity_loss``, the two
            parts; ``perplexity``, of the mean distribution over the entries of a codebook,
            mean over codebooks, ``code_perplexity``, of the entries that were chosen; and
            ``gumbel_temperature``.

        Raises:
            ValueError: shapes that do not fit together, or another count of masked steps.
        """
        latents, padding_mask = encoder.latents(logmel, n_frames)
        _check_masking(latents, mask, distractors)
        steps = masked_steps(mask, n_masked=distractors.shape[1])
        hidden = _take(latents, steps)
        quantized = None if self.quantizer is None else self.quantizer(hidden, step)
        targets = self.target_projection(hidden if quantized is None else quantized.values)
        context = encoder.context_encoder(self.hide(latents, mask), padding_mask)
        loss, accuracy = info_nce(
            _take(context, steps),
            targets,
            distractors,
            temperature=self.config.temperature,
            identities=None if quantized is None else quantized.codes,
        )
        n_valid = mask.numel() if padding_mask is None else (~padding_mask).sum()
        std = targets.detach().float().flatten(0, 1).std(0, correction=0).mean()
        scalars = {"loss": loss, "accuracy": accuracy, "target_std": std}
        chance = chance_accuracy(*distractors.shape[1:])
        scalars |= {"masked_share": mask.sum() / n_valid, "chance": loss.new_full((), chance)}
        return scalars if quantized is None else scalars | self._with_diversity(loss, quantized)

    def _with_diversity(
        self, contrastive: Float32[Tensor, ""], quantized: Quantized
    ) -> dict[str, Float32[Tensor, ""]]:
        """Return the scalars that a quantizer changes or adds."""
        return {
            "loss": contrastive + self.config.diversity_weight * quantized.diversity_loss,
            "contrastive_loss": contrastive.detach(),
            "diversity_loss": quantized.diversity_loss.detach(),
            "perplexity": quantized.perplexity,
            "code_perplexity": quantized.code_perplexity,
            "gumbel_temperature": quantized.temperature,
        }

    def hide(
        self, latents: Float[Tensor, "B S latent_dim"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S latent_dim"]:
        """Put the mask embedding in place of the masked latents."""
        return torch.where(mask[..., None], self.mask_embedding.to(latents.dtype), latents)


def chance_accuracy(n_masked: int, n_distractors: int) -> float:
    """Return the contrastive accuracy of a guess.

    Distractors are drawn with replacement from few masked steps, so many are the same: of
    the ``n - 1`` others, ``n_distractors`` draws hit ``(n - 1) (1 - (1 - 1 / (n - 1)) **
    n_distractors)`` on average, and a guess picks among these and the target.

    Args:
        n_masked: masked steps of a sample, at least 2.
        n_distractors: draws per masked step.

    >>> round(chance_accuracy(65, 100), 4), round(chance_accuracy(5, 20), 4)
    (0.0193, 0.2005)
    """
    n_others = n_masked - 1
    return 1 / (1 + n_others * (1 - (1 - 1 / n_others) ** n_distractors))


def masked_steps(mask: Bool[Tensor, "B S"], *, n_masked: int) -> Int64[Tensor, "B M"]:
    """List the masked steps of each row in order of time, without a host synchronisation.

    Args:
        mask: bool, shape (B, S), True = masked; ``n_masked`` in every row.
        n_masked: M.

    Returns:
        int64, shape (B, M), values in 0..S-1.

    >>> masked_steps(torch.tensor([[False, True, False, True]]), n_masked=2)
    tensor([[1, 3]])
    """
    return mask.byte().argsort(dim=1, descending=True, stable=True)[:, :n_masked]


def info_nce(
    context: Float[Tensor, "B M D"],
    targets: Float[Tensor, "B M D"],
    distractors: Int[Tensor, "B M N"],
    *,
    temperature: float,
    identities: Int[Tensor, "B M G"] | None = None,
) -> tuple[Float32[Tensor, ""], Float32[Tensor, ""]]:
    """Score each context against its target and its distractors, in float32.

    Distractors that equal the target are left out. The similarities of all pairs of
    masked steps are one (M, M) product per sample, from which distractors are picked:
    with N > M, as here, that is less than gathering N vectors for each step.

    Args:
        context: floating, shape (B, M, D).
        targets: floating, shape (B, M, D).
        distractors: integer, shape (B, M, N), rows of ``targets`` of the same sample.
        temperature: divides the cosine similarity.
        identities: integer, shape (B, M, G): the codes of each target. Targets are equal
            whose codes all are; a product of matrices may round their rows differently.
            None: whose channels all are.

    Returns:
        loss: float32 scalar, in nats; the mean over B * M steps.
        accuracy: float32 scalar, detached: share of steps whose target is strictly
            more similar than every distractor. A step that has no distractor left
            counts as wrong, so that collapsed targets show as an accuracy of 0.

    Source:
        Baevski et al. 2020, wav2vec 2.0, equation 3 (arXiv:2006.11477).
    """
    with torch.autocast(context.device.type, enabled=False):
        context, targets = context.float(), targets.float()
        similarity = F.normalize(context, dim=-1) @ F.normalize(targets, dim=-1).mT / temperature
        positive = similarity.diagonal(dim1=1, dim2=2)  # (B, M)
        same = _equal_rows(targets.detach() if identities is None else identities)
        others = similarity.masked_fill(same, -torch.inf)
        negative = others.gather(2, distractors.long())  # (B, M, N)
        logits = torch.cat([positive[..., None], negative], dim=-1)
        loss = (logits.logsumexp(dim=-1) - positive).mean()
    hardest = negative.detach().amax(dim=-1)
    is_right = (positive.detach() > hardest) & hardest.isfinite()
    return loss, is_right.float().mean()


def _equal_rows(x: Float32[Tensor, "B M D"] | Int[Tensor, "B M D"]) -> Bool[Tensor, "B M M"]:
    """Compare all rows of a sample by a 64-bit sum of their bits.

    One pass over the rows, where a comparison of all pairs makes M. Two rows that differ
    have one sum with a probability of 2**-48, or 2**-64 where all bits of a value are used.
    """
    bits = (x + 0.0).view(torch.int32) if x.is_floating_point() else x  # -0.0 + 0.0 is 0.0
    sums = (bits * _odd_numbers(x.shape[2], x.device)).sum(2)
    return sums[:, :, None] == sums[:, None, :]


def _odd_numbers(n: int, device: torch.device) -> Int64[Tensor, " n"]:
    """Give n unrelated odd numbers of 64 bits: SplitMix64's mixing of 0 to n - 1.

    A number is not multiplied first, as there: ``torch.compile`` takes that for the place of an
    element, and kernels for a GPU count those in 32 bits.
    """
    x = torch.arange(n, device=device) ^ _GOLDEN
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x | 1


def _take(x: Float[Tensor, "B S D"], steps: Int64[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
    return x.take_along_dim(steps[..., None], dim=1)


def _check_masking(latents: Tensor, mask: Tensor, distractors: Tensor) -> None:
    if mask.shape != latents.shape[:2]:
        raise ValueError(
            f"`mask` must have one value per latent step, shape {tuple(latents.shape[:2])}, "
            f"found {tuple(mask.shape)}"
        )
    shape = tuple(distractors.shape)
    if len(shape) != 3 or shape[0] != mask.shape[0] or 0 in shape:
        raise ValueError(
            f"`distractors` must have shape ({mask.shape[0]}, masked steps, distractors), none "
            f"of them 0, found {shape}"
        )
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        counts = mask.sum(dim=1)
        if (counts != shape[1]).any():
            raise ValueError(
                f"every row of `mask` must have {shape[1]} masked steps, as "
                f"`distractors` has, found {counts.tolist()}"
            )
