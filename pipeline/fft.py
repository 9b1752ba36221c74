"""Powers of the Fourier transform of many real frames at once.

Frames stand side by side, ``LANES`` of them in a group, and each step does the same to all:
Numba makes vector instructions of that for the CPU at hand; scipy's wheels are compiled for
the oldest x86-64. Any even size works; large prime factors make it slow.

Two known algorithms: a real transform by a complex one of half the size (Press et al.,
Numerical Recipes, section 12.3), and, for that one, Pease's, in which each pass reads and
writes the same places (Pease 1968, An Adaptation of the Fast Fourier Transform for Parallel
Processing, Journal of the ACM 15, 252-264).
"""

import numba
import numpy as np
import numpy.typing as npt

from .rounding import fma

LANES = 32
"""Frames in a group.

measured: 2026-11-22, AMD EPYC (AVX2), passes for 1,008 frames of 512 samples: 0.32 ms with 16
lanes (finding the rows takes as long as the sums on them), 0.21 with 32, 0.22 with 64.
"""


class PowerSpectrum:
    """The powers |X|² of real frames of one size.

    A call changes nothing in the object. A frame's powers do not depend on its neighbours.

    Args:
        n_fft: samples per frame; even.

    >>> frames = np.zeros((1, 4, LANES), np.float32)
    >>> frames[0, :, 0] = [1, 0, -1, 0]
    >>> PowerSpectrum(4)(frames)[:, 0]
    array([0., 4., 0.], dtype=float32)
    """

    def __init__(self, n_fft: int) -> None:
        self._radices = _radices(n_fft // 2)
        self._n_done = np.cumprod(self._radices) // self._radices
        self._rows = _rows(self._radices)
        angles = 2 * np.pi * np.arange(n_fft) / n_fft
        self._cos = np.cos(angles).astype(np.float32)
        self._sin = np.sin(angles).astype(np.float32)

    def __call__(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Compute the powers.

        Args:
            frames: float32, shape (n_groups, n_fft, LANES), in C order: row i of a group holds
                sample i of each of its frames.

        Returns:
            powers: float32, shape (n_fft // 2 + 1, n_groups * LANES), not normalised.

        Raises:
            ValueError: ``frames`` has another shape.
        """
        n_fft = len(self._cos)
        if frames.shape[1:] != (n_fft, LANES):
            raise ValueError(
                f"`frames` must have shape (n_groups, {n_fft}, {LANES}), found {frames.shape}"
            )
        n_groups = len(frames)
        powers = np.empty((n_fft // 2 + 1, n_groups * LANES), np.float32)
        factors = (self._radices, self._n_done)
        _transform(frames, *factors, self._cos, self._sin, self._rows, powers)
        return powers


def _radices(size: int) -> npt.NDArray[np.int64]:
    """Return factors of ``size``: fours as long as they go, then primes.

    >>> _radices(120)
    array([4, 2, 3, 5])
    """
    radices = []
    for radix in (4, *range(2, size + 1)):
        while size % radix == 0:
            radices.append(radix)
            size //= radix
    return np.array(radices, np.int64)


def _rows(radices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the row in which the passes leave each frequency: its digits, reversed.

    >>> _rows(np.array([2, 2, 2]))
    array([0, 4, 2, 6, 1, 5, 3, 7])
    """
    rows = np.zeros(1, np.int64)
    for radix in radices:
        rows = (radix * rows + np.arange(radix)[:, None]).ravel()
    return rows


# These kernels share a file, and no other file's kernels call them or use LANES: Numba's cache
# would not see a change here. Arrays that are not known to be contiguous, such as a
# view of columns, cost these loops their vector instructions.
# A complex row is two rows of frames, even samples (real) and odd ones (imaginary).


@numba.njit(cache=True, nogil=True)
def _transform(frames, radices, n_done, cos, sin, rows, powers):
    spare = np.empty((2, *frames.shape[1:]), np.float32)
    for group in range(len(frames)):
        source = frames[group]
        for p in range(len(radices)):
            target = spare[p % 2]
            if radices[p] == 4:
                _pass_of_4(source, n_done[p], cos, sin, target)
            else:
                _pass(source, radices[p], n_done[p], cos, sin, target)
            source = target
        _split(source, rows, cos, sin, powers, group * LANES)


@numba.njit(cache=True, nogil=True)
def _pass(source, radix, n_done, cos, sin, target):
    """Transform row i of each of ``radix`` equal parts, into ``radix`` rows side by side.

    ``n_done``, the product of the radices of the passes before, is how many transforms stand
    interleaved in ``source``. ``cos`` and ``sin`` go round in n_fft steps, twice the rows.
    """
    parts = source.reshape(radix, -1, 2 * LANES)
    outs = target.reshape(-1, radix, 2 * LANES)
    outs[:] = 0
    for i in range(len(outs)):
        for k in range(radix):
            out = outs[i, k]
            for j in range(radix):
                turn = 2 * k * (i - i % n_done + j * len(outs)) % len(cos)
                c, s, part = cos[turn], sin[turn], parts[j, i]
                for re in range(LANES):
                    im = re + LANES
                    out[re] = fma(part[re], c, fma(part[im], s, out[re]))
                    out[im] = fma(part[im], c, fma(part[re], -s, out[im]))


@numba.njit(cache=True, nogil=True)
def _pass_of_4(source, n_done, cos, sin, target):
    """Do what ``_pass`` does with radix 4, where the transform itself needs no products."""
    quarters = source.reshape(4, -1, 2 * LANES)
    outs = target.reshape(-1, 8 * LANES)
    for i in range(len(outs)):
        turn = 2 * (i - i % n_done)
        cos_1, cos_2, cos_3 = cos[turn], cos[2 * turn], cos[3 * turn]
        sin_1, sin_2, sin_3 = sin[turn], sin[2 * turn], sin[3 * turn]
        a, b, c, d, out = quarters[0, i], quarters[1, i], quarters[2, i], quarters[3, i], outs[i]
        for re in range(LANES):
            im = re + LANES
            ac_re, ac_im, bd_re, bd_im = a[re] + c[re], a[im] + c[im], b[re] + d[re], b[im] + d[im]
            out[re], out[im] = ac_re + bd_re, ac_im + bd_im
            x, y = ac_re - bd_re, ac_im - bd_im
            out[re + 4 * LANES] = fma(x, cos_2, y * sin_2)
            out[im + 4 * LANES] = fma(y, cos_2, -(x * sin_2))
            # The differences; the second one times -i.
            ac_re, ac_im, bd_re, bd_im = a[re] - c[re], a[im] - c[im], b[im] - d[im], d[re] - b[re]
            x, y = ac_re + bd_re, ac_im + bd_im
            out[re + 2 * LANES] = fma(x, cos_1, y * sin_1)
            out[im + 2 * LANES] = fma(y, cos_1, -(x * sin_1))
            x, y = ac_re - bd_re, ac_im - bd_im
            out[re + 6 * LANES] = fma(x, cos_3, y * sin_3)
            out[im + 6 * LANES] = fma(y, cos_3, -(x * sin_3))


@numba.njit(cache=True, nogil=True)
def _split(source, rows, cos, sin, powers, first):
    """Make the real transform of the complex one; fill powers[:, first : first + LANES].

    Frequencies k and size - k of the complex transform give the transforms of the even and of
    the odd samples, and with them k and size - k of the real one.
    """
    size = len(rows)
    values = source.reshape(size, 2 * LANES)
    half = np.float32(0.5)
    for k in range(size // 2 + 1):
        a, b = values[rows[k]], values[rows[(size - k) % size]]
        c, s = half * cos[k], half * sin[k]
        low, high = powers[k][first:], powers[size - k][first:]
        for re in range(LANES):
            im = re + LANES
            even_re, even_im = half * (a[re] + b[re]), half * (a[im] - b[im])
            x, y = a[im] + b[im], b[re] - a[re]
            odd_re, odd_im = fma(x, c, y * s), fma(y, c, -(x * s))
            x, y = even_re + odd_re, even_im + odd_im
            low[re] = fma(x, x, y * y)
            x, y = even_re - odd_re, even_im - odd_im
            high[re] = fma(x, x, y * y)
