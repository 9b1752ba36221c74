"""A stream of batches resumes anywhere, in this process and in the workers of a DataLoader."""

import pickle
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_sample, write_dataset
from test_loader import assert_same
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from melstream.pipeline.batch import Batch
from melstream.pipeline.length_order import LengthConfig
from melstream.pipeline.loader import LoaderConfig
from melstream.pipeline.masks import MaskConfig
from melstream.pipeline.order import OrderConfig
from melstream.pipeline.stream import BatchStream
from melstream.shards.dataset import Dataset

ORDER = OrderConfig(global_batch_size=8, n_streams=8, seed=3)
CROPS = LoaderConfig(crop_frames=32, mask=MaskConfig(n_distractors=7))
N_STEPS = 7  # of an epoch of the small data set
STARTS = ("fork", "forkserver", "spawn")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("melstream")] == []


def stream_of(dataset: Dataset, **changes) -> BatchStream:
    return BatchStream(dataset.folder, ORDER, CROPS, **changes)


def first_epochs(dataset: Dataset, n_epochs: int = 1) -> list[Batch]:
    stream = stream_of(dataset)
    return [batch for _ in range(n_epochs) for batch in stream]


def assert_all_same(found: list[Batch], expected: list[Batch]) -> None:
    assert [batch.step for batch in found] == [batch.step for batch in expected]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_samples_too_short_to_be_masked_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [make_sample(n, n_frames=5 if n % 4 == 0 else 40) for n in range(40)]
    dataset = write_dataset(tmp_path / "set", [samples])
    stream = BatchStream(dataset.folder, ORDER, CROPS)
    keys = [key for batch in stream for key in batch.keys]
    assert len(set(keys)) == len(keys) == 24  # of 30, three batches of 8
    assert not set(keys) & {dataset.key(row) for row in range(0, 40, 4)}
    assert "10 of 40 samples are left out, of fewer than 8 log-mel frames" in caplog.text
    whole = BatchStream(dataset.folder, ORDER, LoaderConfig(crop_frames=32))
    assert len(whole) == 5
    with pytest.raises(ValueError, match="at least one sample, found none"):
        len(BatchStream(dataset.folder, ORDER, CROPS, min_frames=41))


def test_each_iteration_is_the_next_epoch(small_dataset: Dataset) -> None:
    stream = stream_of(small_dataset)
    assert len(stream) == stream.steps_per_epoch == N_STEPS
    first, second = list(stream), list(stream)
    assert [batch.step for batch in first + second] == list(range(2 * N_STEPS))
    assert [batch.keys for batch in first] != [batch.keys for batch in second]
    assert stream.label_names == ("class 0", "class 1", "class 2")


def test_it_resumes_after_every_batch_and_twice_in_a_row(small_dataset: Dataset) -> None:
    straight = first_epochs(small_dataset, 2)
    for n in range(N_STEPS + 1):
        begun = stream_of(small_dataset)
        for batch in islice(begun, n):
            assert begun.position == batch.step + 1
        for _ in range(2):
            state = pickle.loads(pickle.dumps(begun.state_dict()))
            resumed = stream_of(small_dataset)
            resumed.load_state_dict(state)
            epoch_end = N_STEPS * (n // N_STEPS + 1)
            assert_all_same(list(resumed), straight[n:epoch_end])
            begun.load_state_dict(state)


def test_ranks_resume_with_another_world_size(small_dataset: Dataset) -> None:
    state = stream_of(small_dataset).state_at(4)
    whole = first_epochs(small_dataset)[4:]
    for world_size in (2, 4, 8):
        parts = []
        for rank in range(world_size):
            stream = stream_of(small_dataset, rank=rank, world_size=world_size)
            stream.load_state_dict(state)
            parts.append(list(stream))
        for step, batch in enumerate(whole):
            for rank in range(world_size):
                assert parts[rank][step].keys == batch.keys[rank::world_size]


def test_what_changed_is_refused_with_both_values(small_dataset: Dataset, tmp_path: Path) -> None:
    state = stream_of(small_dataset).state_at(2)
    other_seed = BatchStream(small_dataset.folder, ORDER.model_copy(update={"seed": 4}), CROPS)
    with pytest.raises(ValueError, match=r"seed: saved 3, now 4"):
        other_seed.load_state_dict(state)
    other_batch = ORDER.model_copy(update={"global_batch_size": 16})
    with pytest.raises(ValueError, match=r"global_batch_size: saved 8, now 16"):
        BatchStream(small_dataset.folder, other_batch, CROPS).load_state_dict(state)
    crops = CROPS.model_copy(update={"crop_frames": 36})
    with pytest.raises(ValueError, match=r"crop_frames': 32.*crop_frames': 36"):
        BatchStream(small_dataset.folder, ORDER, crops).load_state_dict(state)
    other = write_dataset(tmp_path / "other", [[make_sample(n) for n in range(60)]])
    with pytest.raises(ValueError, match=r"fingerprint: saved '\w+', now '\w+'"):
        BatchStream(other.folder, ORDER, CROPS).load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("start", [None, *STARTS])
def test_workers_give_the_same_batches(small_dataset: Dataset, start: str | None) -> None:
    stream = stream_of(small_dataset)
    assert len(list(islice(stream, 0))) == 0  # opened here before the workers start
    loader = DataLoader(
        stream, batch_size=None, num_workers=2 if start else 0, multiprocessing_context=start
    )
    found = [batch for _ in range(2) for batch in loader]
    assert_all_same(found, first_epochs(small_dataset, 2))
    assert len(loader) == N_STEPS


def test_a_worker_that_starts_last_begins_with_the_same_epoch(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, found = stream_of(small_dataset), []
    for epoch in range(2):
        for worker in (0, 1):  # the other one has come to the end of the epoch already
            assert stream.position == epoch * N_STEPS
            with monkeypatch.context() as patch:
                info = SimpleNamespace(id=worker, num_workers=2)
                patch.setattr("melstream.pipeline.stream.get_worker_info", lambda info=info: info)
                found += stream
        assert stream.position == (epoch + 1) * N_STEPS
    assert_all_same(sorted(found, key=lambda batch: batch.step), first_epochs(small_dataset, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "n_before"), [(0, 1), (0, 4), (2, 4), (2, N_STEPS - 1)])
def test_a_stateful_data_loader_resumes(
    small_dataset: Dataset, num_workers: int, n_before: int
) -> None:
    def loader() -> StatefulDataLoader:
        options = {"multiprocessing_context": "forkserver"} if num_workers else {}
        stream = stream_of(small_dataset)
        return StatefulDataLoader(stream, batch_size=None, num_workers=num_workers, **options)

    begun = loader()
    batches = iter(begun)
    before = [next(batches) for _ in range(n_before)]
    state = begun.state_dict()
    del batches
    resumed = loader()
    resumed.load_state_dict(state)
    assert_all_same(before + list(resumed), first_epochs(small_dataset))


def test_a_mixture_takes_its_shares_from_each_set(small_dataset: Dataset, tmp_path: Path) -> None:
    samples = [make_sample(100 + n, n_frames=50, label_ids=(n % 4,)) for n in range(30)]
    other = write_dataset(tmp_path / "other", [samples[:11], samples[11:]], n_classes=4)
    places = [small_dataset.folder, other.folder]
    stream = BatchStream(places, ORDER, CROPS, shares=[3, 1])
    assert stream.label_names == ("class 0", "class 1", "class 2", "class 3")
    for batch in stream:
        assert torch.bincount(batch.sources).tolist() == [6, 2]
        assert batch.labels is not None
        for place, (source, row) in enumerate(zip(batch.sources, batch.rows, strict=True)):
            dataset = (small_dataset, other)[source]
            assert batch.keys[place] == dataset.key(int(row))
            stored = dataset.read_logmel(int(row))
            crop = batch.logmel[place].numpy()
            first, n_frames = int(crop[0, 0]), int(batch.n_frames[place])
            assert (crop[:n_frames] == stored[first : first + n_frames]).all()
            assert (
                batch.labels[place].nonzero()[:, 0].tolist() == dataset.index.labels(row).tolist()
            )
    resumed = BatchStream(places, ORDER, CROPS, shares=[3, 1])
    resumed.load_state_dict(stream.state_at(5))
    again = BatchStream(places, ORDER, CROPS, shares=[3, 1])
    assert_all_same(list(resumed), list(again)[5:])


def test_batches_by_length_are_bounded_and_resume(small_dataset: Dataset) -> None:
    order = LengthConfig(global_batch_frames=320, n_lanes=2, n_streams=2, seed=1)
    config = LoaderConfig(mask=MaskConfig(n_distractors=7))
    stream = BatchStream(small_dataset.folder, order, config)
    batches = list(stream)
    assert sorted(key for batch in batches for key in batch.keys) == sorted(
        small_dataset.key(row) for row in range(60)
    )
    for batch in batches:
        longest = int(batch.n_frames.max())
        assert len(batch.keys) * longest <= 320
        assert longest - int(batch.n_frames.min()) <= 16
        for place, row in enumerate(batch.rows.tolist()):
            stored = small_dataset.read_logmel(row)
            assert (batch.logmel[place, : len(stored)].numpy() == stored).all()
    resumed = BatchStream(small_dataset.folder, order, config)
    resumed.load_state_dict(stream.state_at(5))
    assert_all_same(list(resumed), batches[5:])


def test_batches_by_length_keep_to_their_bound(small_dataset: Dataset) -> None:
    order = LengthConfig(global_batch_frames=90, max_frames=30, n_lanes=1, n_streams=2)
    batches = list(BatchStream(small_dataset.folder, order))
    assert max(batch.logmel.shape[0] * int(batch.n_frames.max()) for batch in batches) <= 90
    with pytest.raises(ValueError, match=r"at most that of the order \(30\), found 6000"):
        BatchStream(small_dataset.folder, order, LoaderConfig())
    with pytest.raises(ValueError, match="are of whole samples, found crop_frames=32"):
        BatchStream(small_dataset.folder, order, CROPS)


def test_batches_by_length_come_from_one_data_set(small_dataset: Dataset) -> None:
    places = [small_dataset.folder] * 2
    stream = BatchStream(places, LengthConfig(global_batch_frames=10_000))
    with pytest.raises(ValueError, match=r"must come from one data set, found 2; merge them"):
        next(iter(stream))
