"""Dropout, and a conformer's modules with dropout inside, for a CPU's memory.

Torch draws one random number per element and reads and writes masks of floats. On a CPU
that takes longer than the matrix products around it, so there one random number serves
eight elements, masks are folded into what is computed anyway, and the backward pass
makes again what is cheaper to make than to keep. Other devices and exported graphs take
torch's own kernels; in graphs that ``torch.compile`` traces a hash draws the zeros.

measured: 2026-11-26, 2 cores of an Intel Xeon (AVX-512), torch 2.11, forward and backward
of a CF-S encoder on 8 x 250 steps, in alternation: 1.13 s against 1.30 s with masks kept as
floats, bytes of torch's generator and the kernel of the convolution along the width.

Legend: B batch, S latent steps, H heads.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LEVELS = 256  # of a random byte
_CHUNK_BYTES = 2 << 20  # of attention weights at once: what a core's second cache holds
_INT32 = torch.iinfo(torch.int32)
_FAR_BELOW = 1e4  # SiLU and its slope are 0 there, to the last bit


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
        return torch.add(x, _drop(y, dropout), alpha=scale)
    return _AddDropout.apply(x, y, dropout, scale / (1 - dropout))  # type: ignore[no-any-return]


class _AddDropout(torch.autograd.Function):
    """Add what is kept; the backward pass makes the mask again of the random bytes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, p: float, scale: float) -> Tensor:
        random, ctx.threshold = _draw(x.shape, p)
        ctx.save_for_backward(random)
        ctx.scale = scale
        return torch.addcmul(x, y, _kept(random, ctx.threshold, like=x), value=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,), (random,) = gradients, ctx.saved_tensors
        kept = _kept(random, ctx.threshold, like=gradient)
        return gradient, kept.mul_(gradient).mul_(ctx.scale), None, None


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
        return narrow(_drop(F.silu(widen(x)), dropout))
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
        widened = rows.new_empty(len(rows), len(in_bias))
        torch.lt(*_draw(widened.shape, p), out=widened)  # 1.0: dropped
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
        activated = F.silu(widened)
        to_out_weight = (gradient.T @ activated).mul_(ctx.scale)
        inner = torch.mm(gradient, out_weight * ctx.scale, out=activated)
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
    with torch.autocast("cpu", enabled=False):  # the inputs' type it is
        return _DropAttention.apply(qkv, is_valid, dropout)  # type: ignore[no-any-return]


class _DropAttention(torch.autograd.Function):
    """Scaled products, softmax, dropout, product, a few heads at a time.

    What is computed in between is not kept, and stays near the cache: the backward pass
    makes the mask again of the random bytes, a quarter of its size.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, is_valid: Tensor | None, p: float) -> Tensor:
        n_samples, n_steps, _, n_heads, width = qkv.shape
        heads = qkv.permute(2, 0, 3, 1, 4).reshape(3, -1, n_steps, width)
        weights = qkv.new_empty(n_samples * n_heads, n_steps, n_steps)
        random, ctx.threshold = _draw(weights.shape, p)
        ctx.save_for_backward(heads, weights, random)
        ctx.scales = 1 / math.sqrt(width), 1 / (1 - p)
        bias = None
        if is_valid is not None:
            bias = qkv.new_zeros(is_valid.shape).masked_fill(~is_valid, -1e30)
            bias = bias.repeat_interleave(n_heads, 0)[:, None]  # (B * H, 1, S)
        gathered = torch.empty_like(heads[0])
        (scratch,) = _scratch(1, weights)
        for part in _parts(weights):
            query, key, value = heads[:, part]
            scores = dropped = scratch[: len(query)]
            _multiply(query, key.mT, ctx.scales[0], out=scores)
            if bias is not None:
                scores.add_(bias[part])
            torch.softmax(scores, -1, out=weights[part])
            torch.ge(random[part], ctx.threshold, out=dropped).mul_(weights[part])
            _multiply(dropped, value, ctx.scales[1], out=gathered[part])
        return gathered.view(n_samples, n_heads, n_steps, width).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        heads, weights, random = ctx.saved_tensors
        gradient = gradients[0].transpose(1, 2).reshape(heads.shape[1:])
        to_heads = torch.empty_like(heads)
        scratch = _scratch(3, weights)
        for part in _parts(weights):
            query, key, value = heads[:, part]
            to_query, to_key, to_value = to_heads[:, part]
            kept, dropped, to_weights = scratch[:, : len(query)]
            torch.ge(random[part], ctx.threshold, out=kept)
            torch.mul(weights[part], kept, out=dropped)
            _multiply(dropped.mT, gradient[part], ctx.scales[1], out=to_value)
            _multiply(gradient[part], value.mT, ctx.scales[1], out=to_weights).mul_(kept)
            to_scores = torch.ops.aten._softmax_backward_data.out(
                to_weights, weights[part], -1, weights.dtype, grad_input=dropped
            )
            _multiply(to_scores, key, ctx.scales[0], out=to_query)
            _multiply(to_scores.mT, query, ctx.scales[0], out=to_key)
        n_samples, n_steps, n_heads, width = gradients[0].shape
        to_qkv = to_heads.view(3, n_samples, n_heads, n_steps, width).permute(1, 3, 0, 2, 4)
        return to_qkv, None, None


def _parts(weights: Float[Tensor, "heads S S"]) -> list[slice]:
    """Divide the heads of all samples into runs whose weights stay in the cache."""
    size = max(_CHUNK_BYTES // weights[0].nbytes, 1)
    return [slice(first, first + size) for first in range(0, len(weights), size)]


def _scratch(n: int, weights: Float[Tensor, "heads S S"]) -> Float[Tensor, "n run S S"]:
    return weights.new_empty(n, *weights[_parts(weights)[0]].shape)


def _multiply(a: Tensor, b: Tensor, scale: float, *, out: Tensor) -> Tensor:
    """Write ``scale * a @ b``, head by head."""
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def none_if_all_valid(padding_mask: Bool[Tensor, "B S"] | None) -> Bool[Tensor, "B S"] | None:
    """Give None for a mask without padding where looking costs nothing: eagerly on a CPU."""
    if padding_mask is None or _has_fast_kernels(padding_mask) or padding_mask.any():
        return padding_mask
    return None


def _has_fast_kernels(x: Tensor) -> bool:
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def _drop(y: Float[Tensor, "..."], p: float) -> Float[Tensor, "..."]:
    """Compute ``F.dropout(y, p)``.

    Where ``torch.compile`` makes the kernels, zeros come from a hash of the element's number
    and two draws: its own generator takes ten rounds per element, which on a GPU is longer than
    reading and writing it. measured: 2026-11-27, H200, SiLU and dropout of 64 x 250 steps of
    width 1,024 in bfloat16, one kernel: 28 to 34 us against 66 us.

    Source:
        Wellons 2018, https://nullprogram.com/blog/2018/07/31/ (``lowbias32``).
    """
    if not p or torch.compiler.is_exporting() or not torch.compiler.is_compiling():
        return F.dropout(y, p)
    first, second = torch.randint(_INT32.min, _INT32.max, (2,), device=y.device, dtype=torch.int32)
    numbers = torch.arange(y.numel(), device=y.device, dtype=torch.int32).view(y.shape)
    is_kept = _hash(numbers ^ first, second) >= math.floor(_INT32.min + p * 2**32)
    return torch.where(is_kept, y / (1 - p), 0.0)


def _hash(x: Int32[Tensor, "..."], salt: Int32[Tensor, ""]) -> Int32[Tensor, "..."]:
    """Mix all bits; shifts of signed numbers have to be cleared of the sign."""
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF) ^ salt) * (0x846CA68B - 2**32)
    return x ^ (x >> 16 & 0xFFFF)


def _draw(shape: torch.Size, p: float) -> tuple[UInt8[Tensor, "..."], int]:
    """Draw bytes, and the threshold below which an element is dropped.

    The bytes are NumPy's, which takes half of torch's time, from a seed of torch's global
    generator. ``256 * p`` is rounded up or down by a draw, so that each element's
    probability is exact.
    """
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw(-(-shape.numel() // 8))
    threshold = min(math.floor(_LEVELS * p + float(torch.rand(()))), _LEVELS - 1)
    return torch.from_numpy(words.view(np.uint8))[: shape.numel()].view(shape), threshold


def _kept(random: UInt8[Tensor, "..."], threshold: int, *, like: Tensor) -> Float[Tensor, "..."]:
    """Give 1.0 where an element is kept, 0.0 where it is dropped."""
    return torch.ge(random, threshold, out=torch.empty_like(like))
