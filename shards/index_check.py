"""Are the values of an index possible: what any writer, careless or hostile, may get wrong."""

import re

import numpy as np

from .errors import DatasetError
from .index import Index
from .keys import KEY_PATTERN
from .manifest import Manifest


def find_fault(index: Index, manifest: Manifest, *, checks_keys: bool = True) -> str | None:
    """Say what is impossible in an index, or None.

    Args:
        index: its columns have the sizes and types that ``read_index`` requires.
        manifest: of the same data set.
        checks_keys: look at the keys too, which takes the longest.
    """
    checks = {
        "`shard` must count up to the number of shards": _is_within(
            index.shard, 0, len(manifest.shards)
        )
        and bool((np.diff(index.shard) >= 0).all()),
        "`n_frames` must be 1 or more": bool((index.n_frames > 0).all()),
        "`label_indptr` must rise from 0 to the number of labels": _rises(index),
        "`split` must be -1 or a split of the manifest": _is_within(
            index.split, -1, len(manifest.split_names)
        ),
    }
    if checks_keys:
        checks |= {
            "keys must be legal": _are_legal(index),
            "keys must be unique": len(np.unique(index.sample_keys())) == len(index),
        }
    fault = next((rule for rule, holds in checks.items() if not holds), None)
    return fault or _label_fault(index, len(manifest.label_names))


def require_possible(index: Index, manifest: Manifest, url: str) -> None:
    """Refuse an index whose numbers are not those of its data set; its keys are not looked at.

    Kernels write where the labels of an index say, without a look at bounds of their own.

    Raises:
        DatasetError: the index is damaged.
    """
    fault = find_fault(index, manifest, checks_keys=False)
    if fault:
        raise DatasetError(
            f"{url}/{manifest.index_name}: {fault}; copy it again, or build the data set again"
        )


def require_possible_labels(index: Index) -> None:
    """Refuse labels outside their own columns, or outside the manifest where that is known.

    Raises:
        DatasetError: the index is damaged.
    """
    rule = "`label_indptr` must rise from 0 to the number of labels"
    most = int(np.iinfo(index.label_ids.dtype).max) if index.n_classes is None else index.n_classes
    fault = _label_fault(index, most) if _rises(index) else rule
    if fault:
        raise DatasetError(
            f"the index is damaged: {fault}; copy it again, or build the data set again"
        )


def _label_fault(index: Index, n_classes: int) -> str | None:
    """Name the first sample with a label that cannot be; ``label_indptr`` is in order."""
    ids = index.label_ids
    if _is_within(ids, 0, n_classes):
        return None
    place = int(np.flatnonzero((ids < 0) | (ids >= n_classes))[0])
    row = int(np.searchsorted(index.label_indptr, place, side="right")) - 1
    key = bytes(index.sample_keys()[row]).decode("ascii", "backslashreplace")
    rule = "not be negative" if index.n_classes is None else "be labels of the manifest"
    return f"`label_ids` must {rule}, found {ids[place]} in sample {key!r}"


def _rises(index: Index) -> bool:
    starts = index.label_indptr
    is_whole = starts[0] == 0 and starts[-1] == len(index.label_ids)
    return bool(is_whole and (np.diff(starts) >= 0).all())


def _is_within(values: np.ndarray, low: int, end: int) -> bool:
    return not len(values) or bool(low <= values.min() and values.max() < end)


def _are_legal(index: Index) -> bool:
    """Check all keys at once: one text, a key a line."""
    text = b"\n".join(index.sample_keys().tolist())
    pattern = f"(?:{KEY_PATTERN.pattern}\n)*{KEY_PATTERN.pattern}".encode()
    return text.count(b"\n") == len(index) - 1 and re.fullmatch(pattern, text) is not None
