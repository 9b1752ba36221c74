"""Which samples of a data set: by label, split, id, quality figure, or all but duplicates."""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..shards.dataset import Dataset, open_dataset
from ..shards.errors import listed
from ..shards.index_check import require_possible
from ..shards.rows import FIGURES
from ..shards.storage import open_storage
from .inspect_leaks import is_shared
from .leaks import read_ids

COLUMNS = ("n_frames", "n_labels", *(name for name in FIGURES if name != "audio_hash"))
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_BOUND = re.compile(r"\s*(\w+)\s*([<>=!]=|[<>])\s*([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*")


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound on a column of the index.

    >>> Bound.parse("duration_s >= 1.5")
    Bound(column='duration_s', sign='>=', number=1.5)
    """

    column: str
    sign: str
    number: float

    @classmethod
    def parse(cls, text: str) -> "Bound":
        """Read ``column sign number``.

        Raises:
            ValueError: it is something else, or there is no such column.
        """
        match = _BOUND.fullmatch(text)
        if not match or match[1] not in COLUMNS:
            raise ValueError(
                f"`--where` must be a column, one of {', '.join(OPERATORS)} and a number, such "
                f"as 'duration_s>=1'; the columns are {', '.join(COLUMNS)}; found {text!r}"
            )
        try:
            return cls(match[1], match[2], float(match[3]))
        except ValueError as error:
            raise ValueError(
                f"`--where` must end in a number, found {match[3]!r} in {text!r}"
            ) from error

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{self.number:g}"


@dataclass(frozen=True, slots=True)
class Selection:
    """What to keep; everything that is asked for must hold.

    Args:
        labels: any of these classes, by name or by the corpus's own id.
        splits: any of these splits.
        ids, not_ids: text files with a key at the start of each line.
        not_in: a data set; what it has too, by key, audio or recording, is left out.
        bounds: on quality figures; an unknown figure, NaN, is within none.
        drops_duplicates: of samples with the same audio, the first stays.
    """

    labels: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    ids: str | None = None
    not_ids: str | None = None
    not_in: str | None = None
    bounds: tuple[Bound, ...] = ()
    drops_duplicates: bool = False

    def __str__(self) -> str:
        """Say it as it was typed."""
        words = [f"--label {name}" for name in self.labels]
        words += [f"--split {name}" for name in self.splits]
        words += [f"--ids {Path(self.ids).name}"] if self.ids else []
        words += [f"--not-ids {Path(self.not_ids).name}"] if self.not_ids else []
        words += [f"--not-in {open_storage(self.not_in).name}"] if self.not_in else []
        words += [f"--where {bound}" for bound in self.bounds]
        return " ".join([*words, "--drop-duplicates"] if self.drops_duplicates else words)


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """The rows to keep, and how they became fewer.

    Args:
        rows: of the index, ascending, int64.
        steps: what was asked for and how many samples were left after it.
        n_duplicates: samples dropped because another has the same audio.
    """

    rows: npt.NDArray[np.int64]
    steps: tuple[tuple[str, int], ...]
    n_duplicates: int


def select(dataset: Dataset, selection: Selection) -> Selected:
    """Find the rows that a selection keeps; the index is read, no tar.

    Raises:
        ValueError: an unknown label or split, a file without an id of the set, a column that
            is unknown throughout, or nothing is left.
        DatasetError: the index is damaged.
    """
    require_possible(dataset.index, dataset.manifest, dataset.url)
    kept = np.ones(len(dataset), bool)
    steps = []
    for name, mask in _masks(dataset, selection):
        kept &= mask
        steps.append((name, int(kept.sum())))
    n_duplicates = 0
    if selection.drops_duplicates:
        first = _first_of_equal(dataset, kept)
        n_duplicates = int((kept & ~first).sum())
        kept &= first
        steps.append(("--drop-duplicates", int(kept.sum())))
    if not kept.any():
        told = ", ".join(f"{n} after {name}" for name, n in steps)
        raise ValueError(
            f"no sample is left of {len(dataset)}: {told}; loosen one of these conditions"
        )
    return Selected(np.flatnonzero(kept), tuple(steps), n_duplicates)


def rows_of_splits(dataset: Dataset, option: str, splits: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the rows of some splits, ascending.

    Args:
        dataset: with splits.
        option: that names them, for an error.
        splits: names.

    Raises:
        ValueError: there is no such split, or it has no sample.
    """
    rows = np.flatnonzero(_in_splits(dataset, option, splits))
    if not len(rows):
        raise ValueError(f"`{option}` must name a split with samples, found none in {splits[0]!r}")
    return rows


def _in_splits(dataset: Dataset, option: str, splits: Sequence[str]) -> npt.NDArray[np.bool_]:
    numbers = _numbers(option, splits, dataset.manifest.split_names)
    return np.isin(dataset.index.split, numbers)


def _masks(dataset: Dataset, selection: Selection) -> Iterable[tuple[str, npt.NDArray[np.bool_]]]:
    if selection.labels:
        yield "--label", _with_labels(dataset, selection.labels)
    if selection.splits:
        yield "--split", _in_splits(dataset, "--split", selection.splits)
    if selection.ids is not None:
        mask, name = _listed(dataset, "--ids", selection.ids)
        yield name, mask
    if selection.not_ids is not None:
        mask, name = _listed(dataset, "--not-ids", selection.not_ids)
        yield name, ~mask
    if selection.not_in is not None:
        yield "--not-in", ~is_shared(dataset, open_dataset(selection.not_in))
    for bound in selection.bounds:
        yield f"--where {bound}", _within(dataset, bound)


def _with_labels(dataset: Dataset, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
    manifest, index = dataset.manifest, dataset.index
    own_ids = dict(zip(manifest.label_ids or (), manifest.label_names, strict=False))
    names = [own_ids.get(label, label) for label in labels]
    is_asked = np.zeros(len(manifest.label_names), np.int64)
    is_asked[_numbers("--label", names, manifest.label_names)] = 1
    before = np.concatenate([[0], np.cumsum(is_asked[index.label_ids])])
    return before[index.label_indptr[1:]] > before[index.label_indptr[:-1]]


def _numbers(option: str, names: Sequence[str], known: Sequence[str]) -> list[int]:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            shown = listed(near, 10) or "none: the data set has no such names"
            raise ValueError(f"`{option}` must be a name in the data set ({shown}), found {name!r}")
    return [known.index(name) for name in names]


def _listed(dataset: Dataset, option: str, path: str) -> tuple[npt.NDArray[np.bool_], str]:
    """Find the samples that a file names, and say how many of its ids are no sample's."""
    if not Path(path).is_file():
        raise ValueError(f"`{option}` must be a text file with an id a line, found none at {path}")
    ids = np.array([key.encode("utf-8") for key in read_ids(path)])
    mask = np.isin(dataset.index.sample_keys(), ids)
    if not mask.any():
        raise ValueError(
            f"`{option}` must name keys of {dataset.url} such as {dataset.key(0)}, found none of "
            f"the {len(ids)} in {path}, such as {ids[0].decode()!r}"
        )
    others = np.setdiff1d(ids, dataset.index.sample_keys())
    if not len(others):
        return mask, option
    example = others[0].decode("utf-8", "replace")
    return mask, f"{option} ({len(others):,} of its {len(ids):,} ids are not here: {example} …)"


def _within(dataset: Dataset, bound: Bound) -> npt.NDArray[np.bool_]:
    index = dataset.index
    if bound.column == "n_labels":
        values = np.diff(index.label_indptr)
    else:
        values = index.column(bound.column)
    if values.dtype.kind == "f" and np.isnan(values).all():
        raise ValueError(
            f"`--where {bound}` needs the column `{bound.column}`, which is unknown for every "
            f"sample of {dataset.url}"
        )
    is_known = ~np.isnan(values) if values.dtype.kind == "f" else True
    return OPERATORS[bound.sign](values, bound.number) & is_known


def _first_of_equal(dataset: Dataset, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Mark the first of the kept rows with each audio hash, and rows without a hash."""
    hashes = dataset.index.audio_hash
    if not hashes.any():
        raise ValueError(
            f"`--drop-duplicates` needs hashes of the audio, {dataset.url} has none: its tars were "
            "made elsewhere"
        )
    rows = np.flatnonzero(kept)
    _, places = np.unique(hashes[rows], return_index=True)
    first = hashes == 0
    first[rows[places]] = True
    return first
