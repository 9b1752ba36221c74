"""A progress bar in a terminal, a few plain lines everywhere else."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, str], None]
"""``report(done, note)``: how many units are done, and a few words to show beside them."""

PLAIN_SHARE = 0.1  # without a terminal: a line each tenth of the work


@contextlib.contextmanager
def progress(title: str, total: int, console: Console) -> Iterator[Report]:
    """Show how far a piece of work has come.

    Args:
        title: what is being done.
        total: units of work.
        console: where to show it; its kind decides between bar and lines.

    Yields:
        ``report(done, note)``, to be called as often as one likes.
    """
    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda done, note: bar.update(task, completed=done, note=note)
    else:
        yield _PlainLines(title, total, console)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class _PlainLines:
    def __init__(self, title: str, total: int, console: Console) -> None:
        self._title, self._total, self._console = title, total, console
        self._next = PLAIN_SHARE
        self._start = time.monotonic()

    def __call__(self, done: int, note: str) -> None:
        share = done / max(1, self._total)
        if share < self._next:
            return
        self._next = (int(share / PLAIN_SHARE) + 1) * PLAIN_SHARE
        seconds = time.monotonic() - self._start
        line = f"{self._title} {done}/{self._total} {note} {seconds:.0f} s"
        self._console.print(" ".join(line.split()), markup=False, highlight=False)
