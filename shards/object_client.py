"""The client of object stores: obstore, with time limits, and usable in forked processes.

obstore runs its requests on threads of its own. A forked process inherits their state
but not the threads, so its first request would wait for ever. Here a forked process
forgets the inherited modules, and the next ``import obstore``, whoever does it, loads the
extension from a copy of its file: a library loaded from another file has a state of its
own. So obstore is imported where it is used, never at the top of a file.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

ATTEMPTS = 4  # of a server that stalls; what fails faster is tried more often
CONNECT_TIMEOUT_S = 5.0
FIRST_ANSWER_S = 10.0  # of retries, until a store has answered: the address may be a wrong one
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # between retries; drawn, and growing
UNLIMITED = 1_000_000  # retries: time is what limits them
ENDPOINT_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}


def obstore() -> Any:
    """Return the obstore package whose threads belong to this process."""
    import obstore

    return obstore


def open_client(url: str, *, timeout_s: float, has_answered: bool) -> Any:
    """Open the store of an address that ``open_storage`` has checked.

    Args:
        url: ``s3://bucket/path``, ``gs://``, ``az://container/path`` or ``http(s)://``.
        timeout_s: longest time for one request with all its retries, in seconds.
        has_answered: whether there is such a store; until it is known, nothing is tried again
            after ``FIRST_ANSWER_S``.

    Raises:
        ValueError: the environment names a server that is no address.
    """
    store = obstore().store
    attempt_s = timeout_s / ATTEMPTS
    options: dict[str, Any] = {
        "timeout": timedelta(seconds=attempt_s),
        "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, attempt_s)),
    }
    if endpoint(url).startswith("http://"):
        options["allow_http"] = True
    # The last attempt may start at the end of the retry time and takes `attempt_s` at most.
    retry_s = timeout_s - attempt_s
    if not has_answered:
        retry_s = min(retry_s, FIRST_ANSWER_S)
    retries = {
        "max_retries": UNLIMITED,
        "retry_timeout": timedelta(seconds=retry_s),
        "backoff": {
            "init_backoff": timedelta(seconds=min(FIRST_PAUSE_S, attempt_s / 4)),
            # Not below the first, or the client panics.
            "max_backoff": timedelta(seconds=min(LONGEST_PAUSE_S, attempt_s)),
            "base": 3,  # a pause is drawn between the first and three times the one before
        },
    }
    address = urlsplit(url)
    if address.scheme in ("http", "https"):
        return store.HTTPStore(url, client_options=options, retry_config=retries)
    classes = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}
    return classes[address.scheme](
        address.netloc,
        prefix=address.path.strip("/") or None,
        client_options=options,
        retry_config=retries,
    )


def endpoint(url: str) -> str:
    """Return the server that the environment sets for an address, or an empty string.

    Raises:
        ValueError: what it sets is no address.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        return url
    for name in ENDPOINT_VARIABLES.get(scheme, ()):
        server = os.environ.get(name)
        if server is None:
            continue
        if not re.match("https?://[^/]", server):  # the client would panic
            raise ValueError(
                f"{name} must be http(s)://host:port, found {server!r}; set or unset it"
            )
        return server
    return ""


class _CopyLoader(ExtensionFileLoader):
    """Load an extension module from a copy of its file, which is removed at once.

    Where the temporary folder is full, or none for programs (``noexec``), the copy is kept in
    memory, which takes more of it: the kernel cannot drop its pages.
    """

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        try:
            with tempfile.TemporaryDirectory(prefix="melstream-") as folder:
                return self._load(spec, shutil.copy(self.path, folder))
        except (OSError, ImportError):
            # Never closed: a fork of this process must find another number free. By the same
            # name it would be given the library that is loaded already.
            descriptor = os.memfd_create("melstream-obstore")
            return self._load(spec, shutil.copyfile(self.path, f"/proc/self/fd/{descriptor}"))

    def _load(self, spec: ModuleSpec, path: str) -> ModuleType:
        return super().create_module(ModuleSpec(spec.name, self, origin=path))


class _CopyFinder:
    """Find obstore's extension module so that it is loaded from a copy."""

    EXTENSION = "obstore._obstore"

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.EXTENSION:
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is None or found.origin is None:
            return None
        return spec_from_file_location(name, found.origin, loader=_CopyLoader(name, found.origin))


def _forget_inherited_client() -> None:
    """Make the next import of obstore a new one; runs in each forked process."""
    if _CopyFinder.EXTENSION not in sys.modules:
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "obstore"]:
        del sys.modules[name]
    if not any(isinstance(finder, _CopyFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CopyFinder())


os.register_at_fork(after_in_child=_forget_inherited_client)
