"""UrbanSound8K: excerpts of up to 4 seconds of urban sounds in 10 classes.

Content: excerpts of field recordings from Freesound, up to 4 s, rates and channels as
    uploaded; one of 10 classes each, such as air conditioner, siren, street music.
Size: 8,732 clips, 8.75 hours; 10 folds. Excerpts of one recording are in one fold.
Licence: CC-BY-NC-3.0; each recording names its author in FREESOUNDCREDITS.txt.
Origin: https://urbansounddataset.weebly.com/urbansound8k.html
Layout: ``SOURCE/metadata/UrbanSound8K.csv`` (slice_file_name, fsID, start, end, salience,
    fold, classID, class) and ``SOURCE/audio/fold<1..10>/<fsID>-<classID>-<occurrence>-
    <slice>.wav``.
Papers: Salamon, Jacoby, Bello 2014, A Dataset and Taxonomy for Urban Sound Research (ACM
    Multimedia).

Published results are means over the ten folds as they are, each tested once: the folds are
kept as splits. A split of one's own puts excerpts of one recording on both sides.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ...shards.keys import make_key
from .corpus import Clip, Listing
from .names import stem_of
from .published import list_published, require_file
from .tables import at_line, parse_int, parse_seconds, read_table, require_new, require_one_name

EXAMPLE = "melstream build urbansound8k UrbanSound8K --out shards/urbansound8k"

METADATA = "metadata/UrbanSound8K.csv"
COLUMNS = ("slice_file_name", "start", "end", "fold", "classID", "class")
N_FOLDS = 10
N_CLASSES = 10
_KEY = re.compile(r"([0-9]+)-[0-9]-[0-9]+-[0-9]+")


def scan(
    source: Annotated[
        Path, typer.Argument(help="Folder that holds metadata/ and audio/.", metavar="SOURCE")
    ],
) -> Listing:
    """List the excerpts of UrbanSound8K.

    Args:
        source: the folder that holds ``metadata`` and ``audio``.

    Returns:
        listing: one clip per row; ``start_s`` is in the Freesound recording; classes in the
        order of ``classID``, folds as splits.

    Raises:
        ValueError: the metadata is not there or broken, or none of its files is there.
    """
    path = require_file(source, METADATA)
    classes: dict[int, str] = {}
    lines: dict[str, int] = {}
    rows: list[tuple[str, int, Clip]] = []  # file, class, clip
    for line, row in read_table(path, COLUMNS):
        with at_line(path, line):
            require_new(row["slice_file_name"], line, lines)
            number = parse_int(row["classID"], "classID", 0, N_CLASSES - 1)
            require_one_name(classes, number, row["class"])
            clip = _parse_clip(row)
        rows.append((f"audio/fold{clip.split + 1}/{row['slice_file_name']}", number, clip))
    index = {number: place for place, number in enumerate(sorted(classes))}
    return list_published(
        source,
        {name: replace(clip, labels=(index[number],)) for name, number, clip in rows},
        label_names=tuple(classes[number] for number in sorted(classes)),
        splits=tuple(f"fold-{fold}" for fold in range(1, N_FOLDS + 1)),
    )


def recording_of(key: str) -> str:
    """Say which Freesound recording an excerpt is from; ESC-50 and FSD50K name theirs so, too.

    >>> recording_of("100032-3-0-0"), recording_of("dog")
    ('100032', 'dog')
    """
    found = _KEY.fullmatch(key)
    return found[1] if found else key


def _parse_clip(row: dict[str, str]) -> Clip:
    """Make the clip of a row, without its labels."""
    start_s, end_s = (parse_seconds(row[column], column) for column in ("start", "end"))
    if start_s >= end_s:
        raise ValueError(f"`end` must be after `start`, found {row['start']!r} to {row['end']!r}")
    key = make_key(stem_of(row["slice_file_name"]))
    return Clip(
        key=key,
        path=None,
        labels=(),
        source=key,
        start_s=start_s,
        duration_s=round(end_s - start_s, 6),
        split=parse_int(row["fold"], "fold", 1, N_FOLDS) - 1,
    )
