"""Batches hold what the index says: crops, padding, masks, labels; in order, and to the end."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_sample, replace_index, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from melstream.pipeline.batch import Batch
from melstream.pipeline.gather import address_of, gather, random_starts
from melstream.pipeline.loader import Loader, LoaderConfig
from melstream.pipeline.masks import MaskConfig, count_masked
from melstream.pipeline.order import EvaluationOrder, OrderConfig, TrainingOrder
from melstream.pipeline.prefetch import prefetch
from melstream.pipeline.weights import class_counts
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError, ShardError
from melstream.shards.index import COLUMNS, Index


def make_loader(
    dataset: Dataset, config: LoaderConfig, *, rank: int = 0, world_size: int = 1
) -> Loader:
    order = TrainingOrder(
        dataset.index, dataset.manifest.fingerprint, OrderConfig(global_batch_size=8, n_streams=8)
    )
    return Loader(dataset, order, config, rank=rank, world_size=world_size)


def assert_same(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    for name in ("logmel", "n_frames", "labels", "mask", "distractors", "rows"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


MASKED = LoaderConfig(crop_frames=32, mask=MaskConfig(n_distractors=7))


def test_crops_are_whole_runs_of_frames_and_padding_is_zero(small_dataset: Dataset) -> None:
    loader = make_loader(small_dataset, LoaderConfig(crop_frames=40))
    starts = set()
    for batch in loader.batches(0, 30):
        assert batch.logmel.dtype == torch.float16
        assert batch.logmel.shape == (8, 40, 64)
        for place, row in enumerate(batch.rows.tolist()):
            stored = small_dataset.read_logmel(row)
            n_frames = int(batch.n_frames[place])
            assert n_frames == min(len(stored), 40)
            assert n_frames == 40 or batch.is_padded
            crop = batch.logmel[place].numpy()
            start = int(crop[0, 0])  # band 0 holds the frame number
            np.testing.assert_array_equal(crop[:n_frames], stored[start : start + n_frames])
            assert not crop[n_frames:].any()
            assert batch.keys[place] == small_dataset.key(row)
            if len(stored) > 60:
                starts.add(start)
    assert len(starts) > 10


def test_a_batch_says_whether_it_is_padded(small_dataset: Dataset) -> None:
    shortest = int(small_dataset.index.n_frames.min())
    for crop_frames, found in ((shortest // 4 * 4, {False}), (shortest + 4, {False, True})):
        loader = make_loader(small_dataset, LoaderConfig(crop_frames=crop_frames))
        batches = list(loader.batches(0, 100))
        for batch in batches:
            assert batch.is_padded == bool((batch.n_frames < batch.logmel.shape[1]).any())
            assert batch.n_frames_if_padded is (batch.n_frames if batch.is_padded else None)
        assert {batch.is_padded for batch in batches} == found


def test_labels_are_multi_hot_in_the_order_of_the_model(small_dataset: Dataset) -> None:
    order = EvaluationOrder(np.arange(len(small_dataset)), 8)
    names = ("class 2", "other", "class 1", "class 0")
    loader = Loader(small_dataset, order, LoaderConfig(), label_names=names)
    labels = loader.batch(0).labels
    assert labels is not None
    assert labels[:3].tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]]


def test_a_class_that_the_model_lacks_is_refused(small_dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"classes that the model lacks \(class 1, class 2\)"):
        Loader(
            small_dataset,
            EvaluationOrder(np.arange(60), 8),
            LoaderConfig(),
            label_names=("class 0",),
        )


def test_masks_and_distractors_fit_the_batch(small_dataset: Dataset) -> None:
    loader = make_loader(small_dataset, MASKED)
    for batch in loader.batches(0, 14):
        assert batch.mask is not None
        assert batch.distractors is not None
        n_steps = batch.n_frames // 4
        n_masked = count_masked(int(n_steps.min()), MaskConfig())
        assert batch.mask.shape == (8, 8)
        assert (batch.mask.sum(1) == n_masked).all()
        assert not batch.mask[torch.arange(8) >= n_steps[:, None]].any()
        assert batch.distractors.shape == (8, n_masked, 7)
        assert (batch.distractors != torch.arange(n_masked)[None, :, None]).all()


def test_a_batch_is_the_same_whenever_and_by_whomever_it_is_made(small_dataset: Dataset) -> None:
    loader = make_loader(small_dataset, MASKED)
    straight = list(loader.batches(0, 15))
    resumed = list(make_loader(small_dataset, MASKED).batches(9, 15))
    for one, other in zip(straight[9:], resumed, strict=True):
        assert_same(one, other)


def test_ranks_together_make_the_global_batch(small_dataset: Dataset) -> None:
    for step in range(7):
        whole = make_loader(small_dataset, MASKED).batch(step)
        for world_size in (2, 4):
            for rank in range(world_size):
                loader = make_loader(small_dataset, MASKED, rank=rank, world_size=world_size)
                part = loader.batch(step)
                assert part.keys == whole.keys[rank::world_size]
                for name in ("logmel", "n_frames", "labels", "mask", "distractors"):
                    share = getattr(whole, name)[rank::world_size]
                    assert torch.equal(getattr(part, name), share), name


def test_evaluation_pads_to_the_longest_and_marks_what_fills_the_batch(
    small_dataset: Dataset,
) -> None:
    loader = Loader(small_dataset, EvaluationOrder(np.arange(60), 16), LoaderConfig())
    batches = list(loader.batches(0, 4))
    assert [tuple(batch.logmel.shape[:2]) for batch in batches] == [
        (16, 36),
        (16, 52),
        (16, 68),
        (16, 80),
    ]
    assert batches[-1].rows.tolist() == [*range(48, 60), -1, -1, -1, -1]
    assert batches[-1].n_frames[-4:].tolist() == [0] * 4
    assert not batches[-1].logmel[-4:].any()
    keys = [key for batch in batches for key in batch.keys if key]
    assert keys == [small_dataset.key(row) for row in range(60)]


def test_a_rank_with_nothing_left_to_evaluate_has_a_batch_of_padding(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", [[make_sample(n) for n in range(5)]])
    batch = Loader(
        dataset, EvaluationOrder(np.arange(5), 8), LoaderConfig(), rank=3, world_size=4
    ).batch(0)
    assert batch.logmel.shape == (2, 4, 64)
    assert (batch.is_padded, batch.n_frames.tolist(), batch.keys) == (True, [0, 0], ("", ""))


def test_masks_of_a_batch_that_is_filled_up_are_refused(small_dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"found an `EvaluationOrder`, .* leave `mask` out"):
        Loader(small_dataset, EvaluationOrder(np.arange(60), 16), MASKED)


def test_a_short_shard_stops_the_loader_with_its_name(small_dataset: Dataset) -> None:
    path = small_dataset.folder / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:1_000])
    loader = make_loader(small_dataset, MASKED)
    with pytest.raises(ShardError, match=r"train-000002.tar must have"):
        list(loader.batches(0, 7))


def test_a_lying_index_cannot_make_the_loader_read_outside_a_shard(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", [[make_sample(n) for n in range(8)]])
    dataset.index.n_frames[:] = 10**6
    loader = make_loader(dataset, LoaderConfig(crop_frames=32))
    with pytest.raises(ShardError, match="build the data set again"):
        loader.batch(0)


@pytest.mark.parametrize("column", ["label_ids", "label_indptr"])
def test_lying_labels_cannot_make_the_loader_write_outside_a_batch(
    small_dataset: Dataset, column: str
) -> None:
    columns = {name: np.array(small_dataset.index.column(name)) for name in COLUMNS}
    columns[column][-1] += 1_000
    replace_index(small_dataset, columns)
    with pytest.raises(DatasetError, match=f"`{column}` must .*; copy it again"):
        make_loader(open_dataset(small_dataset.folder), MASKED)
    columns["label_ids"][0] = -(2**31)
    with pytest.raises(DatasetError, match="the index is damaged"):
        class_counts(Index(columns))


def test_batches_are_the_same_with_one_core_and_with_more(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for cores in ({0}, {0, 1, 2}):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: cores)
        found.append(list(make_loader(small_dataset, MASKED).batches(0, 5)))
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


def test_leaving_early_ends_the_thread(small_dataset: Dataset) -> None:
    before = threading.active_count()
    batches = make_loader(small_dataset, MASKED).batches(0, 1_000)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_prefetch_keeps_the_order_and_hands_errors_over() -> None:
    assert list(prefetch(iter(range(100)), 3)) == list(range(100))

    def broken():
        yield 1
        raise RuntimeError("source broke")

    seen = []
    with pytest.raises(RuntimeError, match="source broke"):
        seen.extend(prefetch(broken(), 1))


def test_gather_equals_slices() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(n, 8)).astype(np.float16) for n in (3, 10, 6)]
    out = np.full((3, 6, 8), 9, np.float16)
    addresses = np.array([a.ctypes.data for a in arrays], np.uint64)
    gather(addresses, np.array([3 * 16, 6 * 16, 6 * 16]), out)
    for place, array in enumerate(arrays):
        expected = np.zeros((6, 8), np.float16)
        expected[: min(6, len(array))] = array[:6]
        np.testing.assert_array_equal(out[place], expected)


@given(
    first=st.integers(0, 70),
    row_bytes=st.integers(1, 300),
    runs=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 300)), min_size=1, max_size=5),
)
def test_gather_equals_slices_wherever_rows_and_runs_begin(
    first: int, row_bytes: int, runs: list[tuple[int, int]]
) -> None:
    source = np.random.default_rng(0).integers(1, 255, 1_000, np.uint8)
    sizes = np.array([min(size, row_bytes) for _, size in runs])
    memory = np.full(first + len(runs) * row_bytes + 70, 255, np.uint8)
    expected = memory.copy()
    for b, ((start, _), size) in enumerate(zip(runs, sizes, strict=True)):
        row = expected[first + b * row_bytes :][:row_bytes]
        row[:size], row[size:] = source[start : start + size], 0
    addresses = np.array([address_of(source) + start for start, _ in runs], np.uint64)
    gather(addresses, sizes, memory[first:][: len(runs) * row_bytes].reshape(len(runs), -1))
    np.testing.assert_array_equal(memory, expected)


def test_gather_refuses_runs_that_do_not_fit() -> None:
    out = np.zeros((2, 4), np.uint8)
    with pytest.raises(ValueError, match=r"`sizes` must be in 0..4 bytes, found 1..5"):
        gather(np.zeros(2, np.uint64), np.array([1, 5]), out)


def test_crop_starts_cover_every_place_evenly() -> None:
    keys = np.arange(60_000, dtype=np.uint64)
    starts = random_starts(np.full(len(keys), 15, np.int32), 10, keys)
    shares = np.bincount(starts, minlength=6) / len(keys)
    np.testing.assert_allclose(shares, 1 / 6, atol=0.01)
