"""Contrastive learning of masked steps, as wav2vec 2.0, without a quantizer.

Every masked step must pick its own target, a linear view of the latent that was
hidden from it, among distractors from other masked steps of the same sample
(Baevski et al. 2020, arXiv:2006.11477, equation 3; for log-mel and conformers
Srivastava et al. 2022, arXiv:2110.07313).

Legend: B batch, T log-mel frames, S latent steps, M masked steps per sample,
N distractors per masked step, D model width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..encoder import AudioEncoder, EncoderConfig


class Wav2Vec2Config(BaseModel):
    """Options of the objective."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(
        default=0.1,
        gt=0,
        description="divides the cosine similarity; no unit (fairseq: `logit_temp`)",
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
        self.target_projection = nn.Linear(encoder_config.latent_dim, encoder_config.dim)

    def forward(
        self,
        encoder: AudioEncoder,
        *,
        logmel: Float[Tensor, "B T n_mels"],
        n_frames: Int[Tensor, " B"] | None,
        mask: Bool[Tensor, "B S"],
        distractors: Int[Tensor, "B M N"],
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

        Returns:
            Scalars, float32; all but the loss are detached:
            ``loss``: mean InfoNCE over all masked steps, in nats.
            ``accuracy``: share of masked steps whose target beats each distractor.
            ``target_std``: standard deviation of a target channel over all masked
            steps, mean over channels; near zero when the targets collapse.
            ``masked_share``: masked steps per valid step.

        Raises:
            ValueError: shapes that do not fit together, or another count of masked steps.
        """
        latents, padding_mask = encoder.latents(logmel, n_frames)
        _check_masking(latents, mask, distractors)
        steps = masked_steps(mask, n_masked=distractors.shape[1])
        targets = self.target_projection(_take(latents, steps))
        context = encoder.context_encoder(self.hide(latents, mask), padding_mask)
        loss, accuracy = info_nce(
            _take(context, steps), targets, distractors, temperature=self.config.temperature
        )
        n_valid = mask.numel() if padding_mask is None else (~padding_mask).sum()
        return {
            "loss": loss,
            "accuracy": accuracy,
            "target_std": targets.detach().float().flatten(0, 1).std(0, correction=0).mean(),
            "masked_share": mask.sum() / n_valid,
        }

    def hide(
        self, latents: Float[Tensor, "B S latent_dim"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S latent_dim"]:
        """Put the mask embedding in place of the masked latents."""
        return torch.where(mask[..., None], self.mask_embedding.to(latents.dtype), latents)


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
        others = similarity.masked_fill(_equal_rows(targets.detach()), -torch.inf)
        negative = others.gather(2, distractors.long())  # (B, M, N)
        logits = torch.cat([positive[..., None], negative], dim=-1)
        loss = (logits.logsumexp(dim=-1) - positive).mean()
    hardest = negative.detach().amax(dim=-1)
    is_right = (positive.detach() > hardest) & hardest.isfinite()
    return loss, is_right.float().mean()


def _equal_rows(x: Float[Tensor, "B M D"]) -> Bool[Tensor, "B M M"]:
    # The largest difference of each pair of rows; exact, and without a (B, M, M, D) array.
    return torch.cdist(x, x, p=torch.inf) == 0


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
