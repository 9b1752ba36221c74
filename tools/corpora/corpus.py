"""What a corpus gives: a listing of clips, before any audio is opened."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

IGNORED = {
    "unlisted": "audio files the metadata does not name",
    "duplicate": "further files of a clip that was found already",
    "mistimed": "files whose name says another part of the recording",
    "no audio": "files whose names do not end as those of audio do",
    "no sample": "members of an adopted tar that no WebDataset reader makes a sample of",
}
"""Why a file belongs to no clip, and what each word means."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of a corpus, on disk or missing; a few hundred bytes, for there may be millions.

    Args:
        key: the sample's key, unique in the listing; see ``melstream.shards.keys``.
        path: the audio file, relative to ``Listing.root`` or absolute, as the file system
            spells it; None where the corpus lists the clip and no file is there.
        labels: sorted indices into ``Listing.label_names``; empty where unlabelled.
        source: ``path`` with ``/``, printable; the corpus's own id where the file is missing.
        start_s: where the clip starts in its original recording, in seconds, by the
            metadata.
        duration_s: expected duration in seconds, by the metadata; None where unknown.
        offset_s: where the clip starts in the file, in seconds: only ``duration_s`` from there
            on is decoded. None: the file is the clip.
        split: index into ``Listing.splits``, -1 where it belongs to none.
        events: strong labels: start and end in the clip in seconds, and the label.
    """

    key: str
    path: str | None
    labels: tuple[int, ...]
    source: str
    start_s: float | None = None
    duration_s: float | None = None
    offset_s: float | None = None
    split: int = -1
    events: tuple[tuple[float, float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """All clips of a corpus, and what was found beside them.

    Args:
        root: the folder that the clips' paths start from.
        clips: sorted by key.
        label_names: one name per class; a label is an index into it.
        label_ids: the corpus's own id per class (AudioSet: the mid), where it has them.
        splits: names of the corpus's own splits or folds, where it has them.
        n_unlisted: audio files that the metadata does not name.
        n_duplicates: further files of a clip that was found already.
        n_mistimed: files of a listed recording whose name says another part of it.
        n_others: files whose names do not end as those of audio do, where folders are the list.

    Raises:
        ValueError: two clips share a key, or the clips are not sorted.
    """

    root: Path
    clips: tuple[Clip, ...]
    label_names: tuple[str, ...] = ()
    label_ids: tuple[str, ...] | None = None
    splits: tuple[str, ...] = ()
    n_unlisted: int = 0
    n_duplicates: int = 0
    n_mistimed: int = 0
    n_others: int = 0

    @property
    def n_ignored(self) -> dict[str, int]:
        """Files that belong to no clip, by kind; only kinds that occur."""
        counts = {
            "unlisted": self.n_unlisted,
            "duplicate": self.n_duplicates,
            "mistimed": self.n_mistimed,
            "no audio": self.n_others,
        }
        return {kind: count for kind, count in counts.items() if count}

    def __post_init__(self) -> None:
        """Check the order, and with it that every key is unique."""
        for one, other in pairwise(self.clips):
            if one.key == other.key:
                raise ValueError(
                    f"keys must be unique, found {one.key!r} for both {one.source!r} and "
                    f"{other.source!r}; rename one of the files"
                )
            if one.key > other.key:
                raise ValueError(f"clips must be sorted, found {one.key!r} before {other.key!r}")

    def only(self, splits: Sequence[str]) -> "Listing":
        """Keep the clips of some splits; all of them where none is named.

        Raises:
            ValueError: the corpus has no such split.
        """
        unknown = [name for name in splits if name not in self.splits]
        if unknown:
            known = ", ".join(self.splits) or "none: this corpus has no splits of its own"
            raise ValueError(f"`--split` must be one of {known}; found {unknown[0]!r}")
        if not splits:
            return self
        kept = {self.splits.index(name) for name in splits}
        return replace(self, clips=tuple(clip for clip in self.clips if clip.split in kept))


def find_recording_of(corpus: str) -> Callable[[str], str] | None:
    """Return what tells the recording of a key of this corpus, if its module says."""
    return getattr(find_corpora().get(corpus), "recording_of", None)


def find_corpora() -> dict[str, ModuleType]:
    """Import every corpus: each module beside this one that defines ``scan``.

    >>> {"audioset", "folder"} <= find_corpora().keys()
    True
    """
    assert __package__
    package = sys.modules[__package__]
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    modules = {name: importlib.import_module(f"{__package__}.{name}") for name in sorted(names)}
    return {name: module for name, module in modules.items() if hasattr(module, "scan")}
