"""``melstream inspect A --against B``: what differs between two data sets, one number each.

Distances between distributions are 0 where they are equal and 1 where they share nothing. A
verdict takes Cohen's bounds for the distance of two normal distributions (d of 0.2, 0.5 and
0.8), as the overlap they stand for: total variation and Kolmogorov-Smirnov distance are both
2 Phi(d / 2) - 1 for them. What chance alone would give for samples of this size is `same`.

Source:
    Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, section 2.2.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..shards.dataset import Dataset
from ..shards.spec import FeatureSpec
from .inspect import inspect_dataset
from .inspect_leaks import dataset_leaks
from .inspect_warnings import leak_findings
from .inspection import ClassDrift, Comparison, Drift, Finding, Inspection

EFFECTS = {"same": 0.2, "small": 0.5, "moderate": 0.8}  # Cohen's d; above: large
DISTANCES = {word: math.erf(d / 2 / math.sqrt(2)) for word, d in EFFECTS.items()}
KS_CRITICAL = 1.95  # Kolmogorov-Smirnov, 1 in 1,000 by chance
TV_CRITICAL = 1.5  # of what chance gives on average
COLUMNS = {
    "rms_dbfs": ("level", "dBFS"),
    "bandwidth_hz": ("bandwidth", "Hz"),
    "duration_s": ("duration", "s"),
    "silence_share": ("share of silence", ""),
}
"""What is compared sample by sample, its name in words, and its unit."""


def inspect_against(dataset: Dataset, other: Dataset) -> Inspection:
    """Inspect a data set beside another; leaks and large differences join the warnings."""
    found = inspect_dataset(dataset)
    comparison = compare(dataset, other, found)
    warnings = (
        *leak_findings(comparison.leaks),
        *_drift_findings(comparison, other.url),
        *found.warnings,
    )
    return found.model_copy(update={"comparison": comparison, "warnings": warnings})


def compare(dataset: Dataset, other: Dataset, found: Inspection | None = None) -> Comparison:
    """Measure how two data sets differ; no tar is read.

    Args:
        dataset, other: the two.
        found: what ``inspect_dataset`` says of the first, if that is at hand.
    """
    found = found or inspect_dataset(dataset)
    found_other = inspect_dataset(other)
    effects = _band_effects(dataset, other)
    class_drifts = _class_drifts(found, found_other)
    drifts = [
        *_class_share_drift(found, found_other, class_drifts),
        *_column_drifts(dataset, other),
        *_band_drift(found, effects),
        *_feature_drift(dataset.manifest.features, other.manifest.features),
    ]
    return Comparison(
        other=found_other,
        drifts=tuple(drifts),
        class_drifts=class_drifts,
        band_effects=effects,
        leaks=dataset_leaks(dataset, other),
    )


def _drift_findings(comparison: Comparison, url: str) -> Iterator[Finding]:
    large = [drift for drift in comparison.drifts if drift.verdict == "large"]
    if large:
        yield Finding(
            code="drift",
            message=f"very different from {url}: " + "; ".join(d.detail for d in large),
            remedy="what is learnt on one need not hold on the other; if they should be alike, "
            "compare how they were recorded, chosen and built",
        )


def _class_drifts(found: Inspection, other: Inspection) -> tuple[ClassDrift, ...]:
    counts = [{c.name: c.n_samples for c in side.classes} for side in (found, other)]
    totals = [max(1, sum(side.values())) for side in counts]
    drifts = [
        ClassDrift(
            name=name,
            share=counts[0].get(name, 0) / totals[0],
            other_share=counts[1].get(name, 0) / totals[1],
        )
        for name in counts[0] | counts[1]
    ]
    return tuple(sorted(drifts, key=lambda d: -abs(d.share - d.other_share)))


def _class_share_drift(
    found: Inspection, other: Inspection, drifts: tuple[ClassDrift, ...]
) -> Iterator[Drift]:
    n_labels = [sum(c.n_samples for c in side.classes) for side in (found, other)]
    if not all(n_labels):
        return
    shares = np.array([[d.share, d.other_share] for d in drifts])
    distance = 0.5 * float(np.abs(shares[:, 0] - shares[:, 1]).sum())
    pooled = shares @ np.array(n_labels) / sum(n_labels)
    deviations = np.sqrt(pooled * (1 - pooled) * sum(1 / n for n in n_labels))
    by_chance = TV_CRITICAL * math.sqrt(2 / math.pi) * 0.5 * float(deviations.sum())
    most = drifts[0]
    yield Drift(
        name="class_shares",
        measure="total variation distance",
        value=distance,
        verdict=_verdict(distance, DISTANCES, by_chance),
        detail=f"{100 * distance:.0f} % of the labels would have to change class; the largest "
        f"difference is {most.name}, {100 * most.share:.1f} and {100 * most.other_share:.1f} %",
    )


def _column_drifts(dataset: Dataset, other: Dataset) -> Iterator[Drift]:
    from scipy.stats import ks_2samp

    for name, (words, unit) in COLUMNS.items():
        sides = [_known(found.index.column(name)) for found in (dataset, other)]
        if not all(map(len, sides)):
            continue
        found: Any = ks_2samp(*sides, method="asymp")  # pyright: ignore[reportArgumentType]
        distance = float(found.statistic)
        by_chance = KS_CRITICAL * math.sqrt(sum(1 / len(side) for side in sides))
        medians = [float(np.median(side)) for side in sides]
        yield Drift(
            name=name,
            measure="Kolmogorov-Smirnov distance",
            value=distance,
            verdict=_verdict(distance, DISTANCES, by_chance),
            detail=f"median {words} {_written(medians[0], unit)} and {_written(medians[1], unit)}",
        )


def _band_effects(dataset: Dataset, other: Dataset) -> tuple[float, ...] | None:
    one, two = dataset.manifest, other.manifest
    if one.features.differing(two.features):
        return None
    n_one, n_two = (int(d.index.n_frames.sum(dtype=np.int64)) for d in (dataset, other))
    squares = n_one * np.square(one.band_std) + n_two * np.square(two.band_std)
    pooled = np.sqrt(squares / (n_one + n_two))
    difference = np.array(one.band_mean) - np.array(two.band_mean)
    return tuple(
        np.divide(difference, pooled, where=pooled > 0, out=np.zeros_like(pooled)).tolist()
    )


def _band_drift(found: Inspection, effects: tuple[float, ...] | None) -> Iterator[Drift]:
    if effects is None or found.bands is None:
        return
    mean = float(np.mean(np.abs(effects)))
    most = int(np.argmax(np.abs(effects)))
    yield Drift(
        name="bands",
        measure="mean size of Cohen's d over mel bands",
        value=mean,
        verdict=_verdict(mean, EFFECTS, 0.0),
        detail=f"the log-mel differs by {mean:.2f} standard deviations in a mean band, most at "
        f"{found.bands.centre_hz[most]:,.0f} Hz ({effects[most]:+.2f})",
    )


def _feature_drift(one: FeatureSpec, other: FeatureSpec) -> Iterator[Drift]:
    differing = one.differing(other)
    if differing:
        values = [f"{name} {getattr(one, name)} and {getattr(other, name)}" for name in differing]
        yield Drift(
            name="features",
            measure="fields of the feature spec that differ",
            value=len(differing),
            verdict="large",
            detail=f"other features ({', '.join(values)}): no model takes both",
        )


def _verdict(value: float, bounds: dict[str, float], by_chance: float) -> str:
    if value <= by_chance:
        return "same"
    return next((word for word, bound in bounds.items() if value < bound), "large")


def _known(column: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return column[~np.isnan(column)]


def _written(value: float, unit: str) -> str:
    if unit == "Hz":
        return f"{value:,.0f} Hz"
    return f"{value:.1f} {unit}" if unit else f"{100 * value:.1f} %"
