"""Which clips of a data set a run learns from, and which it is measured on, by their splits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..shards.dataset import Dataset
from ..shards.errors import DatasetError
from .selection import rows_of_splits


@dataclass(frozen=True, slots=True)
class Part:
    """The clips of one data set that a run learns from and, perhaps, is validated on.

    Args:
        name: of the part; goes into the run's configuration.
        train: int64 rows of the index, ascending.
        held_out: int64 rows, ascending; None: the run is validated on no clip of this data set.
        splits: those of ``train``, "" for clips of no split; go into the model's card.
    """

    name: str
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64] | None = None
    splits: tuple[str, ...] = ()


def part_of_splits(dataset: Dataset, splits: Sequence[str], valid_splits: Sequence[str]) -> Part:
    """Take some splits of a data set.

    Args:
        dataset: with splits.
        splits: to learn from; none: all but ``valid_splits``, clips of no split among them.
        valid_splits: to validate on; none: no clip of this data set.

    Raises:
        ValueError: there is no such split, or one is on both sides.
        DatasetError: nothing is left to learn from.
    """
    if both := set(splits) & set(valid_splits):
        raise ValueError(
            f"`--split` and `--valid-split` must differ, found {sorted(both)[0]!r} in both"
        )
    held_out = rows_of_splits(dataset, "--valid-split", valid_splits) if valid_splits else None
    if splits:
        train = rows_of_splits(dataset, "--split", splits)
    else:
        train = np.setdiff1d(np.arange(len(dataset)), [] if held_out is None else held_out)
        splits = sorted(dataset.splits_of(train))
    if not len(train):
        raise DatasetError(f"{dataset.url} has no clip outside of {', '.join(valid_splits)}")
    name = f"splits {sorted(set(splits))}, held out {sorted(set(valid_splits))}"
    return Part(name, train, held_out, tuple(splits))


def fold_parts(dataset: Dataset) -> Iterator[Part]:
    """Hold out one split after the other, and learn from the others.

    Raises:
        DatasetError: the data set has fewer than two splits.
    """
    splits, split = dataset.used_splits, dataset.index.split
    if len(splits) < 2:
        raise DatasetError(
            f"{dataset.url} must have at least two splits to fold over, found {len(splits)}; build "
            "it from a corpus with folds, such as esc50 or urbansound8k"
        )
    for number, name in splits.items():
        train = np.flatnonzero((split != number) & (split >= 0))
        others = tuple(other for other in splits.values() if other != name)
        yield Part(name, train, np.flatnonzero(split == number), others)
