"""What the pipeline hands to the model, the memory it lies in, and its way to a device."""

import math
import weakref
from collections.abc import Generator, Iterable
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from ..shards.affine import AffineCode

_STEPS_PER_OCTAVE = 4  # of block sizes: memory for batches of all lengths fits a few sizes


@dataclass(frozen=True, slots=True)
class Batch:
    """What the pipeline hands to the model.

    Shape (B samples, T frames, S = T // stride latent steps, M masked steps, N distractors):

    - step: of the order, counted from the start of training
    - logmel: float16 or, as codes, uint8 (B, T, n_mels), zero past ``n_frames``
    - n_frames: int64 (B,), 0 for a sample that only fills the batch up
    - labels: float32 (B, n_classes) multi-hot, or None for a set without labels
    - mask: bool (B, S), True = masked, M in every row, never on padding; or None
    - distractors: int32 (B, M, N), places among the masked steps of the sample; or None
    - sources: int64 (B,), the data set of each sample, 0 where there is one
    - rows: int64 (B,), rows of its index, -1 where the batch is filled up
    - keys: B strings, empty where the batch is filled up
    - is_padded: whether a sample is shorter than T
    - code: what the codes of ``logmel`` stand for; None where it is float16
    """

    step: int
    logmel: torch.Tensor
    n_frames: torch.Tensor
    labels: torch.Tensor | None
    mask: torch.Tensor | None
    distractors: torch.Tensor | None
    sources: torch.Tensor
    rows: torch.Tensor
    keys: tuple[str, ...]
    is_padded: bool
    code: AffineCode | None = None

    @property
    def n_frames_if_padded(self) -> torch.Tensor | None:
        """``n_frames``, or None: the model need not ask the device whether there is padding."""
        return self.n_frames if self.is_padded else None

    def to(self, device: torch.device) -> Self:
        """Copy the tensors to a device, without waiting where the memory is pinned.

        Codes travel as they are and become float32 log-mels there.
        """
        moved = {
            name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()
        }
        if self.code is not None:
            moved["logmel"] = moved["logmel"] * self.code.scale + self.code.offset
        return replace(self, **moved, code=None)

    def pin_memory(self) -> Self:
        """Copy the tensors to pinned memory; torch's ``DataLoader`` calls it."""
        pinned = {name: tensor.pin_memory() for name, tensor in self._tensors().items()}
        return replace(self, **pinned)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the tensors until a stream has used them."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def on_device(batches: Iterable[Batch], device: torch.device) -> Generator[Batch]:
    """Yield the batches on a device.

    A GPU copies each on a stream of its own while it works on the one before.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copies = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved, copied = batch.to(device), torch.cuda.Event()
            copied.record(copies)
        if ahead is not None:
            yield _handed_over(*ahead, device)
        ahead = moved, copied
    if ahead is not None:
        yield _handed_over(*ahead, device)


def _handed_over(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    batch.record_stream(stream)
    return batch


class BatchMemory:
    """Memory of batches, used again once nobody holds a tensor on it.

    Fresh memory costs as much as the copy into it: the kernel clears each page first. Pinned
    memory is torch's own to reuse, since it knows when a GPU has read it.

    Args:
        pins: take pinned memory, which a GPU reads without waiting.
        max_free_bytes: most bytes kept for later.
    """

    def __init__(self, *, pins: bool, max_free_bytes: int) -> None:
        self._pins, self._max_free_bytes = pins, max_free_bytes
        self._free: dict[int, list[npt.NDArray[np.uint8]]] = {}
        self._free_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor with arbitrary content."""
        if self._pins:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        n_bytes = math.prod(shape) * dtype.itemsize
        block = self._take(_block_bytes(n_bytes))
        array = block[:n_bytes].view(str(dtype).removeprefix("torch.")).reshape(shape)
        weakref.finalize(array, self._give_back, block).atexit = False
        return torch.from_numpy(array)  # it, and views of it, keep the array alive

    def _take(self, n_bytes: int) -> npt.NDArray[np.uint8]:
        try:
            block = self._free.get(n_bytes, []).pop()
        except IndexError:
            return np.empty(n_bytes, np.uint8)
        self._free_bytes -= n_bytes
        return block

    def _give_back(self, block: npt.NDArray[np.uint8]) -> None:
        """Keep a block; called when its tensor dies, in whatever thread that is."""
        if self._free_bytes + block.nbytes <= self._max_free_bytes:
            self._free_bytes += block.nbytes
            self._free.setdefault(block.nbytes, []).append(block)


def _block_bytes(n_bytes: int) -> int:
    """Round up to one of a few sizes per octave.

    >>> [_block_bytes(n) for n in (1, 100, 1_025, 8_192_000)]
    [64, 112, 1280, 8388608]
    """
    if n_bytes <= 64:
        return 64
    step = 2 ** (n_bytes - 1).bit_length() // 2 // _STEPS_PER_OCTAVE
    return -(-n_bytes // step) * step
