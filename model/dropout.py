"""Dropout, and attention with dropout on its weights, that a CPU does not spend its time on.

Torch draws one random number per element and reads and writes masks of floats. On a CPU
that takes longer than the matrix products around it, so there one random number serves
eight elements, and masks are folded into what is computed anyway. Other devices, and
graphs that ``torch.compile`` or ``torch.export`` trace, take torch's own kernels.

Legend: B batch, S latent steps, H heads.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LEVELS = 256  # of a random byte
_FAR_BELOW = 1e4  # SiLU and its slope are 0 there, to the last bit


class Dropout(nn.Module):
    """``nn.Dropout`` by cheaper draws.

    Args:
        p: probability of a zero in training, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Set elements to zero and scale up the others."""
        if not (self.training and self.p):
            return x
        if _has_fast_kernels(x):
            return F.dropout(x, self.p)
        return x * _draw_kept(x, self.p).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        """Say what it is set to."""
        return f"p={self.p}"


def silu_dropout_linear(
    x: Float[Tensor, "B S inner"], linear: nn.Linear, *, dropout: float
) -> Float[Tensor, "B S outer"]:
    """Compute ``linear(F.dropout(F.silu(x), dropout))``; ``x`` is used up.

    SiLU and its slope are zero far below zero: an element is dropped by moving it there,
    so that no mask is kept for the backward pass, and the others are scaled up by way of
    the weights.

    Args:
        x: floating, shape (B, S, inner).
        linear: what follows.
        dropout: probability of a zero, in [0, 1).

    Returns:
        Floating, shape (B, S, outer).
    """
    if not dropout or _has_fast_kernels(x):
        return linear(F.dropout(F.silu(x), dropout))
    x.detach().sub_(
        _draw_dropped(x, dropout), alpha=_FAR_BELOW
    )  # detached: its gradient is the identity
    return F.linear(F.silu(x), linear.weight * (1 / (1 - dropout)), linear.bias)


def attention(
    query: Float[Tensor, "B H S dim"],
    key: Float[Tensor, "B H S dim"],
    value: Float[Tensor, "B H S dim"],
    *,
    is_valid: Bool[Tensor, "B S"] | None,
    dropout: float,
) -> Float[Tensor, "B H S dim"]:
    """Attend from every step to every valid step: ``F.scaled_dot_product_attention``.

    Args:
        query, key, value: floating, shape (B, H, S, dim).
        is_valid: bool, shape (B, S): False where nothing is gathered from. None: all valid.
        dropout: share of the attention weights that is set to zero, in [0, 1).

    Returns:
        Floating, shape (B, H, S, dim).
    """
    mask = None if is_valid is None else is_valid[:, None, None, :]
    if not dropout or _has_fast_kernels(query):
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
    bias = None if mask is None else query.new_zeros(mask.shape).masked_fill(~mask, -1e30)
    with torch.autocast("cpu", enabled=False):  # the inputs' type it is
        return _DropAttention.apply(query, key, value, bias, dropout)  # type: ignore[no-any-return]


class _DropAttention(torch.autograd.Function):
    """Scaled products, softmax, dropout, product.

    A weight is positive unless it was dropped, so that the dropped weights, which the
    gradient of the value needs, are the mask too.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, p: float
    ) -> Tensor:
        query = query * (1 / math.sqrt(query.shape[-1]))
        value = value * (1 / (1 - p))
        scores = query @ key.mT
        weights = (scores if bias is None else scores.add_(bias)).softmax(dim=-1)
        dropped = torch.addcmul(weights, weights, _draw_dropped(weights, p), value=-1, out=scores)
        ctx.save_for_backward(query, key, value, weights, dropped)
        ctx.p = p
        return dropped @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        query, key, value, weights, dropped = ctx.saved_tensors
        to_value = dropped.mT @ gradient
        to_dropped = gradient @ value.mT
        to_weights = torch.ops.aten.threshold_backward.grad_input(
            to_dropped, dropped, 0, grad_input=to_dropped
        )
        to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_query = (to_scores @ key).mul_(1 / math.sqrt(query.shape[-1]))
        to_key = to_scores.mT @ query
        return to_query, to_key, to_value.mul_(1 / (1 - ctx.p)), None, None


def _has_fast_kernels(x: Tensor) -> bool:
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def _draw_dropped(like: Tensor, p: float) -> Float32[Tensor, "..."]:
    """Draw 1.0 with probability ``p``, 0.0 otherwise, from the global generator."""
    return torch.lt(_random_bytes(like.shape), _threshold(p), out=torch.empty_like(like))


def _draw_kept(like: Tensor, p: float) -> Float32[Tensor, "..."]:
    """Draw 0.0 with probability ``p``, 1.0 otherwise, from the global generator."""
    return torch.ge(_random_bytes(like.shape), _threshold(p), out=torch.empty_like(like))


def _random_bytes(shape: torch.Size) -> UInt8[Tensor, "..."]:
    words = torch.empty(-(-shape.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[: shape.numel()].view(shape)


def _threshold(p: float) -> int:
    """Round ``256 * p`` up or down by a draw, so that each element's probability is exact."""
    return min(math.floor(_LEVELS * p + float(torch.rand(()))), _LEVELS - 1)
