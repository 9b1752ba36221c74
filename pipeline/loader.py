"""From data sets and an order to batches: which bytes, which crop, which masks.

    order -> rows of a step -> ShardSource: the bytes are at hand -> gather, masks -> Batch

One thread asks for the bytes of coming steps, in order; a few make batches of them, in kernels
that hold no lock (on one core the same thread does). Nothing but the order says what is in a batch.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field

from ..shards.dataset import Dataset
from ..shards.errors import listed
from ..shards.index_check import require_possible
from .batch import Batch, BatchMemory
from .draws import derive_key, draws
from .gather import fill_labels, gather, random_starts
from .masks import MaskConfig, count_masked, draw_distractors, draw_masks
from .order import EvaluationOrder, Order
from .parallel_map import n_cores
from .prefetch import prefetch
from .shard_cache import CacheConfig
from .shard_source import Lease, ShardSource

_CROP, _MASK, _DISTRACTORS = range(100, 103)  # purposes of draws, apart from the order's
MAX_AHEAD = 3  # batches; measured: 8 are no faster, on one core and on two
MAX_THREADS = 4  # that make batches: two fill the memory bus

Rows = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


class LoaderConfig(BaseModel):
    """What is cut out of a sample, and what is drawn for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_frames: int | None = Field(
        default=None,
        ge=1,
        description="frames of a random crop, shorter samples are padded; "
        "none = whole samples, padded to the longest of the batch",
    )
    max_frames: int = Field(
        default=6_000, ge=1, description="whole samples are cut here, in frames"
    )
    stride: int = Field(default=4, ge=1, description="frames per latent step of the model")
    mask: MaskConfig | None = Field(default=None, description="none = no masks, no distractors")
    seed: int = Field(default=0, ge=0, description="seed of crops, masks and distractors")
    ahead_bytes: int = Field(
        default=256 * 2**20, ge=1, description="most bytes of batches that are made ahead, about"
    )


class Loader:
    """Cut, pad and mask the samples of each batch of an order.

    Crop, mask and distractors of a sample depend on (seed, epoch, position) alone.

    Args:
        datasets: the open data set, or those of a mixture, in its order.
        order: which rows make up which batch.
        config: crop and masks.
        label_names: the classes of the model, in its order (default: those of the data sets).
        rank, world_size: this process and their number.
        cache: how data sets in an object store are read.
        pins: make batches in pinned memory (default: where there is a GPU).

    Raises:
        ValueError: a data set has a class that ``label_names`` lacks, the data sets differ in
            their features, or masks are wanted in the order of an evaluation.
        DatasetError: an index is damaged.
    """

    def __init__(
        self,
        datasets: Dataset | Sequence[Dataset],
        order: Order,
        config: LoaderConfig,
        *,
        label_names: Sequence[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
        cache: CacheConfig | None = None,
        pins: bool | None = None,
    ) -> None:
        self._datasets = (datasets,) if isinstance(datasets, Dataset) else tuple(datasets)
        _require_same_features(self._datasets)
        if config.mask is not None and isinstance(order, EvaluationOrder):
            raise ValueError(
                "masks are drawn in the order of a training, found an `EvaluationOrder`, whose "
                "last batch is filled up with what has no frames; leave `mask` out, or give a "
                "`TrainingOrder`"
            )
        for each in self._datasets:
            require_possible(each.index, each.manifest, each.url)
        self._order, self._config, self._cache = order, config, cache
        self._place = {"rank": rank, "world_size": world_size}
        all_names = (name for each in self._datasets for name in each.manifest.label_names)
        self.label_names = tuple(dict.fromkeys(all_names) if label_names is None else label_names)
        self._label_maps = [_map_labels(each, self.label_names) for each in self._datasets]
        self._keys = [each.index.sample_keys() for each in self._datasets]
        self._shortest_stored = min(int(each.index.n_frames.min()) for each in self._datasets)
        self._memory = BatchMemory(
            pins=torch.cuda.is_available() if pins is None else pins,
            max_free_bytes=2 * config.ahead_bytes,
        )

    def batches(self, first_step: int, last_step: int, *, every: int = 1) -> Generator[Batch]:
        """Yield the batches of steps ``first_step`` … ``last_step - 1``, made ahead in threads.

        The threads end with the generator, also when it is closed early.

        Args:
            first_step, last_step: counted from the start of training.
            every: yield each so manieth step only, from the first on.

        Raises:
            ShardError: a shard is missing, short, or not the one the index was made from.
            StorageError: an object store cannot be reached, or refuses.
        """
        steps = range(first_step, last_step, every)
        with ExitStack() as stack:  # closes everything, even if Ctrl-C comes while it does
            n_threads = min(MAX_THREADS, n_cores())
            pool = ThreadPoolExecutor(n_threads, thread_name_prefix="melstream-gather")
            stack.callback(pool.shutdown, cancel_futures=True)
            sources: list[ShardSource] = []
            submit = pool.submit if n_threads > 1 else _call
            futures = prefetch(
                (submit(self._make, self._acquire(step, sources)) for step in steps),
                self._n_ahead(first_step),
            )
            stack.callback(futures.close)
            for number, dataset in enumerate(self._datasets):
                source = ShardSource(dataset, self._cache)
                stack.callback(source.close)  # first of all: `futures` may wait for bytes
                sources.append(source)
                source.read_ahead(self._reads(number, steps))
            for future in futures:
                yield future.result()

    def batch(self, step: int) -> Batch:
        """Make the batch of one step, counted from the start of training."""
        with closing(self.batches(step, step + 1)) as batches:
            return next(batches)

    def memory_bytes(self) -> dict[str, int]:
        """Return the most bytes that this takes, by what they are for."""
        columns = sum(dataset.index.n_bytes for dataset in self._datasets)
        n_batches = self._n_ahead(0) + MAX_THREADS
        found = {"index": columns, f"{n_batches} batches": n_batches * self._batch_bytes(0)}
        n_remote = sum(dataset.storage.folder is None for dataset in self._datasets)
        if n_remote:
            found["shards in memory"] = n_remote * (self._cache or CacheConfig()).memory_bytes
        return found

    def _n_ahead(self, step: int) -> int:
        return min(MAX_AHEAD, max(1, self._config.ahead_bytes // self._batch_bytes(step)))

    def _batch_bytes(self, step: int) -> int:
        """Return about how many bytes a batch takes."""
        n_samples = len(self._order.positions(step, **self._place))
        width = self._config.crop_frames or self._config.max_frames
        n_bytes = width * self._datasets[0].manifest.features.frame_bytes
        if self._config.mask is not None:
            n_masked = count_masked(max(2, width // self._config.stride), self._config.mask)
            n_bytes += n_masked * self._config.mask.n_distractors * 4
        return max(1, n_samples * n_bytes)

    def _reads(self, number: int, steps: range) -> Iterator[Rows]:
        """Yield the rows that each step reads of one data set."""
        for step in steps:
            which = self._order.sources(step, **self._place)
            yield self._order.rows(step, **self._place)[which == number]

    def _acquire(self, step: int, sources: Sequence[ShardSource]) -> "_Step":
        """Look up what a step reads, and wait until its bytes are at hand."""
        rows = self._order.rows(step, **self._place)
        which = self._order.sources(step, **self._place)
        parts = []
        for number, source in enumerate(sources):
            places = np.flatnonzero(which == number)
            parts.append(_Part(number, places, rows[places], source.acquire(rows[places])))
        return _Step(
            step=step,
            epoch=self._order.epoch_of(step),
            positions=self._order.positions(step, **self._place),
            sources=which,
            rows=rows,
            parts=parts,
        )

    def _make(self, step: "_Step") -> Batch:
        """Make a batch of bytes that are at hand, and give them back."""
        n_frames, logmel = self._cut(step)
        for part in step.parts:
            part.lease.release()
        mask, distractors = self._mask(step, n_frames, logmel.shape[1])
        return Batch(
            step=step.step,
            logmel=logmel,
            n_frames=torch.from_numpy(n_frames.astype(np.int64)),
            labels=self._labels(step),
            mask=mask,
            distractors=distractors,
            sources=torch.from_numpy(step.sources),
            rows=torch.from_numpy(step.rows),
            keys=self._key_names(step),
            is_padded=bool((n_frames < logmel.shape[1]).any()),
            code=self._datasets[0].manifest.code,
        )

    def _cut(self, step: "_Step") -> tuple[npt.NDArray[np.int32], torch.Tensor]:
        """Return the frames of each crop, and the crops in one tensor."""
        spec, config = self._datasets[0].manifest.features, self._config
        stored = step.join(lambda part: self._stored_frames(part), np.int32)
        # A rank with nothing left to evaluate has a batch all the same, of padding.
        crop = config.crop_frames or min(max(1, int(stored.max())), config.max_frames)
        width = -(-crop // config.stride) * config.stride
        n_frames = np.minimum(stored, crop)
        addresses = step.join(lambda part: part.lease.addresses, np.uint64)
        if config.crop_frames:
            starts = random_starts(stored, crop, self._draws(_CROP, step))
            addresses += (starts * spec.frame_bytes).astype(np.uint64)
        shape = (len(step.rows), width, spec.n_mels)
        logmel = self._memory.empty(shape, getattr(torch, spec.storage_dtype))
        gather(addresses, n_frames.astype(np.int64) * spec.frame_bytes, logmel.numpy())
        return n_frames, logmel

    def _stored_frames(self, part: "_Part") -> npt.NDArray[np.int32]:
        """Return the stored frames of each row, 0 for row -1."""
        n_frames = self._datasets[part.number].index.n_frames[part.rows]
        return np.where(part.rows >= 0, n_frames, 0)

    def _mask(
        self, step: "_Step", n_frames: npt.NDArray[np.int32], width: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        config, stride = self._config.mask, self._config.stride
        if config is None:
            return None, None
        n_masked = count_masked(self._shortest(step.step) // stride, config)
        mask = self._memory.empty((len(n_frames), width // stride), torch.bool)
        draw_masks(
            (n_frames // stride).astype(np.int32),
            width=width // stride,
            n_masked=n_masked,
            mask_length=config.mask_length,
            keys=self._draws(_MASK, step),
            out=mask.numpy(),
        )
        shape = (len(n_frames), n_masked, config.n_distractors)
        distractors = self._memory.empty(shape, torch.int32)
        keys = self._draws(_DISTRACTORS, step)
        draw_distractors(n_masked, config.n_distractors, keys, distractors.numpy())
        return mask, distractors

    def _shortest(self, step: int) -> int:
        """Return the frames of the shortest crop of the global batch: the same on every rank."""
        longest = self._config.crop_frames or self._config.max_frames
        if self._shortest_stored >= longest:
            return longest  # without a look at what other ranks read
        rows = self._order.rows(step, rank=0, world_size=1)
        which = self._order.sources(step, rank=0, world_size=1)
        for number, dataset in enumerate(self._datasets):
            here = rows[which == number]
            longest = min(longest, int(dataset.index.n_frames[here].min(initial=longest)))
        return longest

    def _draws(self, purpose: int, step: "_Step") -> Keys:
        return draws(derive_key(self._config.seed, step.epoch, purpose), step.positions)

    def _labels(self, step: "_Step") -> torch.Tensor | None:
        """Return the multi-hot labels, float32, shape (B, n_classes)."""
        if not self.label_names:
            return None
        # Not `torch.zeros`, which wakes all of OpenMP's threads for it.
        labels = np.zeros((len(step.rows), len(self.label_names)), np.float32)
        for part in step.parts:
            index, label_map = self._datasets[part.number].index, self._label_maps[part.number]
            csr = index.label_indptr, index.label_ids
            fill_labels(part.rows, part.places, *csr, label_map, labels)
        return torch.from_numpy(labels)

    def _key_names(self, step: "_Step") -> tuple[str, ...]:
        keys = step.join(lambda part: self._keys[part.number][part.rows], np.bytes_)
        return tuple(np.where(step.rows >= 0, keys, b"").astype(np.str_).tolist())


@dataclass(frozen=True, slots=True)
class _Part:
    """What a step reads of one data set.

    Args:
        number: of the data set.
        places: in the batch, int64.
        rows: of its index, int64, -1 where the batch is filled up.
        lease: their bytes.
    """

    number: int
    places: Rows
    rows: Rows
    lease: Lease


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step reads, at hand."""

    step: int
    epoch: int
    positions: Rows
    sources: Rows
    rows: Rows
    parts: list[_Part]

    def join(
        self, values: Callable[[_Part], npt.NDArray[np.generic]], dtype: npt.DTypeLike
    ) -> npt.NDArray:
        """Put together what the parts have, in the order of the batch."""
        if len(self.parts) == 1:
            return values(self.parts[0]).astype(dtype)
        found = [values(part) for part in self.parts]
        out = np.empty(len(self.rows), np.result_type(*found))
        for part, each in zip(self.parts, found, strict=True):
            out[part.places] = each
        return out


def _call(function: Callable[["_Step"], Batch], step: "_Step") -> Future[Batch]:
    """Do at once what a pool would do; on one core a pool costs a tenth of the time."""
    done: Future[Batch] = Future()
    done.set_result(function(step))
    return done


def _require_same_features(datasets: Sequence[Dataset]) -> None:
    """Refuse data sets that cannot stand in one batch."""
    first = datasets[0].manifest
    for dataset in datasets[1:]:
        first.features.require_same(dataset.manifest.features, dataset.url)
        if dataset.manifest.code != first.code:
            raise ValueError(
                f"the data sets of a mixture must store log-mels alike, found "
                f"{first.features.storage_dtype} in {datasets[0].url} and "
                f"{dataset.manifest.features.storage_dtype} in {dataset.url}; build one again with "
                "the other's --storage"
            )


def _map_labels(dataset: Dataset, wanted: Sequence[str]) -> Rows:
    """Return, for each label id of the data set, its place among the wanted names."""
    places = {name: place for place, name in enumerate(wanted)}
    stored = dataset.manifest.label_names
    unknown = [name for name in stored if name not in places]
    if unknown and wanted:
        raise ValueError(
            f"the data set has {len(unknown)} classes that the model lacks "
            f"({listed(unknown)}); build it with the label list of the training set"
        )
    return np.array([places.get(name, -1) for name in stored], np.int64)
