"""``melstream subset``: some samples of a data set as a data set of their own.

Members are copied byte for byte, in the same order; nothing is decoded but for the
statistics. The classes keep their numbers, so that models go from one to the other.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..shards.dataset import Dataset
from ..shards.index import Index, concatenate
from ..shards.keys import make_key
from ..shards.manifest import BuildSettings, Manifest, ShardEntry
from ..shards.rows import row_of
from ..shards.storage import Storage
from ..shards.verify import members
from ..shards.writer import JSON_FIELD, LOGMEL_FIELD, ShardWriter, write_shard
from .band_sums import BandSums
from .build_plan import MEMBER_BYTES, MIN_SHARD_SAMPLES, MIN_SHARDS
from .finish import common_fields, finish, new_place
from .progress import Report
from .selection import Selected, Selection, select


@dataclass(frozen=True, slots=True)
class Limits:
    """Most samples and bytes in a shard; None: as in the data set that is copied from."""

    max_samples: int | None = None
    max_bytes: int | None = None


AS_BEFORE = Limits()


@dataclass(frozen=True, slots=True)
class Subset:
    """What was copied.

    Args:
        url: where the new data set lies.
        manifest: of it.
        n_from: samples of the data set that was copied from.
        selected: which were copied, and why.
    """

    url: str
    manifest: Manifest
    n_from: int
    selected: Selected


def subset(
    dataset: Dataset,
    storage: Storage,
    selection: Selection,
    report: Report,
    limits: Limits = AS_BEFORE,
) -> Subset:
    """Copy the samples that a selection keeps.

    Args:
        dataset: what to copy from.
        storage: where to; new or empty. After an error it is empty again.
        selection: what to keep.
        report: called with the number of samples copied.
        limits: of the shards.

    Raises:
        ValueError: the selection cannot be, or nothing is left.
        DatasetError: ``storage`` holds something.
        ShardError: a shard that is read is missing, short or altered.
    """
    selected = select(dataset, selection)
    build = _build_settings(dataset, selection, limits)
    copier = _Copier(dataset, storage)
    bounds = cut(_sizes(dataset, selected.rows), build.max_shard_samples, build.max_shard_bytes)
    with new_place(storage):
        for first, end in pairwise(bounds):
            copier.copy(selected.rows[first:end])
            report(end, "samples")
        manifest = copier.finish(build, _origin(dataset, selection))
    return Subset(storage.url, manifest, len(dataset), selected)


def cut(sizes: npt.NDArray[np.int64], max_samples: int, max_bytes: int) -> list[int]:
    """Cut samples, in order, into shards of about equal numbers of samples.

    Small sets are cut too, as a build does, but not into crumbs.

    Args:
        sizes: bytes of each sample in a tar, shape (n_samples,).
        max_samples, max_bytes: of a shard; one sample is never cut.

    Returns:
        bounds; shard s holds samples bounds[s] to bounds[s + 1].

    >>> cut(np.full(10, 100), 4, 10_000), cut(np.full(5, 100), 4, 250)
    ([0, 4, 7, 10], [0, 2, 4, 5])
    """
    n = len(sizes)
    n_shards = max(
        -(-n // max_samples),
        -(-int(sizes.sum()) // max_bytes),
        min(MIN_SHARDS, n // MIN_SHARD_SAMPLES),
    )
    bounds, n_bytes = [0], 0
    for place, size in enumerate(sizes.tolist()):
        is_due = place * n_shards >= n * len(bounds)
        is_full = place - bounds[-1] == max_samples or n_bytes + size > max_bytes
        if place > bounds[-1] and (is_due or is_full):
            bounds.append(place)
            n_bytes = 0
        n_bytes += size
    return [*bounds, n]


class _Copier:
    """Copies samples, shard after shard."""

    def __init__(self, dataset: Dataset, storage: Storage) -> None:
        self._dataset = dataset
        self._storage = storage
        self._prefix = make_key(storage.name)
        self._entries: list[ShardEntry] = []
        self._indexes: list[Index] = []
        self._sums = BandSums.zero(dataset.manifest.features.n_mels)

    def copy(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Write one shard."""
        name = f"{self._prefix}-{len(self._entries):06d}.tar"
        with write_shard(self._storage, name) as writer:
            for row in rows:
                self._copy_sample(int(row), writer)
        self._entries.append(writer.entry)
        self._indexes.append(writer.index)

    def _copy_sample(self, row: int, writer: ShardWriter) -> None:
        dataset = self._dataset
        payloads = {name: dataset.read_member(row, name) for name in members(dataset, row)}
        writer.append(row_of(dataset.index, row), payloads)
        stored = dataset.read_stored(row, check=False)
        self._sums += BandSums.of(stored, dataset.manifest.features)

    def finish(self, build: BuildSettings, origin: str) -> Manifest:
        """Write the tables; the manifest last."""
        old = self._dataset.manifest
        index = concatenate(self._indexes)
        manifest = {
            **common_fields(old.features, self._entries),
            "has_audio": old.has_audio,
            "label_names": old.label_names,
            "label_ids": old.label_ids,
            "split_names": old.split_names,
            "n_rejects": {},
            "made_of": old.lineage,
            "build": build,
        }
        fields = [JSON_FIELD, LOGMEL_FIELD] if index.json_size.all() else [LOGMEL_FIELD]
        return finish(self._storage, index, self._sums, manifest, origin=origin, fields=fields)


def _sizes(dataset: Dataset, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    index = dataset.index
    return (index.logmel_size + index.json_size + index.flac_size + MEMBER_BYTES)[rows]


def _build_settings(dataset: Dataset, selection: Selection, limits: Limits) -> BuildSettings:
    old = dataset.manifest.build
    max_samples = limits.max_samples or old.max_shard_samples
    max_bytes = limits.max_bytes or old.max_shard_bytes
    content = [dataset.manifest.fingerprint, str(selection), max_samples, max_bytes]
    return old.model_copy(
        update={
            "corpus": f"subset of {old.corpus}",
            "plan_hash": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
            "max_shard_samples": max_samples,
            "max_shard_bytes": max_bytes,
        }
    )


def _origin(dataset: Dataset, selection: Selection) -> str:
    chosen = str(selection) or "everything"
    name, fingerprint = dataset.storage.name, dataset.manifest.fingerprint
    return f"A subset of {name} (fingerprint {fingerprint}), chosen by: {chosen}."
