"""Sums and products that round in one way only, on every CPU.

Left free to fuse a product and a sum, or to add in an order of its own, the compiler decides
by the vectors of the CPU at hand, and may decide otherwise for the copy of a kernel that it
keeps in its cache: the last bits of a log-mel would depend on who computed it. So kernels say
themselves where they round once (``fma``), and sum in ``SUM_LANES`` interleaved parts.
"""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

SUM_LANES = 16
"""Parts of a sum: enough for two vectors of 512 bits, so that additions need not wait."""


@intrinsic
def _fma(typing_context, a, b, c):
    """Have LLVM's own multiply-add, which becomes one instruction where there is one."""

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@njit("float32(float32, float32, float32)", cache=True, nogil=True, inline="always")
def fma(a, b, c):
    """Return a * b + c, rounded once (IEEE 754's fusedMultiplyAdd)."""
    return _fma(a, b, c)  # pyright: ignore[reportCallIssue]


@njit(cache=True, nogil=True)
def sum_float64(values):
    """Sum float32 values in float64: part j takes every value j, j + SUM_LANES, …"""
    parts = np.zeros(SUM_LANES)
    n_whole = len(values) // SUM_LANES * SUM_LANES
    for first in range(0, n_whole, SUM_LANES):
        row = values[first : first + SUM_LANES]
        for j in range(SUM_LANES):
            parts[j] += np.float64(row[j])
    for i in range(n_whole, len(values)):
        parts[i - n_whole] += np.float64(values[i])
    return _fold(parts)


@njit(cache=True, nogil=True)
def sum_squares_float64(values):
    """Sum the squares of float32 values in float64, in the parts of ``sum_float64``.

    A square of a float32 is exact in float64, so fusing it with the sum would change nothing.
    """
    parts = np.zeros(SUM_LANES)
    n_whole = len(values) // SUM_LANES * SUM_LANES
    for first in range(0, n_whole, SUM_LANES):
        row = values[first : first + SUM_LANES]
        for j in range(SUM_LANES):
            parts[j] += np.float64(row[j]) * np.float64(row[j])
    for i in range(n_whole, len(values)):
        parts[i - n_whole] += np.float64(values[i]) * np.float64(values[i])
    return _fold(parts)


@njit(cache=True, nogil=True)
def _fold(parts):
    n = len(parts)
    while n > 1:
        n //= 2
        for j in range(n):
            parts[j] += parts[j + n]
    return parts[0]
