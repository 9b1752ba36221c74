"""Whole files or none: temporary name, fsync, rename.

What stands under its final name is complete, also after a crash or a power cut.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".partial"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name only when the block ends without an error.

    Args:
        path: the final name; its folder must exist.

    Yields:
        the file, open for writing bytes under a temporary name beside ``path``.

    Raises:
        OSError: the disk is full or not writable; it names the file, and nothing is left under
            either name.
    """
    # Two writers of one file, on one machine or two, must never share a temporary name.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write knows no name
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, payload: bytes) -> None:
    """Write a small file so that it is whole or absent."""
    with atomic_file(path) as file:
        file.write(payload)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable (a rename alone may be lost in a power cut)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Make every file and name below a folder durable, before the folder itself is renamed."""
    for folder, _, names in os.walk(path):
        for name in names:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))
