"""Zarr arrays in an object store: zarr's own store over the client of this process.

zarr's ``ObjectStore`` holds one client for good. This one asks its storage for the
client at each use, so that it pickles to an address and works in a forked process, and
it raises the errors of the storage.
"""

from collections.abc import AsyncGenerator, Awaitable
from typing import TYPE_CHECKING, Any, Self

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

if TYPE_CHECKING:
    from .remote_storage import RemoteStorage


class RemoteZarrStore(ObjectStore[Any]):
    """A Zarr store of all there is in a remote storage.

    Args:
        storage: the place; its root is the root of the Zarr hierarchy.
        read_only: refuse to write.
    """

    def __init__(self, storage: "RemoteStorage", *, read_only: bool) -> None:
        Store.__init__(self, read_only=read_only)
        self._storage = storage

    @property
    def store(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The client, as ``ObjectStore`` uses it."""
        return self._storage.client

    @property
    def supports_listing(self) -> bool:
        """Whether names can be listed; over http(s) they cannot."""
        return not self._storage.is_web

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store, with or without leave to write."""
        return type(self)(self._storage, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key, or a range of it; None where there is none."""
        return await self._explained(key, super().get(key, prototype, byte_range))

    async def exists(self, key: str) -> bool:
        """Return whether there is such a key."""
        return await self._explained(key, super().exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        """Write a key, whole or not at all."""
        await self._explained(key, super().set(key, value))

    async def delete(self, key: str) -> None:
        """Remove a key; none is no error."""
        await self._explained(key, super().delete(key))

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Yield the names in a folder."""
        with self._storage.explained(prefix):
            async for name in super().list_dir(prefix):
                yield name

    async def _explained(self, key: str, request: Awaitable[Any]) -> Any:
        with self._storage.explained(key):
            return await request

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemoteZarrStore):
            return NotImplemented
        return (self._storage.url, self.read_only) == (other._storage.url, other.read_only)

    def __str__(self) -> str:
        return self._storage.url

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self._storage, self.read_only)


def _open(storage: "RemoteStorage", read_only: bool) -> RemoteZarrStore:
    return RemoteZarrStore(storage, read_only=read_only)
