"""Is a data set what its manifest says: sizes, or every byte."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .dataset import Dataset
from .errors import ShardError
from .index import INDEX_NAME, hash_index

BLOCK_BYTES = 2**22


def find_problems(dataset: Dataset, *, full: bool) -> Iterator[ShardError | None]:
    """Check the index, then one shard after the other.

    Args:
        dataset: an open data set.
        full: read every byte: hash of each tar and of each payload. Otherwise sizes
            and counts only.

    Yields:
        a problem of the index, if there is one; then one entry per shard: the first
        problem found in it, or None.
    """
    if hash_index(dataset.index) != dataset.manifest.index_hash:
        yield ShardError(
            f"{dataset.folder / INDEX_NAME} is not the index that the manifest was written with; "
            "copy it again, or build the data set again",
            shard=INDEX_NAME,
        )
    counts = np.bincount(dataset.index.shard, minlength=len(dataset.manifest.shards))
    starts = np.concatenate([[0], np.cumsum(counts)])
    for shard in range(len(dataset.manifest.shards)):
        rows = range(starts[shard], starts[shard + 1])
        try:
            _check_shard(dataset, shard, rows, full=full)
            yield None
        except ShardError as error:
            yield error


def _check_shard(dataset: Dataset, shard: int, rows: range, *, full: bool) -> None:
    entry = dataset.manifest.shards[shard]
    dataset.shard_bytes(shard)  # compares the size
    if len(rows) != entry.n_samples:
        raise ShardError(
            f"the index holds {len(rows)} samples of {entry.name}, the manifest {entry.n_samples}; "
            "build the data set again",
            shard=entry.name,
        )
    if not full:
        return
    for row in rows:
        dataset.read_logmel(row)
        dataset.read_info(row)
    if file_sha256(dataset.folder / entry.name) != entry.sha256:
        raise ShardError(
            f"{dataset.folder / entry.name} is altered (its sha256 differs from the manifest's); "
            "copy it again, or build it again",
            shard=entry.name,
        )


def file_sha256(path: Path) -> str:
    """Hash a file of any size in bounded memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
