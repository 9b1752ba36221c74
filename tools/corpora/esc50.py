"""ESC-50: 5-second recordings of environmental sounds in 50 classes.

Content: 5 s excerpts of field recordings from Freesound, 44.1 kHz, mono; one of 50 classes
    each, in five groups: animals, nature, people, indoors, outdoors. ESC-10 is a part of it,
    10 classes.
Size: 2,000 clips, 40 per class, 2.8 hours; 5 folds of 400. Excerpts of one recording are in
    one fold.
Licence: CC-BY-NC-3.0; ESC-10: CC-BY-3.0. Each excerpt names its author in the LICENSE file.
Origin: https://github.com/karolpiczak/ESC-50
Layout: ``SOURCE/meta/esc50.csv`` (filename, fold, target, category, esc10, src_file, take) and
    ``SOURCE/audio/<fold>-<Freesound id>-<take>-<target>.wav``.
Papers: Piczak 2015, ESC: Dataset for Environmental Sound Classification (ACM Multimedia).

Published results are means over the five folds, each tested once on a model that was trained
on the other four: the folds are kept as splits.
"""

import dataclasses
import re
from pathlib import Path
from typing import Annotated

import typer

from ...shards.keys import make_key
from .corpus import Clip, Listing
from .names import stem_of
from .published import list_published, require_file
from .tables import at_line, parse_int, read_table, require_new, require_one_name

EXAMPLE = "melstream build esc50 ESC-50-master --out shards/esc50"

METADATA = "meta/esc50.csv"
COLUMNS = ("filename", "fold", "target", "category", "esc10")
N_FOLDS = 5
_KEY = re.compile(r"[1-5]-([0-9]+)-[A-Z]-[0-9]+")
DURATION_S = 5.0


def scan(
    source: Annotated[
        Path, typer.Argument(help="Folder that holds meta/ and audio/.", metavar="SOURCE")
    ],
    *,
    esc10: Annotated[
        bool, typer.Option("--esc10", help="Take only the 10 classes of ESC-10.")
    ] = False,
) -> Listing:
    """List the clips of ESC-50, or those of ESC-10.

    Args:
        source: the folder that holds ``meta`` and ``audio``.
        esc10: only the clips marked ``esc10``; their classes are numbered anew.

    Returns:
        listing: one clip per row; classes in the order of ``target``, folds as splits.

    Raises:
        ValueError: the metadata is not there or broken, or none of its files is there.
    """
    clips, names, in_esc10 = _read_metadata(require_file(source, METADATA))
    listing = list_published(
        source,
        clips,
        label_names=names,
        splits=tuple(f"fold-{fold}" for fold in range(1, N_FOLDS + 1)),
    )
    return _only(listing, in_esc10) if esc10 else listing


def recording_of(key: str) -> str:
    """Say which Freesound recording a clip is from; FSD50K and UrbanSound8K name theirs so, too.

    >>> recording_of("1-100032-A-0"), recording_of("dog")
    ('100032', 'dog')
    """
    found = _KEY.fullmatch(key)
    return found[1] if found else key


def _read_metadata(path: Path) -> tuple[dict[str, Clip], tuple[str, ...], set[str]]:
    """Read the clips by file, the class names, and the keys of ESC-10."""
    categories: dict[int, str] = {}
    lines: dict[str, int] = {}
    rows: list[tuple[str, str, int, int]] = []  # file, key, fold, target
    in_esc10: set[str] = set()
    for line, row in read_table(path, COLUMNS):
        with at_line(path, line):
            require_new(row["filename"], line, lines)
            fold = parse_int(row["fold"], "fold", 1, N_FOLDS)
            target = parse_int(row["target"], "target", 0)
            require_one_name(categories, target, row["category"])
            if row["esc10"] not in ("True", "False"):
                raise ValueError(f"`esc10` must be True or False, found {row['esc10']!r}")
        key = make_key(stem_of(row["filename"]))
        rows.append((f"audio/{row['filename']}", key, fold, target))
        if row["esc10"] == "True":
            in_esc10.add(key)
    index = {target: number for number, target in enumerate(sorted(categories))}
    clips = {
        name: Clip(
            key=key,
            path=None,
            labels=(index[target],),
            source=key,
            duration_s=DURATION_S,
            split=fold - 1,
        )
        for name, key, fold, target in rows
    }
    return clips, tuple(categories[target] for target in sorted(categories)), in_esc10


def _only(listing: Listing, keys: set[str]) -> Listing:
    clips = [clip for clip in listing.clips if clip.key in keys]
    kept = sorted({label for clip in clips for label in clip.labels})
    index = {label: number for number, label in enumerate(kept)}
    return dataclasses.replace(
        listing,
        clips=tuple(
            dataclasses.replace(clip, labels=tuple(index[label] for label in clip.labels))
            for clip in clips
        ),
        label_names=tuple(listing.label_names[label] for label in kept),
    )
