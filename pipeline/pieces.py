"""Cut the shards of a data set into pieces: what is fetched, kept and dropped as one.

A piece is a run of whole samples of one shard, from the first byte of its first log-mel to
the last byte of its last. Pieces depend on the index alone, so every epoch, every rank and
every process of a machine asks for the same ones. A rank reads a few hundred ranges of
samples per epoch; what it fetches beyond its share is less than a piece at each end of one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..shards.dataset import Dataset
from ..shards.errors import ShardError

# Stores keep objects in blocks of 4 or 8 MiB: what begins with one touches fewer of them.
# SeaweedFS, MB/s of batches: pieces of 4 MiB 524, of 4.6 MiB 503, of 8 MiB 600.
PIECE_BYTES = 8 * 2**20  # under it the time to the first byte counts, on S3 tens of ms
SMALL_PIECE_BYTES = 4 * 2**20
PIECES_PER_DATASET = 640  # 64 streams fetch at most 64 pieces more: a tenth, or 256 MiB

Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of a data set, P of them, for n rows.

    Attributes:
        shard: int64 (P,), rows of the manifest's shard table.
        first_byte: int64 (P,), where each begins in its shard.
        n_bytes: int64 (P,).
        first_row: int64 (P + 1,); piece p holds rows ``first_row[p]:first_row[p + 1]``.
        of_row: int32 (n,), the piece of each row.
        offset: int64 (n,), from the first byte of its piece to the first frame of each row.
    """

    shard: Sizes
    first_byte: Sizes
    n_bytes: Sizes
    first_row: Sizes
    of_row: npt.NDArray[np.int32]
    offset: Sizes

    def __len__(self) -> int:
        return len(self.shard)


def default_piece_bytes(total_bytes: int) -> int:
    """Return the piece size of a data set: the largest that costs little at 64 streams.

    >>> default_piece_bytes(256 * 2**30), default_piece_bytes(10**9)
    (8388608, 4194304)
    """
    is_large = total_bytes >= PIECES_PER_DATASET * PIECE_BYTES
    return PIECE_BYTES if is_large else SMALL_PIECE_BYTES


def cut_pieces(dataset: Dataset, piece_bytes: int | None) -> Pieces:
    """Cut at the first log-mel that begins in each next ``piece_bytes`` of a shard.

    Args:
        dataset: only its index is read.
        piece_bytes: about the size of a piece, in bytes; None = whole shards.

    Raises:
        ShardError: the index places a log-mel outside its shard, or out of order.
    """
    index = dataset.index
    shard = index.shard.astype(np.int64)
    first, last = index.logmel_offset, index.logmel_offset + index.logmel_size
    begin = last - index.n_frames.astype(np.int64) * dataset.manifest.features.frame_bytes
    _check(dataset, shard, first, last, begin)
    starts = np.ones(len(first), np.bool_)
    starts[1:] = shard[1:] != shard[:-1]
    if piece_bytes is not None:
        number = first // piece_bytes
        starts[1:] |= number[1:] != number[:-1]
    first_row = np.append(np.flatnonzero(starts), len(first))
    first_byte = first[first_row[:-1]]
    of_row = np.cumsum(starts, dtype=np.int32) - np.int32(1)
    return Pieces(
        shard=shard[first_row[:-1]],
        first_byte=first_byte,
        n_bytes=last[first_row[1:] - 1] - first_byte,
        first_row=first_row,
        of_row=of_row,
        offset=begin - first_byte[of_row],
    )


def _check(dataset: Dataset, shard: Sizes, first: Sizes, last: Sizes, begin: Sizes) -> None:
    """Raise unless every log-mel lies inside its shard, after the one before it."""
    sizes = np.array([entry.size_bytes for entry in dataset.manifest.shards], np.int64)
    wrong: npt.NDArray[Any] = (shard < 0) | (shard >= len(sizes))
    if wrong.any():
        row = int(wrong.argmax())
        raise ShardError(
            f"{dataset.url}: the index places {dataset.key(row)} in shard {shard[row]} of "
            f"{len(sizes)}; build the data set again",
            shard=str(shard[row]),
            key=dataset.key(row),
        )
    wrong = (first < 0) | (begin < first) | (last < begin) | (last > sizes[shard])
    wrong[1:] |= (shard[1:] == shard[:-1]) & (first[1:] < last[:-1])
    if wrong.any():
        row = int(wrong.argmax())
        name, key = dataset.shard_of(row).name, dataset.key(row)
        raise ShardError(
            f"{dataset.url}: the index places the array of {key} at bytes {begin[row]}.."
            f"{last[row]} of {name}, which must lie inside its payload at {first[row]}.."
            f"{last[row]}, inside {sizes[shard[row]]} bytes and after the sample before; build the "
            "data set again",
            shard=name,
            key=key,
        )
