"""Plots of a data set's classes: how many clips each has, and which stand together."""

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from ..hours import percent
from ..inspection import ClassFigures, CoOccurrence, Inspection
from .plot import (
    Plot,
    bars_height,
    counting_bars,
    figure,
    name_axis,
    named_bars,
    plain,
)

MAX_BARS = 40  # classes that all get a bar with their name; more of them become a curve
MAX_TALL_BARS = 12  # classes whose bars have the height of a table's row
N_EXTREMES = 15  # most and least frequent classes that are named beside the curve


def class_plots(found: Inspection) -> Iterator[Plot]:
    """Return the plots of the classes; none for a data set without labels."""
    ranked = ranked_classes(found)
    if not ranked:
        return
    if len(ranked) <= MAX_BARS:
        yield _all_bars(ranked)
    else:
        yield _rank_curve(ranked)
        yield _extreme(ranked[:N_EXTREMES], "most", "most frequent")
        yield _extreme(ranked[-N_EXTREMES:], "least", "least frequent")
    if any(count.value > 1 for count in found.labels_per_sample):
        if len(found.labels_per_sample) > 1:
            yield _labels_per_clip(found)
        if found.co_occurrence is not None:
            yield _co_occurrence(found.co_occurrence)


def ranked_classes(found: Inspection) -> list[ClassFigures]:
    """Return the classes, the most frequent first."""
    return sorted(found.classes, key=lambda one: (-one.n_samples, one.name))


def _all_bars(ranked: Sequence[ClassFigures]) -> Plot:
    bars = named_bars([one.name for one in ranked], [one.n_samples for one in ranked], "clips")
    reading = "The longer a bar, the more clips to learn that class from."
    n = len(ranked)
    height = 110 + 30 * n if n <= MAX_TALL_BARS else bars_height(n)  # as tall as the table beside
    return Plot("classes", "Clips per class", reading, bars, height=height)


def _rank_curve(ranked: Sequence[ClassFigures]) -> Plot:
    counts = [one.n_samples for one in ranked]
    line = go.Scatter(
        x=list(range(1, len(counts) + 1)),
        y=[count or None for count in counts],  # a logarithm has no place for 0
        mode="lines+markers",
        marker={"size": 4},
        line={"width": 1},
        customdata=[plain(one.name) for one in ranked],
        hovertemplate="%{customdata}<br>%{y:,} clips<br>rank %{x}<extra></extra>",
    )
    y = {"title": {"text": "clips"}, "type": "log", "tickformat": "~s"}
    n_empty = sum(count == 0 for count in counts)
    left_out = f" {n_empty:,} classes without a clip have no point." if n_empty else ""
    return Plot(
        "classes",
        "Clips per class, by rank",
        "Every class, the most frequent first, on a logarithmic scale: the steeper it falls, the "
        f"more the rare classes need balancing.{left_out}",
        figure(line, x={"title": {"text": "class, by rank"}, "range": [0, len(counts) + 1]}, y=y),
        is_wide=True,
    )


def _extreme(shown: Sequence[ClassFigures], name: str, words: str) -> Plot:
    bars = named_bars([one.name for one in shown], [one.n_samples for one in shown], "clips")
    reading = f"The {len(shown)} {words} of all classes."
    title = f"The {words} classes"
    return Plot(f"classes-{name}", title, reading, bars, height=bars_height(len(shown)))


def _labels_per_clip(found: Inspection) -> Plot:
    counts = [(str(count.value), count.n_samples) for count in found.labels_per_sample]
    n_several = sum(count.n_samples for count in found.labels_per_sample if count.value > 1)
    share = percent(n_several / found.totals.n_samples)
    return Plot(
        "labels-per-clip",
        "Labels per clip",
        f"{share} of the clips have more than one label.",
        counting_bars(counts, "labels of a clip"),
        is_wide=len(found.classes) <= MAX_BARS,
    )


def _co_occurrence(found: CoOccurrence) -> Plot:
    """Return the heatmap: row and column are classes, the colour the share of the row's clips."""
    size = len(found.classes)
    counts = found.counts
    shares = [
        [None if i == j else counts[i][j] / max(1, counts[i][i]) for j in range(size)]
        for i in range(size)
    ]
    names = [plain(name) for name in found.classes]
    hover = [
        [
            f"{counts[i][j]:,} of the {counts[i][i]:,} clips with {names[i]}<br>have {names[j]} too"
            for j in range(size)
        ]
        for i in range(size)
    ]
    heatmap = go.Heatmap(
        z=shares,
        text=hover,
        hovertemplate="%{text} (%{z:.1%})<extra></extra>",
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hoverongaps=False,
    )
    axis = name_axis(list(found.classes))
    return Plot(
        "co-occurrence",
        "Which labels stand together",
        f"Of the clips with the label of a row, the share that has the label of a column too, for "
        f"the {size} most frequent classes. A strong pair is one sound with two names, or two that "
        "come together.",
        figure(
            heatmap,
            x=axis | {"tickangle": -60},
            y=axis | {"autorange": "reversed"},
            coloraxis={"colorbar": {"tickformat": ".0%"}, "cmin": 0},
        ),
        height=170 + 20 * size,
        is_wide=True,
        min_width=330 + 15 * size,
    )
