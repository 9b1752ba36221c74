"""What of a corpus a finished data set has: which clips, under which keys, and what it lacks."""

import re
from dataclasses import dataclass, replace

from ..shards.dataset import Dataset
from ..shards.errors import DatasetError
from ..shards.keys import stem_of_window, window_stem
from .build_assemble import REJECTS_NAME
from .build_job import Reject
from .corpora.corpus import Clip, Listing
from .corpora.names import possible_keys
from .text_tables import many

LASTING = {"tail", "silent", "too_short", "mis_sized"}
"""Why a window is left out that a better copy of the file would not mend."""

_WINDOW = re.compile(r".+-\d{8,}")  # where a clip's own key ends so, its clip is tried once more


@dataclass(frozen=True, slots=True)
class Written:
    """The clips of a finished data set.

    Args:
        dataset: the data set.
        rows: what the keys of a clip's samples start with, its key where it is not cut into
            windows -> the row of one of them.
        rejects: what became no sample, but for what was missing; sorted by key.
        is_cut: whether recordings are cut into windows.
    """

    dataset: Dataset
    rows: dict[str, int]
    rejects: tuple[Reject, ...]
    is_cut: bool

    @classmethod
    def of(cls, dataset: Dataset) -> "Written":
        """Read index and rejects of a data set."""
        is_cut = dataset.manifest.build.window_s is not None
        lines = dataset.storage.read(REJECTS_NAME).splitlines()
        rejects = map(Reject.model_validate_json, lines)
        return cls(
            dataset,
            {stem_of_window(k) if is_cut else k: row for row, k in enumerate(_keys(dataset))},
            tuple(found for found in rejects if found.reason != "missing"),
            is_cut,
        )

    def stem(self, clip: Clip) -> str:
        """Return what the keys of a clip's samples start with."""
        return window_stem(clip.key) if self.is_cut else clip.key

    def has(self, clip: Clip) -> bool:
        """Say whether the data set has the clip, or a window of it."""
        return self.stem(clip) in self.rows

    def is_window(self, found: Reject) -> bool:
        """Say whether a reject is a window of a clip of the data set."""
        is_named_so = self.is_cut and _WINDOW.fullmatch(found.key)
        return bool(is_named_so) and stem_of_window(found.key) in self.rows

    def windows(self, stems: set[str]) -> frozenset[str]:
        """Return the keys of the windows of some clips."""
        if not self.is_cut:
            return frozenset()
        return frozenset(key for key in _keys(self.dataset) if stem_of_window(key) in stems)

    def broken_stems(self) -> set[str]:
        """Return the stems of the clips that lack windows which a better file may have."""
        windows = filter(self.is_window, self.rejects)
        return {stem_of_window(found.key) for found in windows if found.reason not in LASTING}

    def with_known_keys(self, listing: Listing) -> Listing:
        """Give clips the keys that they were built, or rejected, under.

        The key of a file changes where another one of its stem comes or goes.
        """
        sources = {found.key: found.source for found in self.rejects}

        def is_known(clip: Clip) -> bool:
            if self.has(clip):
                return clip.source == self.dataset.read_info(self.rows[self.stem(clip)]).source
            return clip.source == sources.get(clip.key)

        def known(clip: Clip) -> Clip:
            if self.has(clip):
                return clip
            candidates = (replace(clip, key=key) for key in possible_keys(clip))
            return next(filter(is_known, candidates), clip)

        clips = sorted(map(known, listing.clips), key=lambda clip: clip.key)
        return replace(listing, clips=tuple(clips))

    def require_same_labels(self, listing: Listing) -> None:
        """Check that the clips of the data set have the labels and splits that are listed now.

        Raises:
            DatasetError: one has others.
        """
        index = self.dataset.index
        changed = [
            clip.key
            for clip in listing.clips
            if (row := self.rows.get(self.stem(clip))) is not None
            and (tuple(index.labels(row)) != clip.labels or index.split[row] != clip.split)
        ]
        if changed:
            raise DatasetError(
                "--retry-failed adds clips and changes none, but labels or split of "
                f"{many(len(changed), 'clip')} of {self.dataset.url} are others now, such as "
                f"{changed[0]}; build the corpus anew with another --out"
            )

    def whole_listing(self, listing: Listing, rejects: tuple[Reject, ...]) -> Listing:
        """List all that the data set accounts for, also what the corpus has or lists no more.

        Args:
            listing: the corpus, as it is now.
            rejects: of the data set, as they will stand in it.

        Returns:
            the listing, in which clips of the data set have a path.
        """
        index = self.dataset.index
        clips = {
            clip.key: replace(clip, path=clip.source) if not clip.path and self.has(clip) else clip
            for clip in listing.clips
        }
        for stem in self.rows.keys() - set(map(self.stem, listing.clips)):
            row = self.rows[stem]
            labels = tuple(index.labels(row).tolist())
            clips[stem] = Clip(stem, stem, labels, stem, split=int(index.split[row]))
        for found in rejects:
            if found.key not in clips and not self.is_window(found):
                clips[found.key] = Clip(found.key, found.source, (), found.source)
        return replace(listing, clips=tuple(clips[key] for key in sorted(clips)))


def _keys(dataset: Dataset) -> list[str]:
    return [key.decode("ascii") for key in dataset.index.sample_keys().tolist()]
