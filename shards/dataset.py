"""Open a data set and read its samples, checked.

Opening reads the manifest; index columns follow when they are used. Shards are
mapped, and their size is compared with the manifest before the first byte is used:
a reader of plain WebDataset sees a truncated tar as a shorter one, we see an error.
"""

import mmap
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from .errors import ShardError
from .index import Index, read_index
from .manifest import Manifest, ShardEntry, read_manifest
from .writer import SampleInfo

MAX_MAPPED = 256  # shards mapped at once: each takes a file descriptor, 1,024 are usual


class Dataset:
    """A data set on disk.

    Args:
        folder: where ``dataset.json`` lies.
        manifest: its content.

    Attributes:
        folder, manifest: as given.
        index: one row per sample; rows are the numbers the methods below take.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._map = lru_cache(MAX_MAPPED)(partial(_map_shard, folder, manifest))

    @cached_property
    def index(self) -> Index:
        """The index of the data set."""
        return read_index(self.folder, n_samples=self.manifest.n_samples)

    def __len__(self) -> int:
        return self.manifest.n_samples

    def shard_bytes(self, shard: int) -> npt.NDArray[np.uint8]:
        """Map one shard into memory, read-only.

        Args:
            shard: row of the manifest's shard table.

        Returns:
            the bytes of the tar, uint8, shape (size_bytes,).

        Raises:
            ShardError: it is missing, or not as long as the manifest says.
        """
        return self._map(shard)

    def read_logmel(self, row: int, *, check: bool = True) -> npt.NDArray[np.float16]:
        """Read the log-mel of one sample.

        Args:
            row: row of the index.
            check: compare the payload with its hash.

        Returns:
            logmel: float16, shape (n_frames, n_mels), read-only.

        Raises:
            ShardError: the shard is missing, short or altered.
        """
        index = self.index
        payload = self._payload(row, index.logmel_offset[row], index.logmel_size[row])
        if check:
            self._check(row, payload, index.logmel_hash[row])
        shape = (int(index.n_frames[row]), self.manifest.features.n_mels)
        n_bytes = 2 * shape[0] * shape[1]
        if n_bytes > len(payload):
            raise ShardError(
                f"the index gives {self.key(row)} {shape[0]} frames, its payload of "
                f"{len(payload)} bytes holds fewer; build the data set again",
                shard=self.shard_of(row).name,
                key=self.key(row),
            )
        values = np.frombuffer(payload, np.float16, offset=len(payload) - n_bytes)
        return values.reshape(shape)

    def read_info(self, row: int, *, check: bool = True) -> SampleInfo:
        """Read the ``json`` member of one sample.

        Raises:
            ShardError: the shard is missing, short or altered.
        """
        index = self.index
        payload = self._payload(row, index.json_offset[row], index.json_size[row])
        if check:
            self._check(row, payload, index.json_hash[row])
        return SampleInfo.model_validate_json(payload)

    def key(self, row: int) -> str:
        """Return the key of one row."""
        return bytes(self.index.sample_keys()[row]).decode("ascii")

    def _payload(self, row: int, offset: int, size: int) -> bytes:
        data = self.shard_bytes(int(self.index.shard[row]))
        if offset < 0 or offset + size > len(data):
            raise ShardError(
                f"the index places a member at bytes {offset}..{offset + size}, the shard has "
                f"{len(data)}; build the data set again",
                shard=self.shard_of(row).name,
                key=self.key(row),
            )
        return data[offset : offset + size].tobytes()

    def _check(self, row: int, payload: bytes, expected: int) -> None:
        if xxhash.xxh3_64_intdigest(payload) != int(expected):
            shard, key = self.shard_of(row).name, self.key(row)
            raise ShardError(
                f"{self.folder / shard}: the payload of {key} is not the one the index was made "
                "from (hash differs); copy the shard again, or build it again",
                shard=shard,
                key=key,
            )

    def shard_of(self, row: int) -> ShardEntry:
        """Return the shard that holds a row."""
        return self.manifest.shards[int(self.index.shard[row])]


def open_dataset(folder: str | Path) -> Dataset:
    """Open a data set.

    Args:
        folder: where ``dataset.json`` lies.

    Raises:
        DatasetError: no manifest there, or not a valid one.
    """
    folder = Path(folder)
    return Dataset(folder, read_manifest(folder))


def _map_shard(folder: Path, manifest: Manifest, shard: int) -> npt.NDArray[np.uint8]:
    entry = manifest.shards[shard]
    path = folder / entry.name
    if not path.is_file():
        raise ShardError(f"{path} is missing; copy it again, or build it again", shard=entry.name)
    size = path.stat().st_size
    if size != entry.size_bytes:
        raise ShardError(
            f"{path} must have {entry.size_bytes} bytes, found {size}; copy it again, or build it "
            "again",
            shard=entry.name,
        )
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8)
