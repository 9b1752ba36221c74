"""A data set in an object store is inspected without its tars, a clip by its bytes alone."""

from collections.abc import Callable

import pytest
from conftest import silent
from object_store import Bucket

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import ShardError
from melstream.shards.remote_storage import RemoteStorage
from melstream.shards.verify import find_problems
from melstream.tools.clips import check_samples
from melstream.tools.inspect import inspect_dataset
from melstream.tools.selection import Selection
from melstream.tools.subset import subset

pytest_plugins = ["object_store"]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None]]:
    """Names read from an object store, with the bytes that were asked for; None for all."""
    seen: list[tuple[str, int | None]] = []
    read, read_range = RemoteStorage.read, RemoteStorage.read_range

    def noted_read(self: RemoteStorage, name: str) -> bytes:
        seen.append((name, None))
        return read(self, name)

    def noted_range(self: RemoteStorage, name: str, start: int, length: int) -> bytes:
        seen.append((name, length))
        return read_range(self, name, start, length)

    monkeypatch.setattr(RemoteStorage, "read", noted_read)
    monkeypatch.setattr(RemoteStorage, "read_range", noted_range)
    return seen


@pytest.mark.slow
def test_only_what_is_asked_for_is_read(
    built: Callable[[str], Dataset], bucket: Bucket, reads: list[tuple[str, int | None]]
) -> None:
    local = subset(built("eval"), bucket.open(), Selection(), silent)
    dataset = open_dataset(local.url, reads_ranges=True)
    reads.clear()
    found = inspect_dataset(dataset)
    assert found.bands == inspect_dataset(built("eval")).bands
    assert set(find_problems(dataset, full=False)) == {None}
    assert not [name for name, _ in reads if name.endswith(".tar")]
    assert check_samples(dataset, 4).problems == ()
    sizes = [size for name, size in reads if name.endswith(".tar")]
    assert None not in sizes
    assert sum(size or 0 for size in sizes) < 0.6 * found.totals.size_bytes
    shard = dataset.manifest.shards[0].name
    dataset.storage.delete(shard)
    with pytest.raises(ShardError, match=rf"{shard} is missing; copy it again"):
        dataset.read_logmel(0)
