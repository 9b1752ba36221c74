"""A folder of pieces of shards, shared by the processes of a machine.

    <folder>/.usage                                          bytes in use, and a lock
    <folder>/<set>-<hash>/<shard>-<hash>-<first>-<n>.piece   bytes of a shard, whole
    ....piece.partial                                        being downloaded

The kernel's file locks (``flock``) say who does what; it drops them when a process ends,
however it ends. Whoever maps a piece holds a shared lock on its file: a lease. A piece
nobody leases may be removed, least recently used first. Whoever downloads holds the lock of
the partial file; the others wait, and when it dies the next one takes over.

Files are not fsynced. They are written front to back, so one that a power cut leaves behind
is short, which is noticed. Names hold address, fingerprint and hash, so a data set that
changed never meets old bytes.
"""

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..shards.dataset import Dataset
from ..shards.storage import Payload, StorageError
from .locked_files import (
    LONGEST_PAUSE_S,
    PARTIAL_SUFFIX,
    Bytes,
    claimed,
    mapped,
    open_piece,
    partial_path,
    pauses,
    remove,
    try_lock,
    write,
)

PIECE_SUFFIX = ".piece"
USAGE_NAME = ".usage"
SPARE_SHARE = 16  # an eviction frees 1/16 of the cache at least, so that surveys are rare
_NAME = re.compile(rf".+-\d+-(\d+){re.escape(PIECE_SUFFIX)}({re.escape(PARTIAL_SUFFIX)})?")

_log = logging.getLogger(__name__)


class CacheConfig(BaseModel):
    """How shards of an object store are read; local ones are mapped where they lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = Field(
        default=None, description="where pieces of shards are kept; none = in memory only"
    )
    max_bytes: int = Field(
        default=64 * 2**30, ge=0, description="most bytes in the folder, of all data sets"
    )
    min_free_bytes: int = Field(
        default=4 * 2**30, ge=0, description="bytes left free on the disk of the folder"
    )
    memory_bytes: int = Field(
        default=3 * 2**30,
        ge=1,
        description="most bytes in memory, or mapped from the folder, at once; about twice the "
        "order's `shuffle_bytes` and `read_ahead_bytes`, or pieces are fetched again and again",
    )
    read_ahead_bytes: int = Field(
        default=2**30, ge=0, description="bytes of the samples to come whose pieces are fetched"
    )
    piece_bytes: int | None = Field(
        default=None, ge=1, description="about how many bytes are fetched at once; none = by size"
    )
    n_parallel: int = Field(default=8, ge=1, le=256, description="requests at once")

    @field_validator("folder", mode="before")
    @classmethod
    def _read_folder(cls, folder: object) -> object:
        if "://" in str(folder):
            raise ValueError(f"must be on a disk of this machine, found {folder}")
        if folder == "":
            raise ValueError("must name a folder, found nothing; leave it out to cache in memory")
        return Path(folder).expanduser() if isinstance(folder, str | Path) else folder


def piece_name(dataset: Dataset, shard: int, first_byte: int, n_bytes: int) -> str:
    """Return the name, in a cache folder, of a range of bytes of a shard."""
    entry = dataset.manifest.shards[shard]
    place = hashlib.sha256(f"{dataset.url} {dataset.manifest.fingerprint}".encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", dataset.storage.name)[:100]
    stem = entry.name.removesuffix(".tar")
    return f"{name}-{place[:16]}/{stem}-{entry.sha256[:12]}-{first_byte}-{n_bytes}{PIECE_SUFFIX}"


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free for us on the disk of a folder."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class ShardCache:
    """Pieces of shards in a folder, under a size limit and above a floor of free space.

    It holds no open file and no thread, so it can be used on both sides of a fork.

    Args:
        folder: created where it is missing.
        max_bytes: most bytes in it; what is being downloaded counts.
        min_free_bytes: bytes to leave free on its disk; what others write counts too.
        free_bytes: tells the free bytes of a folder's disk.

    Raises:
        StorageError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        min_free_bytes: int,
        free_bytes: Callable[[Path], int] = free_bytes,
    ) -> None:
        self.folder = folder
        self._max_bytes, self._min_free_bytes = max_bytes, min_free_bytes
        self._free_bytes = free_bytes
        self._told: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._usage(LONGEST_PAUSE_S) as usage:
                if usage is not None:
                    _write_number(usage, sum(file.n_bytes for file in _survey(folder)))
        except OSError as error:
            raise StorageError(
                f"the cache folder {folder} must be a folder that can be written, found: "
                f"{error.strerror}; choose another, or none to keep shards in memory"
            ) from error

    def get(self, name: str, n_bytes: int, fetch: Callable[[], Payload], *, wait_s: float) -> Bytes:
        """Map a piece, and download it first where it is missing.

        Args:
            name: of the piece; see ``piece_name``.
            n_bytes: its size, at least 1.
            fetch: downloads it; called once at most.
            wait_s: longest time to wait for another process that downloads it, in seconds;
                one that is stopped is not waited for longer.

        Returns:
            the bytes, uint8, shape (n_bytes,), read-only, leased for as long as the array
            lives; in memory where the folder has no room, or cannot be used.
        """
        download = functools.cache(fetch)  # kept while the folder may yet fail
        try:
            held = self._get(self.folder / name, n_bytes, download, wait_s=wait_s)
        except OSError as error:  # removed, out of inodes, made read-only …
            self._tell(
                "the cache folder %s cannot be used (%s); what it cannot keep is kept in memory: "
                "see to the folder, or choose another",
                *(self.folder, error.strerror),
            )
            held = None
        return np.frombuffer(download(), np.uint8) if held is None else held

    def drop(self, name: str) -> None:
        """Remove a piece that is not what was downloaded, unless another process uses it."""
        _log.warning("%s was altered; it is fetched again", self.folder / name)
        remove(self.folder / name)

    def _get(
        self, path: Path, n_bytes: int, fetch: Callable[[], Payload], *, wait_s: float
    ) -> Bytes | None:
        """Map a piece, and download it first where it is missing; None where there is no room."""
        for pause_s in pauses(wait_s):
            held = open_piece(path, n_bytes)
            if held is not None:
                return held
            with claimed(path) as partial:
                # A piece may have got its name since we looked, and be locked for a moment yet.
                if partial is not None and not path.exists():
                    return self._fill(partial, path, n_bytes, fetch, wait_s=wait_s)
                if partial is not None:
                    partial_path(path).unlink(missing_ok=True)  # ours: we have its lock
            time.sleep(pause_s)
        return None

    def _fill(
        self, partial: int, path: Path, n_bytes: int, fetch: Callable[[], Payload], *, wait_s: float
    ) -> Bytes | None:
        """Download into a partial file that is ours, and give it its name."""
        is_named = False
        try:
            has_room = self._reserve(partial, n_bytes, wait_s=wait_s)
            payload = fetch()
            if has_room and write(partial, payload) and self._rename(path, wait_s=wait_s):
                is_named = True
                with contextlib.suppress(BlockingIOError):  # it is being removed already
                    fcntl.flock(partial, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return mapped(partial, n_bytes)
        finally:
            if not is_named:
                partial_path(path).unlink(missing_ok=True)  # ours: we have its lock
        self._tell(
            "the cache folder %s has no room for %d bytes more (`max_bytes` %d, "
            "`min_free_bytes` %d, %d free); what does not fit is kept in memory: free the disk, or "
            "raise `max_bytes`",
            *(self.folder, n_bytes, self._max_bytes, self._min_free_bytes),
            self._free_bytes(self.folder),
        )
        return None

    def _rename(self, path: Path, *, wait_s: float) -> bool:
        """Give a download its name, unless others survey the folder: none may be missed."""
        with self._usage(wait_s) as usage:
            if usage is not None:
                partial_path(path).rename(path)
            return usage is not None

    def _tell(self, message: str, *arguments: object) -> None:
        """Warn, of each kind of trouble once."""
        if message not in self._told:
            self._told.add(message)
            _log.warning(message, *arguments)

    def _reserve(self, partial: int, n_bytes: int, *, wait_s: float) -> bool:
        """Count the bytes of a download before it starts; make room where there is none."""
        if os.fstat(partial).st_size:
            return True  # by a process that was killed: a partial file with bytes in it counts
        with self._usage(wait_s) as usage:
            if usage is None or n_bytes > self._max_bytes:
                return False
            used = _read_number(usage)
            if used is None or not self._fits(used, n_bytes):
                used = self._make_room(n_bytes)
            fits = self._fits(used, n_bytes)
            if fits:
                write(partial, b"\0")
            _write_number(usage, used + n_bytes * fits)
            return fits

    def _fits(self, used: int, n_bytes: int) -> bool:
        has_space = self._free_bytes(self.folder) - n_bytes >= self._min_free_bytes
        return has_space and used + n_bytes <= self._max_bytes

    def _make_room(self, n_bytes: int) -> int:
        """Remove what nobody leases, least recently used first; return the bytes in use."""
        files = _survey(self.folder)
        used = sum(file.n_bytes for file in files)
        if self._fits(used, n_bytes):
            return used
        n_bytes += used // SPARE_SHARE
        for file in sorted(files, key=lambda file: file.used_at):
            if self._fits(used, n_bytes):
                break
            if remove(file.path):
                used -= file.n_bytes
        return used

    @contextlib.contextmanager
    def _usage(self, wait_s: float) -> Iterator[int | None]:
        """Open and lock the file that counts the bytes; None if another keeps it too long."""
        descriptor = os.open(self.folder / USAGE_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            for pause_s in pauses(wait_s):
                if try_lock(descriptor):
                    yield descriptor
                    return
                time.sleep(pause_s)
            yield None
        finally:
            # A process forked meanwhile has the descriptor too: closing is not enough.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A piece in a cache folder.

    Args:
        path: of its file.
        n_bytes: of the piece; a partial file has fewer yet.
        used_at: when it was last opened, in ns.
    """

    path: Path
    n_bytes: int
    used_at: int


def _survey(folder: Path) -> list[CachedFile]:
    """List pieces and downloads under way; remove what killed downloads left.

    Under the lock of ``_usage`` it misses nothing: no file changes its name meanwhile.
    """
    found: list[CachedFile] = []
    for path in folder.glob(f"*/*{PIECE_SUFFIX}*"):
        match = _NAME.fullmatch(path.name)
        if match is None or (match[2] and remove(path)):
            continue
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if status.st_size or not match[2]:  # an empty partial file has nothing reserved
                found.append(CachedFile(path, int(match[1]), status.st_mtime_ns))
    return found


def _read_number(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0)
    return int(text) if text.strip().isdigit() else None


def _write_number(descriptor: int, number: int) -> None:
    write(descriptor, b"%-31d\n" % number)
