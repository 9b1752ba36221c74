"""Say what a build did or would do: as tables, or as JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..shards.errors import REASONS
from ..shards.manifest import Manifest
from .build import BuildReport
from .build_assemble import REJECTS_NAME
from .build_job import DoneRecord
from .build_plan import Plan
from .corpora.corpus import IGNORED
from .coverage import print_coverage
from .hours import hours
from .text_tables import many


def stage_seconds(records: Sequence[DoneRecord]) -> dict[str, float]:
    """Add up where the time of all workers went, by stage, in seconds."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.seconds)
    return dict(total)


def report_as_json(report: BuildReport) -> dict[str, Any]:
    """Return the report as plain data."""
    manifest = report.manifest
    found: dict[str, Any] = {
        "url": report.url,
        "is_complete": manifest is not None,
        "n_shards_left": report.n_shards_left,
        "n_new_shards": len(report.new),
        "new_duration_s": sum(record.duration_s for record in report.new),
        "stage_seconds": stage_seconds(report.new),
        "wall_s": report.wall_s,
    }
    if manifest is not None:
        names = ("n_samples", "duration_s", "n_rejects", "n_ignored", "ids_hash")
        found |= {name: getattr(manifest, name) for name in names}
        found["n_shards"] = len(manifest.shards)
    if report.coverage is not None:
        found["coverage"] = report.coverage.as_json()
    return found


def print_report(report: BuildReport, console: Console) -> None:
    """Print what was written, what was not and why, and how fast it went."""
    manifest = report.manifest
    if manifest is None:
        console.print(
            f"this part is done: {many(len(report.new), 'shard')} written; "
            f"{report.n_shards_left:,} left to the other parts, the last of which makes the data "
            "set",
            highlight=False,
        )
    elif not report.new:
        console.print(
            f"nothing new: {report.url} is complete, {many(manifest.n_samples, 'sample')} in "
            f"{many(len(manifest.shards), 'shard')}; a file in it that has changed since is not "
            "read again",
            highlight=False,
            markup=False,
        )
    else:
        console.print(_outcome(report, manifest))
        if report.coverage is not None and report.coverage.total.n_missing:
            print_coverage(report.coverage, console)
        if manifest.n_rejects:
            console.print(
                f"each is named in {report.url}/{REJECTS_NAME}", highlight=False, markup=False
            )


def _outcome(report: BuildReport, manifest: Manifest) -> Table:
    new_s = sum(record.duration_s for record in report.new)
    written = (
        f"samples, {hours(manifest.duration_s)} of audio, "
        f"{many(len(manifest.shards), 'shard')} in "
        f"{report.url}, {report.wall_s:.1f} s, {new_s / report.wall_s:,.0f} x real time"
    )
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("written", f"{manifest.n_samples:,}", Text(written))
    n_new = sum(record.entry.n_samples for record in report.new if record.entry is not None)
    if n_new < manifest.n_samples:
        n_tried = sum(record.n_clips for record in report.new)
        table.add_row("of them new", f"{n_new:,}", f"of {many(n_tried, 'clip')} tried this time")
    for reason, count in manifest.n_rejects.items():
        kind = "missing" if reason == "missing" else f"rejected, {reason}"
        table.add_row(kind, f"{count:,}", REASONS[reason], style="yellow")
    for kind, count in manifest.n_ignored.items():
        table.add_row(f"ignored, {kind}", f"{count:,}", IGNORED[kind], style="yellow")
    table.columns[1].justify = "right"
    return table


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """Return what a build would do as plain data."""
    return {
        "n_clips": plan.n_clips,
        "n_missing": len(plan.missing),
        "n_ignored": plan.listing.n_ignored,
        "n_classes": len(plan.listing.label_names),
        "splits": _split_counts(plan),
        "n_shards": plan.n_shards,
        "estimated_bytes": plan.n_bytes,
        "plan_hash": plan.hash,
    }


def print_plan(plan: Plan, console: Console) -> None:
    """Print what a build would do, without opening an audio file."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("clips", f"{plan.n_clips:,}", "that have a file")
    table.add_row("missing", f"{len(plan.missing):,}", REASONS["missing"])
    for kind, count in plan.listing.n_ignored.items():
        table.add_row(f"ignored, {kind}", f"{count:,}", IGNORED[kind])
    for name, count in _split_counts(plan).items():
        table.add_row(Text(f"split {name}"), f"{count:,}", "clips that have a file")
    table.add_row("classes", f"{len(plan.listing.label_names):,}", "")
    table.add_row("shards", f"{plan.n_shards:,}", f"about {plan.n_bytes / 1e6:,.1f} MB in all")
    table.columns[1].justify = "right"
    console.print(table)


def _split_counts(plan: Plan) -> dict[str, int]:
    """Count the clips that have a file by split, in the corpus's order."""
    counts = Counter(plan.listing.clips[place].split for place in plan.order.tolist())
    return {name: counts[number] for number, name in enumerate(plan.listing.splits)}
