"""Span masks and distractors for a whole batch, by Numba.

Every sample of a batch has the same number of masked steps, so that tensors keep one
shape: spans are drawn until that many steps are masked, and the last span is cut to fit.
The number is what fairseq's recipe masks on average.

Source:
    Baevski et al. 2020, wav2vec 2.0, sections 3.1 and 3.2 (arXiv:2006.11477);
    fairseq's ``compute_mask_indices`` (static length, overlap allowed).
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import intrinsic
from pydantic import BaseModel, ConfigDict, Field

from .draws import below, draw

_LOW_32, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_U32 = np.uint32
_GOLDEN = _U32(0x9E3779B9)
_MIX_1, _MIX_2 = _U32(0x7FEB352D), _U32(0x846CA68B)


class MaskConfig(BaseModel):
    """How latent steps are masked and distractors drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="share of steps the spans would cover if they never overlapped "
        "(fairseq's `mask_prob`); with spans of 3, 0.3 masks about 27 %",
    )
    mask_length: int = Field(default=3, ge=1, description="steps per span")
    n_distractors: int = Field(default=100, ge=1, description="distractors per masked step")


def count_masked(n_steps: int, config: MaskConfig) -> int:
    """Return how many steps of a clip are masked.

    fairseq draws ``floor(share * n_steps / mask_length + U(0, 1))`` spans, at least two, with
    distinct starts. This is the expected size of their union, rounded, and at least two,
    since a distractor has to be another masked step.

    Args:
        n_steps: latent steps of the shortest clip of the batch.
        config: share and length.

    Returns:
        a number in 2..n_steps.

    Raises:
        ValueError: ``n_steps`` is under 2: no distractor exists.

    >>> count_masked(125, MaskConfig()), count_masked(250, MaskConfig())
    (34, 68)
    """
    if n_steps < 2:
        raise ValueError(
            f"a masked clip needs at least 2 latent steps, found {n_steps}; leave shorter clips "
            "out (`min_frames` of a stream, `rows` of an order)"
        )
    return _count_masked(n_steps, config.share, config.mask_length)


@lru_cache
def _count_masked(n_steps: int, share: float, mask_length: int) -> int:
    length = min(mask_length, n_steps)
    n_starts = n_steps - length + 1
    n_spans = min(max(2.0, share * n_steps / mask_length), n_starts)
    steps = np.arange(n_steps)
    covering = np.minimum(steps, n_starts - 1) - np.maximum(steps - length + 1, 0) + 1
    missed = np.exp(_log_choose(n_starts - covering, n_spans) - _log_choose(n_starts, n_spans))
    return int(min(max(2, round(float(np.sum(1 - missed)))), n_steps))


def draw_masks(
    n_steps: npt.NDArray[np.int32],
    *,
    width: int,
    n_masked: int,
    mask_length: int,
    keys: npt.NDArray[np.uint64],
    out: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.bool_]:
    """Draw the masked spans of every sample of a batch.

    Args:
        n_steps: latent steps of each sample, int32, shape (B,).
        width: steps of the batch, padding included.
        n_masked: masked steps of every sample, at most ``min(n_steps)``.
        mask_length: steps per span.
        keys: one key of draws per sample, uint64, shape (B,).
        out: where to put the mask, bool, shape (B, width); none = in new memory.

    Returns:
        mask: bool, shape (B, width); True where masked, never on padding, ``n_masked`` per row.

    Raises:
        ValueError: a sample has fewer steps than ``n_masked``, or more than ``width``.
    """
    if len(n_steps) and not n_masked <= n_steps.min() <= n_steps.max() <= width:
        raise ValueError(
            f"`n_steps` must be in n_masked..width ({n_masked}..{width}), "
            f"found {n_steps.min()}..{n_steps.max()}"
        )
    mask = np.empty((len(n_steps), width), np.bool_) if out is None else out
    mask[:] = False
    _draw_masks(n_steps, n_masked, mask_length, keys, mask)
    return mask


def draw_distractors(
    n_masked: int,
    n_distractors: int,
    keys: npt.NDArray[np.uint64],
    out: npt.NDArray[np.int32] | None = None,
) -> npt.NDArray[np.int32]:
    """Draw, for each masked step, other masked steps of the same sample.

    Args:
        n_masked: masked steps of every sample, at least 2.
        n_distractors: draws per masked step, with replacement.
        keys: one key of draws per sample, uint64, shape (B,).
        out: where to put them, int32, shape (B, n_masked, n_distractors); none = in new memory.

    Returns:
        distractors: int32, shape (B, n_masked, n_distractors); places 0..n_masked-1 among the
        sample's masked steps in order of time, never the step's own.

    Raises:
        ValueError: ``n_masked`` is under 2.
    """
    if n_masked < 2:
        raise ValueError(f"`n_masked` must be at least 2, found {n_masked}")
    shape = (len(keys), n_masked, n_distractors)
    distractors = np.empty(shape, np.int32) if out is None else out
    _draw_distractors(keys, distractors)
    return distractors


def _log_choose(n, k):
    """Return log of n over k, for real k; -inf where k > n."""
    gamma = np.vectorize(math.lgamma, otypes=[float])
    n = np.asarray(n, float)
    possible = n - k > -1
    rest = np.where(possible, n - k, 0)
    return np.where(possible, gamma(n + 1) - gamma(rest + 1) - math.lgamma(k + 1), -np.inf)


@njit(cache=True, nogil=True)
def _draw_masks(n_steps, n_masked, mask_length, keys, mask):
    """Take starts from a random permutation (Fisher-Yates, as far as needed)."""
    starts = np.empty(mask.shape[1], np.int64)
    for b in range(mask.shape[0]):
        length = min(mask_length, n_steps[b])
        n_starts = n_steps[b] - length + 1
        for i in range(n_starts):
            starts[i] = i
        n_left, i = n_masked, 0
        while n_left > 0:
            j = i + below(draw(keys[b], i), n_starts - i)
            starts[i], starts[j] = starts[j], starts[i]
            for step in range(starts[i], starts[i] + length):
                if n_left > 0 and not mask[b, step]:
                    mask[b, step] = True
                    n_left -= 1
            i += 1


@intrinsic
def _times(typing_context, a, b):
    """Multiply modulo 2**32; Numba's ``*`` widens to 64 bits, which halves what a vector holds."""

    def generate(context, builder, signature, arguments):
        return builder.mul(*arguments)

    return types.uint32(types.uint32, types.uint32), generate


@intrinsic
def _right(typing_context, bits, n):
    """Shift 32 bits right by ``n`` < 32, without widening."""

    def generate(context, builder, signature, arguments):
        return builder.lshr(*arguments)

    return types.uint32(types.uint32, types.uint32), generate


@njit(cache=True, nogil=True)
def _draw_distractors(keys, distractors):
    """Draw among the n_masked - 1 others and skip the own place.

    There are many draws and each is small: 32 bits do, of a counter mixed with both halves of
    the sample's key, in a loop that becomes vector instructions. The top bits choose, as many
    as leave room for their product with the number of others; the bias is under
    n_masked**2 / 2**32. Counters come from a table: a loop that counts does so in 64 bits.

    Source:
        The mixer is C. Wellons' lowbias32 (2018, Prospecting for hash functions).
    """
    n_samples, n_masked, n_distractors = distractors.shape
    n_bits = 0
    while (n_masked - 1) >> n_bits:
        n_bits += 1
    n_others, drop, shift = _U32(n_masked - 1), _U32(n_bits), _U32(32 - n_bits)
    counters = np.empty(n_distractors, np.uint32)
    for n in range(n_distractors):
        counters[n] = _times(_U32(n), _GOLDEN)  # pyright: ignore[reportCallIssue]
    for b in range(n_samples):
        low, high = _U32(keys[b] & _LOW_32), _U32(keys[b] >> _HALF)
        for m in range(n_masked):
            row = distractors[b, m]
            first = _U32(_times(_U32(m * n_distractors), _GOLDEN) + low)  # pyright: ignore[reportCallIssue]
            for n in range(n_distractors):
                bits = _U32(counters[n] + first)
                bits = _times(_U32(bits ^ _right(bits, _U32(16))), _MIX_1)
                bits = _times(_U32(_U32(bits ^ _right(bits, _U32(15))) + high), _MIX_2)
                bits = _U32(bits ^ _right(bits, _U32(16)))
                other = np.int32(_right(_times(_right(bits, drop), n_others), shift))
                row[n] = other + np.int32(other >= np.int32(m))
