"""Powers of the Fourier transform of many real frames at once.

Frames stand side by side, ``LANES`` of them, and each step does the same to all. Any even size
works; large prime factors make it slow.

Two known algorithms: a real transform by a complex one of half the size (Press et al.,
Numerical Recipes, section 12.3), and, for that one, the decimation in frequency of Gentleman
and Sande, in place (Gentleman and Sande 1966, Fast Fourier Transforms: for fun and profit).
"""

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from .lanes import LANES, fma_lanes, load_lanes, splat, store_lanes

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class Turns(NamedTuple):
    """What ``fill_powers`` needs to know of a size.

    Args:
        radices: int64, sizes of the transforms that a pass is made of, one a pass.
        places: int64, shape (n_fft // 2,); where the passes leave each frequency.
        cos, sin: float32, shape (n_fft,); once round the circle.
    """

    radices: Integers
    places: Integers
    cos: Floats
    sin: Floats


def make_turns(n_fft: int) -> Turns:
    """Compute the tables for frames of ``n_fft`` samples, an even number."""
    radices = _radices(n_fft // 2)
    angles = 2 * np.pi * np.arange(n_fft) / n_fft
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return Turns(radices, _places(radices), cos, sin)


def _radices(size: int) -> Integers:
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


def _places(radices: Integers) -> Integers:
    """Return the place in which the passes leave each frequency: its digits, reversed.

    >>> _places(np.array([2, 2, 2]))
    array([0, 4, 2, 6, 1, 5, 3, 7])
    """
    places = np.zeros(1, np.int64)
    for radix in radices:
        places = (radix * places + np.arange(radix)[:, None]).ravel()
    return places


@numba.njit(cache=True, nogil=True)
def fill_powers(frames, turns, powers):
    """Compute the powers |X|², not normalised, of ``LANES`` real frames.

    Args:
        frames: float32, shape (n_fft, LANES), in C order: row i holds sample i of each frame.
            They are lost: the transform is made in place.
        turns: of ``n_fft``.
        powers: float32, shape (n_fft // 2 + 1, LANES); set here. A frame's powers do not
            depend on its neighbours.
    """
    part_size = len(turns.places)
    for radix in turns.radices:
        if radix == 4:
            _pass_of_4(frames, part_size, turns.cos, turns.sin)
        else:
            _pass(frames, radix, part_size, turns.cos, turns.sin)
        part_size //= radix
    _split(frames, turns.places, turns.cos, turns.sin, powers)


# A complex value is two rows of frames, even samples (real) and odd ones (imaginary). ``cos``
# and ``sin`` go round in n_fft steps, twice the complex values.


@numba.njit(cache=True, nogil=True)
def _pass(frames, radix, part_size, cos, sin):
    """Begin the transform of every part: leave the same for ``radix`` parts of each.

    Value i of each part to come is one of the transform of ``radix`` values, equally far apart,
    and turned by an angle that grows with i.
    """
    n_steps = part_size // radix
    outs = np.empty((radix, 2, LANES), np.float32)
    for part in range(0, len(frames) // 2, part_size):
        for i in range(n_steps):
            for k in range(radix):
                re, im = splat(np.float32(0)), splat(np.float32(0))
                for j in range(radix):
                    turn = k * (i + j * n_steps) * (len(cos) // part_size) % len(cos)
                    c, s = splat(cos[turn]), splat(sin[turn])
                    x, y = _load(frames, part + i + j * n_steps)
                    re = fma_lanes(x, c, fma_lanes(y, s, re))
                    im = fma_lanes(y, c, fma_lanes(-x, s, im))
                _store(outs, k, re, im)
            for k in range(radix):
                _store(frames, part + i + k * n_steps, *_load(outs, k))


@numba.njit(cache=True, nogil=True)
def _pass_of_4(frames, part_size, cos, sin):
    """Do what ``_pass`` does with radix 4, where the transform itself needs no products."""
    n_steps = part_size // 4
    for i in range(n_steps):
        turn = i * (len(cos) // part_size)
        cos_1, cos_2, cos_3 = splat(cos[turn]), splat(cos[2 * turn]), splat(cos[3 * turn])
        sin_1, sin_2, sin_3 = splat(sin[turn]), splat(sin[2 * turn]), splat(sin[3 * turn])
        for a in range(i, len(frames) // 2, part_size):
            b, c, d = a + n_steps, a + 2 * n_steps, a + 3 * n_steps
            a_re, a_im = _load(frames, a)
            b_re, b_im = _load(frames, b)
            c_re, c_im = _load(frames, c)
            d_re, d_im = _load(frames, d)
            ac_re, ac_im, bd_re, bd_im = a_re + c_re, a_im + c_im, b_re + d_re, b_im + d_im
            _store(frames, a, ac_re + bd_re, ac_im + bd_im)
            _store(frames, c, *_turn(ac_re - bd_re, ac_im - bd_im, cos_2, sin_2))
            # The differences; the second one times -i.
            ac_re, ac_im, bd_re, bd_im = a_re - c_re, a_im - c_im, b_im - d_im, d_re - b_re
            _store(frames, b, *_turn(ac_re + bd_re, ac_im + bd_im, cos_1, sin_1))
            _store(frames, d, *_turn(ac_re - bd_re, ac_im - bd_im, cos_3, sin_3))


@numba.njit(cache=True, nogil=True)
def _split(frames, places, cos, sin, powers):
    """Make the real transform of the complex one, and its powers.

    Frequencies k and size - k of the complex transform give the transforms of the even and of
    the odd samples, and with them k and size - k of the real one.
    """
    size = len(places)
    half = splat(np.float32(0.5))
    for k in range(size // 2 + 1):
        a_re, a_im = _load(frames, places[k])
        b_re, b_im = _load(frames, places[(size - k) % size])
        even_re, even_im = half * (a_re + b_re), half * (a_im - b_im)
        c, s = half * splat(cos[k]), half * splat(sin[k])
        odd_re, odd_im = _turn(a_im + b_im, b_re - a_re, c, s)
        store_lanes(powers, k * LANES, _power(even_re + odd_re, even_im + odd_im))
        store_lanes(powers, (size - k) * LANES, _power(even_re - odd_re, even_im - odd_im))


@numba.njit(cache=True, nogil=True)
def _load(frames, i):
    """Return the real and the imaginary parts of complex value i."""
    return load_lanes(frames, 2 * i * LANES), load_lanes(frames, (2 * i + 1) * LANES)


@numba.njit(cache=True, nogil=True)
def _store(frames, i, re, im):
    store_lanes(frames, 2 * i * LANES, re)
    store_lanes(frames, (2 * i + 1) * LANES, im)


@numba.njit(cache=True, nogil=True)
def _turn(re, im, cos, sin):
    """Multiply by cos - i sin."""
    return fma_lanes(re, cos, im * sin), fma_lanes(im, cos, -(re * sin))


@numba.njit(cache=True, nogil=True)
def _power(re, im):
    return fma_lanes(re, re, im * im)
