"""The page of ``melstream inspect`` in a terminal: what matters first, then figure by figure."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .hours import hours, megabytes, percent
from .inspection import (
    ClassFigures,
    Clip,
    Comparison,
    Count,
    Duplicates,
    Finding,
    Histogram,
    Inspection,
    SampleCheck,
)
from .text_tables import bar, many, marks, number, safe, section, table, trend

MAX_ROWS = 8  # of a table of counts
SPREAD_MARKS = 20
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


def print_clip(clip: Clip, console: Console, *, source: str | None = None) -> None:
    """Print what is known of one sample.

    Args:
        clip: what manifest and index know.
        console: where to.
        source: the original name, which its ``json`` has.
    """
    same = f", as have {many(clip.n_same_audio, 'other sample')}" if clip.n_same_audio else ""
    where = f"{clip.shard}, row {clip.row:,}, {clip.logmel_size:,} bytes at {clip.logmel_offset:,}"
    channels = "" if clip.n_channels is None else f", {many(clip.n_channels, 'channel')}"
    facts = (
        *((("source", source),) if source else ()),
        ("labels", ", ".join(clip.labels) or "none"),
        ("split", clip.split or "none"),
        ("where", where),
        ("frames", f"{clip.n_frames:,}"),
        ("duration", _fact(clip.duration_s, "{:.3f} s")),
        ("starts at", _fact(clip.start_s, "{:.3f} s of its recording")),
        ("recorded at", _fact(clip.sample_rate, f"{{:,}} Hz{channels}")),
        ("bandwidth", _fact(clip.bandwidth_hz, "{:,.0f} Hz")),
        ("level", _fact(clip.rms_dbfs, "{:.1f} dBFS")),
        ("peak", _fact(clip.peak, "{:.3f} of full scale")),
        ("clipped", _fact(clip.clipped_share, "{:.3%}")),
        ("silence", _fact(clip.silence_share, "{:.1%}")),
        ("DC offset", _fact(clip.dc_offset, "{:.3%}")),
        ("audio hash", _fact(clip.audio_hash, f"{{}}{same}")),
    )
    found = table("", "")
    for name, fact in facts:
        found.add_row(name, safe(fact) if fact else safe("not recorded", "dim"))
    console.print(section(clip.key, found), highlight=False)


def _fact(value: float | str | None, form: str) -> str:
    return "" if value is None else form.format(value)


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
    yield _spreads(found.histograms)
    yield _sample_rates(found.sample_rates)
    if found.label is None and (found.rejects or found.ignored):
        yield _rejects(found)
    if found.bands is not None:
        yield _bands(found)


def _head(found: Inspection) -> Text:
    totals = found.totals
    text = safe(found.url, "bold")
    if found.label is not None:
        text.append_text(safe(f": {found.label}"))
    return text.append(
        f"\n{many(totals.n_samples, 'sample')}, {hours(totals.duration_s)}, "
        f"{many(totals.n_shards, 'shard')}, {megabytes(totals.size_bytes)}",
        "not bold",
    )


def _warnings(warnings: Sequence[Finding]) -> RenderableType:
    if not warnings:
        return safe("no warnings", "green")
    found = table("", "")
    for finding in warnings:
        found.add_row(safe(finding.code.replace("_", " "), "yellow"), safe(finding.message))
        found.add_row("", safe(f"→ {finding.remedy}", "dim"))
    return section(many(len(warnings), "warning"), found, "bold yellow")


def _sample_check(check: SampleCheck) -> RenderableType:
    n_read = many(len(check.keys), "sample")
    if not check.problems:
        return safe(f"{n_read} read: bytes, frames and figures are as indexed", "green")
    found = table("")
    for problem in check.problems:
        found.add_row(safe(problem))
    return section(f"{n_read} read, {many(len(check.problems), 'problem')}", found, "bold red")


def _comparison(found: Comparison) -> Group:
    shown = table("against it", "differs", "by", "in words", right=(2,))
    for drift in found.drifts:
        name = drift.name.removesuffix("_dbfs").removesuffix("_hz").removesuffix("_s")
        verdict = safe(drift.verdict, STYLES[drift.verdict])
        shown.add_row(name.replace("_", " "), verdict, f"{drift.value:.2f}", safe(drift.detail))
    for leak in found.leaks:
        words = f"samples stand there too, such as {', '.join(leak.examples[:2])}"
        shown.add_row(f"same {leak.kind}", safe("leak", "red"), f"{leak.n_samples:,}", safe(words))
    if not found.leaks:
        shown.add_row("leaks", safe("none", "green"), "0", "no key and no audio stands in both")
    totals = found.other.totals
    title = (
        f"against {found.other.url} ({many(totals.n_samples, 'sample')}, "
        f"{hours(totals.duration_s)})"
    )
    return section(title, shown)


def _totals(found: Inspection) -> Table:
    features, counts = found.features, np.array([shard.n_samples for shard in found.shards])
    frame_ms = 1_000 * float(features["hop_length"]) / float(features["sample_rate"])
    sizes = "each" if counts.min() == counts.max() else f"to {counts.max():,}, in order"
    splits = ", ".join(f"{name}: {n:,}" for name, n in found.split_counts())
    shown = table("", "")
    shown.add_row("shards", f"{counts.min():,} {sizes} {marks(counts)}")
    if splits:
        shown.add_row("splits", safe(splits))
    shown.add_row("duplicates", _duplicates(found.duplicates, found.totals.n_samples))
    shown.add_row("waveforms", "kept, as FLAC" if found.totals.has_audio else "not kept")
    shown.add_row(
        "features",
        f"{features['n_mels']} mel bands, {features['fmin']:g} to {features['fmax']:g} Hz, every "
        f"{frame_ms:g} ms, {features['storage_dtype']}, spec {features['hash']}",
    )
    shown.add_row("made by", safe(f"melstream {found.melstream_version}, from {found.corpus}"))
    shown.add_row("fingerprint", found.fingerprint)
    return shown


def _duplicates(found: Duplicates | None, n_samples: int) -> str:
    if found is None:
        return "not recorded"
    if not found.n_redundant:
        return "none: every sample has audio of its own"
    share = percent(found.n_redundant / n_samples)
    return f"{many(found.n_redundant, 'sample')} ({share}) with exactly the audio of another"


def _classes(found: Inspection, top: int) -> Group:
    shows_empty = found.label is None  # else they are all but the few that stand beside it
    classes = [figures for figures in found.classes if figures.n_samples or shows_empty]
    ranked = sorted(classes, key=lambda figures: (-figures.n_samples, figures.name))
    filled = [figures for figures in ranked if figures.n_samples]
    shown = table("class", "samples", "audio", "", right=(1, 2), blocks=3)
    head, tail = _ends(ranked, top)
    for figures in head:
        shown.add_row(*_class_row(figures, filled[0].n_samples))
    if n_between := len(ranked) - len(head) - len(tail):
        shown.add_row(safe(f"… {n_between:,} more …", "dim"))
    for figures in tail:
        shown.add_row(*_class_row(figures, filled[0].n_samples))
    if found.label is not None:
        return section("labels of these samples", shown)
    n_empty, ratio = len(ranked) - len(filled), filled[0].n_samples / filled[-1].n_samples
    return section(
        f"{len(ranked):,} classes, {n_empty:,} without samples; the largest has {ratio:,.1f} times "
        "the smallest",
        shown,
    )


def _ends(ranked: list[ClassFigures], top: int) -> tuple[list[ClassFigures], list[ClassFigures]]:
    """Cut out the middle of a long tail: two thirds of the rows for its head, one for its end."""
    if len(ranked) <= top:
        return ranked, []
    n_tail = top // 3
    return ranked[: top - n_tail], ranked[len(ranked) - n_tail :]


def _class_row(figures: ClassFigures, largest: int) -> tuple[Text, str, str, str]:
    name = safe(figures.name, "" if figures.n_samples else "yellow")
    blocks = bar(figures.n_samples, largest)
    return name, f"{figures.n_samples:,}", hours(figures.duration_s), blocks


def _labels_per_sample(found: Inspection) -> Group:
    shown = _counts("labels", found.labels_per_sample, lambda n: f"{n:,}")
    return section(f"labels per sample; {many(found.n_unlabelled, 'sample')} without", shown)


def _sample_rates(counts: Sequence[Count]) -> Table:
    return _counts("recorded at", counts, lambda hz: f"{hz:,} Hz" if hz else "not recorded")


def _counts(name: str, counts: Sequence[Count], written: Callable[[int], str]) -> Table:
    """List the most frequent values in order, and sum up the others."""
    shown = table(name, "samples", "", right=(0, 1), blocks=2)
    ranked = sorted(counts, key=lambda count: -count.n_samples)
    for count in sorted(ranked[:MAX_ROWS], key=lambda count: count.value):
        blocks = bar(count.n_samples, ranked[0].n_samples)
        shown.add_row(written(count.value), f"{count.n_samples:,}", blocks)
    if rest := ranked[MAX_ROWS:]:
        n_samples = sum(count.n_samples for count in rest)
        shown.add_row(f"{len(rest):,} more", f"{n_samples:,}", "", style="dim")
    return shown


def _spreads(histograms: Sequence[Histogram]) -> Table:
    headers = ("per sample", "least", "25 %", "median", "75 %", "most", "least to most")
    shown = table(*headers, right=range(1, 6), blocks=6)
    for found in histograms:
        name = WORDS[found.name]
        if found.quantiles is None:
            shown.add_row(name, *[""] * 5, safe("not recorded", "dim"))
            continue
        scale = 100 if name.endswith("%") else 1
        cells = [number(scale * value) for value in found.quantiles]
        shown.add_row(name, *cells, marks(_filled(found.counts), SPREAD_MARKS))
    return shown


def _filled(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Leave out empty bins at both ends."""
    places = np.flatnonzero(counts)
    return np.array(counts)[places[0] : places[-1] + 1] if len(places) else np.zeros(1, np.int64)


def _rejects(found: Inspection) -> Group:
    shown = table("reason", "inputs", "meaning", right=(1,))
    for figures in found.rejects:
        shown.add_row(safe(figures.reason), f"{figures.n_inputs:,}", figures.meaning)
    for figures in found.ignored:
        shown.add_row(safe(f"ignored, {figures.reason}"), f"{figures.n_inputs:,}", figures.meaning)
    n = sum(figures.n_inputs for figures in found.rejects)
    return section(f"{many(n, 'input')} not in the set; rejects.jsonl names each", shown)


def _bands(found: Inspection) -> Group:
    assert found.bands is not None
    bands, shown = found.bands, table("", "")
    for name, values in (("mean", bands.mean), ("deviation", bands.std)):
        shown.add_row(name, f"{trend(values)} {min(values):.2f} to {max(values):.2f}")
    if bands.value_counts is None:
        shown.add_row("values", safe("not recorded: written by an older melstream", "dim"))
    else:
        counts = np.sum(bands.value_counts, axis=0)
        low, high = bands.value_edges[0], bands.value_edges[-1]
        at_floor = percent(counts[0] / counts.sum())
        words = f"{low:.1f} to {high:.1f}, {at_floor} at the floor"
        shown.add_row("values", f"{marks(counts)} {words}")
    title = f"log-mel per band, from {bands.centre_hz[0]:,.0f} to {bands.centre_hz[-1]:,.0f} Hz"
    return section(title, shown)
