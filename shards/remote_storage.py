"""A data set in an object store, or behind a web server to read only.

Requests are retried with growing pauses inside a time limit, and a read that breaks is
resumed from its last byte. Large objects are read as ranges and written as parts, some
at a time, so that no single request is long and memory stays bounded.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .object_client import obstore, open_client
from .remote_errors import explain
from .storage import (
    DEFAULT_TIMEOUT_S,
    Payload,
    Sink,
    Storage,
    StorageError,
    check_range,
    checked_name,
    whole,
)

if TYPE_CHECKING:
    from zarr.abc.store import Store

PART_BYTES = 8 * 2**20  # of a write; S3 wants 5 MiB or more in each part but the last
RANGE_BYTES = 16 * 2**20  # of a read
MAX_REQUESTS = 4  # at once, of one read or write


class RemoteStorage(Storage):
    """An object-store prefix; use ``open_storage``, which checks the address.

    Args:
        url: the address.
        timeout_s: longest time for one request with all its retries, in seconds.
    """

    def __init__(self, url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self.folder = None
        self.name = self.url.rsplit("/", 1)[1]
        self.timeout_s = timeout_s
        self.is_web = urlsplit(url).scheme in ("http", "https")
        self._has_answered = False
        self._opened: tuple[int, bool, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    @property
    def client(self) -> Any:
        """The obstore store of this place, opened once per process, and when it has answered."""
        wanted = os.getpid(), self._has_answered
        if self._opened is None or self._opened[:2] != wanted:
            client = open_client(
                self.url, timeout_s=self.timeout_s, has_answered=self._has_answered
            )
            self._opened = *wanted, client
        return self._opened[2]

    @contextlib.contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turn what the client raises in the block into errors that name place and remedy."""
        try:
            yield
        except (obstore().exceptions.BaseError, OSError) as error:
            explained = explain(error, url=self.url_of(name), timeout_s=self.timeout_s)
            self._has_answered |= isinstance(explained, FileNotFoundError)
            raise explained from None  # the client's own text may hold signed addresses
        self._has_answered = True

    def read(self, name: str) -> bytes:
        """See ``Storage.read``."""
        with self.explained(name):
            found = obstore().get(self.client, checked_name(name))
            size, etag = found.meta["size"], found.meta["e_tag"]
            if size <= RANGE_BYTES:
                return whole(bytes(found.bytes()), 0, size, self.url_of(name))
        del found  # ends the request
        payload = io.BytesIO()
        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            for part in pool.map(
                lambda start: self._read_part(name, start, min(RANGE_BYTES, size - start), etag),
                range(0, size, RANGE_BYTES),
            ):
                payload.write(part)
        return payload.getvalue()

    def read_range(self, name: str, start: int, length: int) -> Payload:
        """See ``Storage.read_range``."""
        check_range(start, length)
        return self._read_part(name, start, length, None) if length else b""

    def _read_part(self, name: str, start: int, length: int, etag: str | None) -> memoryview:
        """Read a range of an object that must not have been replaced since its tag was seen."""
        options: dict[str, Any] = {"range": (start, start + length)}
        if etag and not etag.startswith("W/"):
            options["if_match"] = etag
        with self.explained(name):
            found = obstore().get(self.client, checked_name(name), options=options)
            payload = memoryview(found.bytes())
        return whole(payload, start, length, self.url_of(name))

    def size(self, name: str) -> int | None:
        """See ``Storage.size``."""
        name = checked_name(name)
        with contextlib.suppress(FileNotFoundError), self.explained(name):
            return obstore().head(self.client, name)["size"]
        # An answer to HEAD has no body that says whether the bucket is missing too.
        with contextlib.suppress(FileNotFoundError), self.explained(name):
            return obstore().get(self.client, name).meta["size"]
        return None

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """See ``Storage.list``."""
        self._check_can("list")
        folder = checked_name(prefix) if prefix else None
        with self.explained(prefix):
            pages = list(obstore().list(self.client, folder, chunk_size=1_000))
        return sorted((entry["path"], entry["size"]) for page in pages for entry in page)

    def write(self, name: str, payload: bytes) -> None:
        """See ``Storage.write``."""
        self._check_can("write")
        with self.explained(name):
            obstore().put(
                self.client,
                checked_name(name),
                payload,
                chunk_size=PART_BYTES,
                max_concurrency=MAX_REQUESTS,
            )

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[Sink]:
        """See ``Storage.writer``; an error in the block aborts the upload."""
        self._check_can("write")
        with self.explained(name):
            upload = obstore().open_writer(
                self.client,
                checked_name(name),
                buffer_size=PART_BYTES,
                max_concurrency=MAX_REQUESTS,
            )
        try:
            yield _Upload(self, name, upload)
        except BaseException as error:
            with contextlib.suppress(obstore().exceptions.BaseError):
                upload.__exit__(type(error), error, error.__traceback__)  # aborts it
            raise
        with self.explained(name):
            upload.close()

    def delete(self, name: str) -> None:
        """See ``Storage.delete``."""
        self._check_can("delete")
        with contextlib.suppress(FileNotFoundError), self.explained(name):
            obstore().delete(self.client, checked_name(name))

    def delete_all(self, prefix: str) -> None:
        """See ``Storage.delete_all``."""
        names = [name for name, _ in self.list(checked_name(prefix))]
        with self.explained(prefix):
            if names:
                obstore().delete(self.client, names)

    def move(self, old: str, new: str) -> None:
        """See ``Storage.move``; here a copy and a removal, so it is not atomic."""
        self._check_can("move")
        old, new = checked_name(old), checked_name(new)
        if old == new:
            return  # a copy onto itself and a removal would lose it
        try:
            with self.explained(old):
                obstore().rename(self.client, old, new)
        except FileNotFoundError:
            names = [name for name, _ in self.list(old)]
            if not names:
                raise
            self.delete_all(new)
            for name in names:
                self.move(name, new + name.removeprefix(old))

    def zarr_store(self, name: str, *, read_only: bool) -> "Store":
        """See ``Storage.zarr_store``."""
        from .remote_zarr import RemoteZarrStore  # zarr takes long to import

        place = RemoteStorage(self.url_of(checked_name(name)), timeout_s=self.timeout_s)
        place._has_answered = self._has_answered
        return RemoteZarrStore(place, read_only=read_only)

    def clean(self, name: str = "") -> None:
        """See ``Storage.clean``; cut uploads are invisible, and a rule of the bucket ends them."""

    def _check_can(self, verb: str) -> None:
        if self.is_web:
            raise StorageError(
                f"{self.url} can only be read by name: a web server cannot {verb} names; use a "
                "folder, s3://, gs:// or az://"
            )


class _Upload:
    """Count the bytes on their way to a multipart upload."""

    def __init__(self, storage: RemoteStorage, name: str, upload: Any) -> None:
        self._storage, self._name, self._upload = storage, name, upload
        self._n_bytes = 0

    def write(self, data: bytes, /) -> int:
        with self._storage.explained(self._name):
            self._upload.write(data)
        self._n_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self._n_bytes
