"""Shards of an object store: the same bytes as on disk, from a shared folder or from memory."""

import itertools
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cache_worker
import numpy as np
import pytest
from cache_worker import arrays_of
from conftest import make_sample, write_dataset
from fault_proxy import FaultProxy, Faults
from object_store import Bucket

from melstream.pipeline.locked_files import remove
from melstream.pipeline.pieces import cut_pieces
from melstream.pipeline.shard_cache import CacheConfig, ShardCache
from melstream.pipeline.shard_source import ShardSource
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import ShardError
from melstream.shards.storage import DEFAULT_TIMEOUT_S, Storage, StorageError

pytest_plugins = ["object_store"]

PIECE_BYTES = 20_000  # the small data set has about 20 such pieces
LIMIT_S = 6.0  # of a request that succeeds in the end
SHORT_S = 1.0  # of one that never does
HANG_S = 60.0  # after which another thread or process is taken to hang


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name == "melstream-fetch"] == []


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 samples of 20 to 79 frames in 5 shards of unequal size; nobody alters it."""
    samples = [make_sample(n, n_frames=20 + n) for n in range(60)]
    cuts = [0, 7, 20, 32, 51, 60]
    shards = [samples[a:b] for a, b in itertools.pairwise(cuts)]
    return write_dataset(tmp_path_factory.mktemp("local") / "train", shards)


def upload(dataset: Dataset, storage: Storage) -> None:
    """Copy a data set, index and all."""
    for name, _ in dataset.storage.list():
        storage.write(name, dataset.storage.read(name))


@pytest.fixture
def remote(local: Dataset, bucket: Bucket) -> Callable[..., Dataset]:
    """``remote()``: the shards of ``local`` in the bucket, with a new client each time.

    The index is the local one: uploading its many small files takes most of a second.
    """
    for shard in local.manifest.shards:
        bucket.open().write(shard.name, local.storage.read(shard.name))

    def reopen(timeout_s: float = DEFAULT_TIMEOUT_S) -> Dataset:
        dataset = Dataset(bucket.open(timeout_s=timeout_s), local.manifest)
        dataset.index = local.index
        return dataset

    return reopen


def small_config(folder: Path | None = None, **changes: int) -> CacheConfig:
    defaults = {"piece_bytes": PIECE_BYTES, "min_free_bytes": 0, "n_parallel": 2}
    return CacheConfig(folder=folder, **{**defaults, **changes})  # type: ignore[arg-type]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def read_all(source: ShardSource, expected: Dataset, batch_size: int = 7) -> None:
    """Read every row, in random order, and compare it with the local copy."""
    rows = np.random.default_rng(0).permutation(len(expected))
    steps = np.array_split(rows, -(-len(rows) // batch_size))
    source.read_ahead(iter(steps))
    for step in steps:
        with source.acquire(step) as lease:
            for row, found in zip(step, arrays_of(lease), strict=True):
                assert found == expected.read_stored(int(row)).tobytes(), row


def test_local_shards_are_mapped_where_they_are(local: Dataset) -> None:
    with ShardSource(local) as source:
        read_all(source, local)
        with source.acquire(np.array([3, -1, 5])) as lease:
            assert lease.addresses[1] == lease.n_bytes[1] == 0
            assert lease.addresses.dtype == np.uint64
        assert source.stats.n_fetched == 0
    with pytest.raises(ValueError, match="must be open"):
        source.acquire(np.array([3]))


@pytest.mark.parametrize("piece_bytes", [1, PIECE_BYTES, 10**9])
@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "folder"])
def test_remote_shards_have_the_same_bytes(
    local: Dataset,
    remote: Callable[..., Dataset],
    tmp_path: Path,
    piece_bytes: int,
    in_memory: bool,
) -> None:
    folder = None if in_memory else tmp_path / "cache"
    config = small_config(folder, piece_bytes=piece_bytes)
    n_pieces = len(cut_pieces(local, piece_bytes))
    for n_fetched in (n_pieces, n_pieces if in_memory else 0):  # the second time it is all there
        with ShardSource(remote(), config) as source:
            read_all(source, local)
            read_all(source, local)
            assert source.stats.n_fetched == n_fetched
    if folder is not None:
        sizes = [path.stat().st_size for path in folder.glob("*/*.piece")]
        assert (len(sizes), sum(sizes)) == (n_pieces, cut_pieces(local, piece_bytes).n_bytes.sum())
        assert len(files_in(folder)) == n_pieces + 1  # and the count of bytes in use


def test_a_range_is_fetched_and_no_more(remote: Callable[..., Dataset]) -> None:
    with ShardSource(remote(), small_config()) as source:
        pieces = cut_pieces(remote(), PIECE_BYTES)
        source.acquire(np.array([-1, 33, -1])).release()
        assert source.stats.n_fetched == 1
        assert source.stats.fetched_bytes == pieces.n_bytes[pieces.of_row[33]]
        source.acquire(np.array([-1, -1])).release()  # nothing at all
        assert source.stats.n_fetched == 1


def test_a_lease_outlives_the_source(local: Dataset, remote: Callable[..., Dataset]) -> None:
    with ShardSource(remote(), small_config()) as source:
        lease = source.acquire(np.array([33]))
    assert arrays_of(lease) == [local.read_stored(33).tobytes()]
    lease.release()
    lease.release()  # once is enough, twice is no error


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "folder"])
@pytest.mark.parametrize(
    "faults",
    [
        Faults(reset_after=30_000, n_times=3),
        Faults(reset_after=0, n_times=2),
        Faults(stall_after=30_000),
        Faults(unavailable_share=0.5, seed=1),
    ],
    ids=["reset", "reset at once", "stall", "503"],
)
def test_bytes_are_the_same_after_a_fault(
    local: Dataset,
    remote: Callable[..., Dataset],
    fault_proxy: Callable[[Faults], FaultProxy],
    tmp_path: Path,
    faults: Faults,
    in_memory: bool,
) -> None:
    proxy = fault_proxy(faults)
    with ShardSource(
        remote(LIMIT_S), small_config(None if in_memory else tmp_path / "cache")
    ) as source:
        read_all(source, local)
    assert sum(proxy.counts[fault] for fault in ("reset", "stall", "503")) > 0


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(stall_after=0, n_times=10**9), r"no whole answer .* in \d\.\d s .*`timeout_s`"),
        (Faults(reset_after=0, n_times=10**9), r"no whole answer .* in \d\.\d s"),
        (Faults(unavailable_share=1.0), "the store answered 503 SlowDown"),
    ],
    ids=["stall", "reset", "503"],
)
def test_what_never_works_ends_in_an_error(
    remote: Callable[..., Dataset],
    bucket: Bucket,
    fault_proxy: Callable[[Faults], FaultProxy],
    tmp_path: Path,
    faults: Faults,
    message: str,
) -> None:
    fault_proxy(faults)
    with (
        ShardSource(remote(SHORT_S), small_config(tmp_path / "cache")) as source,
        pytest.raises(StorageError, match=rf"{bucket.url}/set/train/train-0+\.tar: {message}"),
    ):
        source.acquire(np.array([0]))
    assert files_in(tmp_path / "cache") == [".usage"]


def break_shard(storage: Storage, name: str, kind: str) -> None:
    payload = bytearray(storage.read(name))
    if kind == "missing":
        return storage.delete(name)
    if kind == "short":
        del payload[len(payload) // 2 :]
    elif kind == "changed":
        payload[-12_000] ^= 1
    elif kind == "shifted":
        payload[:0] = bytes(512)
    storage.write(name, bytes(payload))


@pytest.mark.parametrize("ahead", [True, False], ids=["read ahead", "on demand"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"train-000002\.tar is missing; copy it again"),
        ("short", r"train-000002\.tar.* (it was cut or replaced|ends before the range)"),
        (
            "changed",
            r"train-000002\.tar: the payload of clip-00\d\d is not .* changed since",
        ),
        ("shifted", r"train-000002\.tar: the payload of clip-0020 is not the one"),
    ],
)
def test_a_bad_shard_is_an_error_that_names_it(
    local: Dataset,
    remote: Callable[..., Dataset],
    bucket: Bucket,
    tmp_path: Path,
    kind: str,
    message: str,
    ahead: bool,
) -> None:
    break_shard(bucket.open(), "train-000002.tar", kind)
    config = small_config(tmp_path / "cache", read_ahead_bytes=2**20 if ahead else 0)
    with ShardSource(remote(), config) as source:
        rows = np.arange(32)
        source.read_ahead([rows[:20], rows[20:]])
        with source.acquire(rows[:20]) as lease:  # the shards before it can be read
            assert arrays_of(lease)[7] == local.read_stored(7).tobytes()
        with pytest.raises((ShardError, StorageError), match=rf"{bucket.url}/set/train/{message}"):
            source.acquire(rows[20:])
    assert not any(name.endswith(".partial") for name in files_in(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("variable", "message"),
    [("AWS_SECRET_ACCESS_KEY", "access refused"), ("AWS_ENDPOINT_URL", "no whole answer")],
)
def test_a_store_that_refuses_is_an_error_that_says_what_to_set(
    remote: Callable[..., Dataset],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with (
        ShardSource(remote(SHORT_S), small_config()) as source,
        pytest.raises(StorageError, match=rf"{message}.*{variable}"),
    ):
        source.acquire(np.arange(3))


def test_a_changed_data_set_never_meets_old_bytes(
    local: Dataset, bucket: Bucket, tmp_path: Path
) -> None:
    storage, config = bucket.open(), small_config(tmp_path / "cache")
    changed = write_dataset(
        tmp_path / "new", [[make_sample(100 + n, n_frames=20 + n) for n in range(60)]]
    )
    for dataset in (local, changed):
        storage.delete_all("index.zarr")  # a column of zeros has no file to replace the old one
        upload(dataset, storage)
        with ShardSource(open_dataset(bucket.open()), config) as source:
            read_all(source, dataset)
            assert source.stats.n_reused == 0
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


def test_an_altered_piece_of_the_folder_is_fetched_again(
    local: Dataset, remote: Callable[..., Dataset], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ShardSource(remote(), small_config(tmp_path)) as source:
        read_all(source, local)
        n_pieces = source.stats.n_fetched
    altered = next(tmp_path.glob("*/*.piece"))
    payload = bytearray(altered.read_bytes())
    payload[-1] ^= 1
    altered.write_bytes(payload)
    for n_reused in (n_pieces - 1, n_pieces - 1, n_pieces):  # by the second it is kept again
        with ShardSource(remote(), small_config(tmp_path)) as source:
            read_all(source, local)
            assert source.stats.n_reused == n_reused
    assert caplog.messages == [f"{altered} was altered; it is fetched again"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_reads_with_threads_of_its_own(
    local: Dataset, remote: Callable[..., Dataset], tmp_path: Path
) -> None:
    with ShardSource(remote(), small_config(tmp_path, max_bytes=100_000)) as source:
        read_all(source, local)
        child = multiprocessing.get_context("fork").Process(target=read_all, args=(source, local))
        child.start()
        read_all(source, local)
        child.join(HANG_S)
        assert child.exitcode == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_needs_no_temporary_folder_that_runs_programs(
    local: Dataset,
    remote: Callable[..., Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))

    def read_in_a_fork(n_more: int) -> None:
        with ShardSource(remote(), small_config()) as source:
            read_all(source, local)
        if n_more:
            start_fork(n_more - 1)

    def start_fork(n_more: int) -> None:
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=read_in_a_fork, args=[n_more])
        child.start()
        child.join(HANG_S)
        assert child.exitcode == 0

    start_fork(1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_leases_nothing_of_its_parent(
    local: Dataset, remote: Callable[..., Dataset], tmp_path: Path
) -> None:
    goes_on, end = multiprocessing.Pipe()
    with ShardSource(remote(), small_config(tmp_path)) as source:
        read_all(source, local)
        context = multiprocessing.get_context("fork")
        child = context.Process(target=lambda: (end.send("started"), end.recv()))
        child.start()
        assert goes_on.recv() == "started"
    removed = [remove(path) for path in tmp_path.glob("*/*.piece")]
    goes_on.send("enough")
    child.join(HANG_S)
    assert removed
    assert all(removed)


def test_the_sources_of_a_process_share_half_of_its_file_descriptors(
    local: Dataset,
    remote: Callable[..., Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (24, 24))
    with (
        ShardSource(remote(), small_config(tmp_path / "a")) as one,
        ShardSource(remote(), small_config(tmp_path / "b")) as other,
    ):
        for source in (one, other, one):
            read_all(source, local, batch_size=2)
        links = (Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        files = [link.readlink().name for link in links if link.is_symlink()]
        assert sum(name.endswith(".piece") for name in files) <= 12


def test_processes_share_a_folder_while_one_is_killed_again_and_again(
    local: Dataset, bucket: Bucket, tmp_path: Path
) -> None:
    storage = bucket.open()
    upload(local, storage)
    program, url = Path(cache_worker.__file__), storage.url
    command = [sys.executable, "-I", program, url, tmp_path / "cache", local.folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) == cache_worker.N_KILLS
    # Opening the folder removes what the killed ones were writing.
    ShardCache(tmp_path / "cache", max_bytes=cache_worker.MAX_BYTES, min_free_bytes=0)
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("*/*.piece")]
    assert sum(sizes) <= cache_worker.MAX_BYTES
    assert {Path(name).suffix for name in files_in(tmp_path / "cache")} <= {".piece", ""}
