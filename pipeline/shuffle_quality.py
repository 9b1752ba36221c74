"""How well an order shuffles, as numbers: what is bought with a larger shuffle budget.

rank correlation    between stored and served order: 1 = not shuffled, 0 = nothing left
shards per batch    how many shards the samples of a batch come from, beside what a batch
                    drawn from the whole epoch would have
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from .order import Order

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ShuffleQuality:
    """What ``measure_shuffle`` found.

    - rank_correlation: Spearman's, in [-1, 1]; 0 where it is not defined
    - shards_per_batch: mean number of distinct shards in a batch
    - ideal_shards_per_batch: the same for batches drawn at random from all that was served
    """

    rank_correlation: float
    shards_per_batch: float
    ideal_shards_per_batch: float


def measure_shuffle(
    order: Order,
    shards: Sequence[npt.NDArray[np.integer]],
    *,
    first_step: int = 0,
    n_steps: int | None = None,
) -> ShuffleQuality:
    """Measure the shuffle of an order over some steps.

    Args:
        order: what is served.
        shards: the index's ``shard`` column of each data set of the order.
        first_step: where to start, counted from the start of training.
        n_steps: how many steps (default: one epoch).

    Raises:
        ValueError: there is nothing to measure.
    """
    n_steps = order.steps_per_epoch if n_steps is None else n_steps
    batches = list(_batches(order, shards, range(first_step, first_step + n_steps)))
    if not batches:
        raise ValueError(f"`n_steps` must be at least 1 to measure a shuffle, found {n_steps}")
    shard_of = np.concatenate(_numbered(shards))
    served = np.concatenate(batches)
    sizes = {len(batch) for batch in batches}
    ideal = {size: _ideal_shards(np.bincount(shard_of[served]), size) for size in sizes}
    return ShuffleQuality(
        rank_correlation=rank_correlation(np.arange(len(served)), served),
        shards_per_batch=float(np.mean([len(np.unique(shard_of[batch])) for batch in batches])),
        ideal_shards_per_batch=float(np.mean([ideal[len(batch)] for batch in batches])),
    )


def rank_correlation(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> float:
    """Return Spearman's rank correlation; ties share their mean rank.

    Returns:
        in [-1, 1]; 0 for fewer than two values, or where all are equal.

    >>> rank_correlation(np.array([1, 2, 3]), np.array([10, 20, 40]))
    1.0
    """
    a, b = _ranks(first), _ranks(second)
    scale = np.sqrt(np.dot(a, a) * np.dot(b, b))
    return float(np.dot(a, b) / scale) if scale else 0.0


def _batches(
    order: Order, shards: Sequence[npt.NDArray[np.integer]], steps: range
) -> Iterator[Rows]:
    """Yield each batch as numbers of samples, counted on from data set to data set."""
    first = np.cumsum([0, *(len(shard) for shard in shards)])
    for step in steps:
        rows = order.rows(step)
        served = (rows + first[order.sources(step)])[rows >= 0]
        if len(served):
            yield served


def _numbered(shards: Sequence[npt.NDArray[np.integer]]) -> list[Rows]:
    """Count the shards on from data set to data set."""
    n_shards = [int(shard.max(initial=-1)) + 1 for shard in shards]
    return [shard + n for shard, n in zip(shards, np.cumsum([0, *n_shards[:-1]]), strict=True)]


def _ranks(values: npt.NDArray[np.integer]) -> Floats:
    """Return ranks less their mean, float64, shape as that of ``values``."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[place]
    return ranks - (len(values) - 1) / 2


def _ideal_shards(n_served: Rows, batch_size: int) -> float:
    """Return the expected distinct shards among samples drawn without replacement.

    A shard with s of n samples is missed with probability C(n - s, b) / C(n, b).
    """
    n, others = int(n_served.sum()), n_served.sum() - n_served
    can_miss = others >= batch_size
    others = others[can_miss].astype(np.float64)
    log_missed = (
        gammaln(others + 1) - gammaln(others - batch_size + 1)
        + gammaln(n - batch_size + 1) - gammaln(n + 1)
    )  # fmt: skip
    return float((~can_miss & (n_served > 0)).sum() + (1 - np.exp(log_missed)).sum())
