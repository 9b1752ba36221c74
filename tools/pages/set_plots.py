"""Plots of a data set as a whole: sample rates, shards, rejects, mel bands."""

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go

from ..hours import megabytes
from ..inspection import Bands, Inspection
from .plot import Plot, bars_height, counting_bars, figure, named_bars, plain

MAX_RATES = 9  # sample rates that get a bar
MAX_SPLITS = 20  # splits that get a bar
MAX_SHARD_BARS = 120  # more of them become dots
TICKS_HZ = np.array([125, 500, 1_000, 2_000, 4_000, 8_000, 16_000])
STRONGEST = 99  # percentile of the heatmap that gets its last colour: the floor must not rule it
N_VALUE_BINS = 64  # rows of the heatmap of log-mel values


def origin_plots(found: Inspection) -> Iterator[Plot]:
    """Return what the recordings were before they were resampled, and their splits."""
    rates = [
        (f"{count.value / 1_000:g}" if count.value else "unknown", count.n_samples)
        for count in found.sample_rates
    ]
    if len(rates) > 1:
        yield Plot(
            "sample-rates",
            "Original sample rates",
            f"Of the recordings before they were resampled to {found.features['sample_rate']:,} "
            "Hz; those below it lack the highest bands.",
            counting_bars(_most_frequent(rates, MAX_RATES), "original sample rate, kHz"),
        )
    if len(found.splits) > 1:
        shown = _most_frequent(found.split_counts(), MAX_SPLITS)
        yield Plot(
            "splits",
            "Splits",
            "Clips in each split or fold of the corpus.",
            named_bars([name for name, _ in shown], [n for _, n in shown], "clips"),
            height=bars_height(len(shown)),
        )


def _most_frequent(counts: list[tuple[str, int]], n: int) -> list[tuple[str, int]]:
    """Keep the n most frequent, in their order, and sum up the others."""
    if len(counts) <= n:
        return counts
    kept = set(sorted(range(len(counts)), key=lambda place: -counts[place][1])[: n - 1])
    others = sum(count for place, (_, count) in enumerate(counts) if place not in kept)
    return [*(counts[place] for place in sorted(kept)), ("others", others)]


def shard_plot(found: Inspection) -> Plot | None:
    """Return the sizes of the shards; None where there is one only."""
    if len(found.shards) == 1:
        return None
    sizes = np.array([shard.size_bytes for shard in found.shards]) / 1e6
    places = np.arange(len(sizes))
    if len(sizes) <= MAX_SHARD_BARS:
        hover = [
            f"{plain(shard.name)}<br>{megabytes(shard.size_bytes)}<br>{shard.n_samples:,} clips"
            for shard in found.shards
        ]
        look = {"hovertext": hover, "hovertemplate": "%{hovertext}<extra></extra>"}
        trace = go.Bar(x=places, y=sizes, **look)
    else:
        look = {"hovertemplate": "shard %{x:,}<br>%{y:,.1f} MB<extra></extra>"}
        trace = go.Scatter(x=places, y=sizes, mode="markers", marker={"size": 3}, **look)
    samples = [shard.n_samples for shard in found.shards]
    low, high = min(samples), max(samples)
    reading = (
        f"{low:,} to {high:,} clips each. Even shards keep every reader equally busy."
        if low != high
        else f"{low:,} clips each."
    )
    y = {"title": {"text": "size, MB"}, "rangemode": "tozero"}
    x = {"title": {"text": "shard, in order"}, "showgrid": False, "tickformat": ",d"}
    if len(sizes) < 8:
        x["dtick"] = 1
    return Plot("shards", "Shard sizes", reading, figure(trace, x=x, y=y))


def reject_plot(found: Inspection) -> Plot | None:
    """Return the inputs that are not in the set, by reason; None where there are none."""
    if not found.rejects:
        return None
    bars = named_bars(
        [one.reason for one in found.rejects], [one.n_inputs for one in found.rejects], "inputs"
    )
    n = sum(one.n_inputs for one in found.rejects)
    reading = f"{n:,} inputs are not in the set; rejects.jsonl beside it names each."
    height = bars_height(len(found.rejects))
    return Plot("rejects", "Rejected inputs, by reason", reading, bars, height=height)


def band_plots(bands: Bands | None) -> Iterator[Plot]:
    """Return mean and spread of the mel bands, and how their values are spread."""
    if bands is None:
        return
    yield _band_means(bands)
    if bands.value_counts is not None:
        yield _band_values(bands)


def _band_means(bands: Bands) -> Plot:
    n_mels = len(bands.mean)
    mean, std = np.array(bands.mean), np.array(bands.std)
    places = np.arange(n_mels)
    hover = [
        f"band {i}, {bands.centre_hz[i]:,.0f} Hz<br>mean {mean[i]:.2f}, deviation {std[i]:.2f}"
        for i in range(n_mels)
    ]
    outline = {
        "x": np.concatenate([places, places[::-1]]),
        "y": np.concatenate([mean - std, (mean + std)[::-1]]),
    }
    traces = [
        go.Scatter(
            outline,
            fill="toself",
            mode="lines",
            line={"width": 0},
            name="mean ± deviation",
            hoverinfo="skip",
        ),
        go.Scatter(
            x=places,
            y=mean,
            mode="lines+markers",
            marker={"size": 4},
            text=hover,
            name="mean",
            hovertemplate="%{text}<extra></extra>",
        ),
    ]
    y = {"title": {"text": "log-mel, natural log of power"}}
    return Plot(
        "bands",
        "Mean and spread per band",
        "Training normalises each band by these; a notch is a filter, a narrow spread a band "
        "that carries little.",
        figure(*traces, x=band_axis(bands), y=y),
        is_wide=bands.value_counts is None,
    )


def _band_values(bands: Bands) -> Plot:
    counts, edges = _fewer_bins(np.array(bands.value_counts), np.array(bands.value_edges))
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    strongest = float(np.percentile(shares, STRONGEST))
    heatmap = go.Heatmap(
        z=np.round(shares.T, 5),
        x=np.arange(len(shares)),
        y=(edges[:-1] + edges[1:]) / 2,
        coloraxis="coloraxis",
        hovertemplate="band %{x}<br>log-mel about %{y:.1f}<br>%{z:.1%} of its frames"
        "<extra></extra>",
    )
    return Plot(
        "band-values",
        "Log-mel values by band",
        "For each band, the share of frames at each value; a strong line at the lower end is "
        "digital silence, cut off at the log floor.",
        figure(
            heatmap,
            x=band_axis(bands),
            y={"title": {"text": "log-mel, natural log of power"}},
            coloraxis={"colorbar": {"tickformat": ".0%"}, "cmin": 0, "cmax": strongest},
        ),
    )


def _fewer_bins(counts: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut off the values that never occur, and join the others to a number that is seen."""
    filled = np.flatnonzero(counts.sum(0))
    low, high = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, counts.shape[1])
    step = -(-(high - low) // N_VALUE_BINS)
    starts = np.arange(low, high, step)
    joined = np.add.reduceat(counts[:, :high], starts, axis=1)
    return joined, np.append(edges[starts], edges[min(high, len(edges) - 1)])


def band_axis(bands: Bands) -> dict[str, object]:
    """Return an axis whose unit is the band, with ticks in Hz."""
    centre = np.array(bands.centre_hz)
    ticks = TICKS_HZ[(centre[0] <= TICKS_HZ) & (centre[-1] >= TICKS_HZ)]
    return {
        "title": {"text": "centre of the mel band, Hz"},
        "tickvals": np.interp(ticks, centre, np.arange(len(centre))).tolist(),
        "ticktext": [f"{tick / 1_000:g}k" if tick >= 1_000 else f"{tick}" for tick in ticks],
        "showgrid": False,
    }
