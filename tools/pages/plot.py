"""Plots of a page: a plotly figure with its title and the sentence that says how to read it.

Figures name no colours: both themes are plotly templates, and the page's switch puts the other
one under every figure. The colours are Okabe and Ito's, darker or lighter by theme, which
colour-blind readers can tell apart.
"""

import unicodedata
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
HEIGHT = 300  # of a plot, in CSS pixels
ROW_HEIGHT = 22  # of a bar with its name, in CSS pixels
MAX_NAME = 28  # letters of a name on an axis; the text under the pointer has all


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of a page.

    Args:
        name: by which the template places it.
        title: a few words.
        reading: one sentence: what to read from it.
        figure: without colours.
        height: in CSS pixels.
        is_wide: it takes the whole width of the page.
        min_width: in CSS pixels; a narrower page scrolls the plot sideways.
    """

    name: str
    title: str
    reading: str
    figure: go.Figure
    height: int = HEIGHT
    is_wide: bool = False
    min_width: int = 0


def figure(*traces: Any, x: dict[str, Any] | str, y: dict[str, Any] | str, **layout: Any) -> Any:
    """Return a figure.

    Args:
        traces: plotly's.
        x, y: title of the axis with its unit, or the axis' settings.
        layout: further settings.
    """
    axes = [{"title": {"text": axis}} if isinstance(axis, str) else axis for axis in (x, y)]
    return go.Figure(traces, go.Layout(template=None, xaxis=axes[0], yaxis=axes[1], **layout))


def named_bars(names: list[str], values: Any, unit: str, *, digits: str = ",") -> Any:
    """Return horizontal bars, the first on top, each with its name.

    Args:
        names: not trusted.
        values: one number per name.
        unit: what the numbers count.
        digits: how a number is written, in d3's language.
    """
    full = [plain(name) for name in names]
    bars = go.Bar(
        x=values,
        y=list(range(len(names))),
        orientation="h",
        customdata=full,
        texttemplate=f"%{{x:{digits}}}",
        textposition="outside",
        cliponaxis=False,
        hovertemplate=f"%{{customdata}}<br>%{{x:{digits}}} {unit}<extra></extra>",
    )
    return figure(
        bars,
        x={
            "title": {"text": unit},
            "rangemode": "tozero",
            "showticklabels": False,
            "showgrid": False,
        },
        y=name_axis(names) | {"autorange": "reversed"},
        margin={"r": 56},
    )


def counting_bars(counts: list[tuple[str, int]], label: str) -> Any:
    """Return upright bars, one for each of a few names; the names are not trusted."""
    bars = go.Bar(
        x=list(range(len(counts))),
        y=[n for _, n in counts],
        customdata=[plain(name) for name, _ in counts],
        texttemplate="%{y:.3~s}",
        textposition="outside",
        textangle=0,
        constraintext="none",
        cliponaxis=False,
        hovertemplate="%{customdata}<br>%{y:,} clips<extra></extra>",
    )
    x = name_axis([name for name, _ in counts]) | {"title": {"text": label}}
    return figure(bars, x=x, y={"title": {"text": "clips"}, "tickformat": "~s"})


def name_axis(names: list[str]) -> dict[str, Any]:
    """Return the settings of an axis whose ticks 0, 1, 2 … are names; they are not trusted."""
    ticks = [plain(shortened(name)) for name in names]
    return {"tickvals": list(range(len(names))), "ticktext": ticks, "showgrid": False}


def bars_height(n_bars: int) -> int:
    """Return a plot's height in CSS pixels, so that every bar has room for its name."""
    return 84 + ROW_HEIGHT * max(2, n_bars)


def plain(name: str) -> str:
    """Keep plotly from reading markup in a name that comes from the data.

    >>> plain("<b>Dog & Cat</b>")
    '&lt;b&gt;Dog &amp; Cat&lt;/b&gt;'
    """
    printable = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in name)
    return printable.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def clips(n: int) -> str:
    """Write a number of clips.

    >>> clips(1), clips(1_234)
    ('1 clip', '1,234 clips')
    """
    return f"{n:,} clip{'s' * (n != 1)}"


def shortened(name: str, n_letters: int = MAX_NAME) -> str:
    """Cut a long name.

    >>> shortened("Vehicle horn, car horn, honking", 12)
    'Vehicle hor…'
    """
    return name if len(name) <= n_letters else name[: n_letters - 1].rstrip() + "…"


def _theme(ink: str, muted: str, line: str, panel: str, colours: list[str], ramp: list[str]) -> Any:
    """Return a plotly template.

    Args:
        ink, muted, line, panel: of text, of ticks, of the grid, of what lies behind.
        colours: of the traces, in their order.
        ramp: of a heatmap, from least to most.
    """
    axis = {
        "gridcolor": line,
        "linecolor": line,
        "zerolinecolor": line,
        "tickfont": {"color": muted},
        "title": {"font": {"color": muted, "size": 12}, "standoff": 8},
        "automargin": True,
        "zeroline": False,
        "ticks": "",
        "ticklabelstandoff": 5,
    }
    scale = [[place / (len(ramp) - 1), colour] for place, colour in enumerate(ramp)]
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 12, "color": ink},
            "paper_bgcolor": panel,
            "plot_bgcolor": panel,
            "colorway": colours,
            "colorscale": {"sequential": scale},
            "coloraxis": {"colorbar": {"thickness": 10, "outlinewidth": 0, "len": 1}},
            "xaxis": axis | {"tickangle": 0},
            "yaxis": axis,
            "bargap": 0.25,
            "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
            "hoverlabel": {"font": {"family": FONT}, "align": "left"},
        }
    )


THEMES = {
    "light": _theme(
        "#1d2126",
        "#5c6670",
        "#e6e8eb",
        "#ffffff",
        ["#1f6fb2", "#c8630a", "#0b8465", "#a63d78", "#6b7280"],
        ["#f4f7fa", "#c5dbee", "#7fb2da", "#3b82bd", "#1b5a94", "#0b3460"],
    ),
    "dark": _theme(
        "#e4e7ea",
        "#9aa4ae",
        "#2d333a",
        "#1b1f24",
        ["#6cb0ee", "#f2a25c", "#45c4a0", "#e58dbb", "#9aa4ae"],
        ["#20262d", "#1c4266", "#24649b", "#3f8ccb", "#83bdec", "#d9ecfb"],
    ),
}
