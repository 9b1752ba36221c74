"""Samples that stand on both sides of a line: between the splits of a set, or between two sets."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ..shards.dataset import Dataset
from ..shards.keys import MAX_KEY_BYTES, WINDOW_SUFFIX_BYTES, stem_of_window, window_stem
from .corpora.corpus import find_recording_of
from .inspection import Leak

MERGED = "merge of "  # starts the corpus of a merge, perhaps of a subset of one
MAX_STEM_BYTES = MAX_KEY_BYTES - WINDOW_SUFFIX_BYTES
WINDOW_PLACE = re.compile(rb"-(\d{8,10})$")
MAX_EXAMPLES = 5
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """Samples on one side of a line.

    Args:
        name: of the split or the data set.
        dataset: that they are of.
        rows: which they are.
    """

    name: str
    dataset: Dataset
    rows: npt.NDArray[np.int64]


def split_leaks(dataset: Dataset) -> tuple[Leak, ...]:
    """Find audio and recordings that two splits share; keys are unique in a set."""
    names, split = dataset.manifest.split_names, dataset.index.split
    sides = [_Side(name, dataset, np.flatnonzero(split == i)) for i, name in enumerate(names)]
    sides = [side for side in sides if len(side.rows)]
    if len(sides) < 2:
        return ()
    kinds = {"audio": dataset.index.audio_hash}
    if _shares_recordings(dataset):
        kinds["recording"] = _recordings(dataset)
    return tuple(
        leak
        for kind, ids in kinds.items()
        for pair in combinations(sides, 2)
        for leak in _shared(kind, _by_size(pair), [ids, ids])
    )


def dataset_leaks(one: Dataset, other: Dataset) -> tuple[Leak, ...]:
    """Find keys, audio and recordings that two data sets share."""
    sides = [_Side(found.url, found, np.arange(len(found))) for found in (one, other)]
    return tuple(
        leak for kind, *ids in _kinds_of_ids(one, other) for leak in _shared(kind, sides, ids)
    )


def is_shared(
    one: Dataset, other: Dataset, rows: npt.NDArray[np.int64] | slice = slice(None)
) -> npt.NDArray[np.bool_]:
    """Mark the samples of ``one`` whose key, audio or recording ``other`` has; shape (n,).

    Args:
        one, other: the data sets, or one twice.
        rows: samples of ``other`` that count; default: all.
    """
    shared = np.zeros(len(one), np.bool_)
    for _, of_one, of_other in _kinds_of_ids(one, other):
        shared |= np.isin(of_one, of_other[rows]) & (of_one > 0)
    return shared


def _kinds_of_ids(one: Dataset, other: Dataset) -> Iterator[tuple[str, Ids, Ids]]:
    """Yield what two samples may share, and the ids of it in both data sets."""
    keys, other_keys = one.index.sample_keys(), other.index.sample_keys()
    yield "key", _hashed(keys), _hashed(other_keys)
    yield "audio", one.index.audio_hash, other.index.audio_hash
    if _shares_recordings(one) or _shares_recordings(other):  # else those are the keys again
        yield "recording", _recordings(one), _recordings(other)


def _by_size(pair: Sequence[_Side]) -> list[_Side]:
    """Put the smaller side first: the one that is likely held out."""
    return sorted(pair, key=lambda side: len(side.rows))


def _shared(kind: str, sides: Sequence[_Side], ids: Sequence[Ids]) -> Iterator[Leak]:
    """Yield what two sides share, if anything; id 0 stands for unknown."""
    one, other = sides
    of_one, of_other = ids[0][one.rows], np.sort(ids[1][other.rows])
    places = np.minimum(np.searchsorted(of_other, of_one), len(of_other) - 1)
    rows = one.rows[(of_other[places] == of_one) & (of_one > 0)]
    if len(rows):
        examples = tuple(one.dataset.key(int(row)) for row in rows[:MAX_EXAMPLES])
        yield Leak(
            kind=kind, one=one.name, other=other.name, n_samples=len(rows), examples=examples
        )


def _shares_recordings(dataset: Dataset) -> bool:
    """Say whether several samples can be of one recording."""
    return bool(_is_window(dataset).any() or _recordings_of(dataset.manifest.build.corpus))


def _recordings(dataset: Dataset) -> Ids:
    """Return the recording that each sample is of: by its key, as its corpus reads it."""
    keys = dataset.index.sample_keys()
    names = keys.astype(f"S{MAX_KEY_BYTES}")
    is_window = _is_window(dataset)
    # The key of a clip stands in those of its windows, shortened where it is long.
    for row in np.flatnonzero(is_window | (np.strings.str_len(keys) > MAX_STEM_BYTES)).tolist():
        key = keys[row].decode("ascii")
        names[row] = (stem_of_window(key) if is_window[row] else window_stem(key)).encode()
    if readers := _recordings_of(dataset.manifest.build.corpus):
        texts = (name.decode("ascii") for name in names.tolist())
        names = np.array([_recording(text, readers) for text in texts], "S")
    return _hashed(names)


def _recording(key: str, readers: Sequence[Callable[[str], str]]) -> str:
    """Return the recording of a key, if the corpora that know its form agree; else the key."""
    found = {recording_of(key) for recording_of in readers} - {key}
    return found.pop() if len(found) == 1 else key


def _is_window(dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Mark the samples that are windows of a longer clip; shape (n,).

    A merge of sets with unlike windows does not know it: there a key tells, if the place that it
    names is not behind the start of the sample in its recording.
    """
    build, index = dataset.manifest.build, dataset.index
    if build.window_s is not None or MERGED not in build.corpus:
        return np.full(len(dataset), build.window_s is not None)
    places = [WINDOW_PLACE.search(key) for key in index.sample_keys().tolist()]
    start_ms = np.array([np.nan if place is None else float(place[1]) for place in places])
    return start_ms <= 1_000 * index.start_s + 1


def _recordings_of(corpus: str) -> list[Callable[[str], str]]:
    """Return what tells the recording of a key; nothing where a clip is its own recording.

    Subsets and merges are of the corpora that they were made of. All those of a merge must tell,
    since no key says which one it is of.

    >>> len(_recordings_of("subset of merge of audioset, vggsound"))
    2
    >>> _recordings_of("merge of audioset, folder")
    []
    """
    names = corpus.replace("subset of ", "").replace(MERGED, "").split(", ")
    found = [recording_of for name in names if (recording_of := find_recording_of(name))]
    return found if len(found) == len(names) else []


def _hashed(names: npt.NDArray[np.bytes_]) -> Ids:
    """Return a number for each name, 0 for none: by multiplying and shifting, eight bytes a time.

    Two of four million names share a number in about one of two million sets.
    """
    n_words = -(-names.dtype.itemsize // 8)
    words = names.astype(f"S{8 * n_words}").view(np.uint64).reshape(len(names), n_words)
    mixed = np.zeros(len(names), np.uint64)
    for word in words.T:
        step = (mixed ^ word) * MULTIPLIER
        mixed = np.where(word > 0, step ^ (step >> np.uint64(32)), mixed)  # padding adds nothing
    return mixed
