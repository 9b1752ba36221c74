"""A folder that exists is whole, whenever the writer dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from melstream.model import atomic_folder as module
from melstream.model.atomic_folder import atomic_folder, clear_leftovers, remove_folder

# Loads the file by itself, without torch, and kills its own process at a call of os.fsync.
SCRIPT = """
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("atomic_folder", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
calls, sync, die_at = [], os.fsync, int(sys.argv[3])
def dying_sync(descriptor):
    calls.append(descriptor)
    if len(calls) == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)
os.fsync = dying_sync
with module.atomic_folder(pathlib.Path(sys.argv[2])) as folder:
    (folder / "one").write_text("new")
    (folder / "two").write_text("new")
"""


def write(path: Path, text: str) -> None:
    with atomic_folder(path) as folder:
        (folder / "one").write_text(text)
        (folder / "two").write_text(text)


def read(path: Path) -> set[str]:
    return {file.read_text() for file in path.iterdir()}


def names(parent: Path) -> set[str]:
    return {path.name for path in parent.iterdir()}


def test_an_older_folder_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "a", "old")
    write(tmp_path / "deep" / "a", "new")
    assert read(tmp_path / "deep" / "a") == {"new"}
    assert names(tmp_path / "deep") == {"a"}


def test_a_name_with_the_marks_of_a_pattern_is_a_name(tmp_path: Path) -> None:
    (tmp_path / ".writing-a[1]*").mkdir()
    (tmp_path / ".writing-a1").mkdir()
    write(tmp_path / "a[1]*", "new")
    assert names(tmp_path) == {"a[1]*", ".writing-a1"}


def test_an_error_while_writing_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")

    def interrupted() -> None:
        with atomic_folder(tmp_path / "a") as folder:
            (folder / "one").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read(tmp_path / "a") == {"old"}
    assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("die_at", [1, 2, 3])
def test_a_killed_writer_leaves_the_older_folder(tmp_path: Path, die_at: int) -> None:
    write(tmp_path / "a", "old")
    arguments = [str(module.__file__), str(tmp_path / "a"), str(die_at)]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read(tmp_path / "a") == {"old"}
    assert names(tmp_path) == {"a", ".writing-a"}
    clear_leftovers(tmp_path)
    assert names(tmp_path) == {"a"}


def test_everything_is_on_the_disk_before_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sync = tmp_path / "a", os.fsync
    synced: dict[int, bool] = {}  # inode, and whether the final name was there already

    def spy(descriptor: int) -> None:
        synced[os.fstat(descriptor).st_ino] = path.exists()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    write(path, "new")
    before = {place.stat().st_ino: False for place in (path / "one", path / "two", path)}
    assert synced == before | {tmp_path.stat().st_ino: True}


def test_a_crash_between_the_two_renames_puts_the_older_folder_back(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    (tmp_path / "a").rename(tmp_path / ".replaced-a")
    (tmp_path / ".writing-a").mkdir()
    clear_leftovers(tmp_path)
    assert read(tmp_path / "a") == {"old"}
    assert names(tmp_path) == {"a"}


def test_a_crash_after_both_renames_keeps_the_newer_folder(tmp_path: Path) -> None:
    write(tmp_path / ".replaced-a", "old")
    write(tmp_path / "a", "new")
    clear_leftovers(tmp_path)
    assert read(tmp_path / "a") == {"new"}
    assert names(tmp_path) == {"a"}


def test_a_removal_that_dies_leaves_no_half_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", "old")

    def die(path: Path) -> None:
        (path / "one").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(tmp_path / "a")
    assert names(tmp_path) == {".removing-a"}
    clear_leftovers(tmp_path)
    assert names(tmp_path) == set()
