"""Say what a build did: as a table, or as JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from ..shards.errors import REASONS
from .build import REJECTS_NAME, BuildReport
from .corpora.corpus import IGNORED
from .inspect import hours


def report_as_json(report: BuildReport) -> dict[str, Any]:
    """Return the report as plain data."""
    return asdict(report) | {"out": str(report.out)}


def print_report(report: BuildReport, console: Console) -> None:
    """Print what was written, what was not and why, and how fast it went."""
    if report.n_new_shards == 0:
        console.print(
            f"nothing new: {report.out} is complete, {report.n_samples:,} samples in "
            f"{report.n_shards:,} shards",
            highlight=False,
            markup=False,
        )
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("written", f"{report.n_samples:,}", _written(report))
    for reason, count in report.n_rejects.items():
        kind = "missing" if reason == "missing" else f"rejected, {reason}"
        table.add_row(kind, f"{count:,}", REASONS[reason], style="yellow")
    for kind, count in report.n_ignored.items():
        table.add_row(f"ignored, {kind}", f"{count:,}", IGNORED[kind], style="yellow")
    table.columns[1].justify = "right"
    console.print(table)
    if report.n_rejects:
        console.print(
            f"each is named in {report.out / REJECTS_NAME}", highlight=False, markup=False
        )


def _written(report: BuildReport) -> str:
    speed = report.new_duration_s / report.wall_s
    return (
        f"samples, {hours(report.duration_s)} of audio, {report.n_shards:,} shards in "
        f"{report.out}, {report.wall_s:.1f} s, {speed:,.0f} x real time"
    )
