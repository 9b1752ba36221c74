"""An object store: what breaks on the way, what it refuses, processes, and web servers."""

import http.server
import multiprocessing
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import zarr
from fault_proxy import FaultProxy, Faults
from object_store import LARGE, SMALL, Bucket, Write, write_at_once, write_in_blocks

from melstream.shards import object_client
from melstream.shards.remote_errors import explain
from melstream.shards.remote_storage import MAX_REQUESTS, PART_BYTES
from melstream.shards.storage import Storage, StorageError, UnansweredError, open_storage

pytest_plugins = ["object_store"]

FaultyPath = Callable[[Faults], FaultProxy]
LIMIT_S = 6.0  # of a request that succeeds in the end
SHORT_S = 1.0  # of one that never does
HANG_S = 60.0  # after which a child process is taken to hang


def test_more_names_are_listed_than_a_page_of_the_store_has(bucket: Bucket) -> None:
    storage = bucket.open()
    names = [f"{number:04d}" for number in range(1_050)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write(name, b""), names))
    assert [name for name, _ in storage.list()] == names


def test_an_error_while_writing_aborts_the_upload(bucket: Bucket) -> None:
    def fail(storage: Storage) -> None:
        with storage.writer("shard") as file:
            for start in range(0, len(LARGE), 2**20):
                file.write(LARGE[start : start + 2**20])
            assert bucket.pending_uploads == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail(bucket.open())
    assert bucket.pending_uploads == 0


BOUNDED_WRITER = """
import resource, sys
from melstream.shards.storage import open_storage
with open_storage(sys.argv[1]).writer("shard") as file:
    file.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(95):
        file.write(bytes(2**20))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_of_an_upload_is_bounded(bucket: Bucket) -> None:
    command = [sys.executable, "-Ic", BOUNDED_WRITER, bucket.open().url]
    grown = 2**10 * int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert bucket.open().size("shard") == 96 * 2**20
    assert grown < 2 * MAX_REQUESTS * PART_BYTES  # parts on the way, and copies of them


PARENT = """
import multiprocessing, sys, zarr
from melstream.shards.storage import open_storage
storage = open_storage(sys.argv[1])
store = storage.zarr_store("index.zarr", read_only=True)
expected = storage.read("a"), zarr.load(store, path="x").tolist()
with multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:
    for _ in range(4):
        payload = pool.apply_async(storage.read, ("a",))
        array = pool.apply_async(zarr.load, (store,), {"path": "x"})
        assert (payload.get(60), array.get(60).tolist()) == expected
assert (storage.read("a"), zarr.load(store, path="x").tolist()) == expected
"""


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_child_processes_use_what_the_parent_used(bucket: Bucket, start_method: str) -> None:
    """In an interpreter of its own: a fork server keeps the environment it was started with."""
    storage = bucket.open()
    storage.write("a", SMALL)
    group = zarr.create_group(store=storage.zarr_store("index.zarr", read_only=False))
    group.create_array("x", data=np.arange(3))
    subprocess.run([sys.executable, "-Ic", PARENT, storage.url, start_method], check=True)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_forked_from_a_forked_one_can_read(bucket: Bucket) -> None:
    storage = bucket.open()
    storage.write("a", SMALL)
    context = multiprocessing.get_context("fork")

    def read_below(depth: int) -> None:
        assert storage.read("a") == SMALL
        if depth:
            child = context.Process(target=read_below, args=(depth - 1,))
            child.start()
            child.join(HANG_S)
            assert child.exitcode == 0

    read_below(2)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(reset_after=5 * 2**20, n_times=3),
        Faults(reset_after=0, n_times=2),
        Faults(stall_after=2**20),
        Faults(unavailable_share=0.5, seed=1),
    ],
    ids=["reset", "reset at once", "stall", "503"],
)
def test_a_read_goes_on_after_a_fault(
    bucket: Bucket, fault_proxy: FaultyPath, faults: Faults
) -> None:
    bucket.open().write("shard", LARGE)
    proxy = fault_proxy(faults)
    storage = bucket.open(timeout_s=LIMIT_S)
    assert storage.read("shard") == LARGE
    assert storage.read_range("shard", 77, 2**20) == LARGE[77 : 77 + 2**20]
    assert sum(proxy.counts[fault] for fault in ("reset", "stall", "503")) > 0


@pytest.mark.parametrize(
    ("write", "faults"),
    [
        (write_in_blocks, Faults(reset_after=3 * 2**20, n_times=3, direction="up")),
        (write_at_once, Faults(reset_after=3 * 2**20, n_times=3, direction="up")),
        (write_in_blocks, Faults(reset_after=0, n_times=3, direction="down")),
        (write_in_blocks, Faults(stall_after=3 * 2**20, direction="up")),
        (write_in_blocks, Faults(unavailable_share=0.5, seed=1)),
    ],
    ids=["reset", "reset of a whole write", "lost answer", "stall", "503"],
)
def test_an_upload_goes_on_after_a_fault(
    bucket: Bucket, fault_proxy: FaultyPath, faults: Faults, write: Write
) -> None:
    proxy = fault_proxy(faults)
    storage = bucket.open(timeout_s=LIMIT_S)
    write(storage, "shard", LARGE)
    assert storage.read("shard") == LARGE
    assert sum(proxy.counts[fault] for fault in ("reset", "stall", "503")) > 0
    # An upload whose first answer was lost is begun again; nobody knows the id of the lost one.
    assert bucket.pending_uploads <= proxy.counts["reset"]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(stall_after=0, n_times=10**9), r"no whole answer .* in \d\.\d s \(timeout"),
        (Faults(reset_after=0, n_times=10**9), r"no whole answer .* in \d\.\d s"),
        (Faults(unavailable_share=1.0), r"the store answered 503 SlowDown"),
    ],
    ids=["stall", "reset", "503"],
)
def test_what_never_works_ends_in_an_error(
    bucket: Bucket, fault_proxy: FaultyPath, faults: Faults, message: str
) -> None:
    fault_proxy(faults)
    storage = bucket.open(timeout_s=SHORT_S)
    with pytest.raises(UnansweredError, match=message) as caught:
        storage.read("shard")
    check_message(bucket, caught.value)
    with pytest.raises(UnansweredError, match=message) as caught:
        write_in_blocks(storage, "shard", LARGE)
    check_message(bucket, caught.value)


def test_time_limits_the_retries_and_nothing_else(
    bucket: Bucket, fault_proxy: FaultyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(object_client, "LONGEST_PAUSE_S", 0.02)
    bucket.open().write("a", SMALL)
    proxy = fault_proxy(Faults(reset_after=0, n_times=30))
    assert bucket.open().read("a") == SMALL
    assert proxy.counts["reset"] == 30


def test_a_server_that_never_answered_is_given_up_early(
    bucket: Bucket, fault_proxy: FaultyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_client, "FIRST_ANSWER_S", 0.2)
    a_day_s = 86_400.0
    fault_proxy(Faults(reset_after=0, n_times=10**9))
    with pytest.raises(StorageError, match=r"no whole answer from \S+ in 0\.\d s"):
        bucket.open(timeout_s=a_day_s).read("a")


@pytest.mark.parametrize("server", ["", "localhost:9000", "http://"])
def test_a_server_that_is_no_address_is_refused(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    with pytest.raises(ValueError, match=rf"AWS_ENDPOINT_URL must be .*, found '{server}'; set or"):
        open_storage("s3://bucket/set").read("a")


def check_message(bucket: Bucket, error: BaseException) -> None:
    """The address is in it, no secret is, and nothing hangs on it that a traceback would show."""
    assert f"{bucket.url}/set/train" in str(error)
    assert bucket.server.key not in str(error)
    assert bucket.server.secret not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


OPERATIONS: dict[str, Callable[[Storage], object]] = {
    "read": lambda storage: storage.read("a"),
    "read_range": lambda storage: storage.read_range("a", 0, 1),
    "size": lambda storage: storage.size("a"),
    "list": lambda storage: storage.list(),
    "write": lambda storage: storage.write("a", b""),
    "writer": lambda storage: write_in_blocks(storage, "a", LARGE),
    "small writer": lambda storage: write_in_blocks(storage, "a", SMALL),
    "delete": lambda storage: storage.delete("a"),
    "delete_all": lambda storage: storage.delete_all("a"),
    "move": lambda storage: storage.move("a", "b"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wrong_keys_are_refused(
    bucket: Bucket, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.open().write("a", SMALL)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(StorageError, match=r"access refused .*; set AWS_ACCESS_KEY_ID") as caught:
        OPERATIONS[operation](bucket.open())
    check_message(bucket, caught.value)
    assert not isinstance(caught.value, UnansweredError)  # it would be refused again
    assert "wrong-secret" not in str(caught.value)


@pytest.mark.parametrize("operation", ["read", "read_range", "size", "list", "delete_all"])
def test_a_missing_bucket_is_named(bucket: Bucket, operation: str) -> None:
    """The server makes a bucket that is written to, so only reading is asked."""
    with pytest.raises(StorageError, match=r"there is no s3://no-such-bucket at http://127\.0"):
        OPERATIONS[operation](open_storage("s3://no-such-bucket/set"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_endpoint_that_nobody_serves_is_named(
    bucket: Bucket, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but it does not listen
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(UnansweredError, match=r"no whole answer .*AWS_ENDPOINT_URL") as caught:
            OPERATIONS[operation](bucket.open(timeout_s=0.2))
    check_message(bucket, caught.value)


def test_errors_of_zarr_reads_name_the_place(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(StorageError, match="access refused") as caught:
        zarr.open_group(store=bucket.open().zarr_store("index.zarr", read_only=True), mode="r")
    check_message(bucket, caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Error performing PUT http://169.254.169.254/latest/api/token - timed out",
            "no credentials found; set AWS_ACCESS_KEY_ID",
        ),
        ("broken https://me:hidden@host/x?sig=hidden", r"broken https://host/x$"),
        ("it said test-hidden-key", "it said <AWS_SECRET_ACCESS_KEY>"),
    ],
)
def test_secrets_are_cut_out_of_what_the_client_says(
    text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-hidden-key")
    error = explain(ValueError(text), url="s3://bucket/a", timeout_s=1.0)
    with pytest.raises(StorageError, match=message):
        raise error
    assert "hidden" not in str(error)


def test_a_web_server_is_read_by_name(bucket: Bucket) -> None:
    bucket.open().write("a", LARGE)
    web = open_storage(f"{bucket.server.web_url}/buckets/{bucket.name}/set/train/")
    assert web.name == "train"
    assert web.read("a") == LARGE
    assert web.read_range("a", 5, 10) == LARGE[5:15]
    assert web.size("a") == len(LARGE)
    assert web.size("missing") is None
    with pytest.raises(FileNotFoundError, match="train/missing"):
        web.read("missing")
    for operation in ("list", "write", "writer", "delete", "delete_all", "move"):
        with pytest.raises(StorageError, match="can only be read by name: a web server cannot"):
            OPERATIONS[operation](web)


def test_arrays_are_read_with_zarr_from_a_web_server(bucket: Bucket) -> None:
    store = bucket.open().zarr_store("index.zarr", read_only=False)
    zarr.create_group(store=store).create_array("x", data=np.arange(3))
    web = open_storage(f"{bucket.server.web_url}/buckets/{bucket.name}/set/train")
    group = zarr.open_group(store=web.zarr_store("index.zarr", read_only=True), mode="r")
    np.testing.assert_array_equal(np.asarray(group["x"]), np.arange(3))
    assert group.get("y") is None


class LyingHandler(http.server.BaseHTTPRequestHandler):
    """Promise 100 bytes, send 10, close."""

    def do_GET(self) -> None:
        self.send_response(206 if self.headers["Range"] else 200)
        self.send_header("Content-Length", "100")
        self.send_header("Content-Range", "bytes 0-99/1000")
        self.end_headers()
        self.wfile.write(bytes(10))

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def lying_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), LyingHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_body_shorter_than_promised_is_an_error(lying_server: str) -> None:
    storage = open_storage(lying_server, timeout_s=SHORT_S)
    for read in (storage.read, partial(storage.read_range, start=0, length=100)):
        with pytest.raises(
            StorageError, match=rf"{lying_server}/a: no whole answer from {lying_server}"
        ):
            read("a")
