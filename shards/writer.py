"""Write one shard: a plain WebDataset tar, the same bytes for the same samples.

A sample is two members in this order, ``<key>.logmel.npy`` and ``<key>.json``, and a third,
``<key>.flac``, where the waveform is kept.
The tar is POSIX ustar with fixed time, owner and mode: byte for byte what
``webdataset.TarWriter`` writes (a test compares them). Python's ``tarfile`` is used
directly, because importing webdataset imports torch: seconds and 400 MB for every
worker process of a build that needs neither.
"""

import contextlib
import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from .index import Index
from .keys import check_key
from .manifest import ShardEntry
from .rows import FIGURES, MEMBERS, Row, Span, rows_index
from .storage import Sink, Storage

LOGMEL_FIELD = "logmel.npy"
JSON_FIELD = "json"
FLAC_FIELD = "flac"
FIELDS: dict[str, str] = dict(zip(MEMBERS, (LOGMEL_FIELD, JSON_FIELD, FLAC_FIELD), strict=True))
"""What follows the key in a member's name, in the order of the tar."""

OWNER = "melstream"
MODE = 0o444


class SampleInfo(BaseModel):
    """The ``json`` member of a sample."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    labels: tuple[str, ...] = Field(description="class names")
    source: str = Field(description="original name, relative to the corpus")
    start_s: float | None = Field(description="where the clip starts in its recording, in seconds")
    duration_s: float = Field(ge=0, description="duration of the decoded audio, in seconds")
    sample_rate: int = Field(ge=0, lt=2**31, description="of the original file, in Hz")
    n_channels: int = Field(ge=0, lt=2**15, description="of the original file")
    peak: float = Field(description="largest absolute value of the waveform, full scale = 1")
    rms_dbfs: float = Field(description="root mean square of the waveform, in dB of full scale")
    clipped_share: float = Field(
        ge=0, le=1, description="share of the decoded samples at full scale"
    )
    silence_share: float = Field(ge=0, le=1, description="share of blocks of 10 ms under -60 dBFS")
    dc_offset: float = Field(description="mean of the waveform, full scale = 1")
    bandwidth_hz: float = Field(description="up to where there is sound, in Hz")
    audio_hash: str = Field(
        pattern="^[0-9a-f]{16}$", description="hash of the decoded audio, 16 hex digits"
    )
    split: str | None = Field(default=None, description="the corpus's own split or fold")
    events: tuple[tuple[float, float, str], ...] = Field(
        default=(), description="strong labels: start and end in seconds, class name"
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """What one clip becomes.

    Args:
        key: unique in the data set, of letters, digits, ``_`` and ``-``.
        logmel: as stored, float16 or uint8, shape (n_frames, n_mels).
        label_ids: sorted places in the manifest's ``label_names``.
        info: the ``json`` member.
        split: place in the manifest's ``split_names``, -1 for none.
        flac: the waveform as FLAC, where it is kept.
    """

    key: str
    logmel: npt.NDArray[np.float16] | npt.NDArray[np.uint8]
    label_ids: tuple[int, ...]
    info: SampleInfo
    split: int = -1
    flac: bytes | None = None


@contextlib.contextmanager
def write_shard(storage: Storage, name: str) -> Iterator["ShardWriter"]:
    """Write samples to one tar that appears, whole, when the block ends.

    >>> with write_shard(storage, "train-000000.tar") as writer:  # doctest: +SKIP
    ...     writer.write(sample)
    >>> writer.entry.n_samples, len(writer.index)  # doctest: +SKIP
    (1, 1)

    Args:
        storage: where it goes.
        name: the final name of the tar.

    Yields:
        the writer; its ``entry`` and ``index`` are complete once the block has ended.

    Raises:
        OSError: the disk is full or not writable; no tar is left.
    """
    with storage.writer(name) as file:
        writer = ShardWriter(name, file)
        yield writer
        writer.close()


class ShardWriter:
    """Append samples to an open tar; made by ``write_shard``."""

    def __init__(self, name: str, file: Sink) -> None:
        self._name = name
        self._rows: list[Row] = []
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
            ValueError: the key is not legal, or the log-mel is not float16 or uint8 with two axes.
        """
        check_key(sample.key)
        if sample.logmel.dtype not in (np.float16, np.uint8) or sample.logmel.ndim != 2:
            raise ValueError(
                "`logmel` must be float16 or uint8 of shape (n_frames, n_mels), found "
                f"{sample.logmel.dtype} of shape {sample.logmel.shape}"
            )
        payloads = {
            "logmel": npy_bytes(sample.logmel),
            "json": sample.info.model_dump_json().encode(),
        }
        if sample.flac is not None:
            payloads["flac"] = sample.flac
        figures = info_figures(sample.info)
        row = Row(sample.key, len(sample.logmel), sample.label_ids, sample.split, figures)
        self.append(row, payloads)

    def append(self, row: Row, payloads: Mapping[str, bytes]) -> None:
        """Append one sample whose members are ready, such as one of another data set.

        Args:
            row: what the index will say; places of members that stand in it are replaced.
            payloads: bytes of the members, by their names in the index; ``logmel`` at least.

        Raises:
            ValueError: the key is not legal.
        """
        check_key(row.key)
        spans = {
            member: self._add(f"{row.key}.{field}", payloads[member])
            for member, field in FIELDS.items()
            if member in payloads
        }
        self._rows.append(replace(row, spans=spans))

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
        return rows_index(self._rows)

    def _add(self, name: str, payload: bytes) -> Span:
        header = tarfile.TarInfo(name)
        header.size = len(payload)
        header.mode = MODE
        header.uname = header.gname = OWNER
        offset = self._tar.offset + tarfile.BLOCKSIZE  # a ustar header is one block
        self._tar.addfile(header, io.BytesIO(payload))
        return Span(offset, len(payload), xxhash.xxh3_64_intdigest(payload))


class _HashingFile:
    """Count and hash the bytes on their way to a file."""

    def __init__(self, file: Sink) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.n_bytes = 0

    def tell(self) -> int:
        return self.n_bytes

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.n_bytes += len(data)
        return self._file.write(data)


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """Return an array as the bytes of a ``.npy`` file, in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
    return buffer.getvalue()


def info_figures(info: SampleInfo) -> dict[str, float | int]:
    """Return what the index keeps of the ``json`` member, by the names of ``FIGURES``."""
    figures = {name: getattr(info, name) for name in FIGURES}
    figures["start_s"] = float("nan") if info.start_s is None else info.start_s
    figures["audio_hash"] = int(info.audio_hash, 16)
    return figures
