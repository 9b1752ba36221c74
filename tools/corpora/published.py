"""Data sets with a published layout: their folder, and which file belongs to which clip."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...shards.errors import listed
from .corpus import Clip, Listing
from .files import find_audio
from .names import stem_of


def require_file(source: Path, name: str) -> Path:
    """Find the metadata that tells a data set's folder from others.

    Args:
        source: the folder the user named.
        name: the file's path below it, as published.

    Returns:
        its path.

    Raises:
        ValueError: it is not there; the message says in which folder near by it is, or what
            is there instead.
    """
    path = source / name
    if path.is_file():
        return path
    raise ValueError(
        f"the source must be the folder that holds {name}, {_what_is_there(source, name)}"
    )


def _what_is_there(source: Path, name: str) -> str:
    if not source.is_dir():
        return f"found {'a file' if source.exists() else 'nothing'} at {source}"
    near = next(_near(source, name), None)
    if near is not None:
        return f"found none in {source}, but in {near}: give that folder"
    names = sorted(entry.name for entry in source.iterdir() if not entry.name.startswith("."))
    shown = listed(names)
    return f"found in {source}: {shown or 'nothing'}"


def _near(source: Path, name: str) -> Iterator[Path]:
    """Folders up to two levels above and below that hold the file."""
    yield from (folder for folder in source.resolve().parents[:2] if (folder / name).is_file())
    for pattern in (f"*/{name}", f"*/*/{name}"):
        for path in sorted(source.glob(pattern)):
            yield path.parents[len(Path(name).parts) - 1]


def list_published(
    source: Path,
    clips: Mapping[str, Clip],
    files: list[tuple[str, str | None]] | None = None,
    *,
    label_names: tuple[str, ...],
    label_ids: tuple[str, ...] | None = None,
    splits: tuple[str, ...] = (),
) -> Listing:
    """Give every clip its file, and count the files that are nobody's.

    A file counts whatever its suffix, for sets are often converted; of several the one with
    the published suffix is taken, then the first by name, and the others are duplicates.

    Args:
        source: the folder of the data set.
        clips: the file's path below ``source``, as published -> the clip, without a path.
        files: what ``find_audio`` gave, where it was asked already.
        label_names, label_ids, splits: as in ``Listing``.

    Returns:
        listing: all clips; ``path=None`` where no file is there.

    Raises:
        ValueError: no file is a clip's.
    """
    files = list(find_audio(source)) if files is None else files
    by_stem = {stem_of(name): name for name in clips}
    best: dict[str, tuple[bool, str, str]] = {}  # published name -> the smallest is the best
    n_unlisted = n_duplicates = 0
    for found, path in files:
        name = by_stem.get(stem_of(found))
        if name is None:
            n_unlisted += 1
        elif path is not None:
            rank = (found != name, found, path)
            n_duplicates += name in best
            best[name] = min(rank, best.get(name, rank))
    if not best:
        raise ValueError(
            f"none of the {len(files)} audio files under {source} is one that the metadata names: "
            f"looked for {next(iter(clips))} and the like, found {files[0][0]} and the like"
        )
    placed = [
        dataclasses.replace(clip, source=best[name][1], path=best[name][2])
        if name in best
        else clip
        for name, clip in clips.items()
    ]
    return Listing(
        root=source,
        clips=tuple(sorted(placed, key=lambda clip: clip.key)),
        label_names=label_names,
        label_ids=label_ids,
        splits=splits,
        n_unlisted=n_unlisted,
        n_duplicates=n_duplicates,
    )
