"""The last step of a build: finished shards become a data set; the manifest is written last.

It can be interrupted anywhere and done again: nothing is lost before the manifest stands.
"""

import contextlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..shards.dataset import Dataset
from ..shards.errors import REASONS, DatasetError, MelstreamError, SampleError
from ..shards.index import INDEX_NAME, Index, concatenate
from ..shards.manifest import Manifest, ShardEntry, write_manifest
from ..shards.storage import Storage
from .band_sums import BandSums
from .build_job import (
    STAGING_NAME,
    DoneRecord,
    Reject,
    ShardJob,
    read_part,
    read_record,
    reject,
)
from .build_plan import Plan
from .coverage import COVERAGE_NAME, Coverage, measure_coverage
from .data_card import write_card
from .finish import common_fields, repeated_keys, write_tables

REJECTS_NAME = "rejects.jsonl"
MISSING_NAME = "missing.txt"


@dataclass(frozen=True, slots=True)
class Base:
    """A finished data set that shards are added to.

    Args:
        dataset: as it is.
        rejects: what it lacks and was not tried again, sorted by key.
    """

    dataset: Dataset
    rejects: tuple[Reject, ...]


def assemble(
    plan: Plan, storage: Storage, jobs: Sequence[ShardJob], base: Base | None = None
) -> tuple[Manifest, Coverage]:
    """Close the gaps in the shards' numbers and write index, rejects and, last, the manifest.

    Args:
        plan: of the whole corpus.
        storage: where the data set lies.
        jobs: those whose shards are finished.
        base: what the shards are added to.

    Returns:
        the manifest, and what became of the corpus.

    Raises:
        MelstreamError: no clip became a sample.
        DatasetError: a finished shard is gone or altered, or two windows share a key.
    """
    records = [read_record(job) for job in jobs]
    rejects = sorted((r for record in records for r in record.rejects), key=lambda r: r.key)
    parts = _place_shards(storage, jobs, records)
    if base is not None:
        rejects = list(heapq.merge(base.rejects, rejects, key=lambda r: r.key))
    elif not parts:
        storage.delete_all(f"{STAGING_NAME}/")
        raise _nothing_left(plan, rejects)
    index, sums = _join(plan, [job for job, _ in parts], base)
    _require_unique(index.sample_keys())
    old = None if base is None else base.dataset.manifest
    index_name = INDEX_NAME if old is None else next_index_name(old.index_name)
    tables = write_tables(storage, index, sums, name=index_name)
    place = "" if old is None else _staged(index_name)
    tables["n_rejects"] = _write_rejects(storage, f"{place}{REJECTS_NAME}", plan, rejects)
    coverage = measure_coverage(plan.listing, rejects)
    content = (json.dumps(coverage.as_json(), indent=1) + "\n").encode()
    storage.write(f"{place}{MISSING_NAME}", coverage.missing_text().encode())
    storage.write(f"{place}{COVERAGE_NAME}", content)
    manifest = _make_manifest(plan, old, [entry for _, entry in parts], records, tables)
    if old is None:
        write_card(storage, manifest)
    write_manifest(storage, manifest)
    remove_leftovers(storage, manifest)
    return manifest, coverage


def _join(plan: Plan, jobs: Sequence[ShardJob], base: Base | None) -> tuple[Index, BandSums]:
    """Join what the shards left with what was there."""
    indexes, sums = [], BandSums.zero(plan.settings.features.n_mels)
    if base is not None:
        indexes.append(base.dataset.index)
        sums += BandSums.of_dataset(base.dataset)
    for job in jobs:
        part, part_sums = read_part(job)
        indexes.append(part)
        sums += part_sums
    return concatenate(indexes), sums


def next_index_name(name: str) -> str:
    """Name the index after the one of a data set that is added to.

    >>> next_index_name("index.zarr"), next_index_name("index-9.zarr")
    ('index-1.zarr', 'index-10.zarr')
    """
    generation = re.fullmatch(r"index-(\d+)\.zarr", name)
    return f"index-{1 + int(generation[1]) if generation else 1}.zarr"


def _staged(index_name: str) -> str:
    """Return the folder of what describes a set that is added to, until its manifest stands."""
    return f"{STAGING_NAME}/{index_name}/"


def publish(storage: Storage, manifest: Manifest) -> None:
    """Put what describes a data set that was added to in its place, if that is still to do."""
    staged = _staged(manifest.index_name)
    if storage.size(f"{staged}{COVERAGE_NAME}") is None:
        return
    write_card(storage, manifest)
    for name in (REJECTS_NAME, MISSING_NAME, COVERAGE_NAME):  # the last says that it is to do
        with contextlib.suppress(FileNotFoundError):  # moved before a kill
            storage.move(f"{staged}{name}", name)


def remove_leftovers(storage: Storage, manifest: Manifest) -> None:
    """Remove what a build leaves beside a finished data set, also one that was killed."""
    publish(storage, manifest)
    storage.delete_all(f"{STAGING_NAME}/")
    prefix = re.escape(manifest.shards[0].name.rpartition("-")[0])
    named = {shard.name for shard in manifest.shards}
    tops = {name.partition("/")[0] for name, _ in storage.list()}
    for name in tops - named:
        if re.fullmatch(rf"{prefix}-\d+\.tar", name):
            storage.delete(name)
        elif re.fullmatch(r"index(-\d+)?\.zarr", name) and name != manifest.index_name:
            storage.delete_all(f"{name}/")
    storage.clean()


def _nothing_left(plan: Plan, rejects: Sequence[Reject]) -> MelstreamError:
    counts = Counter(found.reason for found in rejects)
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))
    examples = "".join(f"\n  {found.message}" for found in rejects[:3])
    return MelstreamError(
        f"not one of {plan.n_clips} clips became a sample ({reasons}), such as{examples}"
    )


def _place_shards(
    storage: Storage, jobs: Sequence[ShardJob], records: Sequence[DoneRecord]
) -> list[tuple[ShardJob, ShardEntry]]:
    """Number the shards that are not empty without a gap: the last ones fill the gaps.

    A name in a gap is free until its shard has moved there, so that a move that was
    interrupted can be told from one still to come.
    """
    filled = {
        place: (job, record.entry)
        for place, (job, record) in enumerate(zip(jobs, records, strict=True))
        if record.entry is not None
    }
    gaps = [place for place in range(len(filled)) if place not in filled]
    for gap, last in zip(gaps, sorted(filled)[len(filled) - len(gaps) :], strict=True):
        filled[gap] = filled.pop(last)
    sizes = dict(storage.list())
    placed = []
    for place, (job, entry) in sorted(filled.items()):
        name = jobs[place].tar_name
        if name != job.tar_name and job.tar_name in sizes:
            with contextlib.suppress(FileNotFoundError):  # another part was faster
                storage.move(job.tar_name, name)
            sizes[name] = storage.size(name) or 0
        if sizes.get(name) != entry.size_bytes:
            raise DatasetError(
                f"{storage.url}/{name} was finished and is gone or altered; remove "
                f"{storage.url}/{job.record_name} and run the same command again to build it anew"
            )
        placed.append((job, entry.model_copy(update={"name": name})))
    return placed


def _require_unique(keys: npt.NDArray[np.bytes_]) -> None:
    """Check the keys; those of clips are unique, those of windows are made here."""
    if repeated := repeated_keys(keys):
        raise DatasetError(
            f"keys must be unique, found {repeated[0]!r} twice: a window of one "
            "recording is named as another recording; rename the latter"
        )


def _write_rejects(
    storage: Storage, name: str, plan: Plan, rejects: Sequence[Reject]
) -> dict[str, int]:
    """Write ``rejects.jsonl`` as ``name``, sorted by key; return the counts by reason."""
    error = SampleError(REASONS["missing"], reason="missing")
    missing = (reject(clip, error) for clip in plan.missing)
    counts: Counter[str] = Counter()
    with storage.writer(name) as file:
        for found in heapq.merge(missing, rejects, key=lambda found: found.key):
            counts[found.reason] += 1
            file.write(f"{found.model_dump_json()}\n".encode())
    return dict(sorted(counts.items()))


def _make_manifest(
    plan: Plan,
    old: Manifest | None,
    entries: Sequence[ShardEntry],
    records: Sequence[DoneRecord],
    tables: dict[str, Any],
) -> Manifest:
    duration_s = sum(record.duration_s for record in records)
    if old is not None:
        entries = [*old.shards, *entries]
        duration_s += old.duration_s
    return Manifest(
        **common_fields(plan.settings.features, entries),
        has_audio=plan.settings.keep_audio,
        label_names=plan.listing.label_names,
        label_ids=plan.listing.label_ids,
        split_names=plan.listing.splits,
        duration_s=duration_s,
        n_ignored=plan.listing.n_ignored,
        build=plan.build_settings,
        **tables,
    )
