"""Rows of the index: what it says of one sample, and how rows become columns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .index import COLUMNS, Index, key_bytes, key_strings

MEMBERS = ("logmel", "json", "flac")

UNKNOWN: dict[str, float | int] = {
    "start_s": math.nan,
    "duration_s": math.nan,
    "sample_rate": 0,
    "n_channels": 0,
    "peak": math.nan,
    "rms_dbfs": math.nan,
    "clipped_share": math.nan,
    "silence_share": math.nan,
    "dc_offset": math.nan,
    "bandwidth_hz": math.nan,
    "audio_hash": 0,
}
"""Figures of the ``json`` member that are columns of the index too, and what stands for none."""

FIGURES = tuple(UNKNOWN)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a member's payload lies in its tar, in bytes, and its xxh3_64; all 0: no member."""

    offset: int = 0
    size: int = 0
    hash: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """What the index says of one sample.

    Args:
        key: unique in the data set.
        n_frames: of the log-mel.
        label_ids: sorted places in the manifest's ``label_names``.
        split: place in the manifest's ``split_names``, -1 for none.
        figures: a value for each of ``FIGURES``.
        spans: where the members are, by their names in the index; those it lacks left out.
    """

    key: str
    n_frames: int
    label_ids: tuple[int, ...]
    split: int
    figures: Mapping[str, float | int]
    spans: Mapping[str, Span] = field(default_factory=dict)


def row_of(index: Index, place: int) -> Row:
    """Return one row of an index, without the places of its members."""
    return Row(
        key=key_strings(index.key[place : place + 1])[0].decode("ascii"),
        n_frames=int(index.n_frames[place]),
        label_ids=tuple(index.labels(place).tolist()),
        split=int(index.split[place]),
        figures={name: index.column(name)[place].item() for name in FIGURES},
    )


def rows_index(rows: Sequence[Row]) -> Index:
    """Make the index of one shard, at least one row long."""
    labels = [row.label_ids for row in rows]
    columns: dict[str, Any] = {
        "key": key_bytes([row.key for row in rows]),
        "shard": np.zeros(len(rows)),
        "n_frames": [row.n_frames for row in rows],
        "split": [row.split for row in rows],
        "label_indptr": np.cumsum([0, *map(len, labels)]),
        "label_ids": [i for ids in labels for i in ids],
    }
    for member in MEMBERS:
        spans = [row.spans.get(member, Span()) for row in rows]
        for part in ("offset", "size", "hash"):
            columns[f"{member}_{part}"] = [getattr(span, part) for span in spans]
    for name in FIGURES:
        columns[name] = [row.figures[name] for row in rows]
    return Index({name: np.array(columns[name], dtype) for name, dtype in COLUMNS.items()})
