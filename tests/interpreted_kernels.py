"""Run the GPU's depthwise convolution in Triton's interpreter, beside torch's own in float64.

It prints the largest relative error of output and gradients, one line per shape.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor

from melstream.model import depthwise_gpu

# Samples, steps, channels, taps: whole tiles and torn ones, longer and shorter than the taps.
SHAPES = ((2, 37, 130, 15), (1, 5, 8, 3), (2, 32, 128, 31), (3, 1, 4, 1))


def errors(shape: tuple[int, int, int, int]) -> list[float]:
    """Compare output and gradients."""
    n_samples, n_steps, n_channels, n_taps = shape
    shapes = (n_samples, n_steps, n_channels), (n_taps, n_channels), (n_channels,)
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, expected = depthwise_gpu.convolve(*inputs), convolution(*exact)
    gradient = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, inputs, gradient)]
    required = [expected, *torch.autograd.grad(expected, exact, gradient.double())]
    return [
        float((one - other).norm() / other.norm())
        for one, other in zip(found, required, strict=True)
    ]


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Do it torch's way."""
    n_taps, n_channels = weight.shape
    return F.conv1d(x.mT, weight.T[:, None], bias, padding=n_taps // 2, groups=n_channels).mT


if __name__ == "__main__":
    depthwise_gpu.wrap_triton = lambda kernel: kernel  # it takes no interpreted kernel
    torch.manual_seed(0)
    for shape in SHAPES:
        sys.stdout.write(f"{max(errors(shape))}\n")
