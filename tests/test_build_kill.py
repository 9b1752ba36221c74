"""A build whose processes are killed, for real, loses nothing and leaves nobody behind."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from melstream.shards.errors import DatasetError, MelstreamError
from melstream.shards.spec import PRESETS
from melstream.shards.storage import open_storage
from melstream.tools.build import build
from melstream.tools.build_plan import Plan, PlanSettings, make_plan
from melstream.tools.build_workers import run_here
from melstream.tools.corpora import folder

N_SHARDS = 30
# A shell starts background jobs with Ctrl-C ignored, and children inherit that: undo it.
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from melstream.tools.cli import main; main()"
)


@pytest.fixture
def corpus(recordings: Path, tmp_path: Path) -> Path:
    """Enough links to real recordings that a build is still busy when the first shard is done."""
    files = sorted((recordings / "train").glob("*/*.flac"))
    for number in range(N_SHARDS * 10):
        target = tmp_path / "corpus" / f"class-{number % 3}" / f"{number}.flac"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(files[number % len(files)])
    return tmp_path / "corpus"


def start(corpus: Path, out: Path) -> subprocess.Popen[bytes]:
    arguments = ["build", "folder", corpus, "--out", out, "--jobs", "2", "--shard-samples", "10"]
    return subprocess.Popen(
        [sys.executable, "-Ic", COMMAND, *map(str, arguments)],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for_first_shard(process: subprocess.Popen[bytes], out: Path) -> None:
    while not list((out / ".build").glob("part-*.json")):
        assert process.poll() is None, process.stderr
        os.sched_yield()


def members(session: int) -> Iterator[int]:
    """The processes of a session that are alive."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                yield int(entry.name)


def wait_until_all_are_gone(session: int) -> None:
    while list(members(session)):
        os.sched_yield()


def plan_of(corpus: Path) -> Plan:
    settings = PlanSettings(corpus="folder", features=PRESETS["conformer64"], max_shard_samples=10)
    return make_plan(folder.scan(corpus), settings)


def finish(corpus: Path, out: Path) -> int:
    report = build(plan_of(corpus), open_storage(out), run_here, lambda done, note: None)
    return len(report.new)


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_parent_takes_its_workers_along_and_the_build_goes_on(
    corpus: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "killed" / "train"
    process = start(corpus, out)
    wait_for_first_shard(process, out)
    process.send_signal(number)
    _, error = process.communicate()
    assert process.returncode != 0
    wait_until_all_are_gone(process.pid)  # a worker left behind would hang this test
    if number is signal.SIGINT:
        assert b"interrupted; the same command goes on" in error
        assert b"Traceback" not in error
    assert not (out / "dataset.json").exists()
    assert 0 < finish(corpus, out) < N_SHARDS
    finish(corpus, tmp_path / "whole" / "train")
    assert content(out) == content(tmp_path / "whole" / "train")


@pytest.mark.slow
def test_a_killed_worker_is_an_error_that_says_what_to_do(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    process = start(corpus, out)
    wait_for_first_shard(process, out)
    workers = [pid for pid in members(process.pid) if pid != process.pid]
    for pid in workers:
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            break
    _, error = process.communicate()
    assert process.returncode == 1
    assert b"a worker process was killed" in b" ".join(error.split())
    wait_until_all_are_gone(process.pid)
    assert finish(corpus, out) < N_SHARDS


@pytest.mark.slow
def test_two_builds_of_one_folder_do_not_meet(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    process = start(corpus, out)
    wait_for_first_shard(process, out)
    with pytest.raises(DatasetError, match="another process is building"):
        finish(corpus, out)
    process.communicate()
    assert process.returncode == 0


def interrupt_assembly(corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"melstream.tools.build_assemble.{at}", killed)
    with pytest.raises(KeyboardInterrupt):
        finish(corpus, out)
    monkeypatch.undo()


def test_a_folder_renamed_in_the_middle_keeps_its_shards(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(corpus / "class-0")
    interrupt_assembly(corpus, tmp_path / "old", monkeypatch, "write_tables")
    (tmp_path / "old").rename(tmp_path / "new")
    finish(corpus, tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").glob("*.tar"))[0] == "old-000000.tar"
    assert len(list((tmp_path / "new").glob("*.tar"))) == 20


def test_a_finished_shard_that_is_gone_is_an_error_not_a_hole(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(corpus / "class-0")
    interrupt_assembly(corpus, tmp_path / "out", monkeypatch, "write_tables")
    (tmp_path / "out" / "out-000003.tar").unlink()
    with pytest.raises(DatasetError, match=r"is gone or altered; remove .*part-000003.json"):
        finish(corpus, tmp_path / "out")
    (tmp_path / "out" / ".build" / "part-000003.json").unlink()
    assert finish(corpus, tmp_path / "out") == 1


def test_a_plan_that_cuts_shards_elsewhere_does_not_go_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(corpus / "class-0")
    interrupt_assembly(corpus, tmp_path / "out", monkeypatch, "write_tables")
    monkeypatch.setattr(
        "melstream.tools.build_plan._estimate", lambda clip, size, settings: (1, 10**8)
    )
    with pytest.raises(DatasetError, match="unfinished build of other files, settings"):
        finish(corpus, tmp_path / "out")


def test_a_claim_that_was_cut_off_is_taken_again(corpus: Path, tmp_path: Path) -> None:
    shutil.rmtree(corpus / "class-0")
    (tmp_path / "out" / ".build").mkdir(parents=True)
    assert finish(corpus, tmp_path / "out") == 20


def test_nothing_but_rejects_names_some_of_them(tmp_path: Path) -> None:
    path = tmp_path / "corpus" / "bad" / "text.wav"
    path.parent.mkdir(parents=True)
    path.write_text("no audio")
    with pytest.raises(MelstreamError, match=r"not one of 1 clips .*\n  bad/text.wav: "):
        finish(tmp_path / "corpus", tmp_path / "out")
