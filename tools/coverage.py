"""Coverage: how much of what a corpus lists became samples, in all, by split and by class.

Parts of AudioSet can no longer be downloaded, and each group has lost other clips: results can
only be compared by those who say which clips they have. ``hash_ids`` says it in 16 characters.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..shards.storage import Storage
from .corpora.corpus import Clip, Listing

if TYPE_CHECKING:  # builds need Numba, and `inspect` reads coverage without it
    from .build_job import Reject

COVERAGE_NAME = "coverage.json"
_WRITTEN, _REJECTED, _MISSING = range(3)
_N_STATES = 3


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a number of clips.

    Args:
        n_listed: clips that the metadata names.
        n_present: those a file was found for.
        n_written: those of them that became samples.
        n_missing: listed and not present.
        n_rejected: present and not written.
    """

    n_listed: int
    n_present: int
    n_written: int
    n_missing: int
    n_rejected: int

    @property
    def share(self) -> float:
        """Written clips over listed ones, in [0, 1]; 0 where none is listed."""
        return self.n_written / self.n_listed if self.n_listed else 0.0

    @property
    def rejected_share(self) -> float:
        """Rejected clips over those a file was found for, in [0, 1]; 0 where none was."""
        return self.n_rejected / self.n_present if self.n_present else 0.0


@dataclass(frozen=True, slots=True)
class Coverage:
    """What became of a listing.

    Args:
        total: of all clips.
        splits: of each split that has clips.
        classes: of the clips of each class, in the order of labels; a clip counts for each
            of its classes.
        label_names, label_ids: one per class, as in the listing.
        missing_ids: the corpus's own ids of the clips without a file, sorted.
        listed_hash, written_hash: ``hash_ids`` of the keys listed and written.
    """

    total: Counts
    splits: dict[str, Counts]
    classes: tuple[Counts, ...]
    label_names: tuple[str, ...]
    label_ids: tuple[str, ...] | None
    missing_ids: tuple[str, ...]
    listed_hash: str
    written_hash: str

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``coverage.json``: all but the missing ids."""
        ids = self.label_ids or (None,) * len(self.label_names)
        classes = zip(self.label_names, ids, self.classes, strict=True)
        return {
            "total": asdict(self.total),
            "splits": {name: asdict(counts) for name, counts in self.splits.items()},
            "classes": [
                {"name": name, "id": label_id, **asdict(counts)}
                for name, label_id, counts in classes
            ],
            "listed_hash": self.listed_hash,
            "written_hash": self.written_hash,
        }

    def missing_text(self) -> str:
        """Return the content of ``missing.txt``: one id a line, sorted."""
        return "".join(f"{name}\n" for name in self.missing_ids)


def measure_coverage(listing: Listing, rejects: "Iterable[Reject]") -> Coverage:
    """Count what became of each clip of a listing.

    Args:
        listing: what a corpus lists.
        rejects: what a build of it did not write; those whose key is not a clip's, such as
            of a part of a clip, count for none. A clip whose file was gone when it was to be
            read is as missing as one without a file.

    Returns:
        Counts and hashes.
    """
    states = _states(listing, {found.key: found.reason for found in rejects})
    keys = np.array([clip.key for clip in listing.clips], dtype=object)
    splits = np.fromiter((clip.split for clip in listing.clips), np.int64, len(keys))
    n_labels = np.fromiter((len(clip.labels) for clip in listing.clips), np.int64, len(keys))
    labels = np.fromiter(
        chain.from_iterable(clip.labels for clip in listing.clips), np.int64, n_labels.sum()
    )
    in_split = splits >= 0
    missing = np.flatnonzero(states == _MISSING).tolist()
    by_split = _count(splits[in_split], states[in_split], len(listing.splits))
    return Coverage(
        total=_count(np.zeros_like(states), states, 1)[0],
        splits={
            name: counts
            for name, counts in zip(listing.splits, by_split, strict=True)
            if counts.n_listed
        },
        classes=_count(labels, np.repeat(states, n_labels), len(listing.label_names)),
        label_names=listing.label_names,
        label_ids=listing.label_ids,
        missing_ids=tuple(sorted(listing.clips[place].source for place in missing)),
        listed_hash=hash_ids(keys.tolist()),
        written_hash=hash_ids(keys[states == _WRITTEN].tolist()),
    )


def read_total(storage: Storage) -> Counts | None:
    """Read what became of all clips of a data set; None for one that was made of others.

    Raises:
        ValueError: ``coverage.json`` is not what a build writes.
    """
    try:
        found = json.loads(storage.read(COVERAGE_NAME))
    except FileNotFoundError:
        return None
    return TypeAdapter(Counts).validate_python(found["total"])


def hash_ids(keys: Iterable[str]) -> str:
    """Hash a set of clips, so that two groups can compare which they have.

    It is the start of the SHA-256 of the keys, one a line, in the order of their bytes. Anyone
    can compute it: ``LC_ALL=C sort ids.txt | sha256sum | cut -c 1-16``.

    Args:
        keys: in any order, each once.

    Returns:
        16 hexadecimal digits.

    >>> hash_ids(["b", "a"])  # printf 'b\\na\\n' | LC_ALL=C sort | sha256sum | cut -c 1-16
    '911169ddaaf146af'
    """
    lines = "\n".join([*sorted(keys), ""])  # code points sort as UTF-8 bytes do
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def print_coverage(coverage: Coverage, console: Console, *, top: int = 10) -> None:
    """Print totals, splits, and the classes that lost most.

    Args:
        coverage: what to print.
        console: where to.
        top: most classes to list: those with the lowest share of written clips.
    """
    rows = [("all", coverage.total), *coverage.splits.items()]
    console.print(_table("coverage", rows))
    named = list(zip(coverage.label_names, coverage.classes, strict=True))
    lacking = [row for row in named if 0 < row[1].n_listed > row[1].n_written]
    lacking.sort(key=lambda row: row[1].share)  # stable: equal shares stay in the order of labels
    if lacking[:top]:
        title = f"classes with the lowest coverage ({len(lacking[:top]):,} of {len(lacking):,})"
        console.print(_table(title, lacking[:top]))
    console.print(
        f"ids listed {coverage.listed_hash}, written {coverage.written_hash}", highlight=False
    )


def _states(listing: Listing, reasons: Mapping[str, str]) -> npt.NDArray[np.int64]:
    """Say of each clip what became of it, shape (n_clips,); ``reasons`` are those of rejects."""

    def state(clip: Clip) -> int:
        reason = "missing" if clip.path is None else reasons.get(clip.key)
        return _WRITTEN if reason is None else _MISSING if reason == "missing" else _REJECTED

    return np.fromiter(map(state, listing.clips), np.int64, len(listing.clips))


def _count(
    groups: npt.NDArray[np.int64], states: npt.NDArray[np.int64], n_groups: int
) -> tuple[Counts, ...]:
    """Count the states in each group; both arrays have shape (n,)."""
    table = np.bincount(groups * _N_STATES + states, minlength=n_groups * _N_STATES)
    return tuple(
        Counts(
            n_listed=written + rejected + missing,
            n_present=written + rejected,
            n_written=written,
            n_missing=missing,
            n_rejected=rejected,
        )
        for written, rejected, missing in table.reshape(n_groups, _N_STATES).tolist()
    )


def _table(title: str, rows: Sequence[tuple[str, Counts]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in ("listed", "present", "written", "missing", "rejected", "coverage"):
        table.add_column(name, justify="right")
    for name, counts in rows:
        numbers = (f"{count:,}" for count in asdict(counts).values())
        table.add_row(Text(name), *numbers, f"{counts.share:.1%}")
    return table
