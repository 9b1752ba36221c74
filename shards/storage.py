"""Where a data set lies: a local folder or an object store, behind one interface.

A place is a path, ``file://``, ``s3://bucket/...``, ``gs://bucket/...``,
``az://container/...`` or, to read only, ``http(s)://host/...``. Names are relative to
it and use ``/``. What stands under a name is whole: a file takes its name, an object
becomes visible, only when its last byte is safe. Credentials come from the usual
environment variables, never from the address.
"""

import contextlib
import glob
import re
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from .errors import DatasetError
from .files import TEMPORARY_SUFFIX, atomic_file, sync_folder

if TYPE_CHECKING:
    from zarr.abc.store import Store

Payload = bytes | memoryview
AnyPayload = TypeVar("AnyPayload", bytes, memoryview)

REMOTE_SCHEMES = ("s3", "gs", "az", "http", "https")
DEFAULT_TIMEOUT_S = 120.0


class StorageError(DatasetError):
    """A place cannot be read or written; the message names it and the remedy, and no secret."""


class UnansweredError(StorageError):
    """A store did not answer, or not to the end, in all the time it had; it may do so later."""


class Sink(Protocol):
    """What ``Storage.writer`` gives: bytes go in, in order."""

    def write(self, data: bytes, /) -> int:
        """Append bytes; return how many."""
        ...

    def tell(self) -> int:
        """Return how many bytes were written so far."""
        ...


class Storage(ABC):
    """A folder of named byte strings.

    A storage pickles to its address; what it opens, it opens again in each process.

    Attributes:
        url: the address, fit to be printed.
        folder: the local folder, or None where it is remote.
        name: last part of the address, such as ``train`` of ``s3://bucket/audioset/train``.
    """

    url: str
    folder: Path | None
    name: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def url_of(self, name: str) -> str:
        """Return the address of one name, fit to be printed."""
        return f"{self.url}/{name}" if name else self.url

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read all bytes under a name.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the place cannot be reached, or refuses.
        """

    @abstractmethod
    def read_range(self, name: str, start: int, length: int) -> Payload:
        """Read ``length`` bytes from byte ``start``: all of them, or an error.

        An object store's answer is not copied: what comes is a view of the client's memory.

        Raises:
            FileNotFoundError: there is no such name.
            StorageError: it is shorter than ``start + length``, or cannot be reached.
        """

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the number of bytes under a name, or None where there is none."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """Return names and sizes of all there is in the folder ``prefix`` and below, sorted."""

    @abstractmethod
    def writer(self, name: str) -> contextlib.AbstractContextManager[Sink]:
        """Write under a name that appears, whole, when the block ends without an error."""

    def write(self, name: str, payload: bytes) -> None:
        """Write all bytes of a name at once: whole or absent."""
        with self.writer(name) as file:
            file.write(payload)

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a name; none is no error."""

    @abstractmethod
    def delete_all(self, prefix: str) -> None:
        """Remove the folder ``prefix`` and all there is below."""

    @abstractmethod
    def move(self, old: str, new: str) -> None:
        """Give a file, or all files of a folder, another name; one that is there is replaced.

        Raises:
            FileNotFoundError: there is nothing under ``old``.
        """

    @abstractmethod
    def zarr_store(self, name: str, *, read_only: bool) -> "Store":
        """Return a Zarr store of all there is below ``name``."""

    @abstractmethod
    def clean(self, name: str = "") -> None:
        """Remove what killed writers of one name, or of all, left; while nobody writes it."""


def open_storage(place: str | Path, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Storage:
    """Open a place; nothing is read or created yet.

    >>> open_storage("s3://bucket/audioset/train").name
    'train'

    Args:
        place: a path, ``file://``, ``s3://``, ``gs://``, ``az://``, ``http://`` or ``https://``.
        timeout_s: longest time for one request with all its retries, in seconds.

    Raises:
        ValueError: another scheme, no bucket, or credentials in the address.
    """
    if timeout_s <= 0:
        raise ValueError(f"`timeout_s` must be above 0 seconds, found {timeout_s}")
    text = str(place)
    if re.match(r"[A-Za-z0-9+.-]{2,}:/(?!/)", text):
        raise ValueError(
            f"an address needs two slashes after its scheme, found {printable(text)}; pass it as "
            "text, `pathlib.Path` folds them into one"
        )
    if "://" not in text:
        return LocalStorage(Path(place))
    scheme, _, rest = text.partition("://")
    if scheme.lower() == "file":
        return LocalStorage(_file_path(text))
    _check_address(scheme.lower(), text)
    from .remote_storage import RemoteStorage  # loads the client only where a place is remote

    return RemoteStorage(f"{scheme.lower()}://{rest}", timeout_s=timeout_s)


class LocalStorage(Storage):
    """A folder on a disk; files are fsynced and renamed into place.

    Args:
        folder: it is created by the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = self._root = folder
        self.url = str(folder)
        self.name = folder.name or folder.resolve().name

    def read(self, name: str) -> bytes:
        """See ``Storage.read``."""
        return self._path(name).read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """See ``Storage.read_range``."""
        check_range(start, length)
        with self._path(name).open("rb") as file:
            file.seek(start)
            return whole(file.read(length), start, length, self.url_of(name))

    def size(self, name: str) -> int | None:
        """See ``Storage.size``."""
        path = self._path(name)
        return path.stat().st_size if path.is_file() else None

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """See ``Storage.list``; temporary files are left out."""
        root = self._path(prefix) if prefix else self._root
        found = []
        for path in root.rglob("*"):
            name = path.relative_to(self._root)
            with contextlib.suppress(FileNotFoundError):  # removed since, or a link to nothing
                status = path.stat()
                if stat.S_ISREG(status.st_mode) and not any(map(_is_temporary, name.parts)):
                    found.append((name.as_posix(), status.st_size))
        return sorted(found)

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[Sink]:
        """See ``Storage.writer``."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            yield file

    def delete(self, name: str) -> None:
        """See ``Storage.delete``."""
        self._path(name).unlink(missing_ok=True)

    def delete_all(self, prefix: str) -> None:
        """See ``Storage.delete_all``."""
        path = self._path(prefix)
        if path.is_dir():
            shutil.rmtree(path)

    def move(self, old: str, new: str) -> None:
        """See ``Storage.move``."""
        source, target = self._path(old), self._path(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir() and target.is_dir() and source != target:
            shutil.rmtree(target)  # a folder cannot be renamed over one that is not empty
        source.replace(target)
        sync_folder(target.parent)

    def zarr_store(self, name: str, *, read_only: bool) -> "Store":
        """See ``Storage.zarr_store``."""
        from zarr.storage import LocalStore

        return LocalStore(self._path(name), read_only=read_only)

    def clean(self, name: str = "") -> None:
        """See ``Storage.clean``."""
        if not self._root.is_dir():
            return
        pattern = f"{glob.escape(name)}.*{TEMPORARY_SUFFIX}" if name else f"*{TEMPORARY_SUFFIX}"
        found = self._root.glob(pattern) if name else self._root.rglob(pattern)
        for path in sorted(found):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._root / checked_name(name)


def checked_name(name: str) -> str:
    """Return a name that stays in its storage; one trailing slash is dropped.

    Raises:
        ValueError: it is empty, absolute, or has empty parts, ``.`` or ``..``.
    """
    name = name.removesuffix("/")
    if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or "\0" in name:
        raise ValueError(f"a name must be relative and have no `..`, found {name!r}")
    return name


def printable(text: str) -> str:
    """Cut what may be secret out of an address: user, password, query and fragment.

    >>> printable("https://me:secret@host/data?token=secret")
    'https://host/data'
    """
    # To the last `@`: a secret key may hold slashes.
    return re.sub(r"(/+).*@", r"\1", re.split(r"[?#]", text)[0])


def check_range(start: int, length: int) -> None:
    """Raise ``ValueError`` unless both are numbers a file can have."""
    if start < 0 or length < 0:
        raise ValueError(f"`start` and `length` must not be negative, found {start}, {length}")


def whole(payload: AnyPayload, start: int, length: int, url: str) -> AnyPayload:
    """Return the payload if it has all the bytes that were asked for.

    Raises:
        StorageError: it is shorter or longer.
    """
    if len(payload) != length:
        raise StorageError(
            f"{url} must have {length} bytes from byte {start}, found {len(payload)}; "
            "it was cut or replaced: copy or build it again"
        )
    return payload


def _is_temporary(part: str) -> bool:
    return part.endswith(TEMPORARY_SUFFIX)


def _file_path(text: str) -> Path:
    address = urlsplit(text)
    if address.netloc not in ("", "localhost"):
        raise ValueError(
            f"`file://` must be followed by an absolute path (file:///data), found {address.netloc}"
        )
    return Path(unquote(address.path))


def _check_address(scheme: str, text: str) -> None:
    shown = printable(text)
    if scheme not in REMOTE_SCHEMES:
        known = ", ".join(f"{name}://" for name in ("file", *REMOTE_SCHEMES))
        raise ValueError(f"an address must start with one of {known} or be a path, found {shown}")
    address = urlsplit(text)
    if "@" in address.netloc or address.query or address.fragment:
        raise ValueError(
            f"an address must have no user, password, `?` or `#`, found some in {shown}; set "
            "credentials in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY)"
        )
    port = r"(:\d+)?" if scheme.startswith("http") else ""
    if not re.fullmatch(rf"([\w.-]+|\[[\da-fA-F:]+\]){port}", address.netloc):
        raise ValueError(f"an address must name a bucket or host (s3://bucket/path), found {shown}")
    if address.path.strip("/"):
        checked_name(address.path.strip("/"))
