"""Plots of two data sets side by side: classes, bands, and each histogram of both."""

from collections.abc import Iterator, Sequence

import numpy as np
import plotly.graph_objects as go

from ..inspection import Bands, ClassDrift, Inspection
from .histogram_plots import overlay_plots
from .plot import Plot, bars_height, figure, name_axis, plain
from .set_plots import band_axis

N_CLASSES = 12  # with the largest difference


def comparison_plots(found: Inspection) -> Iterator[Plot]:
    """Return the plots of a comparison; none where there is none."""
    comparison = found.comparison
    if comparison is None:
        return
    if comparison.class_drifts:
        yield _class_shares(comparison.class_drifts[:N_CLASSES])
    if found.bands and comparison.other.bands and comparison.band_effects:
        yield _bands(found.bands, comparison.other.bands, comparison.band_effects)
    yield from overlay_plots(found, comparison.other)


def _class_shares(drifts: Sequence[ClassDrift]) -> Plot:
    """Return one line per class from its share here to its share there."""
    places = list(range(len(drifts)))
    links = go.Scatter(
        x=[value for one in drifts for value in (one.share, one.other_share, None)],
        y=[value for place in places for value in (place, place, None)],
        mode="lines",
        line={"width": 2, "color": "rgba(128,128,128,0.5)"},
        hoverinfo="skip",
        showlegend=False,
    )
    names = [plain(one.name) for one in drifts]
    dots = [
        go.Scatter(
            x=shares,
            y=places,
            mode="markers",
            name=name,
            marker={"size": 10, "symbol": symbol},
            cliponaxis=False,
            customdata=names,
            hovertemplate="%{customdata}<br>%{x:.2%} of the labels<extra>" + name + "</extra>",
        )
        for name, symbol, shares in (
            ("this set", "circle", [one.share for one in drifts]),
            ("the other", "diamond", [one.other_share for one in drifts]),
        )
    ]
    x = {"title": {"text": "share of all labels"}, "tickformat": ".1~%", "rangemode": "tozero"}
    y = name_axis([one.name for one in drifts]) | {"autorange": "reversed"}
    return Plot(
        "other-classes",
        "Class shares, the largest differences",
        "The longer a line, the more a model's prior from one set misleads it on the other.",
        figure(dots[0], dots[1], links, x=x, y=y),
        height=bars_height(len(drifts)),
    )


def _bands(one: Bands, other: Bands, effects: Sequence[float]) -> Plot:
    places = np.arange(len(one.mean))
    lines = [
        go.Scatter(
            x=places,
            y=np.array(bands.mean),
            mode="lines",
            name=name,
            customdata=np.array(effects),
            hovertemplate="band %{x}<br>mean %{y:.2f}<br>effect %{customdata:.2f}"
            "<extra>" + name + "</extra>",
        )
        for bands, name in ((one, "this set"), (other, "the other"))
    ]
    worst = int(np.argmax(np.abs(effects)))
    return Plot(
        "other-bands",
        "Mean log-mel per band",
        f"The largest difference is {effects[worst]:+.2f} standard deviations at "
        f"{one.centre_hz[worst]:,.0f} Hz; above 0.8 a model hears another recorder.",
        figure(*lines, x=band_axis(one), y="log-mel, natural log of power"),
    )
