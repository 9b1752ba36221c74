"""Class-balanced sampling: from labels to how often a sample stands in an epoch.

    labels -> weight of each sample -> expected count, mean 1 -> whole count of each epoch

The weight of a sample is the sum over its labels of 1000 / (count of the class + 0.01), which
is what AST and PSLA hand to torch's ``WeightedRandomSampler``, or of 1000 / sqrt(the same).
That sampler needs every sample at hand. Here a sample's expected count is rounded up or down
by a draw of its own, a function of (seed, epoch, row), so that an epoch still goes through
the shards one after the other.

Source:
    Gong, Chung, Glass 2021, PSLA, IEEE/ACM TASLP 29, section III-C; and AST, Interspeech
    2021: ``src/gen_weight_file.py`` of both repositories.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from numba import njit
from pydantic import BaseModel, ConfigDict, Field

from ..shards.index import Index
from ..shards.index_check import require_possible_labels
from .draws import derive_key, draw

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_SCALE = 1000.0  # AST's; it cancels in the expected counts
_ONE = 2.0**32  # expected counts are multiples of 1 / _ONE
_UNBOUNDED = float(np.finfo(np.float64).max)  # 0 times it is 0, unlike infinity
_PHASE = 3  # purpose of a draw, beside those of the order
_SHIFT = np.uint64(32)
_LOW_32 = np.uint64(0xFFFFFFFF)


class WeightConfig(BaseModel):
    """How samples are weighted by their labels.

    As many places of an epoch lie over more or fewer stored samples, by chance: of two million
    clips, 1,024 ranks fetch 1.03 times the bytes they serve on average, and 1.155 times at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    formula: Literal["inverse", "inverse_sqrt"] = Field(
        default="inverse",
        description="weight of a class: one over its count, or over the square root of it",
    )
    smoothing: float = Field(
        default=0.01, ge=0, description="added to each class's count; 0.01 in AST and PSLA"
    )
    max_repeats: float | None = Field(
        default=None,
        ge=1,
        description="upper bound of a sample's expected count per epoch, so that the one clip "
        "of a rare class cannot dominate; none = as AST, without a bound",
    )


def class_counts(index: Index, rows: Rows | None = None, *, n_classes: int = 0) -> Rows:
    """Count the samples of each class.

    Args:
        index: of the data set.
        rows: the rows that take part (default: all).
        n_classes: least length of the result.

    Returns:
        int64, shape (n,): of a data set that was opened, a count for each of its labels; else n
        is the largest label id + 1. Longer if ``n_classes`` is.

    Raises:
        DatasetError: the labels of the index are damaged, one is not of the data set for example.
    """
    counted = np.zeros(_n_classes(index, n_classes), np.int64)
    _count_labels(index.label_indptr, index.label_ids, _chosen(index, rows), counted)
    return counted


def sample_weights(index: Index, config: WeightConfig, rows: Rows | None = None) -> Floats:
    """Weigh each sample by its labels; with the defaults, the numbers of AST's weight file.

    A class counts the rows that take part. A sample without labels has the weight 0.

    Returns:
        float64, shape (n_rows,).

    Raises:
        ValueError: no sample has a label.
        DatasetError: the labels of the index are damaged.
    """
    counts = class_counts(index, rows)
    if not counts.any():
        raise ValueError(
            "class-balanced weights need labels, found none in "
            f"{len(_chosen(index, rows))} samples; take a labelled data set, or no weights"
        )
    of_class = counts + config.smoothing
    if config.formula == "inverse_sqrt":
        of_class = np.sqrt(of_class)
    of_class = np.divide(_SCALE, of_class, out=np.zeros_like(of_class), where=counts > 0)
    return _sum_labels(index.label_indptr, index.label_ids, _chosen(index, rows), of_class)


def expected_counts(weights: Floats, max_repeats: float | None = None) -> Floats:
    """Scale weights to how often each sample stands in an epoch on average; their mean is 1.

    Where ``max_repeats`` cuts a sample off, the others take its places in proportion.

    Args:
        weights: at least 0, not all 0, shape (n_rows,).
        max_repeats: upper bound, at least 1.

    Returns:
        float64, shape (n_rows,), multiples of 2**-32.

    Raises:
        ValueError: too few samples have a weight to fill an epoch under the bound.

    >>> expected_counts(np.array([8.0, 1.0, 1.0, 0.0]))
    array([3.2, 0.4, 0.4, 0. ])
    >>> expected_counts(np.array([8.0, 1.0, 1.0, 0.0]), max_repeats=2)
    array([2., 1., 1., 0.])
    """
    bound = _UNBOUNDED if max_repeats is None else float(max_repeats)
    n_weighted = int(np.count_nonzero(weights))
    if n_weighted * bound < len(weights) or not n_weighted:
        raise ValueError(
            f"`max_repeats` must be at least {len(weights) / max(1, n_weighted):g}: "
            f"{n_weighted} of {len(weights)} samples have a weight above 0 and fill the epoch, "
            f"found {max_repeats}"
        )
    counts = np.minimum(weights * _capped_scale(weights, bound), bound)
    counts *= _ONE
    return np.rint(counts, out=counts) / _ONE


def epoch_counts(
    expected: Floats, rows: Rows | None = None, *, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Round expected counts up or down for one epoch.

    The expectation is exact. A sample keeps its remainder from epoch to epoch: 2.3 gives 2
    or 3, and 23 in any ten epochs; 0.2 stands in every fifth epoch.

    Args:
        expected: from ``expected_counts``, shape (n_rows,).
        rows: row of each in the index (default: 0..n_rows-1).
        seed, epoch: of the order.

    Returns:
        int64, shape (n_rows,).
    """
    if rows is None:
        rows = np.arange(len(expected))
    key, fixed = phase_key(seed), to_fixed(expected)
    return _count_all(fixed, rows, key, np.uint64(epoch))


def phase_key(seed: int) -> np.uint64:
    """Return the key of the draws that say where each sample's rounding starts."""
    return derive_key(seed, 0, _PHASE)


def to_fixed(expected: Floats) -> npt.NDArray[np.uint64]:
    """Return expected counts as whole multiples of 2**-32, shape (n_rows,)."""
    return (expected * _ONE).astype(np.uint64)


@njit("int64(uint64, uint64, uint64, uint64)", cache=True, nogil=True)
def count_of(fixed, row, key, epoch):
    """Return how often a row stands in an epoch.

    A sample has a phase in [0, 1). Up to the end of epoch e it has stood
    floor(phase + (e + 1) * expected) times; this is the difference of two such numbers, in
    whole multiples of 2**-32, so that every machine gets the same.
    """
    phase = draw(key, row) >> _SHIFT
    return np.int64((((phase + epoch * fixed) & _LOW_32) + fixed) >> _SHIFT)


def _chosen(index: Index, rows: Rows | None) -> Rows:
    return np.arange(len(index)) if rows is None else rows


def _n_classes(index: Index, least: int) -> int:
    require_possible_labels(index)  # the kernels follow them without a look at bounds
    if index.n_classes is not None:
        return max(least, index.n_classes)
    return max(least, int(index.label_ids.max(initial=-1)) + 1)


# Sums run in one fixed order, in kernels: NumPy's depend on the vector unit of the machine,
# and every rank has to come to the same counts.


@njit(cache=True, nogil=True)
def _capped_scale(weights, bound):
    """Return c such that min(c * weight, bound) has the mean 1."""
    scale, n_before = 0.0, -1
    while True:
        rest, n_capped = 0.0, 0
        for weight in weights:
            if scale * weight >= bound:
                n_capped += 1
            else:
                rest += weight
        if n_capped == n_before or rest == 0.0:
            return scale
        scale, n_before = (weights.size - n_capped * bound) / rest, n_capped


@njit(cache=True, nogil=True)
def _count_labels(indptr, ids, rows, counted):
    for row in rows:
        for place in range(indptr[row], indptr[row + 1]):
            counted[ids[place]] += 1


@njit(cache=True, nogil=True)
def _sum_labels(indptr, ids, rows, of_class):
    out = np.zeros(rows.size)
    for i in range(rows.size):
        for place in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[i] += of_class[ids[place]]
    return out


@njit(cache=True, nogil=True)
def _count_all(fixed, rows, key, epoch):
    out = np.empty(fixed.size, np.int64)
    for i in range(fixed.size):
        out[i] = count_of(fixed[i], np.uint64(rows[i]), key, epoch)
    return out
