"""Finding the audio files below a folder, in an order that the file system does not decide."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ...shards.audio_suffixes import AUDIO_SUFFIXES


def find_audio(root: Path, others: Counter[str] | None = None) -> Iterator[tuple[str, str | None]]:
    """Find every audio file under ``root``, at any depth.

    Names that start with a dot are skipped. Links to files and folders are
    followed; a folder that contains itself through a link is entered once.

    Args:
        root: the folder to search.
        others: gets the suffix of each file that is passed over, in lower case.

    Yields:
        source: the path relative to ``root``, with ``/``; a byte that is not UTF-8
            stands in it as ``\\xe9``, so that the text can be printed and stored.
        path: the file's path relative to ``root`` as the file system spells it, or None where
            a link leads nowhere.

    Raises:
        ValueError: ``root`` is not a folder, or holds no audio file at all.
    """
    if re.match(r"[a-z0-9]{2,}:/", str(root)):  # `Path` folds its slashes
        raise ValueError(
            f"the source must be on a disk of this machine, found {root}; copy it over"
        )
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise ValueError(f"the source must be a folder of audio files, found {found} at {root}")
    none_found = True
    others = Counter() if others is None else others
    for name, is_file in _walk(str(root), "", frozenset(), others):
        none_found = False
        source = printable(name)
        yield source, name if is_file else None
    if none_found:
        raise ValueError(
            f"found no audio file under {root}; looked at every depth, but for hidden names, "
            f"for .{' .'.join(sorted(AUDIO_SUFFIXES))}"
        )


def is_audio_name(name: str) -> bool:
    """Say whether a name or path ends as those of audio files do.

    >>> is_audio_name("a/Kick.WAV"), is_audio_name("wav")
    (True, False)
    """
    return _suffix(name) in AUDIO_SUFFIXES


def printable(name: str) -> str:
    """Write a name so that it can be printed and stored; the same object if it can already."""
    source = os.fsencode(name).decode("utf-8", "backslashreplace")
    return name if source == name else source


def _walk(
    folder: str, prefix: str, ancestors: frozenset[tuple[int, int]], others: Counter[str]
) -> Iterator[tuple[str, bool]]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _holds(entry.is_dir):
            inner = f"{prefix}{entry.name}/"
            yield from _walk(entry.path, inner, ancestors | {identity}, others)
            continue
        is_file = _holds(entry.is_file)
        if not is_audio_name(entry.name) or not (is_file or entry.is_symlink()):
            others[_suffix(entry.name)] += 1
        else:
            yield prefix + entry.name, is_file


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _holds(test: Callable[[], bool]) -> bool:
    """Ask an entry what it is; a link that leads to itself is nothing."""
    try:
        return test()
    except OSError:
        return False
