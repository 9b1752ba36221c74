"""Walk the members of any WebDataset tar, and notice where it is cut or damaged.

Python's ``tarfile`` and every reader on top of it take a damaged header for the end of the
archive. Here that is an error: an archive ends with its end mark, and only zeros follow.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from .errors import ShardError
from .storage import Storage

_NAME = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar.

    Args:
        name: as it stands in the tar.
        offset: of its payload, in bytes from the start of the tar.
        size: of its payload, in bytes.
    """

    name: str
    offset: int
    size: int


def split_name(name: str) -> tuple[str, str] | None:
    """Cut a member's name into key and field, at the first dot of its last part.

    It is WebDataset's rule, but for a leading ``./``, which is dropped.

    Returns:
        key and field; None for names that no reader makes a sample of: without a dot, or
        hidden (``._a.npy`` is an attribute file of macOS).

    >>> split_name("./a.b/dog.logmel.npy"), split_name("LICENSE"), split_name("._dog.npy")
    (('a.b/dog', 'logmel.npy'), None, None)
    """
    match = _NAME.fullmatch(name.removeprefix("./"))
    return (match[1], match[2]) if match else None


def read_tar(storage: Storage, name: str) -> npt.NDArray[np.uint8]:
    """Map a local tar; fetch another whole.

    Returns:
        its bytes, uint8, shape (size_bytes,), read-only.

    Raises:
        FileNotFoundError: there is none.
    """
    if storage.folder is None:
        return np.frombuffer(storage.read(name), np.uint8)
    path = storage.folder / name
    if path.stat().st_size == 0:
        return np.zeros(0, np.uint8)  # cannot be mapped
    return np.asarray(np.memmap(path, np.uint8, mode="r"))


def scan_members(data: npt.NDArray[np.uint8], shard: str) -> Iterator[Member]:
    """Walk the regular files of a tar; folders are passed over.

    Args:
        data: the whole tar, uint8, shape (size_bytes,).
        shard: its name, for messages.

    Yields:
        the members, in order; all of them are inside ``data``.

    Raises:
        ShardError: the tar is cut, a header is damaged, or a member is a link or sparse.
    """
    file = _ByteFile(data)
    tar = _open(file, shard)
    last = "the start"
    while True:
        start = tar.offset
        header = data[start : start + tarfile.BLOCKSIZE]
        if len(header) < tarfile.BLOCKSIZE:
            _fail_cut(shard, last)
        if not header.any():  # the end mark
            _require_zeros(data[start:], shard, last)
            return
        file.seek(start)
        try:
            found = tarfile.TarInfo.fromtarfile(tar)
        except (tarfile.HeaderError, ValueError, RecursionError) as error:
            raise ShardError(
                f"{shard}: the header after {last} is damaged ({error}); copy the tar again, or "
                "make it again",
                shard=shard,
            ) from error
        _require_plain(found, shard)
        last = found.name
        if tar.offset <= start or found.size < 0 or tar.offset > len(data):
            _fail_cut(shard, last)
        if found.isreg():
            yield Member(found.name, found.offset_data, found.size)


def _open(file: "_ByteFile", shard: str) -> tarfile.TarFile:
    """Open the tar and go back to its start: opening reads the first member."""
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r")
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise ShardError(
            f"{shard} must be a tar that is not compressed, found something else ({error}); "
            "unpack it, or copy it again",
            shard=shard,
        ) from error
    tar.offset = 0
    tar.pax_headers = {}
    return tar


def _require_plain(found: tarfile.TarInfo, shard: str) -> None:
    if found.isdir() or (found.isreg() and not found.issparse()):
        return
    raise ShardError(
        f"{shard}: members must be plain files, found {found.name!r}, a link, a device or a "
        "sparse file; make the tar again without it (`tar --dereference`)",
        shard=shard,
    )


def _require_zeros(rest: npt.NDArray[np.uint8], shard: str, last: str) -> None:
    if rest.any():
        raise ShardError(
            f"{shard} must end after {last}, where its end mark is, found more data: joined tars "
            "are read up to the first end mark only; split them, or join them with `tar -A`",
            shard=shard,
        )


def _fail_cut(shard: str, last: str) -> NoReturn:
    raise ShardError(
        f"{shard} is cut: it ends in or after {last}, without an end mark; copy the tar "
        "again, or make it again and close its writer",
        shard=shard,
    )


class _ByteFile(io.RawIOBase):
    """Read an array of bytes as a file, without a copy of the whole."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self._data = data
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: len(self._data)}
        self._place = max(0, starts[whence] + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        part = self._data[self._place : self._place + len(buffer)]
        buffer[: len(part)] = part.tobytes()
        self._place += len(part)
        return len(part)
