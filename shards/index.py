"""``index.zarr``, the index: one row per sample, one array per column.

Rows stand in the order of the shards and of the samples in them. A reader opens
the columns it needs and no tar. Labels are kept as CSR: the label ids of row r
are ``label_ids[label_indptr[r]:label_indptr[r + 1]]``. Keys are rows of bytes,
since Zarr 3 specifies no fixed-width string type.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
import zarr
from zarr.codecs import ZstdCodec

from .errors import DatasetError
from .files import TEMPORARY_SUFFIX, sync_folder, sync_tree

INDEX_NAME = "index.zarr"
CHUNK_ROWS = 65_536

COLUMNS: dict[str, npt.DTypeLike] = {
    "key": np.uint8,  # (n, longest key), zero padded ASCII
    "shard": np.int32,  # row of the manifest's shard table
    "logmel_offset": np.int64,  # bytes from the start of the tar to the member's payload
    "logmel_size": np.int64,  # bytes of the payload, `.npy` header included
    "json_offset": np.int64,
    "json_size": np.int64,
    "logmel_hash": np.uint64,  # xxh3_64 of the payload
    "json_hash": np.uint64,
    "n_frames": np.int32,
    "label_indptr": np.int64,  # (n + 1,)
    "label_ids": np.int32,  # (labels of all rows,)
    "start_s": np.float32,  # in the original recording, NaN where unknown
    "duration_s": np.float32,
    "sample_rate": np.int32,  # of the original file, Hz
    "n_channels": np.int16,
    "peak": np.float32,  # largest absolute value of the waveform
    "rms_dbfs": np.float32,
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
        source: a Zarr group, or a mapping from column name to array.

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
    logmel_hash = _Column()
    json_hash = _Column()
    n_frames = _Column()
    label_indptr = _Column()
    label_ids = _Column()
    start_s = _Column()
    duration_s = _Column()
    sample_rate = _Column()
    n_channels = _Column()
    peak = _Column()
    rms_dbfs = _Column()

    def __init__(self, source: Mapping[str, npt.NDArray[Any]] | zarr.Group) -> None:
        self._source = source
        self._read: dict[str, npt.NDArray[Any]] = {}

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return one column, reading it if this is the first time."""
        if name not in self._read:
            source: Any = self._source[name]
            self._read[name] = np.asarray(source[...])
        return self._read[name]

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
    """Join the indexes of consecutive shards; ``shard`` becomes the place in ``parts``."""
    columns = {
        name: np.concatenate([part.column(name) for part in parts])
        for name in COLUMNS
        if name not in ("key", "shard", "label_indptr")
    }
    keys = np.concatenate([key_strings(part.key) for part in parts])
    counts = np.concatenate([np.diff(part.label_indptr) for part in parts])
    columns["key"] = keys.view(np.uint8).reshape(len(keys), -1)
    columns["shard"] = np.repeat(np.arange(len(parts), dtype=np.int32), [len(p) for p in parts])
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


def write_index(folder: Path, index: Index) -> None:
    """Write ``index.zarr`` into the folder of a data set, whole or not at all."""
    final = folder / INDEX_NAME
    partial = folder / (INDEX_NAME + TEMPORARY_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    group = zarr.create_group(store=partial, attributes={"n_samples": len(index)})
    for name, dtype in COLUMNS.items():
        _write_column(group, name, index.column(name).astype(dtype, copy=False))
    sync_tree(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync_folder(folder)


def read_index(folder: Path, *, n_samples: int) -> Index:
    """Open ``index.zarr``; columns are read when they are used.

    Args:
        folder: the folder of the data set.
        n_samples: what the manifest says.

    Raises:
        DatasetError: it is missing, lacks a column, or has another number of rows.
    """
    path = folder / INDEX_NAME
    remedy = f"build the data set again, or remove {folder}"
    if not path.is_dir():
        raise DatasetError(f"{folder} has a manifest but no `{INDEX_NAME}`; {remedy}")
    group = zarr.open_group(store=path, mode="r")
    arrays = dict(group.arrays())
    missing = sorted(set(COLUMNS) - set(arrays))
    if missing:
        raise DatasetError(f"{path} lacks the columns {', '.join(missing)}; {remedy}")
    for name, array in arrays.items():
        expected = n_samples + (name == "label_indptr")
        if name in COLUMNS and name != "label_ids" and array.shape[0] != expected:
            raise DatasetError(
                f"{path}: column `{name}` must have {expected} rows, found {array.shape[0]}; "
                f"{remedy}"
            )
    return Index(group)


def _write_column(group: zarr.Group, name: str, data: npt.NDArray[Any]) -> None:
    """One object per column: chunks for partial reads, packed by the sharding codec."""
    n_chunks = max(1, -(-len(data) // CHUNK_ROWS))
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(CHUNK_ROWS, *data.shape[1:]),
        shards=(CHUNK_ROWS * n_chunks, *data.shape[1:]),
        compressors=ZstdCodec(level=3),
    )
    array[...] = data
