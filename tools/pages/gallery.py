"""The gallery: some clips to look at and, where audio is kept, to listen to.

Unusual clips come first, those at an end of some figure; then about the same number of clips
of every class. Only these clips' bytes are read, whatever the size of the data set.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...shards.dataset import Dataset
from ...shards.errors import MelstreamError, ShardError
from ..clips import describe_clip, pick_rows
from ..hours import percent
from ..inspect_figures import Rows
from ..inspection import Clip
from ..selection import Selection, select
from .spectrogram import data_uri, spectrogram_png

N_CLIPS = 60  # beside the unusual ones
MAX_MEDIA_BYTES = 4_000_000  # of pictures and audio, as they stand in the page: it has 10 MB
MAX_CLIP_AUDIO_BYTES = 400_000  # so that one long clip does not take it all
N_THREADS = 8  # that read; an object store answers them side by side
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
    with ThreadPoolExecutor(N_THREADS) as pool:
        read = dict(zip(rows, pool.map(lambda row: _read(dataset, row), rows), strict=True))
    logmels = {row: found for row, found in read.items() if not isinstance(found, str)}
    faults = [found for found in read.values() if isinstance(found, str)]
    images = _images(logmels)
    audio = _audio(dataset, list(images), MAX_MEDIA_BYTES - sum(map(len, images.values())))
    cards = [
        Card(
            clip=describe_clip(dataset, row),
            why=why.get(row, ""),
            source=_source(dataset, row),
            image=image,
            audio=audio.get(row),
        )
        for row, image in images.items()
    ]
    n_faults = f"{len(faults)} of {len(rows)} clips could not be read"
    return Gallery(
        cards=tuple(cards),
        fault=f"{n_faults}: {faults[0]}" if faults else "",
        n_without_audio=int((dataset.index.flac_size[list(images)] > 0).sum()) - len(audio),
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


def _read(dataset: Dataset, row: int) -> npt.NDArray[np.float32] | str:
    """Return a log-mel, or why it cannot be read."""
    try:
        return dataset.read_logmel(row)
    except (MelstreamError, OSError) as error:
        return str(error)


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


def _audio(dataset: Dataset, rows: list[int], room: int) -> dict[int, str]:
    """Read the audio of clips, where it is kept, until the page is full."""
    audio: dict[int, str] = {}
    for row in rows:
        n_bytes = 4 * int(dataset.index.flac_size[row]) // 3 + 32
        if 32 < n_bytes <= min(room, MAX_CLIP_AUDIO_BYTES):
            audio[row] = data_uri(dataset.read_member(row, "flac"), "audio/flac")
            room -= len(audio[row])
    return audio


def _source(dataset: Dataset, row: int) -> str | None:
    """Return the name of the original file; tars made elsewhere do not tell it."""
    try:
        return dataset.read_info(row).source
    except ShardError:
        return None
