"""Data sets as an endless stream of batches for torch's ``DataLoader``, or without it.

    stream = BatchStream("s3://bucket/audioset/train", OrderConfig(global_batch_size=64))
    for batch in stream: ...                      # one epoch; the next iteration is the next
    torch.save(stream.state_dict(), path)         # a few numbers; resumes at once

It is made of addresses and numbers, and opens what it needs in each process: it can be sent
to workers that are forked or spawned. Without workers the threads of ``Loader`` do the work,
which is faster; with them, worker w of n makes the w-th of every n batches, so that
``DataLoader`` puts them together in the right order.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..shards.dataset import Dataset, open_dataset
from ..shards.storage import DEFAULT_TIMEOUT_S, open_storage
from .batch import Batch
from .length_order import LengthConfig, LengthOrder
from .loader import Loader, LoaderConfig
from .mixture import MixtureOrder, mix_orders
from .order import OrderConfig, TrainingOrder
from .shard_cache import CacheConfig

StreamOrder = TrainingOrder | MixtureOrder | LengthOrder

_log = logging.getLogger(__name__)

_MAX_WORKERS = 1_024  # more than a machine has; each takes eight bytes


def open_order(
    datasets: Sequence[Dataset],
    config: OrderConfig | LengthConfig,
    shares: Sequence[float] | None = None,
    *,
    min_frames: int = 0,
) -> StreamOrder:
    """Return the order of one data set, by length or not, or of a mixture of several.

    Args:
        datasets: open data sets.
        config: seed, batch size or bound in frames, streams, class balance.
        shares: of the data sets in every batch (default: by their samples).
        min_frames: samples of fewer log-mel frames are left out, and counted in a warning.

    Raises:
        ValueError: a data set is too small, the shares do not fit, or batches by length
            are wanted of several data sets.
    """
    rows = [_long_enough(dataset, min_frames) for dataset in datasets]
    if isinstance(config, LengthConfig):
        if len(datasets) > 1:
            raise ValueError(
                f"batches by length must come from one data set, found {len(datasets)}; merge them "
                "with 'melstream merge', or give an `OrderConfig`"
            )
        return LengthOrder(datasets[0].index, datasets[0].manifest.fingerprint, config, rows[0])
    return mix_orders(datasets, config, shares, rows)


def _long_enough(dataset: Dataset, min_frames: int) -> npt.NDArray[np.int64] | None:
    """Return the rows of the samples that are long enough; None where all are."""
    is_long = dataset.index.n_frames >= min_frames
    if is_long.all():
        return None
    if _worker()[0] == 0:
        _log.warning(
            "%s: %d of %d samples are left out, of fewer than %d log-mel frames (`min_frames`)",
            *(dataset.url, (~is_long).sum(), len(dataset), min_frames),
        )
    return np.flatnonzero(is_long)


class BatchStream(IterableDataset[Batch]):
    """Batches of one data set or of a mixture, epoch after epoch, from any position.

    An iteration begins at the position and goes to the end of its epoch. The position moves
    with each batch; with workers of a ``DataLoader``, which do not tell what they handed over,
    it moves at the end of the epoch. torchdata's ``StatefulDataLoader`` asks them and resumes
    with workers too. For ``DataLoader`` give ``batch_size=None``: these are batches already.

    Args:
        places: address of the data set, or of each of a mixture: paths, ``s3://`` …
        order: seed, global batch size, streams, class balance; or, for whole samples in batches
            of similar length, a ``LengthConfig``.
        config: crop and masks.
        shares: of a mixture's data sets in every batch (default: by their samples).
        label_names: the classes of the model, in its order (default: those of the data sets).
        cache: how data sets in an object store are read.
        timeout_s: longest wait for an object store, retries included, in seconds.
        min_frames: samples of fewer log-mel frames are left out, and counted in a warning
            (default: with masks those of less than two latent steps, which cannot be masked).
        rank, world_size: this process and their number (default: those of
            ``torch.distributed`` where it is initialised).

    Raises:
        ValueError: batches by length are wanted of crops, or of longer samples than the order
            counts with.
    """

    def __init__(
        self,
        places: str | Path | Sequence[str | Path],
        order: OrderConfig | LengthConfig,
        config: LoaderConfig | None = None,
        *,
        shares: Sequence[float] | None = None,
        label_names: Sequence[str] | None = None,
        cache: CacheConfig | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        min_frames: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._places = [places] if isinstance(places, str | Path) else list(places)
        self._order_config, self._config = order, _fitting(config, order)
        self._shares, self._label_names = shares, label_names
        self._cache, self._timeout_s = cache, timeout_s
        least = 0 if self._config.mask is None else 2 * self._config.stride
        self._min_frames = least if min_frames is None else min_frames
        self._rank, self._world_size = _rank_and_world_size(rank, world_size)
        self._opened: tuple[int, Loader, StreamOrder] | None = None
        # Shared with worker processes: the step that the next iteration begins with, by worker.
        # Each moves its own at the end of its epoch; the least counts, so that a worker that
        # starts when another one is done already still begins with this epoch.
        self._positions = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()
        # In a worker: its own next step, the stride, and the end of the epoch; now, and saved.
        self._now: tuple[int, int, int] | None = None
        self._resumed: tuple[int, int, int] | None = None

    @property
    def position(self) -> int:
        """The step that the next iteration begins with, counted from the start of training."""
        return int(self._positions.min())

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch, the same on every rank."""
        return self._open()[1].steps_per_epoch

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes, in the order of ``Batch.labels``."""
        return self._open()[0].label_names

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        loader = self._open()[0]
        first, every, end = self._resumed or self._rest_of_epoch(self.position)
        self._resumed = None
        for batch in loader.batches(first, end, every=every):
            self._now = batch.step + every, every, end
            if get_worker_info() is None:
                self._move_to(batch.step + 1)
            yield batch
        self._move_to(end)

    def state_dict(self) -> dict[str, Any]:
        """Return the position and what has to be the same to go on from it, as plain data."""
        state = self.state_at(self.position)
        is_in_worker = get_worker_info() is not None and self._now is not None
        return {**state, "worker": self._now} if is_in_worker else state

    def state_at(self, step: int) -> dict[str, Any]:
        """Return the state after ``step`` batches, such as ``batch.step + 1``."""
        config = self._config.model_dump(exclude={"ahead_bytes"})
        return {**self._open()[1].state(step), "loader": config}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, also with another world size.

        Raises:
            ValueError: a data set or a setting changed; both values are shown.
        """
        now = self._config.model_dump(exclude={"ahead_bytes"})
        if state.get("loader") != now:
            raise ValueError(
                f"the stream cannot be resumed, its crops or masks are not the same any more "
                f"(saved {state.get('loader')}, now {now}); use the settings of the run"
            )
        position = self._open()[1].resume(state)
        self._move_to(position)
        self._resumed = state.get("worker")
        if get_worker_info() is not None and self._resumed is None:
            self._resumed = self._rest_of_epoch(position)  # the others may not have loaded it yet

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _move_to(self, step: int) -> None:
        """Note the step that the next iteration begins with, as far as this process knows."""
        number, n_workers = _worker()
        self._positions[number::n_workers] = step

    def _rest_of_epoch(self, position: int) -> tuple[int, int, int]:
        """Return the first step, the stride and the end of what is left of the epoch."""
        number, n_workers = _worker()
        end = (position // self.steps_per_epoch + 1) * self.steps_per_epoch
        return position + number, n_workers, end

    def _open(self) -> tuple[Loader, StreamOrder]:
        """Open the data sets, once in each process."""
        if self._opened is None or self._opened[0] != os.getpid():
            datasets = [
                open_dataset(open_storage(place, timeout_s=self._timeout_s))
                for place in self._places
            ]
            order = open_order(
                datasets, self._order_config, self._shares, min_frames=self._min_frames
            )
            loader = Loader(
                datasets,
                order,
                self._config,
                label_names=self._label_names,
                rank=self._rank,
                world_size=self._world_size,
                cache=self._cache,
                pins=False if get_worker_info() else None,
            )
            self._opened = os.getpid(), loader, order
        return self._opened[1:]


def _fitting(config: LoaderConfig | None, order: OrderConfig | LengthConfig) -> LoaderConfig:
    """Return the settings; refuse those that would pass the bound of an order by length."""
    if not isinstance(order, LengthConfig):
        return config or LoaderConfig()
    config = config or LoaderConfig(max_frames=order.max_frames)
    if config.crop_frames is not None:
        raise ValueError(
            f"batches by length are of whole samples, found crop_frames={config.crop_frames}; "
            "leave it out, or give an `OrderConfig`"
        )
    if config.max_frames > order.max_frames:
        raise ValueError(
            f"`max_frames` of the loader must be at most that of the order ({order.max_frames}), "
            f"found {config.max_frames}: batches would pass `global_batch_frames`"
        )
    return config


def _worker() -> tuple[int, int]:
    """Return the number of this worker and how many there are: 0 and 1 without workers."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


def _rank_and_world_size(rank: int | None, world_size: int | None) -> tuple[int, int]:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rank is None:
        rank = torch.distributed.get_rank() if is_distributed else 0
    if world_size is None:
        world_size = torch.distributed.get_world_size() if is_distributed else 1
    return rank, world_size
