"""One conformer block, with the convolution before the attention.

The block of Srivastava et al. 2022 (arXiv:2110.07313), as the re-implementation
in torchaudio's prototypes has it: half a feed-forward module, convolution,
self-attention, half a feed-forward module, layer norm. There is no position
encoding: order comes from the convolutions. Biases are everywhere.

Legend: B batch, S latent steps, D model width, H heads.
"""

import os
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .dropout import add_dropout, attention, feed_forward


def _has_triton() -> bool:
    """Look for Triton, and for what it builds its launchers with: a C compiler, Python's header."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    compilers = os.environ.get("CC", "cc"), "gcc", "clang"
    return find_spec("triton") is not None and header.exists() and any(map(which, compilers))


_HAS_TRITON = _has_triton()


def _takes_triton(x: Tensor) -> bool:
    return x.is_cuda and _HAS_TRITON


class ConformerBlock(nn.Module):
    """Half a feed-forward module, convolution, attention, the other half, layer norm.

    Args:
        dim: model width D.
        n_heads: attention heads; divides ``dim``.
        ffn_dim: inner width of the feed-forward modules.
        kernel_size: width of the depthwise convolution in latent steps, odd.
        dropout: probability of a zero, in [0, 1), behind every module and on the
            attention weights.
        hides_padding: keep padding out of the convolution and its norm, so that a
            sample gives the same context however much it is padded. The reference
            hides it from the attention only.
    """

    def __init__(
        self,
        dim: int,
        *,
        n_heads: int,
        ffn_dim: int,
        kernel_size: int,
        dropout: float,
        hides_padding: bool = True,
    ) -> None:
        super().__init__()
        self.first_ffn = FeedForward(dim, ffn_dim=ffn_dim, dropout=dropout)
        self.convolution = Convolution(dim, kernel_size=kernel_size)
        self.attention = SelfAttention(dim, n_heads=n_heads, dropout=dropout)
        self.second_ffn = FeedForward(dim, ffn_dim=ffn_dim, dropout=dropout)
        self.norm = nn.LayerNorm(dim)
        self._dropout = dropout
        self._hides_padding = hides_padding

    def forward(
        self, x: Float[Tensor, "B S D"], padding_mask: Bool[Tensor, "B S"] | None
    ) -> Float[Tensor, "B S D"]:
        """Transform a sequence, step count kept.

        Args:
            x: floating, shape (B, S, D).
            padding_mask: bool, shape (B, S); True where the step is padding. None:
                nothing is padded.

        Returns:
            Floating, shape (B, S, D); what stands on padding means nothing.
        """
        p = self._dropout if self.training else 0.0
        hidden = padding_mask if self._hides_padding else None
        x = add_dropout(x, self.first_ffn(x), dropout=p, scale=0.5)
        x = add_dropout(x, self.convolution(x, hidden), dropout=p)
        x = add_dropout(x, self.attention(x, padding_mask), dropout=p)
        x = add_dropout(x, self.second_ffn(x), dropout=p, scale=0.5)
        return self.norm(x).to(x.dtype)  # under autocast a norm gives float32: twice the bytes


class FeedForward(nn.Module):
    """Layer norm, widen, SiLU, narrow."""

    def __init__(self, dim: int, *, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, ffn_dim)
        self.narrow = nn.Linear(ffn_dim, dim)
        self._dropout = dropout

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Transform each step by itself."""
        p = self._dropout if self.training else 0.0
        return feed_forward(self.norm(x), self.widen, self.narrow, dropout=p)


class Convolution(nn.Module):
    """Layer norm, gated pointwise, depthwise, norm over the sample, SiLU, pointwise.

    The pointwise convolutions are linear layers.
    """

    def __init__(self, dim: int, *, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv2d(
            dim, dim, (1, kernel_size), padding=(0, kernel_size // 2), groups=dim
        )
        # Channels last, as its gradient comes, or DistributedDataParallel copies and warns.
        weight = self.depthwise.weight
        weight.data = weight.data.as_strided(weight.shape, (kernel_size, 1, 1, 1))
        self.sample_norm = SampleNorm(dim)
        self.mix = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B S D"], padding_mask: Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """Mix neighbouring steps; beyond the ends, and on padding, stand zeros."""
        x = F.glu(self.gate(self.norm(x)))
        if padding_mask is not None:
            x = x.masked_fill(padding_mask[..., None], 0.0)
        weight, bias = self.depthwise.parameters()
        x = depthwise_convolution(x, weight, bias)
        return self.mix(F.silu(self.sample_norm(x, padding_mask)))


def depthwise_convolution(
    x: Float[Tensor, "B S D"], weight: Float[Tensor, "D 1 1 K"], bias: Float[Tensor, " D"]
) -> Float[Tensor, "B S D"]:
    """Convolve each channel with its own kernel; beyond the ends stand zeros.

    Two-dimensional with a width of one: the channels-last form works on (B, S, D) where it
    lies, without a copy, and along the height oneDNN's gradient of the weight is the faster
    one. measured: 2026-11-26, 2 cores of an Intel Xeon (AVX-512), torch 2.11, forward and
    backward of 8 x 250 steps of width 256, kernel 15: 1.3 ms against 4.7 ms along the width,
    which on an AMD EPYC took a third of ``nn.Conv1d``'s time.

    On an NVIDIA GPU kernels of our own do it where Triton can build them: PyTorch's take several
    times as long there.

    Args:
        x: floating, shape (B, S, D).
        weight: floating, shape (D, 1, 1, K), K odd.
        bias: floating, shape (D,).

    Returns:
        Floating, shape (B, S, D).
    """
    if _takes_triton(x):
        from .depthwise_gpu import convolve  # with Triton it takes a second or two to load

        return convolve(x.contiguous(), weight.flatten(1).T.contiguous(), bias)
    out = F.conv2d(
        x.unsqueeze(2).permute(0, 3, 1, 2),  # (B, D, S, 1)
        weight.transpose(2, 3),  # (D, 1, K, 1)
        bias,
        padding=(weight.shape[3] // 2, 0),
        groups=len(weight),
    )
    return out.permute(0, 2, 3, 1).squeeze(2)


class SampleNorm(nn.Module):
    """``nn.GroupNorm`` with one group, for (B, S, D).

    Mean and variance are taken over the valid steps and all channels of a sample;
    scale and offset are per channel.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(
        self, x: Float[Tensor, "B S D"], padding_mask: Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """Normalise each sample as a whole; without a padding mask every step is valid."""
        if padding_mask is None:
            weight, bias = (y.expand(x.shape[1:]) for y in (self.weight, self.bias))
            return F.layer_norm(x, x.shape[1:], weight, bias, self.eps)
        return self._normalise_valid(x.float(), padding_mask).to(self.weight.dtype)

    def _normalise_valid(
        self, x: Float32[Tensor, "B S D"], padding_mask: Bool[Tensor, "B S"]
    ) -> Float32[Tensor, "B S D"]:
        """Sum over whole samples, which takes float32."""
        if not torch.compiler.is_compiling():
            return _NormValid.apply(x, self.weight, self.bias, ~padding_mask, self.eps)  # type: ignore[no-any-return]
        n_values = x.shape[2] * (~padding_mask).sum(1).clamp(min=1)[:, None, None]  # (B, 1, 1)
        padding = padding_mask[..., None]
        mean = x.masked_fill(padding, 0.0).sum((1, 2), keepdim=True) / n_values
        centred = x - mean
        variance = centred.masked_fill(padding, 0.0).square().sum((1, 2), keepdim=True) / n_values
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class _NormValid(torch.autograd.Function):
    """Normalise samples by the mean and variance of their valid steps, and scale channels.

    In one function, since autograd's own way through a dozen operations reads and writes
    the activations four times as often; ``torch.compile`` fuses those by itself.
    measured: 2026-11-26, 2 cores of an AMD EPYC, torch 2.11, forward and backward of 8 x 250
    steps of width 256: 1.2 ms against 4.9 ms.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, is_valid: Tensor, eps: float
    ) -> Tensor:
        n_values = x.shape[2] * is_valid.sum(1).clamp(min=1)[:, None, None]
        share = is_valid[..., None] / n_values  # (B, S, 1): of each value in the sample's mean
        mean = (x.sum(2, keepdim=True) * share).sum(1, keepdim=True)  # (B, 1, 1)
        centred = x - mean
        squares = torch.linalg.vector_norm(centred, dim=2, keepdim=True).square()
        scale = torch.rsqrt((squares * share).sum(1, keepdim=True) + eps)  # (B, 1, 1)
        normed = centred.mul_(scale)
        ctx.save_for_backward(normed, weight, scale, share)
        return torch.addcmul(bias, normed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        normed, weight, scale, share = ctx.saved_tensors
        to_weight = gradient * normed
        along = (to_weight @ weight).sum(1)[:, None, None]  # of the gradient with the sample
        total = (gradient @ weight).sum(1)[:, None, None]
        to_x = torch.addcmul(gradient * (weight * scale), normed, share * (-along * scale))
        to_x.sub_(share * total * scale)
        return to_x, to_weight.sum((0, 1)), gradient.sum((0, 1)), None, None


class SelfAttention(nn.Module):
    """Layer norm and multi-head attention of every step to every valid step."""

    def __init__(self, dim: int, *, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self._dropout = dropout
        # As nn.MultiheadAttention, which the reference uses, starts them.
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Float[Tensor, "B S D"], padding_mask: Bool[Tensor, "B S"] | None
    ) -> Float[Tensor, "B S D"]:
        """Gather from every step that is not padding."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.n_heads, -1))  # (B, S, 3, H, D/H)
        gathered = attention(
            qkv,
            is_valid=None if padding_mask is None else ~padding_mask,
            dropout=self._dropout if self.training else 0.0,
        )
        return self.out(gathered.flatten(2))
