"""Which sample stands at which place of which batch: a pure function.

The order of an epoch depends on the data set, the seed, the epoch, ``n_streams``, the
shuffle budget and the weights, and on nothing else. No worker owns state, so a run resumes
at any step in constant time, also with another number of ranks.

    shards, permuted, end to end      cut into n_streams ranges of equal counts
    position p of the epoch        -> stream p mod n_streams
    step t of the epoch            -> positions [t G, (t + 1) G), G = global batch size
    rank r of w                    -> its positions p with p mod w = r

Inside a stream, samples are shuffled over windows bounded in bytes, so a rank reads a few
shards at a time. A data set that fits into the budget is shuffled as a whole.

With weights, a sample stands as often in an epoch as its count of this epoch says (see
``weights``). The counts of an epoch add up to about the number of samples; its steps are
those of the unweighted epoch, so that a step's epoch and offset stay one division. What is
over at the end is left out; what lacks is filled from the epoch's start.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from ..shards.index import Index
from .epoch import Epoch, Selection
from .weights import WeightConfig, expected_counts, sample_weights, to_fixed

Rows = npt.NDArray[np.int64]

_LARGE = 2**18  # samples; of larger sets two epochs are held at a time


class Order(Protocol):
    """What a loader asks of an order.

    ``step`` counts from the start of training, ``rank`` is 0..world_size-1. Arrays are int64
    of shape (global_batch_size / world_size,), one entry for each sample of a rank's batch.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the same on every rank."""
        ...

    def epoch_of(self, step: int) -> int:
        """Return the epoch of a step."""
        ...

    def positions(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the positions in the epoch; (epoch, position) names a sample served."""
        ...

    def rows(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the rows of the index, -1 where the batch is filled up."""
        ...

    def sources(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the number of the data set each row belongs to; 0 where there is one."""
        ...


class OrderConfig(BaseModel):
    """What an order depends on, beside the data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, description="seed of every draw")
    global_batch_size: int = Field(ge=1, description="samples per step over all ranks")
    n_streams: int = Field(default=64, ge=1, description="ranges read side by side")
    shuffle_bytes: int = Field(
        default=2**30,
        ge=1,
        description="bytes the shuffle may hold over all streams; with weights, a thirty-second "
        "part of each stream, but no more than a shard, where that is more",
    )
    tail: Literal["drop", "wrap"] = Field(
        default="drop",
        description="the last, short batch of an epoch: left out, or filled from the epoch's start",
    )
    weights: WeightConfig | None = Field(
        default=None, description="class-balanced sampling; none = each sample once per epoch"
    )


class TrainingOrder:
    """An endless order for training: epoch after epoch, equal steps on every rank.

    Args:
        index: of the data set.
        fingerprint: of the data set; kept in the state.
        config: seed, batch size, streams.
        rows: the rows that take part (default: all), ascending.

    Raises:
        ValueError: there are fewer samples than one batch needs, or none has a label where
            weights are wanted.
    """

    def __init__(
        self, index: Index, fingerprint: str, config: OrderConfig, rows: Rows | None = None
    ) -> None:
        self.config = config
        self.fingerprint = fingerprint
        self.n_samples = len(index) if rows is None else len(rows)
        if not self.n_samples:
            raise ValueError("an order needs at least one sample, found none")
        if self.n_samples < config.global_batch_size and config.tail == "drop":
            raise ValueError(
                f"`global_batch_size` must be at most the number of samples ({self.n_samples}), "
                f'found {config.global_batch_size}; lower it, or set tail = "wrap" (of a recipe: '
                "`data.batch_size` and `data.tail`)"
            )
        self._selection = Selection.of(index, rows, _fixed_counts(index, config.weights, rows))
        n_held = 2 if self.n_samples >= _LARGE else 8  # lanes of a mixture may be epochs apart
        self._epoch = lru_cache(maxsize=n_held)(self._draw_epoch)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each data set in every batch: there is one."""
        return (1.0,)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the same on every rank."""
        whole, rest = divmod(self.n_samples, self.config.global_batch_size)
        return whole + (self.config.tail == "wrap" and rest > 0)

    @property
    def places_per_epoch(self) -> int:
        """Samples served in one epoch over all ranks."""
        return self.steps_per_epoch * self.config.global_batch_size

    @property
    def n_bytes(self) -> int:
        """Bytes of the samples that take part."""
        return self._selection.n_bytes

    @property
    def is_whole(self) -> bool:
        """Whether the samples fit into ``shuffle_bytes`` and are shuffled as a whole."""
        return self.n_bytes <= self.config.shuffle_bytes

    def epoch_of(self, step: int) -> int:
        """Return the epoch a step (counted from the start of training) belongs to."""
        return step // self.steps_per_epoch

    def positions(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the positions, in the step's epoch, of this rank's share of a batch.

        Returns:
            int64, shape (global_batch_size / world_size,).

        Raises:
            ValueError: ``world_size`` does not divide ``n_streams`` and the batch size.
        """
        check_world(rank, world_size, self.config)
        return _places(step % self.steps_per_epoch, self.config, rank, world_size)

    def rows(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the rows of the index in this rank's share of a batch.

        Args:
            step: counted from the start of training.
            rank: of this process, 0..world_size-1.
            world_size: number of processes; divides ``n_streams`` and the batch size.

        Returns:
            int64, shape (global_batch_size / world_size,).
        """
        positions = self.positions(step, rank=rank, world_size=world_size)
        return self._epoch(self.epoch_of(step)).rows(positions)

    def sources(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the data set of each row: 0, there is one."""
        return np.zeros_like(self.positions(step, rank=rank, world_size=world_size))

    def rows_at(self, places: Rows) -> Rows:
        """Return the row at each place, counted in samples from the start of training.

        A mixture walks through its data sets by this; a place belongs to the epoch
        ``place // places_per_epoch``.
        """
        epochs, offsets = np.divmod(places, self.places_per_epoch)
        rows = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = self._epoch(epoch).rows(offsets[here])
        return rows

    def state(self, step: int) -> dict[str, Any]:
        """Describe a place in the order; goes into checkpoints."""
        return {"position": step * self.config.global_batch_size, **self.identity()}

    def identity(self) -> dict[str, Any]:
        """Return what has to be the same for a run to go on, as plain data."""
        rows, fixed = self._selection.rows, self._selection.fixed
        is_whole = len(rows) == len(self._selection.index)
        return {
            "fingerprint": self.fingerprint,
            "n_samples": self.n_samples,
            "rows": None if is_whole else _digest(rows),
            "expected_counts": None if fixed is None else _digest(fixed),
            **self.config.model_dump(),
        }

    def resume(self, state: Mapping[str, Any]) -> int:
        """Return the step at which a saved state goes on.

        Raises:
            ValueError: the data set or a setting changed; both values are shown.
        """
        require_same(differences(state, self.identity()))
        return int(state["position"]) // self.config.global_batch_size

    def _draw_epoch(self, epoch: int) -> Epoch:
        config = self.config
        return Epoch(
            self._selection,
            seed=config.seed,
            epoch=epoch,
            n_streams=config.n_streams,
            shuffle_bytes=config.shuffle_bytes,
        )


class EvaluationOrder:
    """Each of some rows exactly once, as they come; the last batch is filled with row -1.

    Rank r of w serves the r-th of w ranges of rows, so it reads its own shards only.

    Args:
        rows: int64 rows of the index, such as ``np.arange(len(index))`` for all of them.
        global_batch_size: samples per step over all ranks; the world size divides it.
    """

    def __init__(self, rows: Rows, global_batch_size: int) -> None:
        self.n_samples = len(rows)
        self._rows = np.append(rows, -1)  # the last is what a place past the end gets
        self._global_batch_size = global_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps that serve every sample once, the same on every rank."""
        return -(-self.n_samples // self._global_batch_size)

    def epoch_of(self, step: int) -> int:
        """Return 0: an evaluation is one epoch."""
        return 0

    def positions(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return this rank's positions of a batch; those past the end are padding.

        Raises:
            ValueError: ``world_size`` does not divide the batch size.
        """
        check_divides(rank, world_size, {"global_batch_size": self._global_batch_size})
        batch_size = self._global_batch_size // world_size
        first = (rank * self.steps_per_epoch + step) * batch_size
        return np.arange(first, first + batch_size)

    def rows(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return this rank's rows of a batch, -1 where the batch is filled up."""
        positions = self.positions(step, rank=rank, world_size=world_size)
        return self._rows[np.minimum(positions, self.n_samples)]

    def sources(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the data set of each row: 0, there is one."""
        return np.zeros_like(self.positions(step, rank=rank, world_size=world_size))


def check_world(rank: int, world_size: int, config: OrderConfig) -> None:
    """Refuse a world size that does not give every rank whole streams and equal batches.

    Raises:
        ValueError: it does not divide ``n_streams`` and the batch size, or no such rank.
    """
    divided = {"n_streams": config.n_streams, "global_batch_size": config.global_batch_size}
    check_divides(rank, world_size, divided)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what a saved state says otherwise, with both values."""
    return [
        f"{name}: saved {saved.get(name)!r}, now {value!r}"
        for name, value in now.items()
        if saved.get(name) != value
    ]


def require_same(changed: list[str]) -> None:
    """Refuse to resume where something changed.

    Raises:
        ValueError: it did.
    """
    if changed:
        raise ValueError(
            "the order cannot be resumed, it is not the same any more ("
            + "; ".join(changed)
            + "); use the data and settings of the run, or start a new run"
        )


def _places(step: int, config: OrderConfig, rank: int, world_size: int) -> Rows:
    first = step * config.global_batch_size
    return np.arange(first + rank, first + config.global_batch_size, world_size)


def check_divides(rank: int, world_size: int, divided: Mapping[str, int]) -> None:
    """Refuse a world size that does not divide every number, given with its name.

    Raises:
        ValueError: it does not, or no such rank.
    """
    if world_size < 1 or any(n % world_size for n in divided.values()):
        names = " and ".join(f"`{name}` ({n})" for name, n in divided.items())
        largest = math.gcd(*divided.values())
        raise ValueError(
            f"`world_size` must divide {names}, found {world_size}; "
            + (f"take a divisor of {largest}" if largest > 1 else "give a multiple of it")
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must be in 0..world_size-1 (0..{world_size - 1}), found {rank}")


def _fixed_counts(
    index: Index, config: WeightConfig | None, rows: Rows | None
) -> npt.NDArray[np.uint64] | None:
    if config is None:
        return None
    weights = sample_weights(index, config, rows)
    return to_fixed(expected_counts(weights, config.max_repeats))


def _digest(values: npt.NDArray[Any]) -> str:
    return xxhash.xxh3_64(np.ascontiguousarray(values).data).hexdigest()
