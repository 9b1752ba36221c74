"""The gallery: some clips to look at and, where audio is kept, to listen to.

Unusual clips come first, those at an end of some figure; then about the same number of clips
of every class. Only these clips' bytes are read, whatever the size of the data set.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ...shards.dataset import Dataset
from ...shards.errors import MelstreamError
from ..clips import describe_clip, pick_rows
from ..hours import percent
from ..inspect_figures import Rows
from ..inspection import Clip
from ..selection import Selection, select
from .spectrogram import data_uri, spectrogram_png

Read = TypeVar("Read", npt.NDArray[np.float32], bytes)

N_CLIPS = 60  # beside the unusual ones
MAX_MEDIA_BYTES = 4_000_000  # of pictures and audio, as they stand in the page: it has 10 MB
MAX_CLIP_AUDIO_BYTES = 400_000  # so that one long clip does not take it all
N_THREADS = 8  # that read; an object store answers them side by side
COLUMNS_OF_MEMBERS = (
    "key",
    *(f"{member}_{what}" for member in ("logmel", "json") for what in ("offset", "size", "hash")),
)
"""What reading a clip takes from the index: read once, not by all threads at the same time."""
CONTRAST = (1.0, 99.8)  # percentiles of all values shown that get the darkest and brightest colour
MIN_SHARE = 1e-3  # below it, the most clipped or most silent clip is nothing to look at
EXTREMES = (
    ("duration_s", -1, "shortest: {:.3g} s"),
    ("duration_s", 1, "longest: {:.4g} s"),
    ("rms_dbfs", -1, "quietest: {:.1f} dBFS"),
    ("rms_dbfs", 1, "loudest: {:.1f} dBFS"),
    ("clipped_share", 1, "most clipped: {} of its samples"),
    ("silence_share", 1, "most silent: {} of its time"),
    ("bandwidth_hz", -1, "narrowest band: up to {:,.0f} Hz"),
    ("dc_offset", 1, "largest DC offset: {} of full scale"),
)
"""Figure, direction (1: the largest) and what is said of its extreme clip."""


@dataclass(frozen=True, slots=True)
class Card:
    """One clip of the gallery.

    Args:
        clip: what is known of it.
        why: what makes it unusual; empty for the others.
        source: the original file, or None where not known.
        image: its spectrogram, as an address that holds it.
        audio: its waveform likewise, or None.
    """

    clip: Clip
    why: str
    source: str | None
    image: str
    audio: str | None

    @property
    def labels(self) -> str:
        """Its labels, to print."""
        return ", ".join(self.clip.labels) or "no label"


@dataclass(frozen=True, slots=True)
class Gallery:
    """The cards, and what there is to say about them.

    Args:
        cards: the unusual ones first.
        fault: why clips are missing that could not be read; empty where all could.
        n_without_audio: cards whose audio is kept in the set but did not fit into the page.
    """

    cards: tuple[Card, ...]
    fault: str
    n_without_audio: int


def make_gallery(dataset: Dataset, *, label: str | None = None) -> Gallery:
    """Read some clips and draw them.

    Args:
        dataset: best opened with ``reads_ranges=True``.
        label: the class that they are of; None for clips of every class.
    """
    everything = np.arange(len(dataset))
    chosen = everything if label is None else select(dataset, Selection((label,))).rows
    why = _unusual_rows(dataset, chosen)
    drawn = pick_rows(dataset, N_CLIPS) if label is None else _drawn(chosen)
    drawn = [row for row in drawn.tolist() if row not in why]
    rows = [*why, *sorted(drawn, key=lambda row: (dataset.index.labels(row).tolist(), row))]
    for name in COLUMNS_OF_MEMBERS:
        dataset.index.column(name)
    with ThreadPoolExecutor(N_THREADS) as pool:
        read = dict(zip(rows, pool.map(_tried(dataset.read_logmel), rows), strict=True))
        images = _images({row: found for row, found in read.items() if not isinstance(found, str)})
        heard = _with_audio(dataset, list(images), sum(map(len, images.values())))
        flacs = dict(zip(heard, pool.map(_tried(partial(_flac, dataset)), heard), strict=True))
        sources = dict(zip(images, pool.map(partial(_source, dataset), images), strict=True))
    faults = [found for found in (*read.values(), *flacs.values()) if isinstance(found, str)]
    cards = [
        Card(
            clip=describe_clip(dataset, row),
            why=why.get(row, ""),
            source=sources[row],
            image=image,
            audio=_player(flacs.get(row)),
        )
        for row, image in images.items()
    ]
    n_faults = f"{len(faults)} of {len(rows)} clips could not be read"
    return Gallery(
        cards=tuple(cards),
        fault=f"{n_faults}: {faults[0]}" if faults else "",
        n_without_audio=int((dataset.index.flac_size[list(images)] > 0).sum()) - len(flacs),
    )


def _drawn(rows: Rows) -> Rows:
    """Draw some of the rows, the same ones each time."""
    return np.random.default_rng(0).permutation(rows)[:N_CLIPS]


def _unusual_rows(dataset: Dataset, rows: Rows) -> dict[int, str]:
    """Return the clips at the ends of the figures, and what is said of each."""
    found: dict[int, list[str]] = {}
    for name, sign, words in EXTREMES:
        values = dataset.index.column(name)[rows]
        values = np.abs(values) if name == "dc_offset" else values
        known = np.flatnonzero(np.isfinite(values))
        if not len(known):
            continue
        place = int(known[np.argmax(sign * values[known])])
        row, value = int(rows[place]), float(values[place])
        is_share = "{}" in words
        is_usual = value == np.median(values[known]) or (is_share and value < MIN_SHARE)
        if not is_usual:
            said = words.format(percent(value) if is_share else value)
            found.setdefault(row, []).append(said)
    return {row: "; ".join(said) for row, said in found.items()}


def _tried(read: Callable[[int], Read]) -> Callable[[int], Read | str]:
    """Have a function return why a row cannot be read, instead of raising it."""

    def tried(row: int) -> Read | str:
        try:
            return read(row)
        except (MelstreamError, OSError) as error:
            return str(error)

    return tried


def _images(logmels: dict[int, npt.NDArray[np.float32]]) -> dict[int, str]:
    """Draw clips until the page is full, all in one scale of colours."""
    if not logmels:
        return {}
    thinned = [logmel[:: 1 + len(logmel) // 200].ravel() for logmel in logmels.values()]
    low, high = np.percentile(np.concatenate(thinned), CONTRAST).tolist()
    images: dict[int, str] = {}
    room = MAX_MEDIA_BYTES
    for row, logmel in logmels.items():
        image = data_uri(spectrogram_png(logmel, low=low, high=high), "image/png")
        room -= len(image)
        if room < 0:
            break
        images[row] = image
    return images


def _with_audio(dataset: Dataset, rows: list[int], image_bytes: int) -> list[int]:
    """Choose clips whose audio is kept, as many as the page has room for beside its pictures."""
    chosen, room = list[int](), MAX_MEDIA_BYTES - image_bytes
    for row in rows:
        n_bytes = 4 * int(dataset.index.flac_size[row]) // 3 + 32
        if 32 < n_bytes <= min(room, MAX_CLIP_AUDIO_BYTES):
            chosen.append(row)
            room -= n_bytes
    return chosen


def _flac(dataset: Dataset, row: int) -> bytes:
    return dataset.read_member(row, "flac")


def _player(flac: bytes | str | None) -> str | None:
    """Return audio as an address that holds it; None where it is not shown or cannot be read."""
    return data_uri(flac, "audio/flac") if isinstance(flac, bytes) else None


def _source(dataset: Dataset, row: int) -> str | None:
    """Return the name of the original file; tars made elsewhere do not tell it."""
    try:
        return dataset.read_info(row).source
    except (MelstreamError, OSError):
        return None
