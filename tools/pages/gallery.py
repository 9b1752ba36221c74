"""The gallery: some clips to look at and, where audio is kept, to listen to.

Unusual clips come first, those at an end of some figure; then about the same number of clips
of every class. Only these clips' bytes are read, whatever the size of the data set.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...shards.dataset import Dataset
from ...shards.errors import MelstreamError, ShardError
from ..clips import describe_clip, pick_rows
from ..hours import percent
from ..inspection import Clip
from .spectrogram import data_uri, spectrogram_png

N_CLIPS = 60  # beside the unusual ones
MAX_IMAGE_BYTES = 2_600_000  # of all pictures, as they stand in the page
MAX_AUDIO_BYTES = 1_400_000  # of all audio, as it stands in the page
MAX_CLIP_AUDIO_BYTES = 200_000  # so that one long clip does not take it all
N_THREADS = 8  # that read; an object store answers them side by side
CONTRAST = (1.0, 99.8)  # percentiles of all values shown that get the darkest and brightest colour
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


def make_gallery(dataset: Dataset, n_clips: int = N_CLIPS) -> Gallery:
    """Read some clips and draw them.

    Args:
        dataset: best opened with ``reads_ranges=True``.
        n_clips: how many, beside the unusual ones.
    """
    why = _unusual_rows(dataset)
    rows = [*why, *(row for row in pick_rows(dataset, n_clips).tolist() if row not in why)]
    with ThreadPoolExecutor(N_THREADS) as pool:
        read = list(pool.map(lambda row: _read(dataset, row), rows))
    logmels = {row: found for row, found in zip(rows, read, strict=True) if not isinstance(found, str)}
    faults = [found for found in read if isinstance(found, str)]
    cards = list(_cards(dataset, logmels, why)) if logmels else []
    n_missing = sum(card.audio is None and dataset.index.flac_size[card.clip.row] > 0 for card in cards)
    fault = f"{len(faults)} of {len(rows)} clips could not be read: {faults[0]}" if faults else ""
    return Gallery(tuple(cards), fault, int(n_missing))


def _unusual_rows(dataset: Dataset) -> dict[int, str]:
    """Return the clips at the ends of the figures, and what is said of each."""
    found: dict[int, list[str]] = {}
    for name, sign, words in EXTREMES:
        values = np.abs(dataset.index.column(name)) if name == "dc_offset" else dataset.index.column(name)
        known = np.flatnonzero(np.isfinite(values))
        if not len(known):
            continue
        row = int(known[np.argmax(sign * values[known])])
        value = float(values[row])
        is_plain = value == np.median(values[known]) or (sign == 1 and value < 1e-4 and "{}" in words)
        if not is_plain:
            found.setdefault(row, []).append(words.format(percent(value) if "{}" in words else value))
    return {row: "; ".join(said) for row, said in found.items()}


def _read(dataset: Dataset, row: int) -> npt.NDArray[np.float32] | str:
    """Return a log-mel, or why it cannot be read."""
    try:
        return dataset.read_logmel(row)
    except (MelstreamError, OSError) as error:
        return str(error)


def _cards(
    dataset: Dataset, logmels: dict[int, npt.NDArray[np.float32]], why: dict[int, str]
) -> Iterator[Card]:
    """Draw clips until the page is full, all in one scale of colours."""
    values = np.concatenate([logmel[:: max(1, len(logmel) // 200)].ravel() for logmel in logmels.values()])
    low, high = (float(value) for value in np.percentile(values, CONTRAST))
    image_room, audio_room = MAX_IMAGE_BYTES, MAX_AUDIO_BYTES
    for row, logmel in logmels.items():
        image = data_uri(spectrogram_png(logmel, low=low, high=high), "image/png")
        image_room -= len(image)
        if image_room < 0:
            return
        audio = _audio(dataset, row, audio_room)
        audio_room -= len(audio or "")
        yield Card(describe_clip(dataset, row), why.get(row, ""), _source(dataset, row), image, audio)


def _audio(dataset: Dataset, row: int, room: int) -> str | None:
    size = int(dataset.index.flac_size[row])
    if not 0 < 4 * size / 3 < min(room, MAX_CLIP_AUDIO_BYTES):
        return None
    return data_uri(dataset.read_member(row, "flac"), "audio/flac")


def _source(dataset: Dataset, row: int) -> str | None:
    """Return the name of the original file; tars made elsewhere do not tell it."""
    try:
        return dataset.read_info(row).source
    except ShardError:
        return None
