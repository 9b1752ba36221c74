"""Samples of a data set in pipelines of real webdataset: each once, checked, splittable."""

import io
import json
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset as wds
from conftest import read_with_webdataset
from foreign_tars import write_tar
from object_store import Bucket

from melstream.pipeline.audio_logmels import AudioConfig, AudioLogMels, AudioSample
from melstream.pipeline.length_order import LengthConfig, LengthOrder
from melstream.pipeline.member_reader import read_samples
from melstream.pipeline.order import OrderConfig, TrainingOrder
from melstream.pipeline.webdataset_stages import shard_samples, tar_clips
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import ShardError
from melstream.shards.spec import PRESETS

pytest_plugins = ["object_store"]

ORDER = OrderConfig(global_batch_size=8, n_streams=4, shuffle_bytes=100_000)


def keys(samples: Any) -> list[str]:
    return [sample["__key__"] for sample in samples]


def test_stored_order_gives_what_webdataset_reads(small_dataset: Dataset) -> None:
    raw = list(shard_samples(small_dataset)())
    plain = read_with_webdataset(small_dataset)
    assert keys(raw) == keys(plain)
    for ours, theirs in zip(raw, plain, strict=True):
        assert ours["__url__"] == theirs["__url__"]
        assert json.loads(ours["json"]) == theirs["json"]
        np.testing.assert_array_equal(np.load(io.BytesIO(ours["logmel.npy"])), theirs["logmel.npy"])


def test_the_stages_of_webdataset_follow(small_dataset: Dataset) -> None:
    """The example of the module: decode, map, batched, WebLoader."""

    def crop(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "logmel.npy": sample["logmel.npy"][:20]}

    samples = wds.FluidWrapper(shard_samples(small_dataset.folder))  # type: ignore[attr-defined]
    batches = samples.decode().map(crop).to_tuple("logmel.npy", "json").batched(16)
    loader = wds.WebLoader(batches, batch_size=None, num_workers=0)
    for _ in range(2):  # it can be gone through again
        logmels = [logmel for logmel, info in loader]
        assert [logmel.shape for logmel in logmels] == [(16, 20, 64)] * 3 + [(12, 20, 64)]
        assert np.concatenate(logmels)[:, 0, 1].tolist() == list(range(60))


def test_it_is_a_stage_of_a_plain_pipeline(small_dataset: Dataset) -> None:
    pipeline = wds.DataPipeline(
        shard_samples(small_dataset), wds.decode(), wds.to_tuple("__key__", "logmel.npy")
    )
    assert [logmel[0, 1] for _, logmel in pipeline] == list(range(60))


@pytest.mark.parametrize("order", [None, ORDER, LengthConfig(global_batch_frames=1_000, n_lanes=4)])
def test_ranks_and_workers_share_the_samples(
    small_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    order: OrderConfig | LengthConfig | None,
) -> None:
    parts = []
    for rank in range(4):
        for worker in range(3):
            place = {"RANK": rank, "WORLD_SIZE": 4, "WORKER": worker, "NUM_WORKERS": 3}
            for name, value in place.items():
                monkeypatch.setenv(name, str(value))
            parts.append(keys(shard_samples(small_dataset, order)()))
    served = [key for part in parts for key in part]
    n_served = 56 if order is ORDER else 60  # the tail of whole batches is dropped
    assert len(served) == len(set(served)) == n_served
    if order is None:
        assert {len(part) for part in parts} == {5}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_the_batches_of_the_order(small_dataset: Dataset, num_workers: int) -> None:
    order = TrainingOrder(small_dataset.index, small_dataset.manifest.fingerprint, ORDER)
    n_steps = order.steps_per_epoch
    wanted = [order.rows(step).tolist() for step in range(n_steps + 2, 2 * n_steps)]
    samples = wds.FluidWrapper(  # type: ignore[attr-defined]
        shard_samples(small_dataset.folder, ORDER, epoch=1, first_step=2, members=("json",))
    )
    batches = samples.to_tuple("__key__").batched(8)
    loader = wds.WebLoader(batches, batch_size=None, num_workers=num_workers)
    assert [[int(key[-4:]) for key in batch] for (batch,) in loader] == wanted


def test_it_can_be_sent_to_a_spawned_worker(small_dataset: Dataset) -> None:
    stage = pickle.loads(pickle.dumps(shard_samples(small_dataset.folder, ORDER, epoch=3)))
    assert keys(stage()) == keys(shard_samples(small_dataset, ORDER, epoch=3)())


def test_lengths_give_batches_of_an_order_by_length(small_dataset: Dataset) -> None:
    config = LengthConfig(global_batch_frames=1_000, n_lanes=1)
    order = LengthOrder(small_dataset.index, small_dataset.manifest.fingerprint, config)
    rows = np.concatenate([order.rows(step) for step in range(order.steps_per_epoch)])
    found = keys(shard_samples(small_dataset, config, members=("json",))())
    assert [int(key[-4:]) for key in found] == rows.tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_workers_share_tars_of_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """With more ranks and workers than tars, too."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(8_000, 0.1), 16_000, format="WAV")
    for n in range(3):
        write_tar(tmp_path / f"{n}.tar", [(f"{n}{m}.wav", buffer.getvalue()) for m in "abc"])
    stage = AudioLogMels(PRESETS["kaldi128"], AudioConfig(max_rejects=0, n_threads=1))
    served = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        pipeline = wds.DataPipeline(tar_clips(tmp_path), stage, _keys_and_shapes)
        served += list(wds.WebLoader(pipeline, batch_size=None, num_workers=num_workers))
    assert sorted(served) == [f"{n}{m} (48, 128)" for n in range(3) for m in "abc"]


def _keys_and_shapes(samples: Iterable[AudioSample]) -> Iterator[str]:
    for sample in samples:
        yield f"{sample.key} {sample.logmel.shape}"


def test_a_truncated_shard_is_an_error_with_shard_and_key(small_dataset: Dataset) -> None:
    path = small_dataset.folder / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:-1024])
    samples = shard_samples(small_dataset.folder)()
    with pytest.raises(ShardError, match=r"train-000002.tar must have \d+ bytes, found") as error:
        list(samples)
    assert error.value.shard == "train-000002.tar"
    assert error.value.key == "clip-0020"


@pytest.mark.parametrize("member", ["logmel", "json"])
def test_an_altered_byte_is_an_error_with_shard_and_key(
    small_dataset: Dataset, member: str
) -> None:
    path = small_dataset.folder / "train-000001.tar"
    offset, size = small_dataset.member_span(9, member)
    content = bytearray(path.read_bytes())
    content[offset + size - 2] ^= 1
    path.write_bytes(content)
    dataset = open_dataset(small_dataset.folder)
    with pytest.raises(ShardError, match="the payload of clip-0009 is not the one") as error:
        list(shard_samples(dataset)())
    assert (error.value.shard, error.value.key) == ("train-000001.tar", "clip-0009")
    assert len(list(shard_samples(dataset, check=False)())) == 60


def test_a_missing_shard_is_an_error(small_dataset: Dataset) -> None:
    (small_dataset.folder / "train-000004.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000004.tar is missing; copy it again"):
        list(shard_samples(small_dataset.folder)())


@pytest.fixture
def remote(small_dataset: Dataset, bucket: Bucket) -> Dataset:
    """The shards of ``small_dataset`` in an object store; the index is the local one."""
    storage = bucket.open()
    for shard in small_dataset.manifest.shards:
        storage.write(shard.name, small_dataset.storage.read(shard.name))
    dataset = Dataset(storage, small_dataset.manifest)
    dataset.index = small_dataset.index
    return dataset


@pytest.mark.parametrize("order", [None, ORDER])
def test_an_object_store_gives_the_same_samples(
    small_dataset: Dataset, remote: Dataset, order: OrderConfig | None
) -> None:
    wanted = list(shard_samples(small_dataset, order)())
    found = list(shard_samples(remote, order)())
    for sample in [*wanted, *found]:
        sample["__url__"] = sample["__url__"].rpartition("/")[2]
    assert found == wanted


def test_neighbours_are_read_with_one_request(
    remote: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []
    read_range = remote.storage.read_range
    monkeypatch.setattr(
        remote.storage, "read_range", lambda *args: requests.append(args) or read_range(*args)
    )
    assert len(list(read_samples(remote, range(60)))) == 60
    assert len(requests) == 5  # shards
    assert [row for row, _ in read_samples(remote, [3, 3, 9, 2])] == [3, 3, 9, 2]
    assert len(requests) == 9


def test_a_shard_of_an_object_store_that_changed_is_an_error_with_shard_and_key(
    small_dataset: Dataset, remote: Dataset
) -> None:
    storage, name = remote.storage, "train-000003.tar"
    content = small_dataset.storage.read(name)
    storage.write(name, content[:-512])
    with pytest.raises(ShardError, match="must have") as error:
        list(shard_samples(remote)())
    assert (error.value.shard, error.value.key) == (name, "clip-0032")
    offset, _ = small_dataset.member_span(40, "json")
    storage.write(name, content[:offset] + b"X" + content[offset + 1 :])
    with pytest.raises(ShardError, match="the payload of clip-0040 is not the one"):
        list(shard_samples(remote)())
    storage.delete(name)
    with pytest.raises(ShardError, match=r"train-000003.tar is missing"):
        list(shard_samples(remote)())


def test_an_index_that_points_outside_its_shard_is_an_error(
    small_dataset: Dataset, remote: Dataset
) -> None:
    small_dataset.index.json_offset[5] = 10**9
    for dataset in (small_dataset, remote):
        with pytest.raises(ShardError, match=r"the index places .* at bytes") as error:
            list(shard_samples(dataset)())
        assert error.value.key == "clip-0005"


def test_members_that_are_not_asked_for_are_left_out(small_dataset: Dataset) -> None:
    (sample, *_) = shard_samples(small_dataset, members=("json",))()
    assert sorted(sample) == ["__key__", "__url__", "json"]
