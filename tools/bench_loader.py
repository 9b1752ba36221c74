"""``melstream bench loader``: how fast batches come, and whether a trainer would wait for them.

Batches are as training gets them: shuffled, cropped, with labels and keys; once without masks
and once with masks and distractors.
"""

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..pipeline.loader import Loader, LoaderConfig
from ..pipeline.masks import MaskConfig
from ..pipeline.order import OrderConfig, TrainingOrder
from ..pipeline.shard_cache import CacheConfig
from ..pipeline.shuffle_quality import ShuffleQuality, measure_shuffle
from ..shards.dataset import Dataset, open_dataset
from .bench_headspace import Headspace, measure_headspace
from .bench_memory import peak_bytes

COPIED_BYTES = 2**29  # far more than a processor's cache holds
MIN_FRAMES = 2 * LoaderConfig().stride  # a masked step needs another one as its distractor
N_TURNS = 3
STEPS_APART = 2**30  # more than are drawn in a turn


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """What is measured.

    Args:
        batch_size: clips in a batch.
        crop_s: length of a crop, in seconds; None = that of the middle clip.
        seconds: how long a turn lasts, of three that each thing gets.
        preset: encoder that is trained to find the headspace; None = leave it out.
        device: where it is trained.
        cache: how a data set in an object store is read.
    """

    batch_size: int
    crop_s: float | None
    seconds: float
    preset: str | None
    device: torch.device
    cache: CacheConfig


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast batches came, the first one left out; medians of the turns.

    Args:
        first_batch_s: from the call to the first batch, in the first turn, in seconds.
        clips_per_s: clips in the others.
        bytes_per_s: of their log-mels.
    """

    first_batch_s: float
    clips_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class LoaderFigures:
    """What was measured.

    Args:
        url: of the data set.
        n_samples: that are long enough for a mask, as training takes them.
        batch_size, crop_frames: of the batches.
        clip_bytes: of the log-mel of a crop.
        open_s: to open the data set, its index and an order, in seconds.
        plain, masked: without masks, and with masks and distractors.
        copy_bytes_per_s: of clips copied from memory to memory by one thread.
        shuffle: how well the order shuffles.
        memory_bytes: the most that the loader takes, by what for.
        peak_bytes: the most that this process had; mapped shards count.
        headspace: what a trainer would gain by an infinitely fast loader.
    """

    url: str
    n_samples: int
    batch_size: int
    crop_frames: int
    clip_bytes: int
    open_s: float
    plain: Rate
    masked: Rate
    copy_bytes_per_s: float
    shuffle: ShuffleQuality
    memory_bytes: dict[str, int]
    peak_bytes: int
    headspace: Headspace | None

    @property
    def copy_share(self) -> float:
        """Log-mel bytes in batches without masks, beside bytes copied in the same time."""
        return self.plain.bytes_per_s / self.copy_bytes_per_s

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        found = {**asdict(self), "copy_share": self.copy_share}
        if self.headspace is not None:
            found["headspace"]["gain"] = self.headspace.gain
        return found


def bench_loader(url: str, settings: LoaderSettings) -> LoaderFigures:
    """Draw batches from a data set and time it.

    Args:
        url: of the data set.
        settings: what is measured.

    Raises:
        ValueError: the settings and the data set do not fit.
        MelstreamError: the data set cannot be read.
    """
    start = time.perf_counter()
    dataset = open_dataset(url)
    order = _order(dataset, settings.batch_size)
    open_s = time.perf_counter() - start
    crop_frames = crop_of(dataset, settings.crop_s)
    plain, masked = (
        Loader(dataset, order, config, cache=settings.cache)
        for config in (
            LoaderConfig(crop_frames=crop_frames),
            LoaderConfig(crop_frames=crop_frames, mask=MaskConfig()),
        )
    )
    rates = take_turns((plain, masked), settings.seconds)
    most_bytes = peak_bytes(torch.device("cpu"))
    features = dataset.manifest.features
    clip_bytes = crop_frames * features.frame_bytes
    return LoaderFigures(
        url=dataset.url,
        n_samples=order.n_samples,
        batch_size=settings.batch_size,
        crop_frames=crop_frames,
        clip_bytes=clip_bytes,
        open_s=open_s,
        plain=rates[0],
        masked=rates[1],
        copy_bytes_per_s=copy_speed(clip_bytes, settings.seconds),
        shuffle=measure_shuffle(order, [dataset.index.shard]),
        memory_bytes=masked.memory_bytes(),
        peak_bytes=most_bytes,
        headspace=None
        if settings.preset is None
        else measure_headspace(
            masked,
            features.n_mels,
            preset=settings.preset,
            device=settings.device,
            seconds=settings.seconds,
        ),
    )


def _order(dataset: Dataset, batch_size: int) -> TrainingOrder:
    """Return the order over the clips that are long enough for a mask."""
    rows = np.flatnonzero(dataset.index.n_frames >= MIN_FRAMES)
    if not len(rows):
        raise ValueError(
            f"a clip must have {MIN_FRAMES} frames for a mask, the longest of {dataset.url} has "
            f"{dataset.index.n_frames.max()}; take a data set of longer clips"
        )
    config = OrderConfig(global_batch_size=batch_size, tail="wrap")
    return TrainingOrder(dataset.index, dataset.manifest.fingerprint, config, rows)


def crop_of(dataset: Dataset, crop_s: float | None) -> int:
    """Return the frames of a crop: as asked for, or those of the middle clip."""
    if crop_s is None:
        return max(MIN_FRAMES, int(np.median(dataset.index.n_frames)))
    return max(MIN_FRAMES, round(crop_s * dataset.manifest.features.frame_rate_hz))


def take_turns(loaders: Sequence[Loader], seconds: float) -> list[Rate]:
    """Draw batches from each in turns, as the first turn finds less in the caches."""
    turns = [
        [time_batches(loader, turn * STEPS_APART, seconds) for loader in loaders]
        for turn in range(N_TURNS)
    ]
    return [
        Rate(
            first_batch_s=rates[0].first_batch_s,
            clips_per_s=statistics.median(rate.clips_per_s for rate in rates),
            bytes_per_s=statistics.median(rate.bytes_per_s for rate in rates),
        )
        for rates in zip(*turns, strict=True)
    ]


def time_batches(loader: Loader, first_step: int, seconds: float) -> Rate:
    """Draw batches from a step on, for some time."""
    start = time.perf_counter()
    with closing(loader.batches(first_step, first_step + STEPS_APART)) as batches:
        next(batches)
        n_clips = n_bytes = 0
        first = now = time.perf_counter()
        while now - first < seconds:
            batch = next(batches)
            n_clips += len(batch.rows)
            n_bytes += batch.logmel.nbytes
            now = time.perf_counter()
    return Rate(first - start, n_clips / (now - first), n_bytes / (now - first))


def copy_speed(clip_bytes: int, seconds: float) -> float:
    """Return the bytes per second of clips copied in memory, in random order, by one thread."""
    source = np.ones((max(1, COPIED_BYTES // clip_bytes), clip_bytes), np.uint8)
    target = np.empty((64, clip_bytes), np.uint8)
    places = np.random.default_rng(0).permutation(len(source)).tolist()
    n_copied, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for place in places:
            target[n_copied % len(target)] = source[place]
            n_copied += 1
    return n_copied * clip_bytes / (time.perf_counter() - start)


def print_figures(found: LoaderFigures, console: Console) -> None:
    """Print what was measured, and what it means."""
    table = Table(box=None, pad_edge=False, show_header=False, title=Text(found.url, "bold"))
    table.title_justify = "left"
    for name, value, meaning in _lines(found):
        table.add_row(name, value, Text(meaning, "dim"))
    console.print(table)


def _lines(found: LoaderFigures) -> list[tuple[str, str, str]]:
    """Return name, value and meaning of each line."""
    bounds = ", ".join(f"{what} {n / 1e6:,.0f}" for what, n in found.memory_bytes.items())
    batch = f"{found.batch_size} x {found.crop_frames} frames"
    lines = [
        ("to open", f"{found.open_s:.2f} s", f"index and order of {found.n_samples:,} samples"),
        ("first batch", f"{found.plain.first_batch_s:.2f} s", f"{batch}; once in a run"),
        ("batches", _rate(found.plain), "shuffled, cropped, with labels"),
        (
            "share of copying",
            f"{found.copy_share:.0%}",
            f"clips copied in memory, one thread: {found.copy_bytes_per_s / 1e9:.1f} GB/s",
        ),
        ("with masks", _rate(found.masked), "and distractors, for pre-training"),
        (
            "shuffle",
            f"{found.shuffle.rank_correlation:+.3f}",
            "correlation of stored and served order: 1 = none, 0 = whole",
        ),
        (
            "shards in a batch",
            f"{found.shuffle.shards_per_batch:.1f}",
            f"{found.shuffle.ideal_shards_per_batch:.1f} if drawn from the whole epoch",
        ),
        (
            "memory bound",
            f"{sum(found.memory_bytes.values()) / 1e6:,.0f} MB",
            f"of the loader: {bounds}",
        ),
        ("peak memory", f"{found.peak_bytes / 1e6:,.0f} MB", "whole process, mapped shards too"),
    ]
    if found.headspace is not None:
        space = found.headspace
        what = f"{space.preset} on {space.device}: {1e3 * space.step_s:,.1f} ms a step"
        lines += [
            (
                "headspace",
                f"{space.gain:.3f} x",
                f"as fast with no loader at all ({what}, {1e3 * space.cached_step_s:,.1f} ms "
                "with one batch again and again)",
            ),
            ("waiting", f"{space.wait_share:.2%}", "of a step, for its batch"),
        ]
    return lines


def _rate(rate: Rate) -> str:
    return f"{rate.clips_per_s:,.0f} clips/s, {rate.bytes_per_s / 1e9:.2f} GB/s"
