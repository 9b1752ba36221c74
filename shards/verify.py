"""Is a data set what its manifest says: sizes, or every byte."""

import hashlib
import tarfile
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .dataset import Dataset
from .errors import DatasetError, ShardError
from .index import hash_files, hash_index, read_index_files
from .index_check import find_fault
from .keys import make_key
from .manifest import MANIFEST_NAME, RETRY_NAME, manifest_bytes
from .tar_members import split_name

BLOCK_BYTES = 2**22
REMEDY = "copy it again, or build the data set again"


def find_problems(dataset: Dataset, *, full: bool) -> Iterator[DatasetError | ShardError | None]:
    """Check manifest and index, then one shard after the other.

    Args:
        dataset: an open data set.
        full: read every byte: hash of manifest, index, each tar and each payload. Otherwise
            sizes and counts, and the values of the index.

    Yields:
        a ``DatasetError`` for each problem of manifest, index or folder, if there are any; then
        one entry per shard: the ``ShardError`` found in it first, or None.
    """
    if full and dataset.storage.read(MANIFEST_NAME) != manifest_bytes(dataset.manifest):
        yield DatasetError(f"{dataset.url}/{MANIFEST_NAME} is not as it was written; {REMEDY}")
    fault = _index_fault(dataset, full=full)
    if fault:
        yield fault
    yield from _unnamed_tars(dataset)
    starts = None if fault else _first_rows(dataset)
    for shard in range(len(dataset.manifest.shards)):
        try:
            if starts is None:
                _check_bytes(dataset, shard, range(0), full=full)
            else:
                _check_shard(dataset, shard, range(starts[shard], starts[shard + 1]), full=full)
            yield None
        except ShardError as error:
            yield error


def _first_rows(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Return the first row of each shard, and one past the last of all."""
    counts = np.bincount(dataset.index.shard, minlength=len(dataset.manifest.shards))
    return np.concatenate([[0], np.cumsum(counts)])


def _unnamed_tars(dataset: Dataset) -> Iterator[DatasetError]:
    """Say of each tar that the manifest does not name what to do with it."""
    storage = dataset.storage
    if storage.url.startswith("http"):  # a web server lists nothing
        return
    remedy = "remove it"
    if storage.size(RETRY_NAME) is not None:
        remedy = (
            "a 'melstream build --retry-failed' that runs or was interrupted is to add it: let it "
            "end, or run it again to complete it; until then the data set is as it was"
        )
    named = {shard.name for shard in dataset.manifest.shards}
    for name, _ in storage.list():
        if name.endswith(".tar") and "/" not in name and name not in named:
            yield DatasetError(
                f"{dataset.url}/{name} is no shard of this data set, and a reader of all tars "
                f"would take it for one; {remedy}"
            )


def _index_fault(dataset: Dataset, *, full: bool) -> DatasetError | None:
    manifest, storage = dataset.manifest, dataset.storage
    place = f"{dataset.url}/{manifest.index_name}"
    try:
        is_same = hash_index(dataset.index) == manifest.index_hash
        _ = dataset.logmel_counts  # reading checks it
    except DatasetError as error:
        return error
    if is_same and full and not storage.url.startswith("http"):
        files = read_index_files(storage, manifest.index_name)
        is_same = hash_files(files) == manifest.index_files_hash
    if not is_same:
        return DatasetError(
            f"{place} is not the index that the manifest was written with; {REMEDY}"
        )
    fault = find_fault(dataset.index, manifest)
    return DatasetError(f"{place}: {fault}; {REMEDY}") if fault else None


def _check_shard(dataset: Dataset, shard: int, rows: range, *, full: bool) -> None:
    entry = dataset.manifest.shards[shard]
    if len(rows) != entry.n_samples:
        raise ShardError(
            f"the index holds {len(rows)} samples of {entry.name}, the manifest {entry.n_samples}; "
            "build the data set again",
            shard=entry.name,
        )
    _check_bytes(dataset, shard, rows, full=full)


def _check_bytes(dataset: Dataset, shard: int, rows: range, *, full: bool) -> None:
    entry = dataset.manifest.shards[shard]
    if not full:
        dataset.check_size(shard)
        return
    data = dataset.shard_bytes(shard)
    for row in rows:
        for member in members(dataset, row):
            dataset.read_member(row, member)
    if _sha256(data) != entry.sha256:
        key = next((dataset.key(r) for r in rows if not _is_framed(dataset, data, r)), None)
        where = f"around {key}" if key else "after its last sample" if rows else "somewhere"
        raise ShardError(
            f"{dataset.url}/{entry.name} is altered {where} (its sha256 differs from the "
            "manifest's); copy it again, or build it again",
            shard=entry.name,
            key=key,
        )


def members(dataset: Dataset, row: int) -> list[str]:
    """Return the members of a sample, by their names in the index.

    An adopted sample may have no ``json``: its size in the index is 0.
    """
    sizes = ((name, dataset.index.column(f"{name}_size")[row]) for name in ("json", "flac"))
    return ["logmel", *(name for name, size in sizes if size > 0)]


def _sha256(data: npt.NDArray[np.uint8]) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(data), BLOCK_BYTES):
        digest.update(data[start : start + BLOCK_BYTES].data)
    return digest.hexdigest()


def _is_framed(dataset: Dataset, data: npt.NDArray[np.uint8], row: int) -> bool:
    """Say whether the tar headers of a sample, and the zeros after its payloads, are in order."""
    for member in members(dataset, row):
        offset = int(dataset.index.column(f"{member}_offset")[row])
        size = int(dataset.index.column(f"{member}_size")[row])
        header = data[offset - tarfile.BLOCKSIZE : offset].tobytes()
        end = offset + size
        try:
            found = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError):
            return False
        name = split_name(found.name)
        is_named = name is not None and make_key(name[0]) == dataset.key(row) and found.size == size
        if not is_named or data[end : -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE].any():
            return False
    return True
