"""An encoder with a head that names what is heard: fine-tuning and evaluation.

A linear layer gives logits at every latent step, and pooling makes one per sample of
them (Srivastava et al. 2022, arXiv:2110.07313, fine-tuning on AudioSet).

Legend: B batch, T log-mel frames, S latent steps, D model width.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from .encoder import AudioEncoder
from .hiding import Hidden
from .pooling import linear_softmax, pool_logits, pool_probabilities

Task = Literal["multi_label", "single_label"]
"""Labels are independent, any number per sample; or exclusive, one per sample."""


class TaggerConfig(BaseModel):
    """Options of the head.

    What a pooling means depends on the task, since independent labels are
    probabilities of their own and exclusive classes are not:

    ==============  ===================================  ============================
    pooling         multi_label                          single_label
    ==============  ===================================  ============================
    linear_softmax  mean of p_t weighted by p_t          refused: p_t is a sigmoid
    mean            mean of p_t                          mean of the logits
    attention       mean of p_t, weights learned         mean of the logits, likewise
                    per class
    ==============  ===================================  ============================
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task = Field(
        default="multi_label",
        description="multi_label: sigmoid and BCE; single_label: softmax and CE",
    )
    pooling: Literal["linear_softmax", "mean", "attention"] = Field(
        default="linear_softmax", description="how the steps of a sample become one"
    )
    dropout: float = Field(
        default=0.2, ge=0, lt=1, description="probability of a zero before the head, in training"
    )

    @model_validator(mode="after")
    def _check_pooling(self) -> Self:
        if self.task == "single_label" and self.pooling == "linear_softmax":
            raise ValueError(
                "`pooling` must be mean or attention for task single_label, found linear_softmax, "
                "which weights every class by a sigmoid of its own"
            )
        return self


class Tagger(nn.Module):
    """``encoder`` (the body) and ``head``, which may learn at rates of their own.

    Args:
        encoder: an audio encoder, usually pre-trained.
        config: options of the head.
        n_classes: labels, at least 1.

    Raises:
        ValueError: no class.
    """

    def __init__(self, encoder: AudioEncoder, config: TaggerConfig, n_classes: int) -> None:
        super().__init__()
        if n_classes < 1:
            raise ValueError(f"`n_classes` must be at least 1, found {n_classes}")
        self.config = config
        self.encoder = encoder
        self.head = TaggingHead(encoder.config.dim, config, n_classes)

    def forward(
        self,
        logmel: Float[Tensor, "B T n_mels"],
        n_frames: Int[Tensor, " B"] | None = None,
        hidden: Hidden | None = None,
    ) -> Float32[Tensor, "B n_classes"]:
        """Give one logit per sample and class.

        Args:
            logmel: float16 or float32, shape (B, T, n_mels), not normalised.
            n_frames: integer, shape (B,): valid log-mel frames. None: all.
            hidden: of ``draw_hidden``: what the encoder shall not see. None: nothing.

        Returns:
            logits: float32, shape (B, n_classes); what they mean is the task's,
            see ``scores``.
        """
        return self.head(*self.encoder(logmel, n_frames, hidden))

    def loss(
        self, logits: Float[Tensor, "B n_classes"], labels: Float[Tensor, "B n_classes"]
    ) -> Float32[Tensor, ""]:
        """Compare logits with labels.

        Args:
            logits: floating, shape (B, n_classes), of ``forward``.
            labels: floating, shape (B, n_classes), multi-hot, or soft as mixup makes
                them; for single_label each row sums to 1.

        Returns:
            float32 scalar, in nats: binary cross-entropy, mean over samples and
            classes (multi_label); cross-entropy, mean over samples (single_label).
        """
        if self.config.task == "multi_label":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return F.cross_entropy(logits.float(), labels.float())

    def scores(self, logits: Float[Tensor, "B n_classes"]) -> Float32[Tensor, "B n_classes"]:
        """Turn logits into probabilities: per class (multi_label) or over classes."""
        if self.config.task == "multi_label":
            return logits.float().sigmoid()
        return logits.float().softmax(dim=-1)


class TaggingHead(nn.Module):
    """Dropout, one linear layer at every step, pooling over the valid steps.

    Args:
        dim: model width D.
        config: options.
        n_classes: labels.
    """

    def __init__(self, dim: int, config: TaggerConfig, n_classes: int) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(dim, n_classes)
        self.attention = nn.Linear(dim, n_classes) if config.pooling == "attention" else None

    def forward(
        self, context: Float[Tensor, "B S D"], padding_mask: Bool[Tensor, "B S"] | None
    ) -> Float32[Tensor, "B n_classes"]:
        """Give one logit per sample and class.

        Args:
            context: floating, shape (B, S, D).
            padding_mask: bool, shape (B, S); True = padding. None: nothing is padded.

        Returns:
            logits: float32, shape (B, n_classes).
        """
        context = self.dropout(context)
        logits = self.classifier(context)
        if self.config.pooling == "linear_softmax":
            return linear_softmax(logits, padding_mask)
        pool = pool_probabilities if self.config.task == "multi_label" else pool_logits
        log_weights = (
            torch.zeros_like(logits) if self.attention is None else self.attention(context)
        )
        return pool(logits, padding_mask, log_weights=log_weights)
