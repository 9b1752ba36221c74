"""Storage: the same behaviour in a folder and in an object store, also when things break."""

import os
import pickle
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr
from object_store import LARGE, SMALL, Write, write_at_once, write_in_blocks

from melstream.shards.storage import Storage, StorageError, open_storage

pytest_plugins = ["object_store"]


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind."""
    if request.param == "local":
        return open_storage(tmp_path / "set" / "train")
    return open_storage(f"{request.getfixturevalue('bucket').url}/set/train")


@pytest.mark.parametrize("payload", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("write", [write_at_once, write_in_blocks])
def test_what_is_written_is_read(storage: Storage, payload: bytes, write: Write) -> None:
    write(storage, "a/b.bin", payload)
    assert storage.read("a/b.bin") == payload
    assert storage.size("a/b.bin") == len(payload)
    assert storage.list() == [("a/b.bin", len(payload))]


def test_a_range_is_read_whole_or_not_at_all(storage: Storage) -> None:
    storage.write("a", SMALL)
    assert storage.read_range("a", 2, 3) == b"234"
    assert storage.read_range("a", 7, 3) == b"789"
    assert storage.read_range("a", 3, 0) == b""
    for start, length in ((8, 3), (10, 1), (99, 1)):
        with pytest.raises(StorageError, match=r"train/a"):
            storage.read_range("a", start, length)
    with pytest.raises(ValueError, match="must not be negative, found -1, 2"):
        storage.read_range("a", -1, 2)


def test_a_new_payload_replaces_the_old(storage: Storage) -> None:
    storage.write("a", SMALL)
    write_in_blocks(storage, "a", b"new")
    assert storage.read("a") == b"new"


def test_names_are_listed_sorted_and_by_folder(storage: Storage) -> None:
    assert storage.list() == storage.list("nowhere") == []
    for name in ("b/2", "a", "b/1/x", "bc/3"):
        storage.write(name, name.encode())
    assert storage.list() == [("a", 1), ("b/1/x", 5), ("b/2", 3), ("bc/3", 4)]
    assert storage.list("b") == storage.list("b/") == [("b/1/x", 5), ("b/2", 3)]
    assert storage.list("a") == []


def test_what_is_missing_is_a_file_not_found_error(storage: Storage) -> None:
    storage.write("there", SMALL)
    for read in (storage.read, partial(storage.read_range, start=0, length=1)):
        with pytest.raises(FileNotFoundError, match=r"train/missing"):
            read("missing")
    with pytest.raises(FileNotFoundError, match="missing"):
        storage.move("missing", "new")
    assert storage.size("missing") is None
    storage.delete("missing")
    storage.delete_all("missing")
    assert storage.list() == [("there", len(SMALL))]


def test_files_and_folders_are_moved_and_removed(storage: Storage) -> None:
    for name in ("file", "folder/1", "folder/2/x", "other/old"):
        storage.write(name, name.encode())
    storage.move("file", "moved/file")
    storage.move("folder", "other")
    storage.move("moved/file", "moved/file")
    storage.move("other", "other")
    names = ["moved/file", "other/1", "other/2/x"]
    assert [name for name, _ in storage.list()] == names
    assert storage.read("moved/file") == b"file"
    storage.delete("moved/file")
    storage.delete_all("other/")
    assert storage.list() == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../x", "a//b", "./a", "a\\b"])
def test_a_name_cannot_leave_the_storage(storage: Storage, name: str) -> None:
    calls = (storage.read, storage.size, storage.delete, storage.delete_all)
    for call in (*calls, partial(storage.write, payload=b"")):
        with pytest.raises(ValueError, match="a name must be relative"):
            call(name)


@pytest.mark.parametrize("n_bytes", [len(SMALL), len(LARGE)], ids=["small", "large"])
def test_an_error_while_writing_leaves_what_was_there(storage: Storage, n_bytes: int) -> None:
    storage.write("old", SMALL)

    def fail(name: str) -> None:
        with storage.writer(name) as file:
            file.write(LARGE[:n_bytes])
            assert storage.size("new") is None
            raise KeyError(name)

    for name in ("old", "new"):
        with pytest.raises(KeyError, match=name):
            fail(name)
    assert storage.list() == [("old", len(SMALL))]
    assert storage.read("old") == SMALL
    if storage.folder:
        assert [path.name for path in storage.folder.iterdir()] == ["old"]


KILLED_WRITER = """
import sys
from melstream.shards.storage import open_storage
with open_storage(sys.argv[1]).writer("shard") as file:
    for _ in range(40):
        file.write(bytes(2**20))
    print("written", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_nothing_to_see(storage: Storage) -> None:
    storage.write("old", SMALL)
    command = [sys.executable, "-Ic", KILLED_WRITER, storage.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert storage.size("shard") is None
    assert storage.list() == [("old", len(SMALL))]
    storage.clean()
    if storage.folder:
        assert [path.name for path in storage.folder.iterdir()] == ["old"]


def test_arrays_are_written_and_read_with_zarr(storage: Storage) -> None:
    values = np.arange(1_000, dtype=np.int32).reshape(100, 10)
    group = zarr.create_group(store=storage.zarr_store("index.zarr", read_only=False))
    array = group.create_array("x", shape=(100, 10), shards=(100, 10), chunks=(10, 10), dtype="i4")
    array[...] = values
    names = [name for name, _ in storage.list("index.zarr")]
    assert names == ["index.zarr/x/c/0/0", "index.zarr/x/zarr.json", "index.zarr/zarr.json"]

    store = pickle.loads(pickle.dumps(storage.zarr_store("index.zarr", read_only=True)))
    found = zarr.open_group(store=store, mode="r")
    assert dict(found.arrays()).keys() == {"x"}
    part = zarr.open_array(store=store, path="x", mode="r")[30:40]
    np.testing.assert_array_equal(part, values[30:40])
    with pytest.raises(ValueError, match="read-only"):
        zarr.create_group(store=store, path="new")
    with pytest.raises(FileNotFoundError):
        zarr.open_group(store=storage.zarr_store("other.zarr", read_only=True), mode="r")


def test_a_storage_pickles_to_its_address(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("a", SMALL)
    pickled = pickle.dumps(storage)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        assert os.environ.get(name, "no such text").encode() not in pickled
    again = pickle.loads(pickled)
    assert (again.url, again.name, again.folder) == (storage.url, "train", storage.folder)
    assert again.read("a") == SMALL
    assert repr(again) == repr(storage)


@pytest.mark.parametrize(
    ("place", "url", "name"),
    [
        ("s3://bucket", "s3://bucket", "bucket"),
        ("S3://bucket/set/train/", "s3://bucket/set/train", "train"),
        ("gs://bucket/train", "gs://bucket/train", "train"),
        ("az://container/train", "az://container/train", "train"),
        ("https://host:8443/set", "https://host:8443/set", "set"),
        ("http://[::1]:80/set", "http://[::1]:80/set", "set"),
        ("file:///data/my%20set", "/data/my set", "my set"),
        ("/data/set/", "/data/set", "set"),
        (Path("relative/set"), "relative/set", "set"),
    ],
)
def test_places_are_opened_by_their_address(place: str | Path, url: str, name: str) -> None:
    storage = open_storage(place)
    assert (storage.url, storage.name) == (url, name)
    assert storage.folder == (None if "://" in url else Path(url))
    assert storage.url_of("a") == f"{url}/a"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ftp://host/set", r"must start with one of file://, s3://, .* found ftp://host/set"),
        ("s3://", "must name a bucket or host"),
        ("s3://bucket:80/set", "must name a bucket or host"),
        (Path("s3://bucket/set"), "two slashes after its scheme, found s3:/bucket/set"),
        ("s3:/bucket", "two slashes after its scheme"),
        ("s3://bucket/../other", "no `..`"),
        ("file://host/set", "absolute path"),
        ("s3://me:hidden@bucket/set", "no user, password.*found some in s3://bucket/set"),
        ("s3://me:hid/hidden@bucket/set", "must name a bucket or host"),
        ("https://host/set?token=hidden", "no user, password.*found some in https://host/set;"),
        ("ftp://me:hidden@host", "found ftp://host"),
    ],
)
def test_other_addresses_are_refused_without_their_secrets(place: str | Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_storage(place)
    assert "hid" not in str(caught.value)


def test_what_a_local_writer_left_is_not_listed_and_can_be_removed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write("a/b", SMALL)
    (tmp_path / "a" / "b.1.partial").write_bytes(b"")
    (tmp_path / "index.zarr.partial").mkdir()
    (tmp_path / "index.zarr.partial" / "x").write_bytes(b"")
    assert storage.list() == [("a/b", len(SMALL))]
    storage.clean()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]


def test_a_file_that_is_removed_while_they_are_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(tmp_path)
    storage.write("a", SMALL)
    there = [tmp_path / "a", tmp_path / "gone"]
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: iter(there))
    assert storage.list() == [("a", len(SMALL))]
