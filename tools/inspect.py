"""``melstream inspect``: what a data set holds, from manifest and index alone."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..shards.dataset import Dataset, open_dataset
from ..shards.errors import REASONS
from .corpora.corpus import IGNORED

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_MARKS = 32  # of a line of blocks, so that it fits a narrow terminal
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Description:
    """What there is to say about a data set.

    Args:
        folder: where it lies.
        fingerprint: of its content.
        features: the feature spec and its hash.
        n_samples, n_shards, size_bytes, duration_s: totals.
        durations_s: quantiles 0, 25, 50, 75 and 100 % of the clips' durations.
        sample_rates: clips by original sample rate in Hz.
        classes: clips by class, in the order of labels.
        n_unlabelled: clips without a label.
        rejects: inputs that are not in the set, by reason.
        ignored: audio files that belong to no input, by kind.
        band_mean, band_std: of the log-mel, per mel band.
    """

    folder: str
    fingerprint: str
    features: dict[str, Any]
    n_samples: int
    n_shards: int
    size_bytes: int
    duration_s: float
    durations_s: tuple[float, ...]
    sample_rates: dict[int, int]
    classes: dict[str, int]
    n_unlabelled: int
    rejects: dict[str, int]
    ignored: dict[str, int]
    band_mean: tuple[float, ...]
    band_std: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)


def describe(dataset: Dataset) -> Description:
    """Collect what manifest and index say."""
    manifest, index = dataset.manifest, dataset.index
    counts = np.bincount(index.label_ids, minlength=len(manifest.label_names))
    rates, n_rates = np.unique(index.sample_rate, return_counts=True)
    return Description(
        folder=dataset.url,
        fingerprint=manifest.fingerprint,
        features=manifest.features.model_dump(mode="json") | {"hash": manifest.feature_hash},
        n_samples=len(dataset),
        n_shards=len(manifest.shards),
        size_bytes=sum(shard.size_bytes for shard in manifest.shards),
        duration_s=manifest.duration_s,
        durations_s=tuple(np.quantile(index.duration_s, QUANTILES).tolist()),
        sample_rates=dict(zip(rates.tolist(), n_rates.tolist(), strict=True)),
        classes=dict(zip(manifest.label_names, counts.tolist(), strict=True)),
        n_unlabelled=int(np.sum(np.diff(index.label_indptr) == 0)),
        rejects=manifest.n_rejects,
        ignored=manifest.n_ignored,
        band_mean=manifest.band_mean,
        band_std=manifest.band_std,
    )


def inspect(place: str | Path) -> Description:
    """Open and describe a data set.

    Raises:
        DatasetError: there is none.
    """
    return describe(open_dataset(place))


def print_description(found: Description, console: Console, *, top: int = 20) -> None:
    """Print a page about a data set.

    Args:
        found: what to print.
        console: where to.
        top: most classes to list; the rest is summed up.
    """
    console.print(_totals(found))
    if any(found.classes.values()):
        console.print(_classes(found, top))
    if found.rejects or found.ignored:
        console.print(_rejects(found))
    console.print(_bands(found))


def hours(duration_s: float) -> str:
    """Write a duration the way people read it.

    >>> hours(30), hours(600), hours(7_200)
    ('30.0 s', '10.0 min', '2.00 h')
    """
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    return f"{duration_s / 60:.1f} min" if duration_s < 3_600 else f"{duration_s / 3_600:.2f} h"


def _totals(found: Description) -> Table:
    features = found.features
    low, first, median, third, high = found.durations_s
    rates = ", ".join(
        f"{f'{rate:,} Hz' if rate else 'unknown'} ({n:,})" for rate, n in found.sample_rates.items()
    )
    table = Table(show_header=False, box=None, pad_edge=False, title=Text(found.folder, "bold"))
    table.title_justify = "left"
    table.add_row(
        "samples",
        f"{found.n_samples:,} in {found.n_shards:,} shards, {found.size_bytes / 1e6:,.1f} MB",
    )
    table.add_row("audio", hours(found.duration_s))
    table.add_row(
        "durations",
        f"{low:.2f} to {high:.2f} s, median {median:.2f} s, "
        f"half of them {first:.2f} to {third:.2f} s",
    )
    table.add_row("recorded at", rates)
    table.add_row(
        "features",
        f"{features['n_mels']} mel bands, {features['fmin']:g} to {features['fmax']:g} Hz, every "
        f"{1000 * features['hop_length'] / features['sample_rate']:g} ms, spec {features['hash']}",
    )
    table.add_row("fingerprint", found.fingerprint)
    return table


def _classes(found: Description, top: int) -> Table:
    ranked = sorted(found.classes.items(), key=lambda item: (-item[1], item[0]))
    largest = ranked[0][1]
    n_empty = sum(count == 0 for _, count in ranked)
    title = (
        f"{len(ranked)} classes, {n_empty} without clips, {found.n_unlabelled} clips without label"
    )
    table = Table("class", "clips", "", title=title, title_justify="left", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, count in ranked[:top]:
        table.add_row(_safe(name), f"{count:,}", "█" * round(30 * count / max(1, largest)))
    if len(ranked) > top:
        rest = sum(count for _, count in ranked[top:])
        table.add_row(f"{len(ranked) - top} more", f"{rest:,}", "", style="dim")
    return table


def _rejects(found: Description) -> Table:
    title = f"{sum(found.rejects.values()):,} inputs are not in the set (rejects.jsonl names each)"
    table = Table(
        "reason", "inputs", "meaning", title=title, title_justify="left", box=None, pad_edge=False
    )
    table.columns[1].justify = "right"
    for reason, count in sorted(found.rejects.items(), key=lambda item: -item[1]):
        table.add_row(_safe(reason), f"{count:,}", REASONS.get(reason, ""))
    for kind, count in found.ignored.items():
        table.add_row(f"ignored, {_safe(kind)}", f"{count:,}", IGNORED.get(kind, ""))
    return table


def _bands(found: Description) -> Table:
    title = "log-mel per band, from the lowest to the highest"
    table = Table(show_header=False, title=title, title_justify="left", box=None, pad_edge=False)
    for name, values in (("mean", found.band_mean), ("deviation", found.band_std)):
        low, high = min(values), max(values)
        table.add_row(name, _sparkline(values), f"{low:.2f} to {high:.2f}")
    return table


def _sparkline(values: tuple[float, ...]) -> str:
    n_marks = min(len(values), MAX_MARKS)
    values = tuple(float(np.mean(part)) for part in np.array_split(values, n_marks))
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BLOCKS[min(7, int(8 * (value - low) / span))] for value in values)


def _safe(name: str) -> Text:
    """Keep rich from reading markup in names that come from the data."""
    return Text(name)
