"""Batches of samples of nearly the same length, bounded in padded frames: a pure function.

    an epoch of ``TrainingOrder``, rows of n_lanes samples     lane = position mod n_lanes
    consecutive rows of ``shuffle_bytes`` -> a pool            each lane sorted by length
    the i-th longest of every lane        -> row i of the pool
    consecutive rows of the pool          -> a step: samples x the longest of them <= bound
    the steps of a pool                   -> in random order, pool after pool

A lane keeps to its own streams, so lengths are grouped inside the window of shards that is
being read, and rank r of w, which takes the lanes l with l mod w = r, reads its own streams
only. Every rank has equally many samples in a step, so that the mean of the ranks' gradients is
the gradient of the mean. The global batches are the same for every world size that divides
``n_lanes``.

How many steps the bound needs differs a little from epoch to epoch. So that a step's epoch
stays one division, every epoch has the steps of epoch 0 and some to spare: four times the
standard deviation, as it follows from how the pools of epoch 0 differ. An epoch that needs
fewer has its largest steps halved; one that needed more would leave the last ones out.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from numba import njit
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..shards.index import Index
from .draws import derive_key, draws, permutation
from .order import (
    Order,
    OrderConfig,
    Rows,
    TrainingOrder,
    check_divides,
    differences,
    require_same,
)
from .weights import WeightConfig

_NOISE, _STEPS = 5, 6  # purposes of draws, beside those of ``epoch`` and ``weights``
_SPREAD = 20  # lengths within a twentieth of each other are in random order
_NOISE_BITS = 20
_SPARE_SHARE = 64  # at least one step in so many is spare
_SPARE_DEVIATIONS = 4


class LengthConfig(BaseModel):
    """What an order by length depends on, beside the data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, description="seed of every draw")
    global_batch_frames: int = Field(
        ge=1,
        description="bound of a step over all ranks, in frames: samples x the longest of them; "
        "640 s are 64,000 frames of 10 ms",
    )
    max_frames: int = Field(
        default=6_000, ge=1, description="longer samples count as so long: the loader cuts them"
    )
    n_lanes: int = Field(
        default=8, ge=1, description="most ranks; world sizes that divide it see the same batches"
    )
    n_streams: int = Field(
        default=64, ge=1, description="ranges read side by side; a multiple of `n_lanes`"
    )
    shuffle_bytes: int = Field(
        default=2**30,
        ge=1,
        description="bytes over which samples are shuffled and grouped by length; a run reads "
        "in up to twice as many at a time",
    )
    tail: Literal["drop", "wrap"] = Field(
        default="drop",
        description="samples that are left when all lanes have had the same: left out, or filled "
        "up from the epoch's start",
    )
    weights: WeightConfig | None = Field(
        default=None, description="class-balanced sampling; none = each sample once per epoch"
    )

    @model_validator(mode="after")
    def _gives_lanes_whole_streams(self) -> Self:
        if self.n_streams % self.n_lanes:
            raise ValueError(
                f"`n_streams` must be a multiple of `n_lanes` ({self.n_lanes}), "
                f"found {self.n_streams}"
            )
        return self


class LengthOrder:
    """An endless order for training on whole samples of any length.

    It serves what ``TrainingOrder`` serves, in batches of similar length, whose number of
    samples follows from their length: rows of ``n_lanes`` samples, one and more to a step.

    Args:
        index: of the data set.
        fingerprint: of the data set; kept in the state.
        config: seed, bound, lanes.
        rows: the rows that take part (default: all), ascending.

    Raises:
        ValueError: the bound does not hold one of the longest sample per lane, there are fewer
            samples than lanes, or none has a label where weights are wanted.
    """

    def __init__(
        self, index: Index, fingerprint: str, config: LengthConfig, rows: Rows | None = None
    ) -> None:
        self.config = config
        self._n_frames = np.minimum(index.n_frames, config.max_frames)
        _require_room(config, self._n_frames if rows is None else self._n_frames[rows])
        shared = config.model_dump(exclude={"global_batch_frames", "max_frames", "n_lanes"})
        base = OrderConfig(global_batch_size=config.n_lanes, **shared)
        self._base = TrainingOrder(index, fingerprint, base, rows)
        self._drawn = lru_cache(maxsize=1)(self._draw)
        self._plan = lru_cache(maxsize=2)(self._draw_fitted)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data set."""
        return self._base.fingerprint

    @property
    def n_samples(self) -> int:
        """Samples that take part."""
        return self._base.n_samples

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the same on every rank and in every epoch."""
        return self._n_steps

    @cached_property
    def _n_steps(self) -> int:
        plan = self._drawn(0)
        return min(len(plan) + plan.n_spare, self._base.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """Return the epoch a step (counted from the start of training) belongs to."""
        return step // self.steps_per_epoch

    def positions(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the positions, in the step's epoch, of this rank's share of a batch.

        Returns:
            int64, shape (n,), n x ``world_size`` samples in the step.

        Raises:
            ValueError: ``world_size`` does not divide ``n_lanes``.
        """
        check_divides(rank, world_size, {"n_lanes": self.config.n_lanes})
        epoch, place = divmod(step, self.steps_per_epoch)
        plan = self._plan(epoch)
        lanes = plan.positions[plan.starts[place] : plan.ends[place], rank::world_size]
        return lanes.reshape(-1).astype(np.int64)

    def rows(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the rows of the index in this rank's share of a batch, int64, shape (n,)."""
        positions = self.positions(step, rank=rank, world_size=world_size)
        return self._base_rows(self.epoch_of(step), positions)

    def sources(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the data set of each row: 0, there is one."""
        return np.zeros_like(self.positions(step, rank=rank, world_size=world_size))

    def state(self, step: int) -> dict[str, Any]:
        """Describe a place in the order; goes into checkpoints."""
        return {"position": step, **self.identity()}

    def identity(self) -> dict[str, Any]:
        """Return what has to be the same for a run to go on, as plain data."""
        base = self._base.identity()
        del base["global_batch_size"]
        return {**base, **self.config.model_dump()}

    def resume(self, state: Mapping[str, Any]) -> int:
        """Return the step at which a saved state goes on.

        Raises:
            ValueError: the data set or a setting changed; both values are shown.
        """
        require_same(differences(state, self.identity()))
        return int(state["position"])

    def _base_rows(self, epoch: int, positions: Rows) -> Rows:
        return self._base.rows_at(epoch * self._base.places_per_epoch + positions)

    def _draw_fitted(self, epoch: int) -> "_Plan":
        return self._drawn(epoch).fitted(self.steps_per_epoch)

    def _draw(self, epoch: int) -> "_Plan":
        """Group an epoch by length, with as many steps as the bound needs."""
        config, n_lanes = self.config, self.config.n_lanes
        n_rows, is_whole = self._base.steps_per_epoch, self._base.is_whole
        in_pool = config.shuffle_bytes * self.n_samples // max(1, self._base.n_bytes) // n_lanes
        n_pools = 1 if is_whole else -(-n_rows // max(1, in_pool))
        borders = np.linspace(0, n_rows, n_pools + 1).astype(np.int64)
        n_columns = 1 if is_whole else n_lanes  # sorted each by itself
        key = derive_key(config.seed, epoch, _NOISE)
        grouped = np.empty((n_rows, n_lanes), np.uint32)
        starts, ends, in_pools = [], [], []
        for pool, (first, last) in enumerate(itertools.pairwise(borders.tolist())):
            positions = np.arange(first * n_lanes, last * n_lanes)
            n_frames = self._n_frames[self._base_rows(epoch, positions)].astype(np.int64)
            noisy = _add_noise(n_frames, draws(key, positions)).reshape(-1, n_columns).T
            by_length = np.argsort(-noisy, axis=1, kind="stable")  # within each column
            chosen = (by_length * n_columns + np.arange(n_columns)[:, None]).T.reshape(-1, n_lanes)
            grouped[first:last] = positions[chosen]
            cuts = _cut(n_frames[chosen].max(axis=1), config.global_batch_frames // n_lanes)
            turn = permutation(derive_key(config.seed, epoch, _STEPS, pool), len(cuts) - 1)
            starts.append(first + cuts[turn])
            ends.append(first + cuts[turn + 1])
            in_pools.append(len(turn))
        return _Plan(grouped, np.concatenate(starts), np.concatenate(ends), _spare(in_pools))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The steps of one epoch.

    - positions: uint32 (n_rows, n_lanes), grouped by length, pool after pool
    - starts, ends: int64 (n_steps,), the rows of each step
    - n_spare: steps that other epochs may need beyond these
    """

    positions: npt.NDArray[np.uint32]
    starts: Rows
    ends: Rows
    n_spare: int

    def __len__(self) -> int:
        return len(self.starts)

    def fitted(self, n_steps: int) -> Self:
        """Halve the largest steps, or leave the last ones out, until there are ``n_steps``."""
        starts, ends = self.starts[:n_steps], self.ends[:n_steps]
        while len(starts) < n_steps:
            n_rows = ends - starts
            largest = np.argsort(-n_rows, kind="stable")[: n_steps - len(starts)]
            largest = np.sort(largest[n_rows[largest] > 1])
            middles = (starts[largest] + ends[largest]) // 2
            starts = np.insert(starts, largest + 1, middles)
            ends = np.insert(ends, largest, middles)
        return replace(self, starts=starts, ends=ends)


def padded_share(
    order: Order,
    n_frames: npt.NDArray[np.integer],
    *,
    epoch: int = 0,
    world_size: int = 1,
    max_frames: int = 6_000,
) -> float:
    """Return the share of an epoch's frames that are padding: what grouping by length saves.

    Args:
        order: any; each rank's batch is padded to the longest of its samples.
        n_frames: of every row of the index.
        epoch: of the order.
        world_size: number of ranks.
        max_frames: longer samples are cut there.

    Returns:
        a number in [0, 1).
    """
    n_frames = np.minimum(n_frames, max_frames)
    used, padded = 0, 0
    first = epoch * order.steps_per_epoch
    for step in range(first, first + order.steps_per_epoch):
        for rank in range(world_size):
            lengths = n_frames[order.rows(step, rank=rank, world_size=world_size)]
            used += int(lengths.sum())
            padded += int(lengths.max()) * len(lengths)
    return 1 - used / padded


def _require_room(config: LengthConfig, n_frames: npt.NDArray[np.integer]) -> None:
    if len(n_frames) < config.n_lanes and (config.tail == "drop" or not len(n_frames)):
        raise ValueError(
            f"`n_lanes` must be at most the number of samples ({len(n_frames)}), found "
            f'{config.n_lanes}; lower it, or set tail = "wrap"'
        )
    longest = int(n_frames.max())
    if config.global_batch_frames < config.n_lanes * longest:
        raise ValueError(
            f"`global_batch_frames` must hold a sample per lane, {config.n_lanes} x {longest} = "
            f"{config.n_lanes * longest}, found {config.global_batch_frames}; raise it, or lower "
            "`max_frames` or `n_lanes`"
        )


def _add_noise(n_frames: Rows, bits: npt.NDArray[np.uint64]) -> Rows:
    """Make lengths up to a twentieth longer, in whole numbers, which every machine gets alike."""
    noise = (bits >> np.uint64(64 - _NOISE_BITS)).astype(np.int64)
    return n_frames * ((_SPREAD << _NOISE_BITS) + noise)


def _spare(in_pools: list[int]) -> int:
    """Return how many steps more than these another epoch may need.

    >>> _spare([100, 100]), _spare([90, 110])
    (4, 57)
    """
    deviation = np.std(in_pools) * math.sqrt(len(in_pools))
    return max(-(-sum(in_pools) // _SPARE_SHARE), math.ceil(_SPARE_DEVIATIONS * deviation))


@njit(cache=True, nogil=True)
def _cut(longest, bound):
    """Return where steps begin and the last ends: rows x the longest of them <= bound."""
    cuts = np.empty(longest.size + 1, np.int64)
    cuts[0] = 0
    n_cuts, most = 1, 0
    for i in range(longest.size):
        most = max(most, longest[i])
        if (i + 1 - cuts[n_cuts - 1]) * most > bound:
            cuts[n_cuts] = i
            n_cuts += 1
            most = longest[i]
    cuts[n_cuts] = longest.size
    return cuts[: n_cuts + 1]
