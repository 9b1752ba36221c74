"""A data set is built in an object store as it is on a disk: the same bytes, whatever happens."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import silent
from fault_proxy import FaultProxy, Faults
from object_store import Bucket
from typer.testing import CliRunner

from melstream.shards.dataset import open_dataset
from melstream.shards.spec import PRESETS
from melstream.shards.storage import Storage, open_storage
from melstream.shards.verify import find_problems
from melstream.tools.build import Part, build
from melstream.tools.build_plan import Plan, PlanSettings, make_plan
from melstream.tools.build_retry import retry_failed
from melstream.tools.build_workers import run_here, run_jobs
from melstream.tools.cli import app
from melstream.tools.corpora import folder

pytest_plugins = ["object_store"]

COMMAND = "from melstream.tools.cli import main; main()"


def plan_of(source: Path) -> Plan:
    settings = PlanSettings(
        corpus="folder", features=PRESETS["conformer64"], max_shard_samples=3, keep_audio=True
    )
    return make_plan(folder.scan(source), settings)


def content(storage: Storage) -> dict[str, bytes]:
    return {name: storage.read(name) for name, _ in storage.list()}


@pytest.fixture
def corpus(corpus: Path) -> Path:
    """Twelve shipped recordings in their class folders, one of them cut off."""
    path = sorted(corpus.rglob("*.flac"))[0]
    path.write_bytes(path.read_bytes()[:10_000])
    return corpus


@pytest.fixture
def local(corpus: Path, tmp_path: Path) -> dict[str, bytes]:
    """What a build on a disk gives."""
    storage = open_storage(tmp_path / "set" / "train")
    build(plan_of(corpus), storage, run_here, silent)
    return content(storage)


def test_a_build_in_an_object_store_gives_the_bytes_of_one_on_disk(
    corpus: Path, local: dict[str, bytes], bucket: Bucket
) -> None:
    storage = bucket.open()
    build(plan_of(corpus), storage, lambda jobs: run_jobs(jobs, 2), silent)
    assert content(storage) == local
    assert build(plan_of(corpus), storage, run_here, silent).new == ()
    dataset = open_dataset(storage.url)
    assert not any(find_problems(dataset, full=True))
    result = CliRunner().invoke(app, ["verify", storage.url, "--full"])
    assert result.exit_code == 0
    assert "whole: every byte of" in result.output


def test_a_build_survives_resets_and_503s(
    corpus: Path,
    local: dict[str, bytes],
    bucket: Bucket,
    fault_proxy: Callable[[Faults], FaultProxy],
) -> None:
    proxy = fault_proxy(
        Faults(reset_after=30_000, direction="up", n_times=5, unavailable_share=0.05)
    )
    storage = bucket.open()
    build(plan_of(corpus), storage, run_here, silent)
    assert content(storage) == local
    assert proxy.counts["reset"] == 5


def test_parts_meet_in_an_object_store(
    corpus: Path, local: dict[str, bytes], bucket: Bucket
) -> None:
    for number in (2, 1):
        build(plan_of(corpus), bucket.open(), run_here, silent, Part(number, 2))
    assert content(bucket.open()) == local


def test_a_build_killed_while_it_writes_to_an_object_store_goes_on(
    corpus: Path, local: dict[str, bytes], bucket: Bucket
) -> None:
    storage = bucket.open()
    arguments = ["build", "folder", corpus, "--out", storage.url, "--jobs", "1"]
    arguments += ["--shard-samples", "3", "--keep-audio"]
    process = subprocess.Popen([sys.executable, "-Ic", COMMAND, *map(str, arguments)])
    while not [name for name, _ in storage.list() if name.endswith(".tar")]:
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert storage.size("dataset.json") is None
    assert all(storage.read(name) == local[name] for name, _ in storage.list() if name in local)
    build(plan_of(corpus), storage, run_here, silent)
    assert content(storage) == local


def test_a_retry_adds_to_an_object_store(corpus: Path, bucket: Bucket, recordings: Path) -> None:
    storage = bucket.open()
    build(plan_of(corpus), storage, run_here, silent)
    for number, path in enumerate(sorted((recordings / "eval").glob("*/*.flac"))[:12]):
        shutil.copyfile(path, corpus / path.parent.name / f"{number}.flac")
    report = retry_failed(plan_of(corpus), storage, run_here, silent)
    assert report.manifest is not None
    assert report.manifest.n_rejects == {}
    assert report.manifest.n_samples == 12
    assert not any(find_problems(open_dataset(storage), full=True))
    assert not [name for name, _ in storage.list() if name.startswith(".build/")]
