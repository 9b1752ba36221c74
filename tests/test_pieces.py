"""Pieces of shards: whole samples, the same for everyone, and little more than a rank needs."""

from pathlib import Path

import numpy as np
import pytest
from conftest import make_sample, write_dataset

from melstream.pipeline.order import OrderConfig, TrainingOrder
from melstream.pipeline.pieces import Pieces, cut_pieces, default_piece_bytes
from melstream.pipeline.shard_source import ShardSource
from melstream.shards.dataset import Dataset
from melstream.shards.errors import ShardError

PIECE_BYTES = 20_000  # the small data set has about 20 such pieces


def naive_pieces(dataset: Dataset, piece_bytes: int) -> list[tuple[int, int, int]]:
    """(shard, first byte, last byte) of the pieces, by a loop over the rows."""
    index, pieces, last = dataset.index, [], (-1, -1)
    for row in range(len(dataset)):
        shard, first = int(index.shard[row]), int(index.logmel_offset[row])
        end = first + int(index.logmel_size[row])
        if (shard, first // piece_bytes) == last:
            pieces[-1] = (*pieces[-1][:2], end)
        else:
            pieces.append((shard, first, end))
        last = (shard, first // piece_bytes)
    return pieces


@pytest.mark.parametrize("piece_bytes", [1, PIECE_BYTES, 10**9])
def test_pieces_are_whole_samples_of_one_shard(small_dataset: Dataset, piece_bytes: int) -> None:
    pieces = cut_pieces(small_dataset, piece_bytes)
    found = zip(
        pieces.shard.tolist(),
        pieces.first_byte.tolist(),
        (pieces.first_byte + pieces.n_bytes).tolist(),
        strict=True,
    )
    assert list(found) == naive_pieces(small_dataset, piece_bytes)
    for row in range(len(small_dataset)):
        number = int(pieces.of_row[row])
        assert pieces.first_row[number] <= row < pieces.first_row[number + 1]
        data = small_dataset.shard_bytes(int(pieces.shard[number]))
        stored = small_dataset.read_stored(row).tobytes()
        start = int(pieces.first_byte[number] + pieces.offset[row])
        assert data[start : start + len(stored)].tobytes() == stored


def test_a_rank_fetches_at_most_a_piece_more_per_stream(tmp_path: Path) -> None:
    samples = [make_sample(n, n_frames=2) for n in range(900)]
    dataset = write_dataset(tmp_path, [samples[k : k + 90] for k in range(0, 900, 90)])
    total = int((dataset.index.logmel_size + dataset.index.json_size).sum())
    config = OrderConfig(global_batch_size=12, n_streams=6, shuffle_bytes=total // 4)
    order = TrainingOrder(dataset.index, dataset.manifest.fingerprint, config)
    pieces = cut_pieces(dataset, 10_000)
    whole = pieces.n_bytes.sum()
    fetched = 0
    for rank in range(3):
        rows = np.concatenate([order.rows(t, rank=rank, world_size=3) for t in range(75)])
        fetched += int(pieces.n_bytes[np.unique(pieces.of_row[rows])].sum())
    assert whole <= fetched <= whole + config.n_streams * pieces.n_bytes.max()


@pytest.mark.parametrize("gib", [2.5, 3, 4.99, 5, 100])
def test_64_streams_fetch_at_most_a_tenth_more(gib: float) -> None:
    total = int(gib * 2**30)
    assert default_piece_bytes(total) * 64 <= 0.1 * total


def test_small_sets_are_fetched_in_pieces_of_a_block() -> None:
    assert default_piece_bytes(0) == default_piece_bytes(2**30) == 4 * 2**20


@pytest.mark.parametrize(
    ("column", "value"),
    [("shard", 5), ("logmel_offset", -1), ("logmel_size", 10**9), ("n_frames", 10**6)],
)
def test_an_index_that_points_outside_is_an_error(
    small_dataset: Dataset, column: str, value: int
) -> None:
    values = small_dataset.index.column(column)
    values[30] = value
    with pytest.raises(ShardError, match=r"index places .*build the data set again") as caught:
        ShardSource(small_dataset)
    assert caught.value.key == "clip-0030"


def test_samples_out_of_order_are_an_error(small_dataset: Dataset) -> None:
    offsets = small_dataset.index.logmel_offset
    offsets[[30, 31]] = offsets[[31, 30]]
    with pytest.raises(ShardError, match="after the sample before"):
        cut_pieces(small_dataset, PIECE_BYTES)


def test_pieces_have_a_length() -> None:
    empty = np.empty(0, np.int64)
    assert len(Pieces(empty, empty, empty, empty, empty.astype(np.int32), empty)) == 0
