"""The page of a data set: warnings first, then what is in it, with a gallery of clips."""

import itertools
from importlib.metadata import version
from pathlib import Path

from ..shards.dataset import Dataset
from .hours import hours, megabytes, percent
from .inspection import Clip, Drift, Inspection
from .pages.class_plots import class_plots, ranked_classes
from .pages.comparison_plots import comparison_plots
from .pages.gallery import Card, make_gallery
from .pages.histogram_plots import histogram_plots
from .pages.page import write_page
from .pages.plot import Plot
from .pages.set_plots import band_plots, origin_plots, reject_plot, shard_plot
from .pages.spectrogram import hz_ticks

MAX_TABLE_CLASSES = 2_000  # rows of the table of classes; the page stays under 10 MB
N_EXAMPLES = 5  # keys of duplicates and leaks

WHAT = {
    "features": "features",
    "class_shares": "class shares",
    "bands": "mel bands",
    "duration_s": "durations",
    "rms_dbfs": "levels",
    "peak": "peaks",
    "clipped_share": "clipping",
    "silence_share": "silence",
    "bandwidth_hz": "bandwidths",
    "dc_offset": "DC offsets",
}
"""What a drift is about, in words."""


def write_data_report(path: Path, found: Inspection, dataset: Dataset) -> int:
    """Write the page of a data set.

    Args:
        path: the HTML file.
        found: what it shows.
        dataset: for the gallery, best opened with ``reads_ranges=True``.

    Returns:
        its size in bytes.
    """
    gallery = make_gallery(dataset, label=found.label)
    sections = {
        "classes": list(class_plots(found)),
        "clips": [*histogram_plots(found), *origin_plots(found)],
        "bands": list(band_plots(found.bands)),
        "comparison": list(comparison_plots(found)),
    }
    shards, rejects = shard_plot(found), reject_plot(found)
    return write_page(
        path,
        "data.html.jinja",
        [*itertools.chain(*sections.values()), *filter(None, (shards, rejects))],
        version=version("melstream"),
        found=found,
        sections=sections,
        shards=shards,
        rejects=rejects,
        table_beside=_table_beside(sections["classes"]),
        tiles=_tiles(found),
        classes=ranked_classes(found)[:MAX_TABLE_CLASSES],
        drifts=_drifts(found),
        gallery=gallery,
        hz_ticks=hz_ticks(dataset.manifest.features),
        clip_facts=clip_facts,
        facts=_facts(found),
        n_examples=N_EXAMPLES,
    )


def _tiles(found: Inspection) -> list[tuple[str, str, str]]:
    totals = found.totals
    mean_s = totals.duration_s / max(1, totals.n_samples)
    n_used = sum(one.n_samples > 0 for one in found.classes)
    n_rejects = sum(one.n_inputs for one in found.rejects)
    tiles = [
        ("Clips", f"{totals.n_samples:,}", f"{mean_s:.3g} s each on average"),
        ("Audio", hours(totals.duration_s), f"{totals.n_frames:,} frames"),
    ]
    if found.classes:
        n_empty = len(found.classes) - n_used
        detail = f"{n_empty:,} without a clip" if n_empty else "each with clips"
        tiles.append(("Classes", f"{len(found.classes):,}", detail))
    if found.n_unlabelled:
        share = percent(found.n_unlabelled / totals.n_samples)
        tiles.append(("Without a label", f"{found.n_unlabelled:,}", f"{share} of the clips"))
    tiles.append(("Shards", f"{totals.n_shards:,}", megabytes(totals.size_bytes)))
    if found.coverage is not None and found.coverage.n_written < found.coverage.n_listed:
        n_lost = found.coverage.n_listed - found.coverage.n_written
        share = percent(n_lost / found.coverage.n_listed)
        tiles.append(("Rejected", f"{n_lost:,}", f"{share} of the inputs"))
    elif n_rejects:
        share = percent(n_rejects / (n_rejects + totals.n_samples))
        tiles.append(("Rejected", f"{n_rejects:,}", f"{share} of the inputs"))
    return tiles


def _table_beside(plots: list[Plot]) -> str:
    """Return the name of the plot that has room for the table of classes at its side."""
    return next((plot.name for plot in reversed(plots) if _has_room(plot)), "")


def _has_room(plot: Plot) -> bool:
    return not plot.is_wide and plot.name in ("classes", "labels-per-clip")


def _facts(found: Inspection) -> list[tuple[str, str]]:
    features = found.features
    frame_ms = 1_000 * int(features["hop_length"]) / int(features["sample_rate"])
    channels = ", ".join(
        f"{count.value or 'unknown'} ({count.n_samples:,})" for count in found.n_channels
    )
    return [
        ("where", found.url),
        ("fingerprint", found.fingerprint),
        ("built", f"from the corpus {found.corpus}, by melstream {found.melstream_version}"),
        (
            "features",
            f"{features['n_mels']} mel bands, {features['fmin']:g} to {features['fmax']:g} Hz, a "
            f"frame every {frame_ms:g} ms, stored as {features['storage_dtype']}",
        ),
        ("feature hash", str(features["hash"])),
        ("audio", "kept as FLAC" if found.totals.has_audio else "not kept"),
        ("original channels", channels),
        *_checked(found),
    ]


def _checked(found: Inspection) -> list[tuple[str, str]]:
    """Return what reading some clips found, where it was asked for."""
    if found.sample_check is None:
        return []
    n_read, problems = len(found.sample_check.keys), found.sample_check.problems
    result = "; ".join(problems) or "all are as the index says"
    return [("read and checked", f"{n_read:,} clips: {result}")]


def _drifts(found: Inspection) -> list[tuple[Drift, str]]:
    """Return the drifts, the largest first, with what each is about."""
    if found.comparison is None:
        return []
    order = ("large", "moderate", "small", "same")
    drifts = sorted(found.comparison.drifts, key=lambda drift: order.index(drift.verdict))
    return [(drift, WHAT.get(drift.name, drift.name)) for drift in drifts]


def clip_facts(card: Card) -> list[tuple[str, str]]:
    """Return what is known of a clip, as names and texts; what is not known is left out."""
    clip = card.clip
    known = [
        ("key", clip.key),
        ("file", card.source),
        ("split", clip.split),
        ("duration", _written("{:.3f} s", clip.duration_s)),
        ("starts at", _written("{:.3f} s of its recording", clip.start_s)),
        ("recorded at", _recording(clip)),
        ("level", _written("{:.1f} dBFS", clip.rms_dbfs)),
        ("peak", _written("{:.3f} of full scale", clip.peak)),
        ("clipped", None if clip.clipped_share is None else percent(clip.clipped_share)),
        ("silence", None if clip.silence_share is None else percent(clip.silence_share)),
        ("bandwidth", _written("up to {:,.0f} Hz", clip.bandwidth_hz)),
        ("same audio", f"in {clip.n_same_audio:,} other clips" if clip.n_same_audio else None),
        ("shard", f"{clip.shard}, row {clip.row:,}"),
    ]
    return [(name, text) for name, text in known if text]


def _written(words: str, value: float | None) -> str | None:
    return None if value is None else words.format(value)


def _recording(clip: Clip) -> str | None:
    if clip.sample_rate is None:
        return None
    channels = {None: "", 1: ", mono", 2: ", stereo"}
    said = channels.get(clip.n_channels, f", {clip.n_channels} channels")
    return f"{clip.sample_rate:,} Hz{said}"
