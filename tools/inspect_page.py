"""The page of ``melstream inspect`` in a terminal: what matters first, then figure by figure."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .hours import hours, megabytes, percent
from .inspection import (
    ClassFigures,
    Clip,
    Comparison,
    Count,
    Finding,
    Histogram,
    Inspection,
    SampleCheck,
)

BLOCKS = " ▁▂▃▄▅▆▇█"
MAX_MARKS = 32  # of a line of blocks, so that it fits a narrow terminal
MAX_ROWS = 8  # of a table of counts
WORDS = {
    "duration_s": "duration, s",
    "rms_dbfs": "level, dBFS",
    "peak": "peak, of 1",
    "clipped_share": "clipped, %",
    "silence_share": "silence, %",
    "bandwidth_hz": "bandwidth, Hz",
    "dc_offset": "DC offset, %",
}
STYLES = {"same": "green", "small": "green", "moderate": "yellow", "large": "red"}


def print_inspection(found: Inspection, console: Console, *, top: int = 20) -> None:
    """Print all there is to say about a data set.

    Args:
        found: what to print.
        console: where to.
        top: most classes to list.
    """
    for part in _parts(found, top):
        console.print(part, highlight=False)
        console.print()


def print_clip(clip: Clip, console: Console) -> None:
    """Print what manifest and index know of one sample."""
    table = _plain_table(clip.key)
    same = f", as have {clip.n_same_audio:,} other samples" if clip.n_same_audio else ""
    where = f"{clip.shard}, row {clip.row:,}, {clip.logmel_size:,} bytes at {clip.logmel_offset:,}"
    channels = "" if clip.n_channels is None else f", {clip.n_channels} channels"
    rows = {
        "labels": ", ".join(clip.labels) or "none",
        "split": clip.split,
        "where": where,
        "duration": None if clip.duration_s is None else f"{clip.duration_s:.3f} s",
        "frames": f"{clip.n_frames:,}",
        "starts at": None if clip.start_s is None else f"{clip.start_s:.3f} s of its recording",
        "recorded at": None if not clip.sample_rate else f"{clip.sample_rate:,} Hz{channels}",
        "bandwidth": None if clip.bandwidth_hz is None else f"{clip.bandwidth_hz:,.0f} Hz",
        "level": None if clip.rms_dbfs is None else f"{clip.rms_dbfs:.1f} dBFS",
        "peak": None if clip.peak is None else f"{clip.peak:.3f}",
        "clipped": None if clip.clipped_share is None else percent(clip.clipped_share),
        "silence": None if clip.silence_share is None else percent(clip.silence_share),
        "DC offset": None if clip.dc_offset is None else f"{clip.dc_offset:.5f}",
        "audio": None if clip.audio_hash is None else f"{clip.audio_hash}{same}",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value or "not recorded", "" if value else "dim"))
    console.print(table, highlight=False)


def _parts(found: Inspection, top: int) -> Iterator[RenderableType]:
    yield _head(found)
    yield _warnings(found.warnings)
    if found.sample_check is not None:
        yield _sample_check(found.sample_check)
    if found.comparison is not None:
        yield _comparison(found.comparison)
    yield _totals(found)
    if any(figures.n_samples for figures in found.classes):
        yield _classes(found, top)
        yield _labels_per_sample(found)
    yield _figures(found.histograms)
    yield _sample_rates(found.sample_rates)
    if found.rejects or found.ignored:
        yield _rejects(found)
    if found.bands is not None:
        yield _bands(found)


def _head(found: Inspection) -> Text:
    text = Text(found.url, "bold")
    if found.label is not None:
        text.append(f", samples of {found.label}")
    totals = found.totals
    text.append(
        f"\n{totals.n_samples:,} samples, {hours(totals.duration_s)}, {totals.n_shards:,} shards, "
        f"{megabytes(totals.size_bytes)}",
        "not bold",
    )
    return text


def _warnings(warnings: Sequence[Finding]) -> RenderableType:
    if not warnings:
        return Text("no warnings", "green")
    n = len(warnings)
    table = _plain_table(f"{n} warning{'s' if n > 1 else ''}", style="bold yellow")
    for finding in warnings:
        table.add_row(Text(finding.code.replace("_", " "), "yellow"), Text(finding.message))
        table.add_row("", Text(f"→ {finding.remedy}", "dim"))
    return table


def _sample_check(check: SampleCheck) -> RenderableType:
    n = len(check.keys)
    if not check.problems:
        return Text(
            f"{n:,} samples read: hashes, frames, values and figures are as indexed", "green"
        )
    table = _plain_table(f"{n:,} samples read, {len(check.problems):,} problems", style="bold red")
    for problem in check.problems:
        table.add_row("", Text(problem))
    return table


def _comparison(found: Comparison) -> RenderableType:
    table = Table(
        "against", "difference", "number", "in words", title=Text(f"against {found.other.url}")
    )
    _style(table)
    for drift in found.drifts:
        verdict = Text(drift.verdict, STYLES[drift.verdict])
        name = drift.name.removesuffix("_dbfs").removesuffix("_hz").removesuffix("_s")
        table.add_row(name.replace("_", " "), verdict, f"{drift.value:.3g}", Text(drift.detail))
    if not found.leaks:
        table.add_row("leaks", Text("none", "green"), "0", "no key and no audio stands in both")
    for leak in found.leaks:
        words = f"samples of {leak.one} stand there too, such as {', '.join(leak.examples[:3])}"
        table.add_row(f"leak, {leak.kind}", Text("leak", "red"), f"{leak.n_samples:,}", Text(words))
    return table


def _totals(found: Inspection) -> Table:
    totals, features = found.totals, found.features
    table = _plain_table(None)
    counts = np.array([shard.n_samples for shard in found.shards])
    table.add_row(
        "shards",
        f"{counts.min():,} to {counts.max():,} samples, median {np.median(counts):,.0f} "
        f"{_marks(counts)}",
    )
    if len(found.splits) > 0:
        splits = ", ".join(f"{split.name} {split.n_samples:,}" for split in found.splits)
        table.add_row("splits", Text(splits))
    if found.duplicates is None:
        same = "not recorded"
    elif found.duplicates.n_redundant:
        same = (
            f"{found.duplicates.n_redundant:,} samples have exactly the audio of another "
            f"({percent(found.duplicates.n_redundant / totals.n_samples)})"
        )
    else:
        same = "none: every sample has audio of its own"
    table.add_row("duplicates", same)
    frame_ms = 1_000 * float(features["hop_length"]) / float(features["sample_rate"])
    table.add_row(
        "features",
        f"{features['n_mels']} mel bands, {features['fmin']:g} to {features['fmax']:g} Hz, every "
        f"{frame_ms:g} ms, {features['storage_dtype']}, spec {features['hash']}",
    )
    table.add_row("waveforms", "kept, as FLAC" if totals.has_audio else "not kept")
    table.add_row("made by", Text(f"melstream {found.melstream_version} from {found.corpus}"))
    table.add_row("fingerprint", found.fingerprint)
    return table


def _classes(found: Inspection, top: int) -> Table:
    ranked = sorted(found.classes, key=lambda figures: (-figures.n_samples, figures.name))
    filled = [figures for figures in ranked if figures.n_samples]
    ratio = filled[0].n_samples / filled[-1].n_samples
    title = (
        f"{len(ranked):,} classes, {len(ranked) - len(filled):,} without clips; the largest has "
        f"{ratio:,.1f} times the clips of the smallest"
    )
    table = Table("class", "clips", "audio", "", title=Text(title))
    _style(table, right=(1, 2))
    most, least = _ends(ranked, top)
    for figures in most:
        _add_class(table, figures, filled[0].n_samples)
    if least:
        n_between = len(ranked) - len(most) - len(least)
        if n_between:
            table.add_row(Text(f"… {n_between:,} between", "dim"), "", "", "")
        for figures in least:
            _add_class(table, figures, filled[0].n_samples)
    return table


def _ends(ranked: list[ClassFigures], top: int) -> tuple[list[ClassFigures], list[ClassFigures]]:
    """Cut the long tail's middle: two thirds of the rows for its head, one for its end."""
    if len(ranked) <= top:
        return ranked, []
    n_least = top // 3
    return ranked[: top - n_least], ranked[len(ranked) - n_least :]


def _add_class(table: Table, figures: ClassFigures, largest: int) -> None:
    style = "" if figures.n_samples else "yellow"
    bar = _bar(figures.n_samples, largest)
    table.add_row(
        Text(figures.name, style), f"{figures.n_samples:,}", hours(figures.duration_s), bar
    )


def _labels_per_sample(found: Inspection) -> Table:
    title = f"labels per sample; {found.n_unlabelled:,} samples have none"
    return _counts("labels", found.labels_per_sample, title, lambda n: f"{n:,}")


def _sample_rates(counts: Sequence[Count]) -> Table:
    return _counts(
        "recorded at", counts, None, lambda rate: f"{rate:,} Hz" if rate else "not recorded"
    )


def _counts(name: str, counts: Sequence[Count], title: str | None, written) -> Table:
    table = Table(name, "samples", "", title=Text(title) if title else None)
    _style(table, right=(0, 1))
    largest = max(count.n_samples for count in counts)
    shown = sorted(counts, key=lambda count: -count.n_samples)[:MAX_ROWS]
    for count in sorted(shown, key=lambda count: count.value):
        bar = _bar(count.n_samples, largest)
        table.add_row(written(count.value), f"{count.n_samples:,}", bar)
    if rest := len(counts) - len(shown):
        n = sum(count.n_samples for count in counts) - sum(count.n_samples for count in shown)
        table.add_row(f"{rest:,} more", f"{n:,}", "", style="dim")
    return table


def _figures(histograms: Sequence[Histogram]) -> Table:
    table = Table("per sample", "least", "25 %", "median", "75 %", "most", "least to most")
    _style(table, right=(1, 2, 3, 4, 5))
    for found in histograms:
        if found.quantiles is None:
            table.add_row(WORDS[found.name], *[""] * 5, Text("not recorded", "dim"))
            continue
        scale = 100 if WORDS[found.name].endswith("%") else 1
        cells = [_number(scale * value) for value in found.quantiles]
        table.add_row(WORDS[found.name], *cells, _marks(_trimmed(found.counts)))
    return table


def _rejects(found: Inspection) -> Table:
    n = sum(figures.n_inputs for figures in found.rejects)
    title = f"{n:,} inputs are not in the set (rejects.jsonl names each)"
    table = Table("reason", "inputs", "meaning", title=Text(title))
    _style(table, right=(1,))
    for figures in found.rejects:
        table.add_row(Text(figures.reason), f"{figures.n_inputs:,}", figures.meaning)
    for figures in found.ignored:
        table.add_row(Text(f"ignored, {figures.reason}"), f"{figures.n_inputs:,}", figures.meaning)
    return table


def _bands(found: Inspection) -> RenderableType:
    assert found.bands is not None
    hz = found.bands.centre_hz
    title = f"log-mel per band, from {hz[0]:,.0f} to {hz[-1]:,.0f} Hz"
    table = _plain_table(title)
    for name, values in (("mean", found.bands.mean), ("deviation", found.bands.std)):
        low, high = min(values), max(values)
        levels = np.array(values) - low + 0.1 * ((high - low) or 1)
        table.add_row(name, f"{_marks(levels)}  {low:.2f} to {high:.2f}")
    if found.bands.value_counts is None:
        table.add_row("values", Text("not recorded: written by an older melstream", "dim"))
    else:
        counts = np.sum(found.bands.value_counts, axis=0)
        edges = found.bands.value_edges
        table.add_row("values", f"{_marks(counts)}  {edges[0]:.1f} to {edges[-1]:.1f}")
    return table


def _plain_table(title: str | None, style: str = "bold") -> Table:
    table = Table(show_header=False, title=Text(title, style) if title else None)
    _style(table)
    return table


def _style(table: Table, right: Iterable[int] = ()) -> None:
    table.box = None
    table.pad_edge = False
    table.title_justify = "left"
    table.title_style = "bold"
    table.header_style = "dim"
    for column in right:
        table.columns[column].justify = "right"


def _bar(value: int, largest: int) -> str:
    return "█" * max(round(MAX_MARKS * value / max(1, largest)), int(value > 0))


def _trimmed(counts: Sequence[int]) -> np.ndarray:
    """Leave out empty bins at both ends."""
    filled = np.flatnonzero(counts)
    return np.array(counts)[filled[0] : filled[-1] + 1] if len(filled) else np.zeros(1)


def _marks(values: Sequence[float] | np.ndarray) -> str:
    """Draw values of 0 and more as blocks; what is above 0 is seen.

    >>> _marks([0, 1, 50, 100])
    ' ▁▄█'
    """
    parts = np.array_split(np.asarray(values, float), min(len(values), MAX_MARKS))
    means = [float(part.mean()) for part in parts]
    largest = max(means) or 1.0
    levels = [max(int(8 * mean / largest), int(mean > 0)) for mean in means]
    return "".join(BLOCKS[level] for level in levels)


def _number(value: float) -> str:
    """Write a number with the digits that matter.

    >>> _number(0), _number(0.1234), _number(12.345), _number(8_000.0)
    ('0', '0.123', '12.3', '8,000')
    """
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3g}"
