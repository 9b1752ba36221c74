"""Write one shard: a plain WebDataset tar, the same bytes for the same samples.

A sample is two members in this order, ``<key>.logmel.npy`` and ``<key>.json``.
The tar is POSIX ustar with fixed time, owner and mode: byte for byte what
``webdataset.TarWriter`` writes (a test compares them). Python's ``tarfile`` is used
directly, because importing webdataset imports torch: seconds and 400 MB for every
worker process of a build that needs neither.
"""

import contextlib
import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from .files import atomic_file
from .index import Index, key_bytes
from .keys import check_key
from .manifest import ShardEntry

LOGMEL_FIELD = "logmel.npy"
JSON_FIELD = "json"
OWNER = "melstream"
MODE = 0o444


class SampleInfo(BaseModel):
    """The ``json`` member of a sample."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    labels: tuple[str, ...] = Field(description="class names")
    source: str = Field(description="original name, relative to the corpus")
    start_s: float | None = Field(description="where the clip starts in its recording, in seconds")
    duration_s: float = Field(description="duration of the decoded audio, in seconds")
    sample_rate: int = Field(description="of the original file, in Hz")
    n_channels: int = Field(description="of the original file")
    peak: float = Field(description="largest absolute value of the waveform, full scale = 1")
    rms_dbfs: float = Field(description="root mean square of the waveform, in dB of full scale")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one clip becomes.

    Args:
        key: unique in the data set, of letters, digits, ``_`` and ``-``.
        logmel: float16, shape (n_frames, n_mels).
        label_ids: sorted places in the manifest's ``label_names``.
        info: the ``json`` member.
    """

    key: str
    logmel: npt.NDArray[np.float16]
    label_ids: tuple[int, ...]
    info: SampleInfo


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    size: int
    hash: int


@contextlib.contextmanager
def write_shard(path: Path) -> Iterator["ShardWriter"]:
    """Write samples to one tar that appears, whole, when the block ends.

    >>> with write_shard(folder / "train-000000.tar") as writer:  # doctest: +SKIP
    ...     writer.write(sample)
    >>> writer.entry.n_samples, len(writer.index)  # doctest: +SKIP
    (1, 1)

    Args:
        path: the final name of the tar.

    Yields:
        the writer; its ``entry`` and ``index`` are complete once the block has ended.

    Raises:
        OSError: the disk is full or not writable; no tar is left.
    """
    with atomic_file(path) as file:
        writer = ShardWriter(path.name, file)
        yield writer
        writer.close()


class ShardWriter:
    """Append samples to an open tar; made by ``write_shard``."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name = name
        self._rows: list[tuple[Sample, _Member, _Member]] = []
        self._file = _HashingFile(file)
        self._tar = tarfile.TarFile(
            fileobj=cast(BinaryIO, self._file), mode="w", format=tarfile.USTAR_FORMAT
        )

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()

    def write(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            ValueError: the key is not legal, or the log-mel is not float16 with two axes.
        """
        check_key(sample.key)
        if sample.logmel.dtype != np.float16 or sample.logmel.ndim != 2:
            raise ValueError(
                "`logmel` must be float16 of shape (n_frames, n_mels), found "
                f"{sample.logmel.dtype} of shape {sample.logmel.shape}"
            )
        logmel = self._add(f"{sample.key}.{LOGMEL_FIELD}", _npy(sample.logmel))
        info = self._add(f"{sample.key}.{JSON_FIELD}", sample.info.model_dump_json().encode())
        self._rows.append((sample, logmel, info))

    @property
    def n_samples(self) -> int:
        """Samples written so far."""
        return len(self._rows)

    @property
    def entry(self) -> ShardEntry:
        """The shard's row of the manifest."""
        return ShardEntry(
            name=self._name,
            size_bytes=self._file.n_bytes,
            n_samples=self.n_samples,
            sha256=self._file.sha256.hexdigest(),
        )

    @property
    def index(self) -> Index:
        """The shard's rows of the index."""
        samples = [sample for sample, _, _ in self._rows]
        infos = [sample.info for sample in samples]
        logmels = [member for _, member, _ in self._rows]
        jsons = [member for _, _, member in self._rows]
        labels = [sample.label_ids for sample in samples]
        return Index(
            {
                "key": key_bytes([sample.key for sample in samples]),
                "shard": np.zeros(len(samples), np.int32),
                "logmel_offset": np.array([m.offset for m in logmels], np.int64),
                "logmel_size": np.array([m.size for m in logmels], np.int64),
                "json_offset": np.array([m.offset for m in jsons], np.int64),
                "json_size": np.array([m.size for m in jsons], np.int64),
                "logmel_hash": np.array([m.hash for m in logmels], np.uint64),
                "json_hash": np.array([m.hash for m in jsons], np.uint64),
                "n_frames": np.array([len(sample.logmel) for sample in samples], np.int32),
                "label_indptr": np.cumsum([0, *map(len, labels)], dtype=np.int64),
                "label_ids": np.array([i for ids in labels for i in ids], np.int32),
                "start_s": np.array([_or_nan(info.start_s) for info in infos], np.float32),
                "duration_s": np.array([info.duration_s for info in infos], np.float32),
                "sample_rate": np.array([info.sample_rate for info in infos], np.int32),
                "n_channels": np.array([info.n_channels for info in infos], np.int16),
                "peak": np.array([info.peak for info in infos], np.float32),
                "rms_dbfs": np.array([info.rms_dbfs for info in infos], np.float32),
            }
        )

    def _add(self, name: str, payload: bytes) -> _Member:
        header = tarfile.TarInfo(name)
        header.size = len(payload)
        header.mode = MODE
        header.uname = header.gname = OWNER
        offset = self._tar.offset + tarfile.BLOCKSIZE  # a ustar header is one block
        self._tar.addfile(header, io.BytesIO(payload))
        return _Member(offset, len(payload), xxhash.xxh3_64_intdigest(payload))


class _HashingFile:
    """Count and hash the bytes on their way to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.n_bytes = 0

    def tell(self) -> int:
        return self.n_bytes

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.n_bytes += len(data)
        return self._file.write(data)


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
    return buffer.getvalue()


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
