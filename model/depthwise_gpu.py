"""The depthwise convolution of (B, S, D) on an NVIDIA GPU, forward and backward, in Triton.

cuDNN's kernel for channels last, and the one ``torch.compile`` makes of a sum of shifted steps,
read the input from memory or the second cache once per tap. Here a program takes a tile of steps
and channels, whose taps meet in the first cache.

Legend: B batch, S latent steps, D channels, K taps, odd.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

# measured: 2026-11-27, H200, 64 x 250 steps of width 768 in bfloat16, kernel 15: 47 us forward and
# 52 us for the taps' gradient, where other tiles take 47 to 72 and 62 to 101 (one that spills its
# registers 1.4 ms); kernel 31: 88 us forward.
_STEPS, _CHANNELS = 16, 128  # of a tile
_SUMMANDS = 64  # steps times taps of a tile of the taps' gradient


@triton.jit
def _convolve(
    x, weight, bias, out, n_steps, n_channels,
    N_TAPS: tl.constexpr, FLIPPED: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Convolve a tile of steps and channels of a sample; FLIPPED: with the taps turned round."""
    first = tl.program_id(0).to(tl.int64) * n_steps * n_channels
    step = tl.program_id(1) * STEPS + tl.arange(0, STEPS)[:, None]
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    is_channel = channel < n_channels
    total = tl.zeros((STEPS, CHANNELS), tl.float32)
    if not FLIPPED:
        total += tl.load(bias + channel, is_channel, 0.0).to(tl.float32)
    for k in tl.static_range(N_TAPS):
        tap = N_TAPS - 1 - k if FLIPPED else k
        source = step + (k - N_TAPS // 2)
        is_inside = (source >= 0) & (source < n_steps) & is_channel
        values = tl.load(x + first + source * n_channels + channel, is_inside, 0.0)
        factors = tl.load(weight + tap * n_channels + channel, is_channel, 0.0)
        total += values.to(tl.float32) * factors.to(tl.float32)
    is_kept = (step < n_steps) & is_channel
    tl.store(out + first + step * n_channels + channel, total.to(out.dtype.element_ty), is_kept)


@triton.jit
def _correlate(
    x, gradient, partial, n_steps, n_channels,
    N_TAPS: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sum a sample's share of the gradient of every tap, and in row N_TAPS of the bias."""
    sample = tl.program_id(0).to(tl.int64)
    first = sample * n_steps * n_channels
    tap = tl.arange(0, ROWS)[:, None, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]
    is_channel = channel < n_channels
    total = tl.zeros((ROWS, STEPS, CHANNELS), tl.float32)
    start = 0
    while start < n_steps:  # a range would not run in Triton's interpreter
        step = start + tl.arange(0, STEPS)[None, :, None]
        is_step = (step < n_steps) & is_channel
        to_out = tl.load(gradient + first + step * n_channels + channel, is_step, 0.0)
        source = step + tap - N_TAPS // 2
        is_inside = (source >= 0) & (source < n_steps) & is_channel & (tap < N_TAPS)
        values = tl.load(x + first + source * n_channels + channel, is_inside, 0.0)
        values = tl.where(tap == N_TAPS, 1.0, values.to(tl.float32))
        total += to_out.to(tl.float32) * values
        start += STEPS
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    out = partial + (sample * ROWS + row) * n_channels + column
    tl.store(out, tl.sum(total, 1), column < n_channels)


@triton_op("melstream::depthwise_convolution", mutates_args={})
def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve each channel with its own taps; beyond the ends stand zeros.

    Args:
        x: floating, shape (B, S, D), contiguous.
        weight: floating, shape (K, D), contiguous.
        bias: floating, shape (D,).

    Returns:
        Of the type of ``x``, shape (B, S, D); summed in float32.
    """
    return _launch(x, weight, bias, is_flipped=False)


@triton_op("melstream::depthwise_convolution_backward", mutates_args={})
def convolve_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Give the gradients of ``x`` and, in float32, of the K taps; the bias's is the next row."""
    n_samples, n_steps, n_channels = x.shape
    to_x = _launch(gradient, weight, weight, is_flipped=True)
    n_rows = 1 << len(weight).bit_length()  # above the number of taps, as Triton wants it
    partial = torch.empty(n_samples, n_rows, n_channels, device=x.device, dtype=torch.float32)
    wrap_triton(_correlate)[n_samples, triton.cdiv(n_channels, _CHANNELS)](
        x, gradient, partial, n_steps, n_channels,
        N_TAPS=len(weight), ROWS=n_rows, STEPS=max(_SUMMANDS // n_rows, 1), CHANNELS=_CHANNELS,
    )  # fmt: skip
    return to_x, partial.sum(0)


def _launch(x: Tensor, weight: Tensor, bias: Tensor, *, is_flipped: bool) -> Tensor:
    n_samples, n_steps, n_channels = x.shape
    out = torch.empty_like(x)
    grid = n_samples, triton.cdiv(n_steps, _STEPS), triton.cdiv(n_channels, _CHANNELS)
    wrap_triton(_convolve)[grid](
        x, weight, bias, out, n_steps, n_channels,
        N_TAPS=len(weight), FLIPPED=is_flipped, STEPS=_STEPS, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return out


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    to_x, to_rows = convolve_backward(gradient.contiguous(), x, weight)
    n_taps = len(weight)
    return to_x, to_rows[:n_taps].to(weight.dtype), to_rows[n_taps].to(ctx.bias_dtype)


convolve.register_autograd(_backward, setup_context=_setup_context)  # pyright: ignore[reportFunctionMemberAccess]
