"""Dropout, and attention with dropout on its weights, that a CPU does not spend its time on.

Torch draws one random number per element and reads and writes masks of floats. On a CPU
that takes longer than the matrix products around it, so there one random number serves
eight elements, and masks are folded into what is computed anyway. Other devices, and
graphs that ``torch.compile`` or ``torch.export`` trace, take torch's own kernels.

Legend: B batch, S latent steps, H heads.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LEVELS = 256  # of a random byte
_CHUNK_BYTES = 4 << 20
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


def add_dropout(
    x: Float[Tensor, "..."], y: Float[Tensor, "..."], *, dropout: float, scale: float = 1.0
) -> Float[Tensor, "..."]:
    """Compute ``x + scale * F.dropout(y, dropout)``.

    Args:
        x, y: floating, one shape.
        dropout: probability of a zero, in [0, 1).
        scale: factor of ``y``.

    Returns:
        Floating, of that shape.
    """
    if not dropout or _has_fast_kernels(x):
        return torch.add(x, F.dropout(y, dropout), alpha=scale)
    return torch.addcmul(x, y, _draw_kept(x, dropout).mul_(scale / (1 - dropout)))


def feed_forward(
    x: Float[Tensor, "B S outer"], widen: nn.Linear, narrow: nn.Linear, *, dropout: float
) -> Float[Tensor, "B S outer"]:
    """Compute ``narrow(F.dropout(F.silu(widen(x)), dropout))``.

    Args:
        x: floating, shape (B, S, outer).
        widen, narrow: linear layers with biases, from outer to inner and back.
        dropout: probability of a zero, in [0, 1).

    Returns:
        Floating, shape (B, S, outer).
    """
    if not dropout or _has_fast_kernels(x):
        return narrow(F.dropout(F.silu(widen(x)), dropout))
    inputs = x, widen.weight, widen.bias, narrow.weight, narrow.bias
    if torch.is_autocast_enabled("cpu"):
        inputs = tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in inputs)
    with torch.autocast("cpu", enabled=False):  # the inputs' type it is
        return _FeedForward.apply(*inputs, dropout)  # type: ignore[no-any-return]


class _FeedForward(torch.autograd.Function):
    """Widen, SiLU, dropout, narrow.

    SiLU and its slope are zero far below zero: an element is dropped by moving it there
    by way of the bias, so that the widened values are the mask too, and all that is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, in_weight: Tensor, in_bias: Tensor,
        out_weight: Tensor, out_bias: Tensor, p: float,
    ) -> Tensor:  # fmt: skip
        rows = x.flatten(0, -2)
        widened = _draw_dropped(rows.new_empty(len(rows), len(in_bias)), p)
        torch.add(in_bias, widened, alpha=-_FAR_BELOW, out=widened)
        widened.addmm_(rows, in_weight.T)
        ctx.save_for_backward(rows, widened, in_weight, out_weight)
        ctx.scale = 1 / (1 - p)
        out = torch.addmm(out_bias, F.silu(widened), out_weight.T, alpha=ctx.scale)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, widened, in_weight, out_weight = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        to_out_weight = (gradient.T @ F.silu(widened)).mul_(ctx.scale)
        inner = gradient @ (out_weight * ctx.scale)
        torch.ops.aten.silu_backward.grad_input(inner, widened, grad_input=inner)
        to_x = (inner @ in_weight).view(gradients[0].shape)
        return to_x, inner.T @ rows, inner.sum(0), to_out_weight, gradient.sum(0), None


def attention(
    qkv: Float[Tensor, "B S 3 H dim"], *, is_valid: Bool[Tensor, "B S"] | None, dropout: float
) -> Float[Tensor, "B S H dim"]:
    """Attend from every step to every valid step: ``F.scaled_dot_product_attention``.

    Args:
        qkv: floating, shape (B, S, 3, H, dim): queries, keys and values.
        is_valid: bool, shape (B, S): False where nothing is gathered from. None: all valid.
        dropout: share of the attention weights that is set to zero, in [0, 1).

    Returns:
        Floating, shape (B, S, H, dim).
    """
    mask = None if is_valid is None else is_valid[:, None, None, :]
    if not dropout or _has_fast_kernels(qkv):
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, S, dim)
        out = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
        return out.transpose(1, 2)
    bias = None if mask is None else qkv.new_zeros(mask.shape).masked_fill(~mask, -1e30)
    with torch.autocast("cpu", enabled=False):  # the inputs' type it is
        return _DropAttention.apply(qkv, bias, dropout)  # type: ignore[no-any-return]


class _DropAttention(torch.autograd.Function):
    """Scaled products, softmax, dropout, product, a few samples at a time.

    What is computed in between is not kept, and stays near the cache: the backward pass
    makes the mask again of the random bytes, a quarter of its size.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None, p: float) -> Tensor:
        n_samples, n_steps, _, n_heads, width = qkv.shape
        size = _samples_at_once(qkv)
        out = qkv.new_empty(n_samples, n_steps, n_heads, width)
        weights = qkv.new_empty(n_samples, n_heads, n_steps, n_steps)
        random, threshold = _random_bytes(weights.shape), _threshold(p)
        scratch = torch.empty_like(weights[:size])
        gathered = qkv.new_empty(size, n_heads, n_steps, width)
        ctx.save_for_backward(qkv, weights, random)
        ctx.threshold, ctx.scales = threshold, (1 / math.sqrt(width), 1 / (1 - p))
        for first in range(0, n_samples, size):
            part = slice(first, first + size)
            query, key, value = _by_head(qkv[part])
            scores = dropped = scratch[: n_samples - first]
            _multiply(query, key.mT, ctx.scales[0], out=scores)
            if bias is not None:
                scores.add_(bias[part])
            torch.softmax(scores, -1, out=weights[part])
            torch.ge(random[part], threshold, out=dropped).mul_(weights[part])
            part_out = _multiply(dropped, value, ctx.scales[1], out=gathered[: len(dropped)])
            out[part] = part_out.transpose(1, 2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        qkv, weights, random = ctx.saved_tensors
        size = _samples_at_once(qkv)
        to_qkv = torch.empty_like(qkv)
        scratch = qkv.new_empty(3, *weights[:size].shape)
        products = qkv.new_empty(3, size, *weights.shape[1:3], qkv.shape[-1])
        for first in range(0, len(qkv), size):
            part = slice(first, first + size)
            query, key, value = _by_head(qkv[part])
            gradient = gradients[0][part].transpose(1, 2)
            kept, dropped, to_weights = scratch[:, : len(qkv) - first]
            to_query, to_key, to_value = to_parts = products[:, : len(qkv) - first]
            torch.ge(random[part], ctx.threshold, out=kept)
            torch.mul(weights[part], kept, out=dropped)
            _multiply(dropped.mT, gradient, ctx.scales[1], out=to_value)
            _multiply(gradient, value.mT, ctx.scales[1], out=to_weights).mul_(kept)
            to_scores = torch.ops.aten._softmax_backward_data.out(
                to_weights, weights[part], -1, weights.dtype, grad_input=dropped
            )
            _multiply(to_scores, key, ctx.scales[0], out=to_query)
            _multiply(to_scores.mT, query, ctx.scales[0], out=to_key)
            to_qkv[part] = to_parts.permute(1, 3, 0, 2, 4)
        return to_qkv, None, None


def _samples_at_once(qkv: Tensor) -> int:
    _, n_steps, _, n_heads, _ = qkv.shape
    return max(_CHUNK_BYTES // (n_heads * n_steps**2 * qkv.element_size()), 1)


def _by_head(qkv: Float[Tensor, "B S 3 H dim"]) -> Float[Tensor, "3 B H S dim"]:
    return qkv.permute(2, 0, 3, 1, 4)


def _multiply(a: Tensor, b: Tensor, scale: float, *, out: Tensor) -> Tensor:
    """Write ``scale * a @ b``, matrices over (B, H), into a contiguous tensor."""
    flat = out.view(-1, *out.shape[2:])
    torch.baddbmm(flat, a.flatten(0, 1), b.flatten(0, 1), beta=0, alpha=scale, out=flat)
    return out


def _has_fast_kernels(x: Tensor) -> bool:
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def _draw_dropped(like: Tensor, p: float) -> Float32[Tensor, "..."]:
    """Draw 1.0 with probability ``p``, 0.0 otherwise, from the global generator."""
    return torch.lt(_random_bytes(like.shape), _threshold(p), out=torch.empty_like(like))


def _draw_kept(like: Tensor, p: float) -> Float32[Tensor, "..."]:
    """Draw 0.0 with probability ``p``, 1.0 otherwise, from the global generator."""
    return torch.ge(_random_bytes(like.shape), _threshold(p), out=torch.empty_like(like))


def _random_bytes(shape: torch.Size) -> UInt8[Tensor, "..."]:
    """Draw by NumPy, which takes half of torch's time, from a seed of the global generator."""
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw(-(-shape.numel() // 8))
    return torch.from_numpy(words.view(np.uint8))[: shape.numel()].view(shape)


def _threshold(p: float) -> int:
    """Round ``256 * p`` up or down by a draw, so that each element's probability is exact."""
    return min(math.floor(_LEVELS * p + float(torch.rand(()))), _LEVELS - 1)
