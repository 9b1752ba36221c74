"""A folder of pieces: who waits, who removes what, and what is left when a process dies."""

import fcntl
import logging
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from melstream.pipeline.locked_files import remove
from melstream.pipeline.shard_cache import CacheConfig, ShardCache
from melstream.shards.errors import ShardError
from melstream.shards.storage import StorageError

HANG_S = 60.0  # after which another thread or process is taken to hang
N_BYTES = 1_000  # of a piece in the tests of the folder
PLENTY = 2**40


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def payload_of(name: str) -> bytes:
    return name.encode().ljust(N_BYTES, b".")


def get(cache: ShardCache, name: str) -> np.ndarray:
    """Have a piece named ``x`` of a set ``s``; what it holds says which it is."""
    path = f"s/{name}-0-{N_BYTES}.piece"
    data = cache.get(path, N_BYTES, lambda: payload_of(name), wait_s=0.01)
    assert data.tobytes() == payload_of(name)
    assert not data.flags.writeable
    return data


def names_in(folder: Path) -> list[str]:
    return [name.split("-")[0] for name in files_in(folder / "s")]


def open_cache(folder: Path, n_pieces: int = 4) -> ShardCache:
    return ShardCache(folder, max_bytes=n_pieces * N_BYTES, min_free_bytes=0)


def test_the_least_recently_used_pieces_make_room(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    for name in "abcd":
        get(cache, name)
        os.utime(tmp_path / f"s/{name}-0-{N_BYTES}.piece", (0, ord(name)))
    get(cache, "a")  # used again
    get(cache, "e")
    assert names_in(tmp_path) == ["a", "d", "e"]  # room for one, and a sixteenth to spare
    get(cache, "f")
    assert names_in(tmp_path) == ["a", "d", "e", "f"]


def test_what_is_leased_is_never_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cache, other = open_cache(tmp_path), open_cache(tmp_path)
    for name in "abcd":
        get(cache, name)
    leases = [get(cache, name) for name in "abcd"]  # of files that were there, and so in use
    for name in "efe":
        get(other, name)  # in memory: there is no room
    assert names_in(tmp_path) == ["a", "b", "c", "d"]
    assert [record.args and record.args[1] for record in caplog.records] == [N_BYTES]  # said once
    assert not any(remove(path) for path in tmp_path.glob("s/*.piece"))
    leases.pop()
    get(other, "g")
    assert names_in(tmp_path) == ["a", "b", "c", "g"]
    leases.append(get(cache, "h"))  # of a file that was downloaded just now
    get(other, "i")
    assert names_in(tmp_path) == ["a", "b", "c", "h"]
    assert [lease[:1].tobytes() for lease in leases] == [b"a", b"b", b"c", b"h"]


def test_the_floor_of_free_space_is_kept(tmp_path: Path) -> None:
    free = [3 * N_BYTES]

    def free_bytes(folder: Path) -> int:
        return free[0] - N_BYTES * len(files_in(folder / "s"))

    cache = ShardCache(
        tmp_path, max_bytes=PLENTY, min_free_bytes=N_BYTES // 2, free_bytes=free_bytes
    )
    for name in "abcdef":
        get(cache, name)
        assert free_bytes(tmp_path) >= N_BYTES // 2
        assert name in names_in(tmp_path)
    free[0] = 0  # somebody else filled the disk
    get(cache, "g")
    assert names_in(tmp_path) == []


def test_a_piece_larger_than_the_cache_removes_nothing(tmp_path: Path) -> None:
    get(open_cache(tmp_path), "a")
    get(open_cache(tmp_path, n_pieces=0), "b")
    assert names_in(tmp_path) == ["a"]


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(tmp_path)

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    get(cache, "a")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("what", ["cache", "cache/s"])
def test_a_folder_that_is_removed_while_it_is_used_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    cache, fetched = open_cache(tmp_path / "cache"), []

    def fetch() -> bytes:
        fetched.append("a")
        shutil.rmtree(tmp_path / what)
        return payload_of("a")

    for _ in range(2):
        data = cache.get(f"s/a-0-{N_BYTES}.piece", N_BYTES, fetch, wait_s=0.01)
        assert data.tobytes() == payload_of("a")
    assert fetched == ["a", "a"]
    (message,) = caplog.messages  # said once
    assert f"{tmp_path}/cache cannot be used (No such file or directory)" in message
    get(cache, "a")  # the folder is made again, and used
    assert names_in(tmp_path / "cache") == ["a"]


def test_a_disk_without_room_for_one_more_file_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(tmp_path)

    def fail(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", fail)
    get(cache, "a")
    assert "cannot be used (No space left on device); what it cannot keep is" in caplog.text


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file must be a folder .*; choose another, or none"):
        open_cache(tmp_path / "file")


def test_what_killed_downloads_left_is_removed_and_what_runs_is_not(tmp_path: Path) -> None:
    get(open_cache(tmp_path), "a")
    stale, running = (tmp_path / f"s/{x}-0-{N_BYTES}.piece.partial" for x in "xy")
    stale.write_bytes(b"half")
    running.write_bytes(b"half")
    with running.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cache = open_cache(tmp_path)
        assert names_in(tmp_path) == ["a", "y"]
        get(cache, "y")  # whoever downloads it seems to be stopped, and keeps its file
        assert names_in(tmp_path) == ["a", "y"]
    get(cache, "y")  # it was killed: its file is taken over
    assert files_in(tmp_path / "s") == [f"a-0-{N_BYTES}.piece", f"y-0-{N_BYTES}.piece"]


def test_a_piece_cut_by_a_power_failure_is_fetched_again(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    get(cache, "a")
    os.truncate(tmp_path / f"s/a-0-{N_BYTES}.piece", N_BYTES // 2)
    get(cache, "a")
    assert (tmp_path / f"s/a-0-{N_BYTES}.piece").read_bytes() == payload_of("a")


def test_one_thread_downloads_and_the_others_wait(tmp_path: Path) -> None:
    fetched, go_on = [], threading.Event()

    def fetch() -> bytes:
        fetched.append(threading.get_ident())
        assert go_on.wait(HANG_S)
        return payload_of("a")

    def read() -> None:
        data = open_cache(tmp_path).get(f"s/a-0-{N_BYTES}.piece", N_BYTES, fetch, wait_s=HANG_S)
        assert data.tobytes() == payload_of("a")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


def test_an_error_while_downloading_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise ShardError("no", shard="a")

    cache = open_cache(tmp_path)
    with pytest.raises(ShardError, match="no"):
        cache.get(f"s/a-0-{N_BYTES}.piece", N_BYTES, fail, wait_s=0.01)
    assert names_in(tmp_path) == []
    get(cache, "a")


def test_a_folder_is_named_as_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert CacheConfig.model_validate({"folder": "~/c"}).folder == Path("/home/somebody/c")
    assert CacheConfig.model_validate({"folder": None}).folder is None
    with pytest.raises(ValueError, match="must name a folder, found nothing; leave it out"):
        CacheConfig.model_validate({"folder": ""})
