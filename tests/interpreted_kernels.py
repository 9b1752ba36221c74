"""Run the GPU's depthwise convolution in Triton's interpreter, beside torch's own in float64.

It prints the largest relative error of output and gradients, one line per shape.
"""

import os
import sys
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from melstream.model import conformer, depthwise_gpu

# Samples, steps, channels, taps: whole tiles and torn ones, longer and shorter than the taps.
SHAPES = ((2, 37, 130, 15), (1, 5, 8, 3), (2, 32, 128, 31), (3, 1, 4, 5))


def errors(shape: tuple[int, int, int, int]) -> list[float]:
    """Compare output and gradients."""
    n_samples, n_steps, n_channels, n_taps = shape
    shapes = (n_samples, n_steps, n_channels), (n_channels, 1, 1, n_taps), (n_channels,)
    inputs = [torch.randn(shape) for shape in shapes]
    inputs[1] = inputs[1].as_strided(shapes[1], (n_taps, 1, 1, 1))  # as the model's weights lie
    gradient = torch.randn(shapes[0])
    required = out_and_gradients([x.double() for x in inputs], gradient.double())
    with patch.object(conformer, "_takes_triton", lambda _: True):
        found = out_and_gradients(inputs, gradient)
    assert found[2].stride() == inputs[1].stride()
    return [
        float((one - other).norm() / other.norm())
        for one, other in zip(found, required, strict=True)
    ]


def out_and_gradients(inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """Give the convolution of samples, weight and bias, and the gradients of all three."""
    leaves = [x.requires_grad_() for x in inputs]
    out = conformer.depthwise_convolution(*leaves)
    out.backward(gradient)
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]


if __name__ == "__main__":
    depthwise_gpu.wrap_triton = lambda kernel: kernel  # it takes no interpreted kernel
    torch.manual_seed(0)
    for shape in SHAPES:
        sys.stdout.write(f"{max(errors(shape))}\n")
