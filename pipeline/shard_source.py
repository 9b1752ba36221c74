"""The bytes of samples, wherever their shards lie, with an address for each.

    with ShardSource(dataset, config) as source:
        source.read_ahead(order.rows(step) for step in range(first, last))
        for step in range(first, last):
            with source.acquire(order.rows(step)) as lease:
                ...  # copy from lease.addresses

Local shards are mapped whole, where they lie. Those of an object store are fetched in pieces,
and kept in a folder that the processes of a machine share, or in memory. Whatever enters a
process is checked once against the hashes of the index: local log-mels when they are used
first, pieces when they are fetched or found in the folder.
"""

import os
import resource
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import xxhash

from ..shards.dataset import Dataset, missing_shard
from ..shards.storage import DEFAULT_TIMEOUT_S, Payload
from .fetcher import Fetcher, PlannedStep, Slot
from .gather import address_of
from .pieces import Pieces, cut_pieces, default_piece_bytes
from .shard_cache import CacheConfig, ShardCache, piece_name

ATTEMPTS = 2  # of a piece whose bytes are not those of the index: the way here may have erred

Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]

_open_sources: "weakref.WeakSet[ShardSource]" = weakref.WeakSet()  # that fetch, in this process


@dataclass(slots=True)
class SourceStats:
    """What a source did since it was opened, in this process.

    Args:
        n_fetched: pieces that came from the object store.
        fetched_bytes: their bytes.
        n_reused: pieces that were in the cache folder already.
    """

    n_fetched: int = 0
    fetched_bytes: int = 0
    n_reused: int = 0


class Lease:
    """The arrays of some rows, at hand until it is released; use it as a context manager.

    Args:
        addresses: see below.
        n_bytes: of each row's array.
        pieces: what keeps the memory alive.
        release: called once.

    Attributes:
        addresses: uint64 (n,), where in memory the first frame of each row is; 0 for row -1.
        n_bytes: int64 (n,), of the array of each row; 0 for row -1.
    """

    def __init__(
        self,
        addresses: npt.NDArray[np.uint64],
        n_bytes: npt.NDArray[np.int64],
        pieces: Sequence[Bytes],
        release: Callable[[], None],
    ) -> None:
        self.addresses, self.n_bytes = addresses, n_bytes
        self._pieces = pieces
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give the memory back; what was read from ``addresses`` must have been copied."""
        release, self._release, self._pieces = self._release, None, ()
        if release is not None:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class ShardSource:
    """Reads the log-mels of a data set.

    It has threads from the first call on, for a data set in an object store, and starts its
    own again in a forked process. Close it; its threads end when the requests they are in do.

    Args:
        dataset: the open data set.
        config: where pieces are kept and how many; for a data set in an object store.

    Attributes:
        stats: what was fetched.

    Raises:
        ShardError: the index places a log-mel outside its shard.
        StorageError: the cache folder cannot be written.
    """

    def __init__(self, dataset: Dataset, config: CacheConfig | None = None) -> None:
        self._dataset = dataset
        self._config = config = config or CacheConfig()
        self._is_local = dataset.storage.folder is not None
        piece_bytes = config.piece_bytes or default_piece_bytes(
            sum(shard.size_bytes for shard in dataset.manifest.shards)
        )
        self._pieces = cut_pieces(dataset, None if self._is_local else piece_bytes)
        self._cache = self._open_cache() if config.folder and not self._is_local else None
        self._wait_s = getattr(dataset.storage, "timeout_s", DEFAULT_TIMEOUT_S)
        self._is_closed = False
        self._begin()
        if not self._is_local:
            _open_sources.add(self)

    def acquire(self, rows: Rows) -> Lease:
        """Have the arrays of some rows at hand, and wait for those that are not.

        Args:
            rows: of the index; -1 for none.

        Raises:
            ShardError: a shard is missing, short, or not the one the index was made from.
            StorageError: the object store cannot be reached within its time limit, refuses,
                or ``memory_bytes`` is less than these rows need beside what stays leased all
                that time.
            ValueError: the source is closed.
        """
        is_row = rows >= 0
        of_row = np.where(is_row, self._pieces.of_row[rows], -1).tolist()
        numbers = [number for number in dict.fromkeys(of_row) if number >= 0]
        pieces, release = self._hold(numbers)
        bases = dict(zip(numbers, map(address_of, pieces), strict=True))
        addresses = np.array([bases.get(number, 0) for number in of_row], np.uint64)
        addresses += np.where(is_row, self._pieces.offset[rows], 0).astype(np.uint64)
        if self._is_local:
            self._check_new(rows[is_row])
        return Lease(addresses, np.where(is_row, self._n_bytes(rows), 0), pieces, release)

    def read_ahead(self, steps: Iterable[Rows]) -> None:
        """Fetch what the next calls of ``acquire`` will ask for; replaces what was said before.

        Args:
            steps: the rows of each call to come, in order; read in another thread, as far as
                ``read_ahead_bytes`` allows. What fails is tried again by ``acquire``.
        """
        if self._is_local or not self._config.read_ahead_bytes:
            return
        self._check_open()
        self._fetcher.plan(
            (self._planned(rows[rows >= 0]) for rows in steps), self._config.read_ahead_bytes
        )

    def close(self) -> None:
        """End the threads; what is leased stays valid until it is released."""
        self._is_closed = True
        self._fetcher.close()
        _open_sources.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _hold(self, numbers: list[int]) -> tuple[list[Bytes], Callable[[], None]]:
        self._check_open()
        if self._is_local:
            return [self._map(number) for number in numbers], lambda: None
        fetcher = self._fetcher
        slots = fetcher.hold(numbers)
        return [_data(slot) for slot in slots], lambda: fetcher.release(slots)

    def _map(self, number: int) -> Bytes:
        first, shard = int(self._pieces.first_byte[number]), int(self._pieces.shard[number])
        data = self._dataset.shard_bytes(shard)
        return data[first : first + int(self._pieces.n_bytes[number])]

    def _check_new(self, rows: Rows) -> None:
        """Compare local log-mels that this process has not used yet with their hashes."""
        index, is_checked = self._dataset.index, self._dataset.is_checked
        for row in rows[~is_checked[rows]].tolist():
            first, size = int(index.logmel_offset[row]), int(index.logmel_size[row])
            payload = self._dataset.shard_bytes(int(index.shard[row]))[first : first + size]
            self._dataset.check_payload(row, "logmel", payload.data)
            is_checked[row] = True

    def _planned(self, rows: Rows) -> PlannedStep:
        """Name the pieces of a step, in the order of their first use."""
        numbers = dict.fromkeys(self._pieces.of_row[rows].tolist())
        return PlannedStep(list(numbers), int(self._n_bytes(rows).sum()))

    def _n_bytes(self, rows: Rows) -> npt.NDArray[np.int64]:
        n_frames = self._dataset.index.n_frames[rows].astype(np.int64)
        return n_frames * self._dataset.manifest.features.frame_bytes

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("a source of shards must be open, this one is closed; open a new one")

    def _open_cache(self) -> ShardCache | None:
        config = self._config
        return config.folder and ShardCache(
            config.folder, max_bytes=config.max_bytes, min_free_bytes=config.min_free_bytes
        )

    def _begin(self) -> None:
        """Begin, or begin anew in a forked process; threads start with the first piece asked."""
        self._stats_lock, self.stats = threading.Lock(), SourceStats()
        self._fetcher = Fetcher(
            self._load,
            self._pieces.n_bytes,
            max_bytes=self._config.memory_bytes,
            max_pieces=self._most_pieces,
            n_threads=self._config.n_parallel,
            wait_s=self._wait_s,
        )

    def _most_pieces(self) -> int:
        """Return how many pieces to keep: mapped ones share half of the file descriptors."""
        if self._cache is None:
            return len(self._pieces)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return max(1, limit // 2 // len(_open_sources))

    def _load(self, number: int) -> Bytes:
        """Return the bytes of a piece: from the cache, or from the object store."""
        pieces, n_bytes = self._pieces, int(self._pieces.n_bytes[number])
        if self._cache is None or not n_bytes:
            return np.frombuffer(self._fetch(number), np.uint8)
        shard, first_byte = int(pieces.shard[number]), int(pieces.first_byte[number])
        name = piece_name(self._dataset, shard, first_byte, n_bytes)
        fetched = []

        def fetch() -> Payload:
            fetched.append(number)
            return self._fetch(number)

        data = self._cache.get(name, n_bytes, fetch, wait_s=self._wait_s)
        if fetched:
            return data
        if _find_altered(self._dataset, pieces, number, data.data) is not None:
            del data  # and with it the lease
            self._cache.drop(name)
            return np.frombuffer(self._fetch(number), np.uint8)
        with self._stats_lock:
            self.stats.n_reused += 1
        return data

    def _fetch(self, number: int) -> Payload:
        """Return the bytes of a piece from the object store, checked."""
        altered = None
        for _ in range(ATTEMPTS):
            payload = _read_piece(self._dataset, self._pieces, number)
            with self._stats_lock:
                self.stats.n_fetched += 1
                self.stats.fetched_bytes += len(payload)
            altered = _find_altered(self._dataset, self._pieces, number, payload)
            if altered is None:
                return payload
        assert altered is not None
        raise self._dataset.altered(altered)


def _data(slot: Slot) -> Bytes:
    assert slot.data is not None
    return slot.data


def _read_piece(dataset: Dataset, pieces: Pieces, number: int) -> Payload:
    name = dataset.manifest.shards[int(pieces.shard[number])].name
    first_byte, n_bytes = int(pieces.first_byte[number]), int(pieces.n_bytes[number])
    try:
        return dataset.storage.read_range(name, first_byte, n_bytes)
    except FileNotFoundError:
        raise missing_shard(dataset.storage, name) from None


def _find_altered(dataset: Dataset, pieces: Pieces, number: int, payload: Payload) -> int | None:
    """Return the first row of a piece whose payload has not the hash of the index."""
    index, view = dataset.index, memoryview(payload)
    first, end = pieces.first_row[number : number + 2].tolist()
    columns = index.logmel_offset, index.logmel_size, index.logmel_hash
    lists = (column[first:end].tolist() for column in columns)  # items of arrays are slow to read
    first_byte = int(pieces.first_byte[number])
    for row, (offset, size, expected) in enumerate(zip(*lists, strict=True), first):
        start = offset - first_byte
        if xxhash.xxh3_64_intdigest(view[start : start + size]) != expected:
            return row
    return None


def _begin_anew() -> None:
    """Have the sources begin anew; runs in each forked process, which inherits no threads.

    What the parent had at hand is dropped: a piece is leased for as long as it is mapped.
    """
    for source in _open_sources:
        source._fetcher.abandon()
        source._begin()


os.register_at_fork(after_in_child=_begin_anew)
