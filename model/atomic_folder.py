"""Folders that are whole if they exist.

A folder is written under a hidden name beside its final one, forced to the disk,
and renamed. Whatever a crash leaves behind has a hidden name, and
``clear_leftovers`` mends it:

    .writing-NAME     was being written: removed
    .removing-NAME    was being removed: removed
    .replaced-NAME    stood under NAME before the one that replaces it: put back if
                      the crash hit between the two renames, else removed

One process at a time may write in a folder.
"""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITING, _REMOVING, _REPLACED = ".writing-", ".removing-", ".replaced-"


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes ``path`` when the block ends well.

    An older folder at ``path`` stays until the new one is on the disk. When the block
    raises, nothing changes.

    Args:
        path: final place; its parent is made if need be.

    Yields:
        The folder to write files into.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent, glob.escape(path.name))
    writing = path.with_name(_WRITING + path.name)
    writing.mkdir()
    try:
        yield writing
        for file in writing.iterdir():
            _sync(file)
        _sync(writing)
        _move(writing, path)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder so that a crash leaves all of it under its name, or none."""
    removing = path.with_name(_REMOVING + path.name)
    path.rename(removing)
    shutil.rmtree(removing)


def clear_leftovers(parent: Path, name: str = "*") -> None:
    """Mend what crashes left of folders in ``parent``.

    Args:
        parent: an existing folder.
        name: final name of the folder to mend, or a glob pattern.
    """
    for leftover in parent.glob(_REPLACED + name):
        final = parent / leftover.name.removeprefix(_REPLACED)
        if not final.exists():
            leftover.rename(final)
    for prefix in (_WRITING, _REMOVING, _REPLACED):
        for leftover in parent.glob(prefix + name):
            shutil.rmtree(leftover)


def _move(writing: Path, path: Path) -> None:
    # A rename cannot replace a folder that has files in it: the old one steps aside.
    replaced = path.with_name(_REPLACED + path.name)
    if path.exists():
        path.rename(replaced)
    writing.rename(path)
    _sync(path.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
