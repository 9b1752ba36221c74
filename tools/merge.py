"""``melstream merge``: several data sets as one; tars are copied as they are.

Each tar is compared with its hash on the way. Classes and splits are joined by name, in the
order they first appear in; the numbers in the index follow, the ``json`` members name them.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from ..shards.dataset import Dataset
from ..shards.errors import DatasetError, ShardError, listed
from ..shards.index import Index, concatenate
from ..shards.keys import make_key
from ..shards.manifest import BuildSettings, Manifest, ShardEntry
from ..shards.storage import Storage
from ..shards.tar_members import scan_members, split_name
from .band_sums import BandSums
from .finish import common_fields, finish, new_place, renumbered, repeated_keys
from .progress import Report

BLOCK_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Merged:
    """What was merged.

    Args:
        url: where the new data set lies.
        manifest: of it.
        n_equal_audio: samples whose audio another has too, under another key.
    """

    url: str
    manifest: Manifest
    n_equal_audio: int


def merge(datasets: Sequence[Dataset], storage: Storage, report: Report) -> Merged:
    """Copy the shards of several data sets into one.

    Args:
        datasets: two or more; features, storage type and kept audio must agree.
        storage: where to; new or empty. After an error it is empty again.
        report: called with the number of shards copied.

    Raises:
        ValueError: fewer than two data sets.
        DatasetError: they do not agree, share a key, or ``storage`` holds something.
        ShardError: a shard is missing, short or altered.
    """
    if len(datasets) < 2:
        raise ValueError(f"`merge` needs two or more data sets, found {len(datasets)}")
    for other in datasets[1:]:
        _require_alike(datasets[0], other)
    label_ids = _label_ids(datasets)
    index = _join(datasets)
    _require_unique(datasets, index)
    with new_place(storage):
        entries = _copy_shards(datasets, storage, report)
        manifest = _finish(datasets, storage, entries, index, label_ids)
    hashes, counts = np.unique(index.audio_hash[index.audio_hash > 0], return_counts=True)
    return Merged(storage.url, manifest, int(counts.sum() - len(hashes)))


def _require_alike(first: Dataset, other: Dataset) -> None:
    one, two = first.manifest, other.manifest
    one.features.require_same(two.features, other.url)
    if one.features.storage_dtype != two.features.storage_dtype:
        raise DatasetError(
            f"log-mels must be stored alike, found {one.features.storage_dtype} in {first.url} and "
            f"{two.features.storage_dtype} in {other.url}; build one of them again with the "
            "other's `--storage`"
        )
    if one.has_audio != two.has_audio:
        with_audio, without = (first, other) if one.has_audio else (other, first)
        raise DatasetError(
            f"all or none must have kept waveforms, found them in {with_audio.url} and not in "
            f"{without.url}; build one of them again with or without `--keep-audio`"
        )


def _label_ids(datasets: Sequence[Dataset]) -> tuple[str, ...] | None:
    """Return the corpora's own ids of all classes; None where a data set has none.

    Raises:
        DatasetError: a class has two.
    """
    ids: dict[str, str] = {}
    for dataset in datasets:
        manifest = dataset.manifest
        if manifest.label_ids is None:
            if manifest.label_names:
                return None
            continue
        for name, own in zip(manifest.label_names, manifest.label_ids, strict=True):
            if ids.setdefault(name, own) != own:
                raise DatasetError(
                    f"class {name!r} must have one id, found {ids[name]} and, in {dataset.url}, "
                    f"{own}: these are different classes with one name"
                )
    return tuple(ids.values()) or None


def _join(datasets: Sequence[Dataset]) -> Index:
    """Join the indexes; classes and splits get the numbers of the union."""
    all_labels = _union(dataset.manifest.label_names for dataset in datasets)
    all_splits = _union(dataset.manifest.split_names for dataset in datasets)
    parts = []
    for dataset in datasets:
        manifest = dataset.manifest
        labels = np.array([all_labels.index(name) for name in manifest.label_names], np.int32)
        splits = np.array([all_splits.index(name) for name in manifest.split_names], np.int16)
        parts.append(renumbered(dataset.index, labels=labels, splits=splits))
    return concatenate(parts)


def _union(names: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def _require_unique(datasets: Sequence[Dataset], index: Index) -> None:
    repeated = repeated_keys(index.sample_keys())
    if not repeated:
        return
    named = listed(repeated)
    keys = {dataset.url: {*dataset.index.sample_keys().tolist()} for dataset in datasets}
    places = next(
        (f"{a} and {b}" for a, b in combinations(keys, 2) if keys[a] & keys[b]), datasets[0].url
    )
    raise DatasetError(
        f"keys must be unique, found {len(repeated):,} in both {places}: {named}; take them out "
        "of one of the two with 'melstream subset --not-ids'"
    )


def _copy_shards(datasets: Sequence[Dataset], storage: Storage, report: Report) -> list[ShardEntry]:
    prefix = make_key(storage.name)
    entries: list[ShardEntry] = []
    for dataset in datasets:
        for number, old in enumerate(dataset.manifest.shards):
            entry = old.model_copy(update={"name": f"{prefix}-{len(entries):06d}.tar"})
            _copy_shard(dataset, number, storage, entry)
            entries.append(entry)
            report(len(entries), "shards")
    return entries


def _copy_shard(dataset: Dataset, number: int, storage: Storage, entry: ShardEntry) -> None:
    data = dataset.shard_bytes(number)
    digest = hashlib.sha256()
    with storage.writer(entry.name) as file:
        for start in range(0, len(data), BLOCK_BYTES):
            block = data[start : start + BLOCK_BYTES].tobytes()
            digest.update(block)
            file.write(block)
        if digest.hexdigest() != entry.sha256:
            name = dataset.manifest.shards[number].name
            raise ShardError(
                f"{dataset.url}/{name} is altered (its sha256 differs from the manifest's); "
                "'melstream verify --full' says where; copy it again, or build it again",
                shard=name,
            )


def _finish(
    datasets: Sequence[Dataset],
    storage: Storage,
    entries: Sequence[ShardEntry],
    index: Index,
    label_ids: tuple[str, ...] | None,
) -> Manifest:
    manifests = [dataset.manifest for dataset in datasets]
    sums = BandSums.zero(manifests[0].features.n_mels)
    for dataset in datasets:
        sums += BandSums.of_dataset(dataset)
    manifest = {
        **common_fields(manifests[0].features, entries),
        "has_audio": manifests[0].has_audio,
        "label_names": _union(m.label_names for m in manifests),
        "label_ids": label_ids,
        "split_names": _union(m.split_names for m in manifests),
        "n_rejects": {},
        "made_of": _union(m.lineage for m in manifests),
        "build": _build_settings(manifests),
    }
    names = ", ".join(f"{d.storage.name} (fingerprint {d.manifest.fingerprint})" for d in datasets)
    origin = f"Merged from {names}."
    return finish(storage, index, sums, manifest, origin=origin, fields=_first_fields(datasets[0]))


def _first_fields(dataset: Dataset) -> list[str]:
    """Return the fields of the first sample, as they stand in its tar."""
    fields: list[str] = []
    first = None
    for member in scan_members(dataset.shard_bytes(0), dataset.manifest.shards[0].name):
        if (cut := split_name(member.name)) is None:
            continue
        if cut[0] != (first := first or cut[0]):
            break
        fields.append(cut[1])
    return fields


def _build_settings(manifests: Sequence[Manifest]) -> BuildSettings:
    builds = [manifest.build for manifest in manifests]
    windows = {build.window_s for build in builds}
    content = json.dumps([manifest.fingerprint for manifest in manifests])
    return BuildSettings(
        corpus=f"merge of {', '.join(_union([build.corpus] for build in builds))}",
        plan_hash=hashlib.sha256(content.encode()).hexdigest()[:16],
        min_duration_s=min(build.min_duration_s for build in builds),
        window_s=windows.pop() if len(windows) == 1 else None,
        splits=_union(build.splits for build in builds),
        max_shard_samples=max(build.max_shard_samples for build in builds),
        max_shard_bytes=max(build.max_shard_bytes for build in builds),
    )
