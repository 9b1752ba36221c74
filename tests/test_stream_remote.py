"""An epoch over an object store has the batches of one from disk, whatever happens on the way."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Faults
from object_store import Bucket
from test_stream import CROPS, ORDER, assert_all_same, first_epochs, stream_of

from melstream.pipeline.shard_cache import CacheConfig
from melstream.pipeline.stream import BatchStream
from melstream.shards.dataset import Dataset
from melstream.shards.errors import ShardError
from melstream.shards.storage import StorageError

pytest_plugins = ["object_store"]

PIECE_BYTES = 20_000
LIMIT_S = 20.0  # of what succeeds in the end
SHORT_S = 1.0  # of what never does


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("melstream")] == []


@pytest.fixture
def url(small_dataset: Dataset, bucket: Bucket) -> str:
    """The address of the small data set in the object store."""
    storage = bucket.open()
    for name, _ in small_dataset.storage.list():
        storage.write(name, small_dataset.storage.read(name))
    return storage.url


def remote_stream(url: str, folder: Path | None = None, timeout_s: float = LIMIT_S) -> BatchStream:
    cache = CacheConfig(folder=folder, piece_bytes=PIECE_BYTES, min_free_bytes=0, n_parallel=3)
    return BatchStream(url, ORDER, CROPS, cache=cache, timeout_s=timeout_s)


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "folder"])
def test_batches_are_the_same_through_resets_stalls_and_503s(
    small_dataset: Dataset,
    url: str,
    tmp_path: Path,
    fault_proxy: Callable[[Faults], FaultProxy],
    in_memory: bool,
) -> None:
    faults = Faults(reset_after=60_000, n_times=4, unavailable_share=0.2, seed=1)
    proxy = fault_proxy(faults)
    stream = remote_stream(url, None if in_memory else tmp_path / "cache")
    found = [batch for _ in range(2) for batch in stream]
    assert_all_same(found, first_epochs(small_dataset, 2))
    assert proxy.counts["reset"] == 4
    assert proxy.counts["503"] > 0


def test_batches_are_the_same_after_a_stall(
    small_dataset: Dataset, url: str, fault_proxy: Callable[[Faults], FaultProxy]
) -> None:
    proxy = fault_proxy(Faults(stall_after=100_000, n_times=1))
    assert_all_same(list(remote_stream(url, timeout_s=6.0)), first_epochs(small_dataset))
    assert proxy.counts["stall"] == 1


def test_an_epoch_is_never_short(url: str, bucket: Bucket) -> None:
    storage = bucket.open()
    shard = storage.read("train-000002.tar")
    storage.write("train-000002.tar", shard[:-20_000])
    with pytest.raises(StorageError, match=r"set/train/train-000002.tar"):
        list(remote_stream(url, timeout_s=SHORT_S))
    storage.write("train-000002.tar", shard.replace(shard[3_000:3_064], bytes(64)))
    with pytest.raises(ShardError, match=r"train-000002.tar.*the shard changed since"):
        list(remote_stream(url))
    storage.delete("train-000002.tar")
    with pytest.raises(ShardError, match=r"set/train/train-000002.tar is missing; copy it again"):
        list(remote_stream(url))


def test_leaving_early_ends_the_threads(url: str) -> None:
    for batch in remote_stream(url):
        assert len(batch.rows) == 8
        break


def test_an_error_of_the_training_ends_the_threads(url: str) -> None:
    def train(stream: BatchStream) -> None:
        for batch in stream:
            raise RuntimeError(f"an error in step {batch.step}")

    with pytest.raises(RuntimeError, match="an error in step 0"):
        train(remote_stream(url))


def test_memory_is_bounded_and_said(small_dataset: Dataset, url: str) -> None:
    local, remote = (stream._open()[0] for stream in (stream_of(small_dataset), remote_stream(url)))
    assert "shards in memory" not in local.memory_bytes()
    assert remote.memory_bytes()["shards in memory"] == CacheConfig().memory_bytes
