"""Histograms of a page: durations, levels, bandwidths, with the bins that inspection counted.

Every bin is drawn equally wide, so the axis follows the bins: it is logarithmic for
durations, linear for levels, and mel for bandwidths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..hours import percent
from ..inspection import Flag, Histogram, Inspection
from .plot import Plot, clips, figure, plain


@dataclass(frozen=True, slots=True)
class Axis:
    """How one figure of the clips is shown.

    Args:
        title: of the plot.
        label: of the axis, with the unit.
        ticks: values and how they are written.
        reading: what to read from it.
        is_share: quantiles are written in per cent.
    """

    title: str
    label: str
    ticks: dict[float, str]
    reading: str
    is_share: bool = False


SHARES = {0.0: "none", 1e-5: "0.001%", 1e-3: "0.1%", 0.1: "10%"}
AXES = {
    "duration_s": Axis(
        "Durations",
        "duration, logarithmic",
        {0.01: "10 ms", 0.1: "0.1 s", 0.3: "0.3 s", 1: "1 s", 3: "3 s", 10: "10 s", 30: "30 s",
         60: "1 min", 300: "5 min", 1_800: "30 min", 7_200: "2 h"},
        "Clips shorter than the training crop are padded, longer ones are cut at random.",
    ),
    "rms_dbfs": Axis(
        "Level",
        "RMS level, dBFS",
        {value: f"{value}" for value in range(-100, 1, 10)},
        "Mean loudness against full scale (0 dBFS); two humps often mean two sources.",
    ),
    "peak": Axis(
        "Peak",
        "largest value of the waveform, full scale is 1",
        {value / 10: f"{value / 10:g}" for value in range(0, 11, 2)},
        "A bar at 1 means clips that were normalised or overdriven.",
    ),
    "clipped_share": Axis(
        "Clipping", "share of a clip's samples at full scale", SHARES,
        "Above 0.1 % it is clearly heard as distortion.",
    ),
    "silence_share": Axis(
        "Silence",
        "share of a clip under -60 dBFS",
        {value / 100: f"{value}%" for value in range(0, 101, 20)},
        "Clips on the right are mostly silent and teach little.",
        is_share=True,
    ),
    "bandwidth_hz": Axis(
        "Bandwidth",
        "highest frequency with sound, Hz",
        {125: "125", 250: "250", 500: "500", 1_000: "1k", 2_000: "2k", 4_000: "4k", 8_000: "8k",
         16_000: "16k"},
        "A hump below the top is telephone sound, low sample rates or lossy files.",
    ),
    "dc_offset": Axis(
        "DC offset", "distance from zero, share of full scale", SHARES,
        "Above 1 % it is a fault of the recorder.",
    ),
}  # fmt: skip
"""How each histogram is shown, in the order of the page."""


def histogram_plots(found: Inspection) -> Iterator[Plot]:
    """Return one plot per histogram that has known values."""
    known = {histogram.name: histogram for histogram in found.histograms}
    for name, axis in AXES.items():
        if name in known and known[name].quantiles is not None:
            flags = [flag for flag in found.flags if flag.bound.startswith(name) and flag.n_samples]
            yield _plot(known[name], axis, flags)


def overlay_plots(found: Inspection, other: Inspection) -> Iterator[Plot]:
    """Return one plot per histogram of two data sets, as shares of their clips."""
    for name, axis in AXES.items():
        pair = [
            histogram
            for inspection in (found, other)
            for histogram in inspection.histograms
            if histogram.name == name and histogram.quantiles is not None
        ]
        if len(pair) == 2 and pair[0].edges == pair[1].edges:
            yield _overlay(pair, axis)


def _plot(histogram: Histogram, axis: Axis, flags: Sequence[Flag]) -> Plot:
    bars = go.Bar(
        x=np.arange(len(histogram.counts)) + 0.5,
        y=np.array(histogram.counts),
        customdata=_bin_names(histogram, axis),
        hovertemplate="%{customdata}<br>%{y:,} clips<extra></extra>",
    )
    y = {"title": {"text": "clips"}, "tickformat": "~s"}
    shown = figure(bars, x=_axis([histogram], axis), y=y, bargap=0.06)
    flagged = "".join(
        f" {flag.bound}: {clips(flag.n_samples)} ({percent(flag.share)})." for flag in flags
    )
    reading = f"{_median(histogram, axis)} {axis.reading}{flagged}{_left_out(histogram)}"
    return Plot(_name(histogram), axis.title, reading, shown)


def _overlay(pair: Sequence[Histogram], axis: Axis) -> Plot:
    lines = [
        go.Scatter(
            x=np.arange(len(one.edges)),
            y=np.append(one.counts, one.counts[-1]) / max(1, sum(one.counts)),
            mode="lines",
            line={"shape": "hv"},
            name=name,
            customdata=_bin_names(one, axis),
            hovertemplate="%{customdata}<br>%{y:.1%} of the clips<extra>" + name + "</extra>",
        )
        for one, name in zip(pair, ("this set", "the other"), strict=True)
    ]
    y = {"title": {"text": "share of the clips"}, "tickformat": ".0%", "rangemode": "tozero"}
    medians = " and ".join(_value(one.quantiles[2], axis, one) for one in pair if one.quantiles)
    reading = f"Medians {medians}; where the lines part, the sets differ."
    shown = figure(*lines, x=_axis(pair, axis), y=y)
    return Plot(f"other-{_name(pair[0])}", axis.title, reading, shown)


def _axis(histograms: Sequence[Histogram], axis: Axis) -> dict[str, Any]:
    """Return the axis over the bins that hold something, with its ticks between bins."""
    edges = np.array(histograms[0].edges)
    filled = np.flatnonzero(np.sum([one.counts for one in histograms], axis=0))
    low, high = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(edges) - 1)
    low, high = max(0, low - 1), min(len(edges) - 1, high + 1)
    ticks = {value: text for value, text in axis.ticks.items() if edges[0] <= value <= edges[-1]}
    places = {text: _place(value, edges) for value, text in ticks.items()}
    shown = {text: place for text, place in places.items() if low <= place <= high}
    return {
        "title": {"text": axis.label},
        "tickvals": list(shown.values()),
        "ticktext": list(shown),
        "range": [low, high],
        "showgrid": False,
    }


def _place(value: float, edges: Any) -> float:
    """Return where a value stands on an axis on which every bin is 1 wide."""
    if edges[0] > 0 and value > 0:
        return float(np.interp(np.log(value), np.log(edges), np.arange(len(edges))))
    return float(np.interp(value, edges, np.arange(len(edges))))


def _bin_names(histogram: Histogram, axis: Axis) -> list[str]:
    pairs = zip(histogram.edges[:-1], histogram.edges[1:], strict=True)
    return [
        plain(f"{_value(low, axis, histogram)} to {_value(high, axis, histogram)}")
        for low, high in pairs
    ]


def _value(value: float, axis: Axis, histogram: Histogram) -> str:
    if axis.is_share or axis.ticks is SHARES:
        return percent(value)
    digits = ",.0f" if histogram.name == "bandwidth_hz" else ".3g"
    return f"{value:{digits}} {histogram.unit}".strip()


def _median(histogram: Histogram, axis: Axis) -> str:
    assert histogram.quantiles is not None
    _, first, median, third, _ = (_value(q, axis, histogram) for q in histogram.quantiles)
    if axis.ticks is SHARES:
        share = histogram.counts[0] / max(1, sum(histogram.counts))
        return f"{percent(share)} of the clips have none."
    if first == third:
        return f"Half of the clips or more: {median}."
    return f"Median {median}, half of the clips {first} to {third}."


def _left_out(histogram: Histogram) -> str:
    counts = {
        f"below {histogram.edges[0]:g}": histogram.n_below,
        f"above {histogram.edges[-1]:g}": histogram.n_above,
        "unknown": histogram.n_unknown,
    }
    parts = [f"{clips(n)} {where}" for where, n in counts.items() if n]
    return f" Not shown: {', '.join(parts)}." if parts else ""


def _name(histogram: Histogram) -> str:
    return histogram.name.replace("_", "-")
