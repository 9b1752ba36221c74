"""The frame of a page: templates, plots and scripts become one HTML file.

Names that stand in a page come from data sets and are not trusted: Jinja escapes every one,
plots get them through ``plot.plain``, and the page's Content-Security-Policy lets no script run
but the two that stand in it (by their hashes) and nothing be loaded from anywhere.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ...shards.files import write_bytes
from ..hours import hours, megabytes, percent
from .plot import THEMES, Plot


def write_page(path: Path, template: str, plots: Iterable[Plot], **content: Any) -> int:
    """Render a page and write it.

    Args:
        path: the HTML file; replaced when it exists.
        template: name of a file in ``templates/``.
        plots: what the template may place by name, with ``plots.<name>``.
        content: what else it shows.

    Returns:
        the size of the page, in bytes.
    """
    payload = render_page(template, plots, **content).encode("utf-8", "backslashreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, payload)
    return len(payload)


def render_page(template: str, plots: Iterable[Plot], **content: Any) -> str:
    """Return a page as HTML; the arguments are those of ``write_page``."""
    named = {plot.name: plot for plot in plots}
    scripts = (get_plotlyjs(), _source("page.js"))
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        "style-src": "'unsafe-inline'",  # plotly.js writes style attributes
        "img-src": "data: blob:",
        "media-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return (
        _environment()
        .get_template(template)
        .render(
            plots=named,
            policy="; ".join(f"{name} {value}" for name, value in policy.items()),
            style=Markup(_source("page.css")),
            scripts=[Markup(script) for script in scripts],
            plot_data=_plot_data(named.values()),
            **content,
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("melstream.tools.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["hours"] = hours
    environment.filters["megabytes"] = megabytes
    environment.filters["percent"] = percent
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=1, ensure_ascii=False)
    return environment


def _source(name: str) -> str:
    """Read a file of ``templates/``; a script's hash is that of its text with plain line ends."""
    return (resources.files(__package__ or "") / "templates" / name).read_text("utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _plot_data(plots: Iterable[Plot]) -> Markup:
    """Return every plot and both themes as JSON that can stand inside a script element."""
    figures = {plot.name: json.loads(str(plot.figure.to_json(validate=False))) for plot in plots}
    themes = {name: theme.to_plotly_json() for name, theme in THEMES.items()}
    text = json.dumps({"plots": figures, "themes": themes}, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)
