"""From one logit per step and class to one per sample and class.

Both forms weight the steps and never let padding contribute. ``pool_probabilities``
is for independent labels (multi_label): it averages probabilities and gives back a
logit. ``pool_logits`` is for exclusive classes (single_label): it averages the
logits themselves, since a class's own sigmoid means nothing under a softmax.

Legend: B batch, S latent steps, C classes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor

_NOTHING = -1e30  # a log-weight so low that exp gives 0, yet finite: no NaN without valid steps


def pool_probabilities(
    logits: Float[Tensor, "B S C"],
    padding_mask: Bool[Tensor, "B S"] | None,
    *,
    log_weights: Float[Tensor, "B S C"],
) -> Float32[Tensor, "B C"]:
    """Average the probabilities of a label over the valid steps, as a logit.

    With p_t = sigmoid(logit_t) and weights w_t, the pooled probability is
    p = sum(w_t p_t) / sum(w_t), and its logit is

        log p - log(1 - p) = LSE(log w_t + log p_t) - LSE(log w_t + log(1 - p_t)).

    Both terms come from ``logsigmoid``, so nothing under- or overflows at any logit and
    no clamp cuts a gradient. Weights need no normalisation: it cancels out.

    Args:
        logits: floating, shape (B, S, C).
        padding_mask: bool, shape (B, S); True = padding. None: nothing is padded.
        log_weights: floating, shape (B, S, C).

    Returns:
        float32, shape (B, C): logits of the pooled probabilities; 0 for a sample
        without a valid step.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, log_weights = logits.float(), log_weights.float()
        present = _hide_padding(log_weights + F.logsigmoid(logits), padding_mask)
        absent = _hide_padding(log_weights + F.logsigmoid(-logits), padding_mask)
        return present.logsumexp(dim=1) - absent.logsumexp(dim=1)


def linear_softmax(
    logits: Float[Tensor, "B S C"], padding_mask: Bool[Tensor, "B S"] | None
) -> Float32[Tensor, "B C"]:
    """Pool probabilities weighted by themselves: p = sum(p_t^2) / sum(p_t).

    Loud steps count for more than silent ones, and all of them get a gradient.

    Args:
        logits: floating, shape (B, S, C).
        padding_mask: bool, shape (B, S); True = padding. None: nothing is padded.

    Returns:
        float32, shape (B, C): logits of the pooled probabilities.

    Source:
        Wang, Li and Metze 2019, arXiv:1810.09050. The common log-space form,
        s - log(-expm1(s)) with s = log p, is the same number, but loses it where
        p is near 1 and needs a clamp there.
    """
    return pool_probabilities(logits, padding_mask, log_weights=F.logsigmoid(logits.float()))


def pool_logits(
    logits: Float[Tensor, "B S C"],
    padding_mask: Bool[Tensor, "B S"] | None,
    *,
    log_weights: Float[Tensor, "B S C"],
) -> Float32[Tensor, "B C"]:
    """Average the logits of a class over the valid steps.

    Args:
        logits: floating, shape (B, S, C).
        padding_mask: bool, shape (B, S); True = padding. None: nothing is padded.
        log_weights: floating, shape (B, S, C); normalised over the steps in here.

    Returns:
        float32, shape (B, C).
    """
    with torch.autocast(logits.device.type, enabled=False):
        weights = _hide_padding(log_weights.float(), padding_mask).softmax(dim=1)
        return (weights * logits.float()).sum(dim=1)


def _hide_padding(
    log_terms: Float[Tensor, "B S C"], padding_mask: Bool[Tensor, "B S"] | None
) -> Float[Tensor, "B S C"]:
    if padding_mask is None:
        return log_terms
    return log_terms.masked_fill(padding_mask[..., None], _NOTHING)
