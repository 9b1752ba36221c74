"""From a data set and an order to batches of tensors; the one file here that knows torch."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field

from ..shards.affine import AffineCode
from ..shards.dataset import Dataset
from ..shards.errors import ShardError
from .draws import derive_key, draws
from .gather import gather, random_starts
from .masks import MaskConfig, count_masked, draw_distractors, draw_masks
from .prefetch import prefetch

_CROP, _MASK, _DISTRACTORS = range(100, 103)  # purposes of draws, apart from the order's


class Order(Protocol):
    """What the loader asks of an order; see ``order.TrainingOrder``."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        ...

    def epoch_of(self, step: int) -> int:
        """Return the epoch of a step."""
        ...

    def positions(self, step: int, *, rank: int, world_size: int) -> npt.NDArray[np.int64]:
        """Return the positions in the epoch."""
        ...

    def rows(self, step: int, *, rank: int, world_size: int) -> npt.NDArray[np.int64]:
        """Return the rows of the index."""
        ...


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


@dataclass(frozen=True, slots=True)
class Batch:
    """What the pipeline hands to the model.

    Shape (B samples, T frames, S = T // stride latent steps, M masked steps, N distractors):

    - logmel: float16 or, as codes, uint8 (B, T, n_mels), zero past ``n_frames``
    - n_frames: int64 (B,), 0 for a sample that only fills the batch up
    - labels: float32 (B, n_classes) multi-hot, or None for a set without labels
    - mask: bool (B, S), True = masked, M in every row, never on padding; or None
    - distractors: int32 (B, M, N), places among the masked steps of the sample; or None
    - rows: int64 (B,), rows of the index, -1 where the batch is filled up
    - keys: B strings
    - code: what the codes of ``logmel`` stand for; None where it is float16
    """

    logmel: torch.Tensor
    n_frames: torch.Tensor
    labels: torch.Tensor | None
    mask: torch.Tensor | None
    distractors: torch.Tensor | None
    rows: torch.Tensor
    keys: tuple[str, ...]
    code: AffineCode | None = None

    def to(self, device: torch.device) -> Self:
        """Copy the tensors to a device, without waiting where the memory is pinned.

        Codes travel as they are and become float32 log-mels there.
        """
        moved = {
            field.name: tensor.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(tensor := getattr(self, field.name), torch.Tensor)
        }
        if self.code is not None:
            moved["logmel"] = moved["logmel"] * self.code.scale + self.code.offset
        return replace(self, **moved, code=None)


class Loader:
    """Cut, pad and mask the samples of each batch of an order.

    Crop, mask and distractors of a sample depend on (seed, epoch, position) alone.

    Args:
        dataset: the open data set.
        order: which rows make up which batch.
        config: crop and masks.
        label_names: the classes of the model, in its order (default: the data set's).
        rank, world_size: this process and their number.

    Raises:
        ValueError: the data set has a class that ``label_names`` lacks.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        config: LoaderConfig,
        *,
        label_names: Sequence[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._dataset = dataset
        self._order = order
        self._config = config
        self._rank, self._world_size = rank, world_size
        names = dataset.manifest.label_names if label_names is None else tuple(label_names)
        self._n_classes = len(names)
        self._label_map = _map_labels(dataset.manifest.label_names, names)
        self._keys = dataset.index.sample_keys()

    def batches(self, first_step: int, last_step: int, *, n_ahead: int = 2) -> Generator[Batch]:
        """Yield the batches of steps ``first_step`` … ``last_step - 1``, made in a thread.

        Raises:
            ShardError: a shard is missing or short.
        """
        return prefetch((self.batch(step) for step in range(first_step, last_step)), n_ahead)

    def batch(self, step: int) -> Batch:
        """Make the batch of one step, counted from the start of training."""
        place = {"rank": self._rank, "world_size": self._world_size}
        rows = self._order.rows(step, **place)
        positions = self._order.positions(step, **place)
        epoch = self._order.epoch_of(step)
        logmel, n_frames = self._cut(rows, self._draw_keys(_CROP, epoch, positions))
        mask, distractors = self._mask(step, n_frames, logmel.shape[1], epoch, positions)
        return Batch(
            logmel=logmel,
            n_frames=torch.from_numpy(n_frames.astype(np.int64)),
            labels=self._labels(rows),
            mask=mask,
            distractors=distractors,
            rows=torch.from_numpy(rows),
            keys=tuple(self._key(row) if row >= 0 else "" for row in rows),
            code=self._dataset.manifest.code,
        )

    def _key(self, row: np.int64) -> str:
        return bytes(self._keys[row]).decode("ascii")

    def _draw_keys(
        self, purpose: int, epoch: int, positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint64]:
        return draws(derive_key(self._config.seed, epoch, purpose), positions)

    def _cut(
        self, rows: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]
    ) -> tuple[torch.Tensor, npt.NDArray[np.int32]]:
        """Copy the crop of each row into one tensor; return it with the frames of each."""
        index, spec = self._dataset.index, self._dataset.manifest.features
        stored = np.where(rows >= 0, index.n_frames[rows], 0).astype(np.int32)
        crop = self._config.crop_frames or min(int(stored.max()), self._config.max_frames)
        width = -(-crop // self._config.stride) * self._config.stride
        n_frames = np.minimum(stored, crop)
        starts = random_starts(stored, crop, keys) if self._config.crop_frames else 0 * rows
        logmel = torch.empty(
            (len(rows), width, spec.n_mels),
            dtype=getattr(torch, spec.storage_dtype),
            pin_memory=torch.cuda.is_available(),
        )
        frame_bytes = spec.frame_bytes
        held = [self._payload(row) for row in rows]  # keeps the maps alive during the copy
        addresses = np.array([payload.ctypes.data for payload in held], np.uint64)
        addresses += (starts * frame_bytes).astype(np.uint64)
        gather(addresses, n_frames.astype(np.int64) * frame_bytes, logmel.numpy())
        return logmel, n_frames

    def _payload(self, row: np.int64) -> npt.NDArray[np.uint8]:
        """Return the mapped bytes of one row's array, checked to lie inside its shard."""
        if row < 0:
            return np.empty(0, np.uint8)
        index, manifest = self._dataset.index, self._dataset.manifest
        shard = int(index.shard[row])
        n_bytes = manifest.features.frame_bytes * int(index.n_frames[row])
        end = int(index.logmel_offset[row] + index.logmel_size[row])
        data = self._dataset.shard_bytes(shard)
        if not 0 <= end - n_bytes <= end <= len(data):
            name, key = manifest.shards[shard].name, self._key(row)
            raise ShardError(
                f"the index places {key} at bytes {end - n_bytes}..{end} of {name}, which has "
                f"{len(data)}; build the data set again",
                shard=name,
                key=key,
            )
        return data[end - n_bytes : end]

    def _mask(
        self,
        step: int,
        n_frames: npt.NDArray[np.int32],
        width: int,
        epoch: int,
        positions: npt.NDArray[np.int64],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        config, stride = self._config.mask, self._config.stride
        if config is None:
            return None, None
        n_steps = (n_frames // stride).astype(np.int32)
        n_masked = count_masked(self._shortest(step) // stride, config)
        mask = draw_masks(
            n_steps,
            width=width // stride,
            n_masked=n_masked,
            mask_length=config.mask_length,
            keys=self._draw_keys(_MASK, epoch, positions),
        )
        distractors = draw_distractors(
            n_masked, config.n_distractors, self._draw_keys(_DISTRACTORS, epoch, positions)
        )
        return torch.from_numpy(mask), torch.from_numpy(distractors)

    def _shortest(self, step: int) -> int:
        """Return the frames of the shortest crop of the global batch: the same on every rank."""
        rows = self._order.rows(step, rank=0, world_size=1)
        shortest = int(self._dataset.index.n_frames[rows].min())
        return min(shortest, self._config.crop_frames or self._config.max_frames)

    def _labels(self, rows: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """Return the multi-hot labels, float32, shape (B, n_classes)."""
        if not self._n_classes:
            return None
        labels = torch.zeros((len(rows), self._n_classes))
        for place, row in enumerate(rows):
            if row >= 0:
                labels[place, self._label_map[self._dataset.index.labels(row)]] = 1.0
        return labels


def _map_labels(stored: Sequence[str], wanted: Sequence[str]) -> torch.Tensor:
    """Return, for each label id of the data set, its place among the wanted names."""
    places = {name: place for place, name in enumerate(wanted)}
    unknown = [name for name in stored if name not in places]
    if unknown and wanted:
        raise ValueError(
            f"the data set has {len(unknown)} classes that the model lacks "
            f"({', '.join(unknown[:5])}); build it with the label list of the training set"
        )
    return torch.tensor([places.get(name, -1) for name in stored], dtype=torch.int64)
