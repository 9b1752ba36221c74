"""Which sample stands at which place of which batch: a pure function.

The order of an epoch depends on the data set, the seed, the epoch, ``n_streams`` and the
shuffle budget, and on nothing else. No worker owns state, so a run resumes at any step in
constant time, also with another number of ranks.

    shards, permuted, end to end      cut into n_streams ranges of equal counts
    position p of the epoch        -> stream p mod n_streams
    step t of the epoch            -> positions [t G, (t + 1) G), G = global batch size
    rank r of w                    -> its positions p with p mod w = r

Inside a stream, samples are shuffled over windows bounded in bytes, so a rank reads a few
shards at a time. A data set that fits into the budget is shuffled as a whole.
"""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ..shards.index import Index
from .draws import derive_key, permutation

Rows = npt.NDArray[np.int64]

_SHARDS, _WHOLE, _WINDOW = range(3)  # purposes of draws


class OrderConfig(BaseModel):
    """What an order depends on, beside the data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, description="seed of every draw")
    global_batch_size: int = Field(ge=1, description="samples per step over all ranks")
    n_streams: int = Field(default=64, ge=1, description="ranges read side by side")
    shuffle_bytes: int = Field(
        default=2**30, ge=1, description="bytes the shuffle may hold over all streams"
    )
    tail: Literal["drop", "wrap"] = Field(
        default="drop",
        description="the last, short batch of an epoch: left out, or filled from the epoch's start",
    )


class TrainingOrder:
    """An endless order for training: epoch after epoch, equal steps on every rank.

    Args:
        index: of the data set.
        fingerprint: of the data set; kept in the state.
        config: seed, batch size, streams.
        rows: the rows that take part (default: all), ascending.

    Raises:
        ValueError: there are fewer samples than one batch needs.
    """

    def __init__(
        self, index: Index, fingerprint: str, config: OrderConfig, rows: Rows | None = None
    ) -> None:
        self.config = config
        self._fingerprint = fingerprint
        self._rows = np.arange(len(index)) if rows is None else rows
        self._shard = index.shard[self._rows]
        self._bytes = (index.logmel_size + index.json_size)[self._rows]
        self.n_samples = len(self._rows)
        if self.n_samples < config.global_batch_size and (
            config.tail == "drop" or not self.n_samples
        ):
            raise ValueError(
                f"`global_batch_size` must be at most the number of samples ({self.n_samples}), "
                f'found {config.global_batch_size}; lower it, or set tail = "wrap"'
            )
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the same on every rank."""
        whole, rest = divmod(self.n_samples, self.config.global_batch_size)
        return whole + (self.config.tail == "wrap" and rest > 0)

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
        _check_world_size(world_size, self.config)
        first = (step % self.steps_per_epoch) * self.config.global_batch_size
        return np.arange(first + rank, first + self.config.global_batch_size, world_size)

    def rows(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the rows of the index in this rank's share of a batch.

        Args:
            step: counted from the start of training.
            rank: of this process, 0..world_size-1.
            world_size: number of processes; divides ``n_streams`` and the batch size.

        Returns:
            int64, shape (global_batch_size / world_size,).
        """
        served = self._epoch(self.epoch_of(step))
        positions = self.positions(step, rank=rank, world_size=world_size)
        return served[positions % self.n_samples]

    def state(self, step: int) -> dict[str, Any]:
        """Describe a place in the order; goes into checkpoints."""
        return {
            "position": step * self.config.global_batch_size,
            "fingerprint": self._fingerprint,
            "n_samples": self.n_samples,
            **self.config.model_dump(),
        }

    def resume(self, state: dict[str, Any]) -> int:
        """Return the step at which a saved state goes on.

        Raises:
            ValueError: the data set or a setting changed; both values are shown.
        """
        now = self.state(0)
        changed = [
            f"{name}: saved {state.get(name)!r}, now {now[name]!r}"
            for name in now
            if name != "position" and state.get(name) != now[name]
        ]
        if changed:
            raise ValueError(
                "the order cannot be resumed, it is not the same any more ("
                + "; ".join(changed)
                + "); use the data and settings of the run, or start a new run"
            )
        return int(state["position"]) // self.config.global_batch_size

    def _draw_epoch(self, epoch: int) -> Rows:
        """Return the row at each position of an epoch, shape (n_samples,)."""
        seed, n_streams = self.config.seed, self.config.n_streams
        laid = self._lay_out(derive_key(seed, epoch, _SHARDS))
        if self._bytes.sum() <= self.config.shuffle_bytes:
            laid = laid[permutation(derive_key(seed, epoch, _WHOLE), len(laid))]
            return self._rows[laid]
        served = np.empty(self.n_samples, np.int64)
        for stream, places in enumerate(np.array_split(laid, n_streams)):
            key = derive_key(seed, epoch, _WINDOW, stream)
            served[stream::n_streams] = self._shuffle_windows(places, key)
        return self._rows[served]

    def _lay_out(self, key: np.uint64) -> Rows:
        """Return every place, grouped by shard, the shards in random order."""
        shards, first = np.unique(self._shard, return_index=True)
        order = permutation(key, len(shards))
        places = np.split(np.arange(self.n_samples), first[1:])
        return np.concatenate([places[s] for s in order])

    def _shuffle_windows(self, places: Rows, key: np.uint64) -> Rows:
        """Shuffle one stream inside windows of consecutive samples bounded in bytes."""
        window_bytes = max(1, self.config.shuffle_bytes // self.config.n_streams)
        window = np.cumsum(self._bytes[places]) // window_bytes
        return places[np.lexsort((permutation(key, len(places)), window))]


class EvaluationOrder:
    """Each sample exactly once, in stored order; the last batch is filled with row -1.

    Args:
        n_samples: rows of the index.
        global_batch_size: samples per step over all ranks.
    """

    def __init__(self, n_samples: int, global_batch_size: int) -> None:
        self.n_samples = n_samples
        self._global_batch_size = global_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps that serve every sample once, the same on every rank."""
        return -(-self.n_samples // self._global_batch_size)

    def epoch_of(self, step: int) -> int:
        """Return 0: an evaluation is one epoch."""
        return 0

    def positions(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return this rank's positions of a batch; those past the end are padding."""
        first = step * self._global_batch_size
        return np.arange(first + rank, first + self._global_batch_size, world_size)

    def rows(self, step: int, *, rank: int = 0, world_size: int = 1) -> Rows:
        """Return this rank's rows of a batch, -1 where the batch is filled up."""
        positions = self.positions(step, rank=rank, world_size=world_size)
        return np.where(positions < self.n_samples, positions, -1)


def _check_world_size(world_size: int, config: OrderConfig) -> None:
    if config.n_streams % world_size or config.global_batch_size % world_size:
        raise ValueError(
            f"`world_size` must divide `n_streams` ({config.n_streams}) and `global_batch_size` "
            f"({config.global_batch_size}), found {world_size}"
        )
