"""What a training run shows while it runs: a live panel in a terminal, plain lines elsewhere.

pre-training ━━━━━━━━━━━━━━━━━━━━ 12400/200000  0:31:05  7:49:12
loss            2.417  ▇▆▅▅▄▃▃▂▂▂▂▁▁▁
accuracy        0.612  ▁▁▂▃▃▄▅▅▆▆▇▇▇▇
…
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .progress import Report, progress

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40  # of a curve, in characters; each is one log entry or the mean of several
_IN_PERCENT = {"accuracy", "masked_share", "data_wait_share", "mfu"}
_OF_TRAINING = ("loss", "accuracy")
_OF_VALIDATION = ("valid/mAP", "valid/accuracy", "valid/balanced_accuracy")


class View(Protocol):
    """What the training loop tells whoever watches."""

    def step(self, step: int) -> None:
        """Show how many updates are done."""
        ...

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Show the figures of a log entry."""
        ...


@contextmanager
def live_view(title: str, total: int, console: Console) -> Iterator[View]:
    """Show a training run.

    Args:
        title: what is being done.
        total: steps of the run.
        console: where; its kind decides between panel and lines.

    Yields:
        What the loop tells its steps and figures.
    """
    if console.is_terminal:
        panel = Panel(title, total, console)
        with Live(get_renderable=panel.render, console=console, refresh_per_second=4):
            yield panel
    else:
        with progress(title, total, console) as report:
            yield Lines(title, console, report)


class Lines:
    """A few plain lines over the whole run, and one for each validation.

    Args:
        title: what is being done.
        console: where validations are printed.
        report: prints how training goes, now and then.
    """

    def __init__(self, title: str, console: Console, report: Report) -> None:
        self._title, self._console, self._report = title, console, report

    def step(self, step: int) -> None:
        """Show nothing: a line has figures."""

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Print a line: of training figures now and then, of a validation always."""
        found = _text(figures, _OF_VALIDATION)
        if found:
            self._console.print(f"{self._title} validated at {step}: {found}", highlight=False)
        else:
            self._report(step, _text(figures, _OF_TRAINING))


class Panel:
    """A progress bar, and each figure with its curve.

    Args:
        title: what is being done.
        total: steps of the run.
        console: where it is shown.
    """

    def __init__(self, title: str, total: int, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(title, total=total)
        self._curves: dict[str, list[float]] = {}

    def step(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step)

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Take the figures of a log entry."""
        for name, value in figures.items():
            self._curves.setdefault(name, []).append(value)

    def render(self) -> Group:
        """Draw the panel as it is now."""
        table = Table.grid(padding=(0, 2))
        for name, values in self._curves.items():
            last = values[-1]
            text = f"{last:.1%}" if name in _IN_PERCENT else f"{last:.4g}"
            table.add_row(name, text, f"[dim]{curve(values, WIDTH)}[/]")
        return Group(self._bar, table)


def _text(figures: dict[str, float], names: tuple[str, ...]) -> str:
    shown = [name for name in names if name in figures]
    return "  ".join(f"{name.removeprefix('valid/')} {figures[name]:.3f}" for name in shown)


def curve(values: list[float], width: int) -> str:
    """Draw values as blocks of eight heights, lowest to highest.

    Args:
        values: at least one.
        width: characters at most; more values are averaged.

    >>> curve([0.0, 1.0, 2.0, 7.0], width=4)
    '▁▂▃█'
    """
    n_columns = min(width, len(values))
    edges = [len(values) * column // n_columns for column in range(n_columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    if not span > 0:
        return BLOCKS[0] * n_columns
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)
