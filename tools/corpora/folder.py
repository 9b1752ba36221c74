"""Folder: any audio files, the class of each named by its folder.

Content: whatever you have; one class per file, or none.
Size: any.
Licence: yours.
Origin: your disk.
Layout: ``SOURCE/<class>/**/<any name>.<wav, flac, mp3 …>``. The first folder level is the
    class, deeper levels are free. Audio directly in ``SOURCE`` and no folder beside it:
    the files have no labels. ``--unlabelled`` takes every file at any depth without one.
Papers: none.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ...shards.keys import make_key
from .corpus import Clip, Listing
from .files import find_audio
from .labels import LabelsFile, describe, read_labels
from .names import short_names

EXAMPLE = "melstream build folder recordings/train --out shards/train"


def scan(
    source: Annotated[
        Path, typer.Argument(help="Folder that holds one folder per class.", metavar="SOURCE")
    ],
    *,
    labels: LabelsFile = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Take every file, at any depth, without a label.")
    ] = False,
) -> Listing:
    """List the audio files under a folder; the first folder level is the class.

    A key is made from the relative path without its suffix; files that differ by
    their suffix only keep it.

    Args:
        source: the folder that holds one folder per class.
        labels: text file with one class name per line; a class folder that it does
            not name is an error.
        unlabelled: ignore the folders: no clip has a label.

    Returns:
        listing: one clip per audio file.

    Raises:
        ValueError: no audio; files with and files without a class folder; a class
            folder that is not in ``labels``; ``labels`` together with ``unlabelled``.
    """
    if labels is not None and unlabelled:
        raise ValueError("`--labels` and `--unlabelled` exclude each other; leave one out")
    others: Counter[str] = Counter()
    files = list(find_audio(source, others))
    names = [name for name, _ in files]
    is_labelled = not unlabelled and (labels is not None or any("/" in name for name in names))
    label_names = _label_names(names, source, labels) if is_labelled else ()
    index = {name: number for number, name in enumerate(label_names)}
    short = short_names(names)
    clips = [
        Clip(
            key=make_key(short[name]),
            path=path,
            labels=(index[_class_name(name)],) if is_labelled else (),
            source=name,
        )
        for name, path in files
    ]
    clips.sort(key=lambda clip: clip.key)
    return Listing(
        root=source, clips=tuple(clips), label_names=label_names, n_others=others.total()
    )


def _label_names(names: list[str], source: Path, labels: Path | None) -> tuple[str, ...]:
    loose = [name for name in names if "/" not in name]
    if loose:
        raise ValueError(
            f"every file must stand in a class folder, found {len(loose)} of {len(names)} directly "
            f"in {source}, such as {loose[0]!r}; move them, or take all files without labels with "
            "`--unlabelled`"
        )
    found = set(map(_class_name, names))
    if labels is None:
        return tuple(sorted(found))
    label_names = read_labels(labels)
    unknown = sorted(found - set(label_names))
    if unknown:
        raise ValueError(
            f"every class folder in {source} must be named in {labels} ({len(label_names)} names), "
            f"found {describe(unknown, label_names)}; rename the folder or add a line"
        )
    return label_names


def _class_name(name: str) -> str:
    return name.partition("/")[0]
