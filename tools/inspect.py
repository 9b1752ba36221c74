"""``melstream inspect``: what a data set holds, from manifest, index and summaries alone."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ..shards.dataset import Dataset
from ..shards.errors import REASONS
from ..shards.index_check import require_possible
from ..shards.manifest import Manifest
from .corpora.corpus import IGNORED
from .coverage import read_total
from .inspect_figures import (
    UNITS,
    Labels,
    Rows,
    bands,
    co_occurrence,
    count_distinct,
    duplicates,
    flags,
    histogram,
    label_rows,
)
from .inspect_leaks import split_leaks
from .inspect_warnings import find_warnings
from .inspection import (
    ClassFigures,
    Inspection,
    RejectFigures,
    ShardFigures,
    SplitFigures,
    Totals,
)
from .selection import Selection, select


def inspect_dataset(dataset: Dataset, *, label: str | None = None) -> Inspection:
    """Say what there is to say about a data set.

    Args:
        dataset: an open data set; no tar of it is read.
        label: look at the samples of this class only, by its name or the corpus's own id.

    Raises:
        ValueError: there is no such class, or it has no sample.
        DatasetError: the index is damaged.
    """
    require_possible(dataset.index, dataset.manifest, dataset.url)
    rows = slice(None) if label is None else select(dataset, Selection((label,))).rows
    manifest, index = dataset.manifest, dataset.index
    found = Inspection(
        url=dataset.url,
        fingerprint=manifest.fingerprint,
        melstream_version=manifest.melstream_version,
        corpus=manifest.build.corpus,
        label=label,
        features=manifest.features.model_dump(mode="json") | {"hash": manifest.feature_hash},
        warnings=(),
        totals=_totals(dataset, rows),
        shards=_shards(dataset),
        splits=_splits(dataset, rows),
        **_label_figures(dataset, rows),
        sample_rates=count_distinct(index.sample_rate[rows]),
        n_channels=count_distinct(index.n_channels[rows]),
        histograms=tuple(histogram(index, name, manifest.features, rows) for name in UNITS),
        flags=flags(index, manifest.features, rows),
        duplicates=duplicates(dataset, rows),
        leaks=split_leaks(dataset) if label is None else (),
        coverage=read_total(dataset.storage),
        rejects=_rejects(manifest.n_rejects, REASONS),
        ignored=_rejects(manifest.n_ignored, IGNORED),
        bands=bands(dataset) if label is None else None,
    )
    return found.model_copy(update={"warnings": find_warnings(found)})


def _totals(dataset: Dataset, rows: Rows | slice) -> Totals:
    index = dataset.index
    size_bytes = sum(shard.size_bytes for shard in dataset.manifest.shards)
    if not isinstance(rows, slice):
        members = (index.column(f"{name}_size")[rows] for name in ("logmel", "json", "flac"))
        size_bytes = int(sum(sizes.sum() for sizes in members))
    return Totals(
        n_samples=len(index.n_frames[rows]),
        n_shards=len(np.unique(index.shard[rows])),
        size_bytes=size_bytes,
        n_frames=int(index.n_frames[rows].sum(dtype=np.int64)),
        duration_s=float(np.nansum(index.duration_s[rows], dtype=np.float64)),
        has_audio=dataset.manifest.has_audio,
    )


def _shards(dataset: Dataset) -> tuple[ShardFigures, ...]:
    return tuple(
        ShardFigures(name=shard.name, n_samples=shard.n_samples, size_bytes=shard.size_bytes)
        for shard in dataset.manifest.shards
    )


def _splits(dataset: Dataset, rows: Rows | slice) -> tuple[SplitFigures, ...]:
    names = dataset.manifest.split_names
    counts = np.bincount(dataset.index.split[rows] + 1, minlength=len(names) + 1)[1:]
    return tuple(
        SplitFigures(name=name, n_samples=count)
        for name, count in zip(names, counts.tolist(), strict=True)
    )


def _label_figures(dataset: Dataset, rows: Rows | slice) -> dict[str, Any]:
    """Return the fields that tell of classes and labels."""
    duration_s = dataset.index.duration_s[rows]
    owner, ids = label_rows(dataset.index, rows)
    n_labels = np.bincount(owner, minlength=len(duration_s))
    return {
        "classes": _classes(dataset.manifest, ids, duration_s[owner]),
        "n_unlabelled": int((n_labels == 0).sum()),
        "labels_per_sample": count_distinct(n_labels),
        "co_occurrence": co_occurrence(owner, ids, dataset.manifest.label_names),
    }


def _classes(
    manifest: Manifest, ids: Labels, duration_s: npt.NDArray[np.float32]
) -> tuple[ClassFigures, ...]:
    """Count samples and add up their audio by class: of each label its id and its sample's."""
    n_classes = len(manifest.label_names)
    counts = np.bincount(ids, minlength=n_classes)
    seconds = np.bincount(ids, weights=np.nan_to_num(duration_s), minlength=n_classes)
    own_ids = manifest.label_ids or (None,) * n_classes
    columns = zip(manifest.label_names, own_ids, counts.tolist(), seconds.tolist(), strict=True)
    return tuple(
        ClassFigures(name=name, own_id=own_id, n_samples=count, duration_s=duration_s)
        for name, own_id, count, duration_s in columns
    )


def _rejects(counts: dict[str, int], meanings: dict[str, str]) -> tuple[RejectFigures, ...]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        RejectFigures(reason=reason, n_inputs=n, meaning=meanings.get(reason, ""))
        for reason, n in ranked
    )
