"""``index.zarr``, the index: one row per sample, one array per column.

Rows stand in the order of the shards and of the samples in them. A reader opens
the columns it needs and no tar. Labels are kept as CSR: the label ids of row r
are ``label_ids[label_indptr[r]:label_indptr[r + 1]]``. Keys are rows of bytes,
since Zarr 3 specifies no fixed-width string type.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from .affine import LEVELS
from .errors import DatasetError
from .keys import MAX_KEY_BYTES
from .storage import Storage

INDEX_NAME = "index.zarr"
COUNTS_NAME = "logmel_counts"  # beside the columns: frames by mel band and code, of all rows
CHUNK_ROWS = 65_536
HASHES = "column_hashes"  # attributes of the group
INDEX_HASH = "index_hash"

CODEC_ERRORS = (ValueError, RuntimeError, TypeError, KeyError, ArithmeticError)
"""What Zarr and its codecs raise of metadata or chunks that are damaged."""

COLUMNS: dict[str, npt.DTypeLike] = {
    "key": np.uint8,  # (n, longest key), zero padded ASCII
    "shard": np.int32,  # row of the manifest's shard table
    "logmel_offset": np.int64,  # bytes from the start of the tar to the member's payload
    "logmel_size": np.int64,  # bytes of the payload, `.npy` header included
    "json_offset": np.int64,
    "json_size": np.int64,
    "flac_offset": np.int64,  # the waveform, where it is kept; size 0 where not
    "flac_size": np.int64,
    "logmel_hash": np.uint64,  # xxh3_64 of the payload
    "json_hash": np.uint64,
    "flac_hash": np.uint64,
    "n_frames": np.int32,
    "label_indptr": np.int64,  # (n + 1,)
    "label_ids": np.int32,  # (labels of all rows,)
    "split": np.int16,  # place in the manifest's split_names, -1 for none
    "start_s": np.float32,  # in the original recording, NaN where unknown
    "duration_s": np.float32,
    "sample_rate": np.int32,  # of the original file, Hz
    "n_channels": np.int16,
    "peak": np.float32,  # largest absolute value of the waveform
    "rms_dbfs": np.float32,
    "clipped_share": np.float32,  # of the decoded samples
    "silence_share": np.float32,  # of blocks of 10 ms
    "dc_offset": np.float32,
    "bandwidth_hz": np.float32,
    "audio_hash": np.uint64,  # of the decoded audio: equal for exact duplicates
}


class _Column:
    """A column read from its source once, when it is first asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, index: "Index", owner: type | None = None) -> npt.NDArray[Any]:
        return index.column(self._name)


class Index:
    """The columns of ``index.zarr`` as NumPy arrays, read when first used.

    Args:
        source: from column name to array, in memory or in Zarr.
        n_classes: how many labels the manifest names; None: there is no manifest.
        hashes: of columns in Zarr, which reads an object that is lost as zeros; indexes of older
            versions have none.

    Shape:
        Every column is (n_samples,) of the dtype in ``COLUMNS``, but ``key``
        (n_samples, longest key), ``label_indptr`` (n_samples + 1,) and ``label_ids``.
    """

    key = _Column()
    shard = _Column()
    logmel_offset = _Column()
    logmel_size = _Column()
    json_offset = _Column()
    json_size = _Column()
    flac_offset = _Column()
    flac_size = _Column()
    logmel_hash = _Column()
    json_hash = _Column()
    flac_hash = _Column()
    n_frames = _Column()
    label_indptr = _Column()
    label_ids = _Column()
    split = _Column()
    start_s = _Column()
    duration_s = _Column()
    sample_rate = _Column()
    n_channels = _Column()
    peak = _Column()
    rms_dbfs = _Column()
    clipped_share = _Column()
    silence_share = _Column()
    dc_offset = _Column()
    bandwidth_hz = _Column()
    audio_hash = _Column()

    def __init__(
        self,
        source: Mapping[str, npt.NDArray[Any] | zarr.Array],
        *,
        n_classes: int | None = None,
        hashes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.n_classes = n_classes
        self._hashes = hashes
        self._source = source
        self._read: dict[str, npt.NDArray[Any]] = {}

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return one column, reading it if this is the first time."""
        if name not in self._read:
            source: Any = self._source[name]
            try:
                values = np.asarray(source[...])
                if name in self._hashes and _hash_column(values, name) != self._hashes[name]:
                    raise ValueError("its hash differs")
            except CODEC_ERRORS as error:
                raise DatasetError(
                    f"column `{name}` of the index is damaged ({error}) in {source.store_path}; "
                    "copy the index again, or build the data set again"
                ) from error
            self._read[name] = values
        return self._read[name]

    @property
    def n_bytes(self) -> int:
        """Bytes of the columns that were read so far."""
        return sum(column.nbytes for column in self._read.values())

    def __len__(self) -> int:
        return len(self.n_frames)

    def sample_keys(self) -> npt.NDArray[np.bytes_]:
        """Return every key, dtype ``S<longest>``, shape (n_samples,)."""
        return key_strings(self.key)

    def labels(self, row: int) -> npt.NDArray[np.int32]:
        """Return the label ids of one sample, shape (n_labels,)."""
        return self.label_ids[self.label_indptr[row] : self.label_indptr[row + 1]]


def key_bytes(keys: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Turn keys into the zero-padded rows of the ``key`` column.

    >>> key_bytes(["a", "bc"])
    array([[97,  0],
           [98, 99]], dtype=uint8)
    """
    fixed = np.array([key.encode("ascii") for key in keys])
    return fixed.view(np.uint8).reshape(len(keys), -1)


def key_strings(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Turn the ``key`` column back into byte strings, dtype ``S<width>``."""
    return np.ascontiguousarray(rows).view(f"S{rows.shape[1]}")[:, 0]


def concatenate(parts: Sequence[Index]) -> Index:
    """Join the indexes of consecutive shards; ``shard`` counts on from part to part."""
    columns = {
        name: np.concatenate([part.column(name) for part in parts])
        for name in COLUMNS
        if name not in ("key", "shard", "label_indptr")
    }
    keys = np.concatenate([key_strings(part.key) for part in parts])
    counts = np.concatenate([np.diff(part.label_indptr) for part in parts])
    columns["key"] = keys.view(np.uint8).reshape(len(keys), -1)
    n_shards = [int(part.shard[-1]) + 1 for part in parts]
    first = np.cumsum([0, *n_shards[:-1]], dtype=np.int32)
    columns["shard"] = np.concatenate([p.shard + n for p, n in zip(parts, first, strict=True)])
    columns["label_indptr"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Index(columns)


def hash_index(index: Index) -> str:
    """Hash names, shapes and values of all columns; 32 hex digits of xxh3_128."""
    digest = xxhash.xxh3_128()
    for name, dtype in COLUMNS.items():
        column = np.ascontiguousarray(index.column(name), dtype)
        digest.update(f"{name}{column.shape}".encode())
        digest.update(column.tobytes())
    return digest.hexdigest()


def _hash_column(values: npt.NDArray[Any], name: str) -> str:
    """Hash shape and values of one column; 16 hex digits of xxh3_64."""
    column = np.ascontiguousarray(values, COLUMNS[name])
    digest = xxhash.xxh3_64(f"{column.shape}".encode())
    digest.update(column.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def hash_files(files: Mapping[str, bytes]) -> str:
    """Hash names and bytes of the files of an index; 32 hex digits of xxh3_128."""
    digest = xxhash.xxh3_128()
    for name, payload in sorted(files.items()):
        digest.update(f"{name} {len(payload)}\n".encode())
        digest.update(payload)
    return digest.hexdigest()


def write_index(
    storage: Storage,
    index: Index,
    *,
    counts: npt.NDArray[np.int64] | None = None,
    name: str = INDEX_NAME,
) -> str:
    """Write the index file by file; it counts once the manifest that holds its hash is written.

    Nothing is removed: two that write the same index at the same time do no harm.

    Args:
        storage: where the data set goes.
        index: all its rows.
        counts: histogram of the log-mels, int64, shape (n_mels, 256), where it was taken.
        name: of the index in it.

    Returns:
        ``hash_files`` of what was written.
    """
    held: dict[str, Buffer] = {}
    hashes = {column: _hash_column(index.column(column), column) for column in COLUMNS}
    attributes = {"n_samples": len(index), INDEX_HASH: hash_index(index), HASHES: hashes}
    group = zarr.create_group(store=MemoryStore(held), attributes=attributes)
    for column, dtype in COLUMNS.items():
        _write_column(group, column, index.column(column).astype(dtype, copy=False))
    if counts is not None:
        _write_column(group, COUNTS_NAME, counts, chunk_rows=len(counts))
    files = {path: buffer.to_bytes() for path, buffer in held.items()}
    for path, payload in files.items():
        storage.write(f"{name}/{path}", payload)
    return hash_files(files)


def read_index_files(storage: Storage, name: str) -> dict[str, bytes]:
    """Read the files of an index as they are."""
    found = [path for path, _ in storage.list(f"{name}/")]
    return {path.removeprefix(f"{name}/"): storage.read(path) for path in found}


def read_index(
    storage: Storage, *, n_samples: int, n_classes: int, index_hash: str, name: str = INDEX_NAME
) -> Index:
    """Open ``index.zarr``; columns are read when they are used.

    Args:
        storage: where the data set lies.
        n_samples, n_classes, index_hash: what the manifest says.
        name: of the index in it.

    Raises:
        DatasetError: it is missing, of another manifest, lacks a column, or a column is not of the
            size and type it must be.
    """
    place = f"{storage.url}/{name}"
    remedy = f"build the data set again, or remove {storage.url}"
    try:
        group = zarr.open_group(store=storage.zarr_store(name, read_only=True), mode="r")
        found = {column: group.get(column) for column in COLUMNS}
        found_hash = group.attrs.get(INDEX_HASH, index_hash)  # older versions wrote none
        told: Any = group.attrs.get(HASHES, {})
        hashes: dict[str, str] = dict(told)
    except FileNotFoundError as error:
        message = f"{storage.url} has a manifest but no `{name}`; {remedy}"
        raise DatasetError(message) from error
    except CODEC_ERRORS as error:
        raise DatasetError(f"{place} is damaged ({error}); {remedy}") from error
    if found_hash != index_hash:
        raise DatasetError(
            f"{place} is not the index that the manifest was written with; copy both again, or "
            "build the data set again"
        )
    arrays = {column: a for column, a in found.items() if isinstance(a, zarr.Array)}
    missing = sorted(set(COLUMNS) - set(arrays))
    if missing:
        raise DatasetError(f"{place} lacks the columns {', '.join(missing)}; {remedy}")
    for column, array in arrays.items():
        fault = _fault(column, array, n_samples, n_classes)
        if fault:
            raise DatasetError(f"{place}: column `{column}` must have {fault}; {remedy}")
    return Index(arrays, n_classes=n_classes, hashes=hashes)


def read_counts(
    storage: Storage, *, n_mels: int, n_frames: int, name: str = INDEX_NAME
) -> npt.NDArray[np.int64] | None:
    """Read the histogram of the log-mels that stands beside the columns.

    Args:
        storage: where the data set lies.
        n_mels, n_frames: of the data set.
        name: of its index.

    Returns:
        frames by band and code, int64, shape (n_mels, 256); None where there is none, as in
        sets of an older melstream.

    Raises:
        DatasetError: it is damaged, or does not count each frame once.
    """
    place = f"{storage.url}/{name}/{COUNTS_NAME}"
    remedy = "copy the index again, or build the data set again"
    try:
        group = zarr.open_group(store=storage.zarr_store(name, read_only=True), mode="r")
        array = group.get(COUNTS_NAME)
        if array is None:
            return None
        if not isinstance(array, zarr.Array) or array.dtype != np.int64:
            raise ValueError("not an array of int64")  # before memory is taken for it
        if array.shape != (n_mels, LEVELS) or array.chunks != array.shape:
            raise ValueError(f"not an array of shape ({n_mels}, {LEVELS}) in one chunk")
        counts = np.asarray(array[...])
    except CODEC_ERRORS as error:
        raise DatasetError(f"{place} is damaged ({error}); {remedy}") from error
    if (counts < 0).any() or (counts.sum(1) != n_frames).any():
        raise DatasetError(f"{place} must count {n_frames} frames in each band; {remedy}")
    return counts


def _fault(column: str, array: zarr.Array, n_samples: int, n_classes: int) -> str | None:
    """Say what is wrong with a column's size or type, before memory is taken for it."""
    rows = array.shape[0] if array.ndim else 0
    if array.dtype != COLUMNS[column]:
        return f"the type {np.dtype(COLUMNS[column])}, found {array.dtype}"
    if array.ndim != 1 + (column == "key"):
        return f"{1 + (column == 'key')} axes, found {array.ndim}"
    if column == "label_ids":
        most = n_samples * n_classes
        if rows > most:
            return f"at most {most} values, found {rows}"
    elif rows != (expected := n_samples + (column == "label_indptr")):
        return f"{expected} rows, found {rows}"
    if column == "key" and array.shape[1] > MAX_KEY_BYTES:
        return f"at most {MAX_KEY_BYTES} bytes a key, found {array.shape[1]}"
    return _chunk_fault(array)


def _chunk_fault(array: zarr.Array) -> str | None:
    """Say what is wrong with a column's chunks, each of which is read into memory as a whole."""
    n_chunks = max(1, -(-array.shape[0] // CHUNK_ROWS))
    allowed = CHUNK_ROWS, n_chunks * CHUNK_ROWS
    found = array.chunks[0], (array.shards or array.chunks)[0]
    if any(n > most for n, most in zip(found, allowed, strict=True)):
        return f"chunks of at most {allowed[0]} rows in shards of {allowed[1]}, found {found}"
    if array.chunks[1:] != array.shape[1:]:
        return f"chunks as wide as itself, found {array.chunks[1:]}"
    return None


def _write_column(
    group: zarr.Group, name: str, data: npt.NDArray[Any], *, chunk_rows: int = CHUNK_ROWS
) -> None:
    """One object per column: chunks for partial reads, packed by the sharding codec."""
    n_chunks = max(1, -(-len(data) // chunk_rows))
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(chunk_rows, *data.shape[1:]),
        shards=(chunk_rows * n_chunks, *data.shape[1:]),
        compressors=ZstdCodec(level=3),
    )
    array[...] = data
