"""Counter-based random numbers: a draw is a pure function of a key and a counter.

What is drawn for a sample depends on (seed, epoch, position) and nothing else: not on
threads, ranks, or what was drawn before. The mixer is SplitMix64.

``draw`` and ``below`` have fixed types: they are called from plain Python too, where a
64-bit result comes back as an ``int`` whose type Numba would have to guess.

Source:
    Steele, Lea, Flood 2014, Fast splittable pseudorandom number generators, OOPSLA.
    Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3, SC11.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_32 = np.uint64(0xFFFFFFFF)


@njit("uint64(uint64)", cache=True, nogil=True)
def mix(value):
    """Scramble 64 bits so that neighbours become unrelated (SplitMix64's finalizer)."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@njit("uint64(uint64, uint64)", cache=True, nogil=True)
def draw(key, counter):
    """Return 64 random bits: draw number ``counter`` of the sequence ``key``."""
    return mix(key + (counter + np.uint64(1)) * _GOLDEN)


@njit("int64(uint64, int64)", cache=True, nogil=True)
def below(bits, n):
    """Map 32 random bits (the low half of ``bits``) to 0..n-1; the bias is under n / 2**32."""
    return np.int64(((bits & _LOW_32) * np.uint64(n)) >> np.uint64(32))


@lru_cache
def derive_key(*parts: int) -> np.uint64:
    """Fold integers (seed, epoch, purpose, …) into the key of a sequence of draws.

    >>> one, same, other = (int(derive_key(*parts)) for parts in ((0, 1), (0, 1), (1, 0)))
    >>> one == same, one == other
    (True, False)
    """
    key = np.uint64(0)
    for part in parts:
        key = np.uint64(draw(key, part))
    return key


def draws(key: np.uint64, counters: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """Draw 64 bits for each counter.

    Args:
        key: from ``derive_key``.
        counters: places in the sequence, any shape.

    Returns:
        uint64 of the same shape.
    """
    return _draws(key, counters.astype(np.uint64))


def permutation(key: np.uint64, n: int) -> npt.NDArray[np.int64]:
    """Return a random order of 0..n-1, int64, shape (n,)."""
    return np.argsort(draws(key, np.arange(n)), kind="stable")


@njit(cache=True, nogil=True)
def _draws(key, counters):
    out = np.empty(counters.shape, np.uint64)
    flat_in, flat_out = counters.reshape(-1), out.reshape(-1)
    for i in range(flat_in.size):
        flat_out[i] = draw(key, flat_in[i])
    return out
