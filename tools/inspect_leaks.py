"""Samples that stand on both sides of a line: between the splits of a set, or between two sets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ..shards.dataset import Dataset
from ..shards.keys import stem_of_window
from .corpora.youtube import YTID_LENGTH
from .inspection import Leak

VIDEO_CORPORA = ("audioset", "vggsound")  # several clips of theirs can be of one video
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
    kinds = {"audio": dataset.index.audio_hash, "recording": _recordings(dataset)}
    return tuple(
        leak
        for kind, ids in kinds.items()
        if ids is not None
        for pair in combinations(sides, 2)
        for leak in _shared(kind, _by_size(pair), [ids, ids])
    )


def dataset_leaks(one: Dataset, other: Dataset) -> tuple[Leak, ...]:
    """Find keys, audio and recordings that two data sets share."""
    sides = [_Side(found.url, found, np.arange(len(found))) for found in (one, other)]
    return tuple(
        leak for kind, *ids in _kinds_of_ids(one, other) for leak in _shared(kind, sides, ids)
    )


def is_shared(one: Dataset, other: Dataset) -> npt.NDArray[np.bool_]:
    """Mark the samples of ``one`` whose key, audio or recording ``other`` has; shape (n,)."""
    shared = np.zeros(len(one), np.bool_)
    for _, of_one, of_other in _kinds_of_ids(one, other):
        shared |= np.isin(of_one, of_other) & (of_one > 0)
    return shared


def _kinds_of_ids(one: Dataset, other: Dataset) -> Iterator[tuple[str, Ids, Ids]]:
    """Yield what two samples may share, and the ids of it in both data sets."""
    kinds = {
        "key": lambda found: _hashed(found.index.sample_keys()),
        "audio": lambda found: found.index.audio_hash,
        "recording": _recordings,
    }
    for kind, ids_of in kinds.items():
        of_one, of_other = ids_of(one), ids_of(other)
        if of_one is not None and of_other is not None:
            yield kind, of_one, of_other


def _by_size(pair: Sequence[_Side]) -> list[_Side]:
    """Put the smaller side first: the one that is likely held out."""
    return sorted(pair, key=lambda side: len(side.rows))


def _shared(kind: str, sides: Sequence[_Side], ids: Sequence[Ids | None]) -> Iterator[Leak]:
    """Yield what two sides share, if anything; id 0 stands for unknown."""
    one, other = sides
    assert ids[0] is not None
    assert ids[1] is not None
    of_one, of_other = ids[0][one.rows], np.sort(ids[1][other.rows])
    places = np.minimum(np.searchsorted(of_other, of_one), len(of_other) - 1)
    rows = one.rows[(of_other[places] == of_one) & (of_one > 0)]
    if len(rows):
        examples = tuple(one.dataset.key(int(row)) for row in rows[:MAX_EXAMPLES])
        yield Leak(
            kind=kind, one=one.name, other=other.name, n_samples=len(rows), examples=examples
        )


def _recordings(dataset: Dataset) -> Ids | None:
    """Return the recording that each sample was cut from; None where each has its own."""
    build = dataset.manifest.build
    keys = dataset.index.sample_keys()
    if build.window_s is not None:
        stems = [stem_of_window(key.decode("ascii")) for key in keys.tolist()]
        return _hashed(np.array(stems, "S"))
    if build.corpus.rpartition("subset of ")[2] in VIDEO_CORPORA:
        return _hashed(keys.astype(f"S{YTID_LENGTH}"))
    return None


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
