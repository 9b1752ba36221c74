"""From shards to a data set: index, card and, last, the manifest.

What ``build``, ``index``, ``subset`` and ``merge`` have in common.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..shards.errors import DatasetError
from ..shards.index import COLUMNS, INDEX_NAME, Index, hash_index, write_index
from ..shards.manifest import Manifest, ShardEntry, write_manifest
from ..shards.spec import FeatureSpec
from ..shards.storage import Storage
from .band_sums import BandSums
from .coverage import hash_ids
from .data_card import write_card


def common_fields(features: FeatureSpec, shards: Sequence[ShardEntry]) -> dict[str, Any]:
    """Return the fields of the manifest that follow from features and shards."""
    return {
        "features": features,
        "feature_hash": features.hash,
        "code": features.code,
        "shards": tuple(shards),
        "n_samples": sum(shard.n_samples for shard in shards),
    }


def write_tables(
    storage: Storage, index: Index, sums: BandSums, *, name: str = INDEX_NAME
) -> dict[str, Any]:
    """Write the index and what is summed up beside it.

    Returns:
        the fields of the manifest that follow from them.
    """
    mean, std = sums.mean_and_std()
    return {
        "band_mean": mean,
        "band_std": std,
        "ids_hash": hash_ids(key.decode("ascii") for key in index.sample_keys().tolist()),
        "index_name": name,
        "index_hash": hash_index(index),
        "index_files_hash": write_index(storage, index, counts=sums.counts, name=name),
    }


def finish(
    storage: Storage, index: Index, sums: BandSums, manifest: Mapping[str, Any], **card: Any
) -> Manifest:
    """Write index, card and, last, the manifest.

    Args:
        storage: where the shards are.
        index: of all of them.
        sums: over all their log-mels.
        manifest: its fields, but for those that follow from index and sums.
        card: keywords of ``write_card``.

    Returns:
        the manifest.
    """
    whole = Manifest(
        duration_s=float(index.duration_s.sum(dtype=np.float64)),
        **write_tables(storage, index, sums),
        **manifest,
    )
    write_card(storage, whole, **card)
    write_manifest(storage, whole)
    return whole


@contextlib.contextmanager
def new_place(storage: Storage) -> Iterator[None]:
    """Fill an empty place, or leave it empty: after an error, what was written is removed.

    Raises:
        DatasetError: there is something already.
    """
    found = [name for name, _ in storage.list()]
    if found:
        raise DatasetError(
            f"{storage.url} must be new or empty, found {found[0]}; choose another --out, or "
            "remove it if a command that was killed left it"
        )
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, DatasetError):
            _empty(storage)
        raise


def _empty(storage: Storage) -> None:
    storage.clean()
    tops = {name.partition("/")[::2] for name, _ in storage.list()}
    for folder in {top for top, rest in tops if rest}:
        storage.delete_all(f"{folder}/")
    for name in {top for top, rest in tops if not rest}:
        storage.delete(name)


def repeated_keys(keys: npt.NDArray[np.bytes_]) -> list[str]:
    """Return the keys that stand more than once, sorted."""
    keys = np.sort(keys)
    return [key.decode("ascii") for key in np.unique(keys[1:][keys[1:] == keys[:-1]]).tolist()]


def renumbered(
    index: Index, *, labels: npt.NDArray[np.int32], splits: npt.NDArray[np.int16]
) -> Index:
    """Give labels and splits of an index other numbers.

    Args:
        index: of any number of shards.
        labels: new number of each label, shape (n_labels,).
        splits: new number of each split, shape (n_splits,); -1, for none, stays.

    Returns:
        the same rows; the labels of each are sorted again.
    """
    columns = {name: index.column(name) for name in COLUMNS}
    rows = np.repeat(np.arange(len(index)), np.diff(index.label_indptr))
    label_ids = labels[index.label_ids]
    columns["label_ids"] = label_ids[np.lexsort((label_ids, rows))]
    columns["split"] = np.append(splits, np.int16(-1))[index.split]
    return Index(columns)
