"""Open a data set and read its samples, checked.

Opening reads the manifest; index columns follow when they are used. Local shards are
mapped, those of an object store fetched whole, and their size is compared with the manifest
before the first byte is used: a reader of plain WebDataset sees a truncated tar as a shorter
one, we see an error.
"""

import errno
import mmap
import resource
import weakref
from collections import deque
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import ValidationError

from .errors import DatasetError, ShardError
from .index import Index, read_counts, read_index
from .manifest import Manifest, ShardEntry, read_manifest
from .storage import Payload, Storage, StorageError, open_storage
from .writer import SampleInfo

if TYPE_CHECKING:
    import pandas

MAX_MAPPED = 16_384  # shards mapped at once by a process; Linux allows it 65,530 maps in all
MAX_FETCHED = 2  # shards of an object store held at once, about 256 MB each

_mapped: "deque[tuple[weakref.ref[Dataset], int]]" = deque()  # of all data sets, oldest first


class Dataset:
    """A data set on disk or in an object store.

    Args:
        storage: where ``dataset.json`` lies.
        manifest: its content.
        reads_ranges: read the bytes that are asked for, not whole shards, of an object store:
            for a few samples here and there.

    Attributes:
        storage, manifest: as given.
        index: one row per sample; rows are the numbers the methods below take.
    """

    def __init__(self, storage: Storage, manifest: Manifest, *, reads_ranges: bool = False) -> None:
        self.storage = storage
        self.manifest = manifest
        self._reads_ranges = reads_ranges and storage.folder is None
        self._fetch = lru_cache(MAX_FETCHED)(partial(_fetch_shard, storage, manifest))
        self._maps: dict[int, npt.NDArray[np.uint8]] = {}

    def __repr__(self) -> str:
        hours, n_classes = self.manifest.duration_s / 3600, len(self.manifest.label_names)
        return f"Dataset({self.url}: {len(self):,} samples, {hours:,.1f} h, {n_classes:,} classes)"

    @property
    def url(self) -> str:
        """Where the data set lies, to print."""
        return self.storage.url

    @property
    def folder(self) -> Path:
        """The folder of a local data set.

        Raises:
            DatasetError: it lies in an object store.
        """
        if self.storage.folder is None:
            raise DatasetError(f"a local data set is required, found {self.url}; copy it first")
        return self.storage.folder

    @cached_property
    def index(self) -> Index:
        """The index of the data set."""
        manifest = self.manifest
        return read_index(
            self.storage,
            n_samples=manifest.n_samples,
            n_classes=len(manifest.label_names),
            index_hash=manifest.index_hash,
            name=manifest.index_name,
        )

    @cached_property
    def is_checked(self) -> npt.NDArray[np.bool_]:
        """Rows whose log-mel this process has compared with its hash; bool, shape (n,)."""
        return np.zeros(len(self), bool)

    @cached_property
    def used_splits(self) -> dict[int, str]:
        """Names of the splits that have samples, by number; a subset keeps the other names too."""
        names = self.manifest.split_names
        return {number: names[number] for number in np.unique(self.index.split) if number >= 0}

    def splits_of(self, rows: npt.NDArray[np.int64] | slice = slice(None)) -> set[str]:
        """Name the splits of some rows of the index; "" stands for none."""
        names = (*self.manifest.split_names, "")  # the last one is that of -1
        return {names[number] for number in np.unique(self.index.split[rows])}

    @cached_property
    def logmel_counts(self) -> npt.NDArray[np.int64] | None:
        """Frames by mel band and code over the whole set, shape (n_mels, 256), if recorded."""
        return read_counts(
            self.storage,
            n_mels=self.manifest.features.n_mels,
            n_frames=int(self.index.n_frames.sum(dtype=np.int64)),
            name=self.manifest.index_name,
        )

    def __len__(self) -> int:
        return self.manifest.n_samples

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the index as a frame: a row per sample by key, names in place of numbers.

        ``shard`` and ``split`` are categories, ``labels`` a tuple of class names; the other
        columns are those of the index.

        Raises:
            ImportError: pandas is not installed.
        """
        from .frame import index_frame

        return index_frame(self.index, self.manifest)

    def shard_bytes(self, shard: int) -> npt.NDArray[np.uint8]:
        """Map one shard into memory, or fetch it; read-only.

        Args:
            shard: row of the manifest's shard table.

        Returns:
            the bytes of the tar, uint8, shape (size_bytes,).

        Raises:
            ShardError: it is missing, or not as long as the manifest says.
            StorageError: this process has too many files open.
        """
        if self.storage.folder is None:
            return self._fetch(shard)
        data = self._maps.get(shard)
        if data is None:
            data = self._map(shard)
        if _file_size(data) < len(data):  # beyond its end the kernel would end this process
            name = self.manifest.shards[shard].name
            raise ShardError(
                f"{self.storage.url_of(name)} had {len(data)} bytes and was cut to "
                f"{_file_size(data)} while it was in use; copy it again, or build it again",
                shard=name,
            )
        return data

    def read_logmel(self, row: int, *, check: bool = True) -> npt.NDArray[np.float32]:
        """Read the log-mel of one sample.

        Args:
            row: row of the index.
            check: compare the payload with its hash.

        Returns:
            logmel: float32, shape (n_frames, n_mels); decoded where stored as uint8.

        Raises:
            ShardError: the shard is missing, short or altered.
        """
        stored = self.read_stored(row, check=check)
        code = self.manifest.code
        return stored.astype(np.float32) if code is None else code.decode(stored)

    def read_stored(self, row: int, *, check: bool = True) -> npt.NDArray[Any]:
        """Read the log-mel of one sample as it is stored.

        Returns:
            float16 or uint8, shape (n_frames, n_mels), read-only.

        Raises:
            ShardError: the shard is missing, short or altered.
        """
        payload = self.read_member(row, "logmel", check=check)
        spec = self.manifest.features
        n_frames = int(self.index.n_frames[row])
        n_bytes = n_frames * spec.frame_bytes
        if n_bytes > len(payload):
            raise ShardError(
                f"the index gives {self.key(row)} {n_frames} frames, its payload of "
                f"{len(payload)} bytes holds fewer; build the data set again",
                shard=self.shard_of(row).name,
                key=self.key(row),
            )
        values = np.frombuffer(payload, spec.storage_dtype, offset=len(payload) - n_bytes)
        return values.reshape(n_frames, spec.n_mels)

    def read_info(self, row: int, *, check: bool = True) -> SampleInfo:
        """Read the ``json`` member of one sample.

        Raises:
            ShardError: the shard is missing, short or altered, or was made elsewhere.
        """
        _, size = self.member_span(row, "json")
        payload = self.read_member(row, "json", check=check) if size else b""
        try:
            return SampleInfo.model_validate_json(payload)
        except ValidationError as error:
            shard, key = self.shard_of(row).name, self.key(row)
            found = "another" if payload else "none"
            raise ShardError(
                f"{self.url}/{shard}: the json of {key} must be melstream's own, found {found}: "
                "the tars were made elsewhere; `read_member(row, 'json')` gives its bytes",
                shard=shard,
                key=key,
            ) from error

    def read_member(self, row: int, member: str, *, check: bool = True) -> bytes:
        """Read the bytes of one member of a sample.

        Args:
            row: row of the index.
            member: ``logmel``, ``json`` or ``flac``.
            check: compare them with their hash.

        Raises:
            ShardError: the shard is missing, short or altered.
        """
        offset, size = self.member_span(row, member)
        payload = self._payload(row, offset, size)
        if check:
            self.check_payload(row, member, payload)
        return payload

    def member_span(self, row: int, member: str) -> tuple[int, int]:
        """Return where a member's payload begins in its shard, and its size, in bytes."""
        index = self.index
        return int(index.column(f"{member}_offset")[row]), int(index.column(f"{member}_size")[row])

    def check_payload(self, row: int, member: str, payload: Payload) -> None:
        """Compare the bytes of a member with its hash.

        Raises:
            ShardError: they are not those that the index was made from.
        """
        if xxhash.xxh3_64_intdigest(payload) != int(self.index.column(f"{member}_hash")[row]):
            raise self.altered(row)

    def altered(self, row: int) -> ShardError:
        """Return the error of a sample whose bytes have another hash than the index says."""
        shard, key = self.shard_of(row).name, self.key(row)
        return ShardError(
            f"{self.storage.url_of(shard)}: the payload of {key} is not the one the index was made "
            "from (hash differs): the shard changed since; copy the whole data set again, or build "
            "it again",
            shard=shard,
            key=key,
        )

    def check_size(self, shard: int) -> None:
        """Compare the size of one shard with the manifest.

        Raises:
            ShardError: it is missing, or not as long as the manifest says.
        """
        _check_size(self.storage, self.manifest.shards[shard])

    def key(self, row: int) -> str:
        """Return the key of one row."""
        return bytes(self.index.sample_keys()[row]).decode("ascii")

    def _map(self, shard: int) -> npt.NDArray[np.uint8]:
        """Map a shard; what was mapped first makes room for it, of whichever data set it is."""
        entry = self.manifest.shards[shard]
        _check_size(self.storage, entry)
        data = self._maps[shard] = _map_file(self.folder / entry.name)
        _mapped.append((weakref.ref(self), shard))
        while len(_mapped) > _most_mapped():
            owner, oldest = _mapped.popleft()
            dataset = owner()
            if dataset is not None:
                dataset._maps.pop(oldest, None)
        return data

    def _payload(self, row: int, offset: int, size: int) -> bytes:
        entry = self.shard_of(row)
        if offset < 0 or size < 0 or offset + size > entry.size_bytes:
            raise ShardError(
                f"the index places a member at bytes {offset}..{offset + size}, the shard has "
                f"{entry.size_bytes}; build the data set again",
                shard=entry.name,
                key=self.key(row),
            )
        if self._reads_ranges:
            try:
                return bytes(self.storage.read_range(entry.name, offset, size))
            except FileNotFoundError as error:
                raise missing_shard(self.storage, entry.name) from error
        return self.shard_bytes(int(self.index.shard[row]))[offset : offset + size].tobytes()

    def shard_of(self, row: int) -> ShardEntry:
        """Return the shard that holds a row."""
        return self.manifest.shards[int(self.index.shard[row])]


def open_dataset(place: str | Path | Storage, *, reads_ranges: bool = False) -> Dataset:
    """Open a data set.

    Args:
        place: where ``dataset.json`` lies: a folder, or a URL such as ``s3://bucket/train``.
        reads_ranges: see ``Dataset``.

    Raises:
        ValueError: a URL of an unknown kind.
        DatasetError: no manifest there, or not a valid one.
    """
    storage = place if isinstance(place, Storage) else open_storage(place)
    return Dataset(storage, read_manifest(storage), reads_ranges=reads_ranges)


def missing_shard(storage: Storage, name: str) -> ShardError:
    """Return the error of a shard that the manifest names and that is not there."""
    return ShardError(
        f"{storage.url_of(name)} is missing; copy it again, or build it again", shard=name
    )


def _fetch_shard(storage: Storage, manifest: Manifest, shard: int) -> npt.NDArray[np.uint8]:
    entry = manifest.shards[shard]
    _check_size(storage, entry)
    return np.frombuffer(storage.read(entry.name), np.uint8)


def _map_file(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise StorageError(
            f"{path} cannot be mapped: this process has as many files open as it may ({limit}); "
            "allow it more with 'ulimit -n 65536'"
        ) from error
    return np.frombuffer(mapped, np.uint8)


def _most_mapped() -> int:
    """Return how many shards to keep mapped: each takes a file descriptor, a quarter of all."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(max(1, limit // 4), MAX_MAPPED)


def _file_size(mapped: npt.NDArray[np.uint8]) -> int:
    """Return how many bytes the file of a mapped shard has by now."""
    view: Any = mapped.base  # a memoryview of the mmap
    return int(view.obj.size())


def _check_size(storage: Storage, entry: ShardEntry) -> None:
    size = storage.size(entry.name)
    if size is None:
        raise missing_shard(storage, entry.name)
    if size != entry.size_bytes:
        raise ShardError(
            f"{storage.url}/{entry.name} must have {entry.size_bytes} bytes, found {size}; copy "
            "it again, or build it again",
            shard=entry.name,
        )
