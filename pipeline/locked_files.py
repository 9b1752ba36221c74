"""Files of a cache and the locks on them: who reads one, who writes it, who may remove it.

All locks are ``flock``: the kernel drops them when a process ends, however it ends. A lock
is on an open file and says nothing about its name, so after locking one looks whether the
name still stands for the same file.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..shards.storage import Payload

PARTIAL_SUFFIX = ".partial"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.05  # between looks at what another process locks

Bytes = npt.NDArray[np.uint8]


def open_piece(path: Path, n_bytes: int) -> Bytes | None:
    """Map a piece and lease it; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if status.st_nlink and status.st_size == n_bytes:
            with contextlib.suppress(PermissionError):  # the file of another user
                os.utime(descriptor)  # by this time the least recently used is known
            return mapped(descriptor, n_bytes)
    except BlockingIOError:
        return None  # it is being removed
    finally:
        os.close(descriptor)
    if status.st_nlink:
        remove(path)  # cut by a power failure
    return None


def mapped(descriptor: int, n_bytes: int) -> Bytes:
    """Map an open file; its lock lasts as long as the array.

    The map has a duplicate of the descriptor, and with it the lock, until it is dropped.
    """
    return np.frombuffer(mmap.mmap(descriptor, n_bytes, access=mmap.ACCESS_READ), np.uint8)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[int | None]:
    """Open and lock the partial file of a piece; None if another process has it."""
    partial = partial_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # the folder was cleared just now
        yield None
        return
    try:
        yield descriptor if try_lock(descriptor) and _is_at(descriptor, partial) else None
    finally:
        os.close(descriptor)


def partial_path(path: Path) -> Path:
    """Return where a file is written before it gets its name."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def remove(path: Path) -> bool:
    """Remove a file unless somebody has a lock on it."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        if not try_lock(descriptor) or not _is_at(descriptor, path):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file for us alone; False if anybody else has a lock on it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file still has its name: a lock says nothing about the name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write(descriptor: int, payload: Payload) -> bool:
    """Write a whole file, front to back; False if the disk is full."""
    try:
        rest, written = memoryview(payload), 0
        while written < len(rest):
            written += os.pwrite(descriptor, rest[written:], written)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


def pauses(wait_s: float) -> Iterator[float]:
    """Yield growing pauses until their sum is ``wait_s``; at least one."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        wait_s -= pause_s
        if wait_s <= 0:
            return
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
