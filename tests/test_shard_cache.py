"""Shards of an object store: the same bytes as on disk, from a shared folder or from memory."""

import fcntl
import itertools
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import cache_worker
import numpy as np
import pytest
from cache_worker import arrays_of
from conftest import make_sample, write_dataset
from fault_proxy import FaultProxy, Faults
from object_store import Bucket

from melstream.pipeline.fetcher import Fetcher, PlannedStep
from melstream.pipeline.order import OrderConfig, TrainingOrder
from melstream.pipeline.pieces import Pieces, cut_pieces, default_piece_bytes
from melstream.pipeline.shard_cache import (
    CacheConfig,
    CachedSet,
    ShardCache,
    cache_info,
    clear_cache,
)
from melstream.pipeline.shard_source import ShardSource
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import ShardError
from melstream.shards.storage import DEFAULT_TIMEOUT_S, Storage, StorageError

pytest_plugins = ["object_store"]

PIECE_BYTES = 20_000  # the small data set has about 20 such pieces
LIMIT_S = 6.0  # of a request that succeeds in the end
SHORT_S = 1.0  # of one that never does
HANG_S = 60.0  # after which another thread or process is taken to hang
N_BYTES = 1_000  # of a piece in the tests of the folder
PLENTY = 2**40


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


# Pieces


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
    assert default_piece_bytes(2**40) * 64 < 0.1 * 2**40
    assert default_piece_bytes(2 * 2**30) * 64 <= 0.1 * 2 * 2**30


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


# The source


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
        assert [(s.n_files, s.n_bytes) for s in cache_info(folder)] == [
            (n_pieces, cut_pieces(local, piece_bytes).n_bytes.sum())
        ]
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
        (Faults(stall_after=0, n_times=10**9), r"no whole answer .* within 1 s .*`timeout_s`"),
        (Faults(reset_after=0, n_times=10**9), r"no whole answer .* within 1 s"),
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
    assert len(cache_info(tmp_path / "cache")) == 2


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


def test_processes_share_a_folder_while_one_is_killed_again_and_again(
    local: Dataset, bucket: Bucket, tmp_path: Path
) -> None:
    storage = bucket.open()
    upload(local, storage)
    program, url = Path(cache_worker.__file__), storage.url
    command = [sys.executable, "-I", program, url, tmp_path / "cache", local.folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) == cache_worker.N_KILLS
    left = cache_info(tmp_path / "cache")  # also removes what the killed ones were writing
    assert sum(found.n_bytes for found in left) <= cache_worker.MAX_BYTES
    assert {Path(name).suffix for name in files_in(tmp_path / "cache")} <= {".piece", ""}


# The folder


def payload_of(name: str) -> bytes:
    return name.encode().ljust(N_BYTES, b".")


def get(cache: ShardCache, name: str) -> np.ndarray:
    """Have a piece named ``x`` of a set ``s``; what it holds says which it is."""
    path = f"s/{name}-0-{N_BYTES}.piece"
    data = cache.get(path, N_BYTES, lambda: payload_of(name), wait_s=0.01)
    assert data.tobytes() == payload_of(name)
    assert not data.flags.writeable
    return data


def names_in(folder: Path) -> list[str]:
    return [name.split("-")[0] for name in files_in(folder / "s")]


def open_cache(folder: Path, n_pieces: int = 4) -> ShardCache:
    return ShardCache(folder, max_bytes=n_pieces * N_BYTES, min_free_bytes=0)


def test_the_least_recently_used_pieces_make_room(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    for name in "abcd":
        get(cache, name)
        os.utime(tmp_path / f"s/{name}-0-{N_BYTES}.piece", (0, ord(name)))
    get(cache, "a")  # used again
    get(cache, "e")
    assert names_in(tmp_path) == ["a", "d", "e"]  # room for one, and a sixteenth to spare
    get(cache, "f")
    assert names_in(tmp_path) == ["a", "d", "e", "f"]


def test_what_is_leased_is_never_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cache, other = open_cache(tmp_path), open_cache(tmp_path)
    leases = [get(cache, name) for name in "abcd"]
    for name in "efe":
        get(other, name)  # in memory: there is no room
    assert names_in(tmp_path) == ["a", "b", "c", "d"]
    assert [record.args and record.args[1] for record in caplog.records] == [N_BYTES]  # said once
    assert clear_cache(tmp_path) == (0, 4 * N_BYTES)
    leases.pop()
    get(other, "g")
    assert names_in(tmp_path) == ["a", "b", "c", "g"]
    assert [lease[:1].tobytes() for lease in leases] == [b"a", b"b", b"c"]


def test_the_floor_of_free_space_is_kept(tmp_path: Path) -> None:
    free = [3 * N_BYTES]

    def free_bytes(folder: Path) -> int:
        return free[0] - N_BYTES * len(files_in(folder / "s"))

    cache = ShardCache(
        tmp_path, max_bytes=PLENTY, min_free_bytes=N_BYTES // 2, free_bytes=free_bytes
    )
    for name in "abcdef":
        get(cache, name)
        assert free_bytes(tmp_path) >= N_BYTES // 2
        assert name in names_in(tmp_path)
    free[0] = 0  # somebody else filled the disk
    get(cache, "g")
    assert names_in(tmp_path) == []


def test_a_piece_larger_than_the_cache_removes_nothing(tmp_path: Path) -> None:
    get(open_cache(tmp_path), "a")
    get(open_cache(tmp_path, n_pieces=0), "b")
    assert names_in(tmp_path) == ["a"]


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(tmp_path)

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    get(cache, "a")
    assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file must be a folder .*; choose another, or none"):
        open_cache(tmp_path / "file")


def test_what_killed_downloads_left_is_removed_and_what_runs_is_not(tmp_path: Path) -> None:
    get(open_cache(tmp_path), "a")
    stale, running = (tmp_path / f"s/{x}-0-{N_BYTES}.piece.partial" for x in "xy")
    stale.write_bytes(b"half")
    running.write_bytes(b"half")
    with running.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cache = open_cache(tmp_path)
        assert names_in(tmp_path) == ["a", "y"]
        assert cache_info(tmp_path) == [CachedSet("s", 2, 2 * N_BYTES)]
        get(cache, "y")  # whoever downloads it seems to be stopped, and keeps its file
        assert names_in(tmp_path) == ["a", "y"]
    get(cache, "y")  # it was killed: its file is taken over
    assert files_in(tmp_path / "s") == [f"a-0-{N_BYTES}.piece", f"y-0-{N_BYTES}.piece"]


def test_a_piece_cut_by_a_power_failure_is_fetched_again(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    get(cache, "a")
    os.truncate(tmp_path / f"s/a-0-{N_BYTES}.piece", N_BYTES // 2)
    get(cache, "a")
    assert (tmp_path / f"s/a-0-{N_BYTES}.piece").read_bytes() == payload_of("a")


def test_one_thread_downloads_and_the_others_wait(tmp_path: Path) -> None:
    fetched, go_on = [], threading.Event()

    def fetch() -> bytes:
        fetched.append(threading.get_ident())
        assert go_on.wait(HANG_S)
        return payload_of("a")

    def read() -> None:
        data = open_cache(tmp_path).get(f"s/a-0-{N_BYTES}.piece", N_BYTES, fetch, wait_s=HANG_S)
        assert data.tobytes() == payload_of("a")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


def test_an_error_while_downloading_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise ShardError("no", shard="a")

    cache = open_cache(tmp_path)
    with pytest.raises(ShardError, match="no"):
        cache.get(f"s/a-0-{N_BYTES}.piece", N_BYTES, fail, wait_s=0.01)
    assert names_in(tmp_path) == []
    get(cache, "a")


def test_a_cache_is_described_and_cleared_by_data_set(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, max_bytes=PLENTY, min_free_bytes=0)
    for name in ("one/a", "one/b", "two/a"):
        cache.get(f"{name}-0-{N_BYTES}.piece", N_BYTES, lambda: bytes(N_BYTES), wait_s=0.01)
    (tmp_path / "two" / "notes.txt").touch()  # not ours
    assert cache_info(tmp_path) == [CachedSet("one", 2, 2_000), CachedSet("two", 1, 1_000)]
    assert clear_cache(tmp_path, "one") == (2_000, 0)
    assert cache_info(tmp_path) == [CachedSet("two", 1, 1_000)]
    assert clear_cache(tmp_path) == (1_000, 0)
    assert files_in(tmp_path) == [".usage", "notes.txt"]
    get(cache, "a")  # the cache goes on
    assert cache_info(tmp_path / "nowhere") == []


# The fetcher


class Loads:
    """Pieces of 10 bytes; notes which were loaded, and the most bytes alive at once."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.n_alive = self.most_alive = 0
        self._lock = threading.Lock()

    def __call__(self, number: int) -> np.ndarray:
        data = np.full(10, number, np.uint8)
        weakref.finalize(data, self._note, -1)
        self._note(1)
        self.numbers.append(number)
        return data

    def _note(self, change: int) -> None:
        with self._lock:
            self.n_alive += change
            self.most_alive = max(self.most_alive, self.n_alive)


def make_fetcher(load: Callable[[int], np.ndarray], n_pieces: int = 8, **changes: int) -> Fetcher:
    limits = {"max_bytes": 10 * n_pieces, "max_pieces": 100, "n_threads": 1, **changes}
    return Fetcher(load, np.full(1_000, 10, np.int64), **limits)


def plan_of(steps: list[list[int]]) -> Iterator[PlannedStep]:
    return iter([PlannedStep(step, 5 * len(step)) for step in steps])


@pytest.mark.parametrize("n_threads", [1, 4])
def test_memory_is_bounded_and_every_piece_loaded_once(n_threads: int) -> None:
    loads = Loads()
    fetcher = make_fetcher(loads, n_threads=n_threads)
    steps = [[n, n + 1, n + 2] for n in range(200)]
    fetcher.plan(plan_of(steps), 40)
    for step in steps:
        slots = fetcher.hold(step)
        assert [slot.data is not None and int(slot.data[0]) for slot in slots] == [
            number % 256 for number in step
        ]
        fetcher.release(slots)
        del slots
    fetcher.close()
    assert sorted(loads.numbers) == list(range(202))
    assert loads.most_alive <= 8


def test_pieces_are_fetched_in_the_order_of_their_first_use_and_only_so_far() -> None:
    loads, ends = Loads(), threading.Event()

    def steps() -> Iterator[PlannedStep]:
        yield PlannedStep([5, 3], 10)
        yield PlannedStep([3, 4], 10)
        yield PlannedStep([9], 10)
        ends.set()  # asked for once more: three steps are not enough for 31 bytes
        yield PlannedStep([7], 10)
        raise AssertionError("asked too far ahead")

    fetcher = make_fetcher(loads)
    fetcher.plan(steps(), 31)
    assert ends.wait(HANG_S)
    fetcher.release(fetcher.hold([5, 3]))
    fetcher.close()
    assert loads.numbers[:4] == [5, 3, 4, 9]


def test_what_fails_ahead_is_tried_again_when_it_is_needed() -> None:
    failed, attempts = threading.Event(), []

    def load(number: int) -> np.ndarray:
        attempts.append(number)
        if len(attempts) == 1:
            failed.set()
            raise StorageError("down")
        return np.zeros(10, np.uint8)

    fetcher = make_fetcher(load)
    fetcher.plan(plan_of([[1], [2]]), 100)
    assert failed.wait(HANG_S)
    while 2 not in attempts:  # the thread has noted the failure before it goes on
        pass
    fetcher.release(fetcher.hold([1]))
    fetcher.close()
    assert attempts == [1, 2, 1]


def test_an_error_reaches_everybody_who_waits() -> None:
    def load(number: int) -> np.ndarray:
        raise StorageError(f"down {number}")

    fetcher = make_fetcher(load)
    for _ in range(2):
        with pytest.raises(StorageError, match="down 1"):
            fetcher.hold([1, 2])
    fetcher.close()


def test_an_error_of_the_plan_reaches_the_step_it_is_for() -> None:
    def steps() -> Iterator[PlannedStep]:
        yield PlannedStep([1], 10)
        raise KeyError("no step")

    fetcher = make_fetcher(Loads())
    fetcher.plan(steps(), 100)

    def go_on() -> None:
        for _ in range(10**6):  # the plan may come late, then for a later step
            fetcher.release(fetcher.hold([1]))

    with pytest.raises(KeyError, match="no step"):
        go_on()
    fetcher.close()


def test_more_than_fits_at_once_is_refused() -> None:
    fetcher = make_fetcher(Loads(), n_pieces=3)
    slots = fetcher.hold([1, 2])
    with pytest.raises(StorageError, match=r"`memory_bytes` allows 30; raise it"):
        fetcher.hold([2, 3, 4])
    fetcher.release(slots)
    fetcher.release(fetcher.hold([2, 3, 4]))
    fetcher.close()


def test_more_pieces_than_may_be_kept_can_be_held() -> None:
    fetcher = make_fetcher(Loads(), n_pieces=30, max_pieces=4)
    fetcher.release(fetcher.hold(list(range(20))))
    fetcher.close()


def test_closing_ends_who_waits() -> None:
    started, go_on = threading.Event(), threading.Event()

    def load(number: int) -> np.ndarray:
        started.set()
        assert go_on.wait(HANG_S)
        return np.zeros(10, np.uint8)

    fetcher = make_fetcher(load)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            fetcher.hold([1, 2])
        except ValueError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert started.wait(HANG_S)
    closing = threading.Thread(target=fetcher.close)
    closing.start()
    waiting.join(HANG_S)
    go_on.set()
    closing.join(HANG_S)
    assert ["must be open" in str(error) for error in errors] == [True]


def test_four_threads_share_a_fetcher() -> None:
    loads = Loads()
    fetcher = make_fetcher(loads, n_pieces=16, n_threads=3)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            step = rng.choice(40, 4, replace=False).tolist()
            slots = fetcher.hold(step)
            wrong.extend(
                number
                for number, slot in zip(step, slots, strict=True)
                if slot.data is None or slot.data[0] != number
            )
            fetcher.release(slots)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    fetcher.close()
    assert wrong == []


def test_pieces_have_a_length() -> None:
    empty = np.empty(0, np.int64)
    assert len(Pieces(empty, empty, empty, empty, empty.astype(np.int32), empty)) == 0
