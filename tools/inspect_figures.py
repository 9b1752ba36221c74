"""How the figures of ``melstream inspect`` are computed: from columns of the index alone."""

import numpy as np
import numpy.typing as npt

from ..shards.affine import LEVELS
from ..shards.dataset import Dataset
from ..shards.index import Index
from ..shards.mel import mel_edges_hz
from ..shards.spec import FeatureSpec
from .inspection import Bands, CoOccurrence, Count, Duplicates, Flag, Histogram
from .selection import OPERATORS, Bound

Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]
MAX_EXAMPLES = 5
TOP_CLASSES = 30  # in the table of co-occurrence
SILENT = 0.95  # of a clip, under -60 dBFS
NARROW_BAND = 0.75  # of the highest mel frequency: 11 kHz files reach 0.7, telephones 0.45 of 8 kHz
CLIPPED = 0.001  # of a clip's samples at full scale: clearly heard
DC_OFFSET = 0.01  # of full scale
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)

UNITS = {
    "duration_s": "s",
    "rms_dbfs": "dBFS",
    "peak": "",
    "clipped_share": "",
    "silence_share": "",
    "bandwidth_hz": "Hz",
    "dc_offset": "",
}
"""The columns that have a histogram, and their units."""


def histogram_edges(name: str, spec: FeatureSpec) -> npt.NDArray[np.float64]:
    """Return the bounds of a column's bins: they follow from the features alone.

    >>> histogram_edges("duration_s", FeatureSpec())[[0, 30, 60]].tolist()
    [0.01, 10.0, 10000.0]
    """
    if name == "duration_s":
        decades = np.round(np.geomspace(1, 10, 11)[:-1], 3)
        return np.array([*(d * 10.0**power for power in range(-2, 4) for d in decades), 1e4])
    if name == "rms_dbfs":
        return np.arange(-100, 1, 2.5)
    if name in ("clipped_share", "dc_offset"):
        return np.array([0.0, *(10 ** (half / 2) for half in range(-12, 1))])
    if name == "bandwidth_hz":  # one bin for each value there can be: the bands' upper ends
        edges = mel_edges_hz(spec)
        middles = (edges[1:-1] + edges[2:]) / 2
        return np.array([0.0, *middles, float(np.float32(edges[-1]))])
    return np.linspace(0, 1, 41)


def histogram(index: Index, name: str, spec: FeatureSpec, rows: Rows | slice) -> Histogram:
    """Count one column by bins; of an offset, its size.

    Args:
        index: of the data set.
        name: one of ``UNITS``.
        spec: its features.
        rows: which samples.
    """
    column = index.column(name)[rows]
    values = np.sort(np.abs(column) if name == "dc_offset" else column)  # NaN last
    n_known = len(values) - int(np.isnan(values).sum())
    values, n_unknown = values[:n_known], len(values) - n_known
    edges = histogram_edges(name, spec)
    places = np.searchsorted(values, edges)
    places[-1] = np.searchsorted(values, edges[-1], side="right")
    return Histogram(
        name=name,
        unit=UNITS[name],
        edges=tuple(edges.tolist()),
        counts=tuple(np.diff(places).tolist()),
        n_below=int(places[0]),
        n_above=n_known - int(places[-1]),
        n_unknown=n_unknown,
        quantiles=tuple(np.quantile(values, QUANTILES).tolist()) if n_known else None,
    )


def flags(index: Index, spec: FeatureSpec, rows: Rows | slice) -> tuple[Flag, ...]:
    """Count the samples with a fault that one column shows."""
    bounds = {
        "silent": Bound("silence_share", ">=", SILENT),
        "narrow_band": Bound("bandwidth_hz", "<=", NARROW_BAND * spec.fmax),
        "clipped": Bound("clipped_share", ">=", CLIPPED),
        "dc_offset": Bound("dc_offset", ">=", DC_OFFSET),
    }
    found = []
    for name, bound in bounds.items():
        values = np.abs(index.column(bound.column)[rows])
        n_samples = int(OPERATORS[bound.sign](values, bound.number).sum())
        n_known = len(values) - int(np.isnan(values).sum())
        found.append(Flag(name=name, bound=str(bound), n_samples=n_samples, n_known=n_known))
    return tuple(found)


def count_distinct(values: npt.NDArray[np.integer]) -> tuple[Count, ...]:
    """Count samples by value, ascending."""
    found, counts = np.unique(values, return_counts=True)
    pairs = zip(found.tolist(), counts.tolist(), strict=True)
    return tuple(Count(value=value, n_samples=n) for value, n in pairs)


def label_rows(index: Index, rows: Rows | slice) -> tuple[Labels, Labels]:
    """Return the labels of some samples: place of the sample among them, and label id."""
    owner = np.repeat(np.arange(len(index), dtype=np.int32), np.diff(index.label_indptr))
    if isinstance(rows, slice):
        return owner, index.label_ids
    place = np.full(len(index), -1, np.int32)
    place[rows] = np.arange(len(rows))
    kept = place[owner] >= 0
    return place[owner][kept], index.label_ids[kept]


def co_occurrence(owner: Labels, ids: Labels, names: tuple[str, ...]) -> CoOccurrence | None:
    """Count samples that have two labels, for the most frequent classes.

    Args:
        owner, ids: see ``label_rows``.
        names: of the classes.
    """
    from scipy.sparse import csr_array

    counts = np.bincount(ids, minlength=len(names))
    top = np.argsort(-counts, kind="stable")[:TOP_CLASSES]
    top = top[counts[top] > 0]
    if len(top) < 2:
        return None
    place = np.full(len(names), -1, np.int32)
    place[top] = np.arange(len(top))
    column = place[ids]
    kept = column >= 0
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner[kept]))])
    ones = np.ones(int(starts[-1]), np.int32)
    shape = (len(starts) - 1, len(top))
    has_label = csr_array((ones, column[kept], starts), shape=shape)
    both = (has_label.T @ has_label).toarray()
    return CoOccurrence(
        classes=tuple(names[i] for i in top), counts=tuple(map(tuple, both.tolist()))
    )


def duplicates(dataset: Dataset, rows: Rows | slice) -> Duplicates | None:
    """Find samples with exactly the same audio; None where no hash is known."""
    hashes = dataset.index.audio_hash[rows]
    values = np.sort(hashes)
    values = values[np.searchsorted(values, 1) :]  # 0 stands for unknown
    if not len(values):
        return None
    repeats = values[1:][values[1:] == values[:-1]]  # all but one of each group
    groups, sizes = np.unique(repeats, return_counts=True)
    shown = groups[np.argsort(-sizes, kind="stable")[:MAX_EXAMPLES]]
    return Duplicates(
        n_groups=len(groups),
        n_redundant=len(repeats),
        examples=tuple(_keys(dataset, rows, np.flatnonzero(hashes == value)) for value in shown),
    )


def _keys(dataset: Dataset, rows: Rows | slice, places: Rows) -> tuple[str, ...]:
    kept = places[:MAX_EXAMPLES]
    return tuple(dataset.key(int(row)) for row in (kept if isinstance(rows, slice) else rows[kept]))


def bands(dataset: Dataset) -> Bands:
    """Say what the log-mels are like, band by band."""
    manifest = dataset.manifest
    code, counts = manifest.features.value_code, dataset.logmel_counts
    edges = code.offset + code.scale * (np.arange(LEVELS + 1) - 0.5)
    return Bands(
        centre_hz=tuple(mel_edges_hz(manifest.features)[1:-1].tolist()),
        mean=manifest.band_mean,
        std=manifest.band_std,
        value_edges=tuple(edges.tolist()),
        value_counts=None if counts is None else tuple(map(tuple, counts.tolist())),
    )
