"""A run on real audio that goes from one process to two, is killed, and goes back to one.

One story, told once and looked at from several sides: one process trains 4 steps and is told
to stop. torchrun goes on with two processes by gloo; one of them is killed by SIGKILL, and
torchrun's own agent starts both anew. Later one of the two is told to stop. One process
finishes the run.
"""

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from melstream.model.checkpoint import load_checkpoint
from melstream.shards.dataset import Dataset
from melstream.shards.errors import MelstreamError
from melstream.tools.distributed import (
    Agreement,
    World,
    _picklable,
    fresh_store,
    join_world,
)
from melstream.tools.pretrain import pretrain
from melstream.tools.recipe import PretrainRecipe
from melstream.tools.recipe_file import load_recipe

CPU = torch.device("cpu")
TESTS = Path(__file__).parent
N_STEPS, KILL_AT, STOP_AT = 14, 7, 10
NEVER = N_STEPS
PATIENCE_S = 300  # a guard against a test that hangs
SETS = [
    "model.overrides.n_layers=1",
    "data.batch_size=8",
    "train.accumulate=2",
    "optim.warmup_steps=2",
    "train.log_every=1",
    "train.checkpoint_every=2",
    "train.keep_last=9",
    f"train.steps={N_STEPS}",
]
# Gradients are summed in another order, float32; over the steps of this story it adds up to this.
SAME_LOSS = 2e-4


@dataclass(frozen=True)
class Story:
    broken: Path
    torchrun: subprocess.CompletedProcess[str]
    first_figures: dict[str, float]


@pytest.fixture(scope="module")
def data(built: Callable[[str], Dataset]) -> Path:
    return built("eval").folder


@pytest.fixture(scope="module")
def recipe() -> PretrainRecipe:
    return load_recipe("demo-pretrain", PretrainRecipe, SETS)


@pytest.fixture(scope="module")
def whole(data: Path, recipe: PretrainRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nothing happens to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain(recipe, data, out, device=CPU, console=Console(quiet=True))
    return out


@pytest.fixture(scope="module")
def story(data: Path, recipe: PretrainRecipe, tmp_path_factory: pytest.TempPathFactory) -> Story:
    out, quiet = tmp_path_factory.mktemp("story") / "run", Console(quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4)
        first = pretrain(recipe, data, out, device=CPU, console=quiet)
    assert (first.step, first.is_complete) == (4, False)
    torchrun = run_torchrun(data, out)
    pretrain(recipe, data, out, device=CPU, console=quiet, resume=True)
    return Story(out, torchrun, first.figures)


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    heard = iter(range(1, N_STEPS))
    patch.setattr(Agreement, "hear", lambda self, wants: next(heard) == step)


def run_torchrun(data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    launcher = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    worker = [TESTS / "torchrun_worker.py", KILL_AT, STOP_AT]
    command = torchrun_command(*launcher, *worker, data=data, out=out)
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def torchrun_command(*words: object, data: Path, out: Path) -> list[str]:
    sets = [word for override in SETS for word in ("--set", override)]
    verb = ["pretrain", "demo-pretrain", "--data", data, "--out", out, "--device", "cpu"]
    launcher = [sys.executable, "-Im", "torch.distributed.run"]
    return [str(word) for word in (*launcher, *words, *verb, "--resume", *sets)]


def entries(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_job_ends_well_after_a_kill_and_a_signal(story: Story) -> None:
    assert story.torchrun.returncode == 0, story.torchrun.stderr
    assert "failed (exitcode: -9) local_rank: 1" in story.torchrun.stderr
    assert story.torchrun.stderr.count("resumed from") == 2  # once per life, by rank 0 alone
    assert "at step 4" in story.torchrun.stderr
    assert f"at step {KILL_AT - 1}" in story.torchrun.stderr


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_one_step_later(story: Story) -> None:
    assert f"stopped at step {STOP_AT + 2}, checkpoint written" in story.torchrun.stdout


@pytest.mark.slow
def test_a_signal_to_one_process_that_validates_stops_both(data: Path, tmp_path: Path) -> None:
    """Three batches are left of the validation: it is not taken, and the run not over."""
    words = ["--standalone", "--nproc-per-node", "2", TESTS / "torchrun_validation.py"]
    verb = ["finetune", "demo-finetune", "--data", data, "--valid", data, "--device", "cpu"]
    sets = ["model.preset=tiny", "train.steps=2", "optim.warmup_steps=1", "data.batch_size=4"]
    sets = [word for override in sets for word in ("--set", override)]
    command = [sys.executable, "-Im", "torch.distributed.run", *words, *verb]
    done = subprocess.run(
        [str(word) for word in (*command, "--out", tmp_path / "run", *sets)],
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "stopped at step 2, checkpoint written" in done.stdout
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir()
    assert not any("valid/mAP" in entry for entry in entries(tmp_path / "run"))


@pytest.mark.slow
def test_one_and_two_processes_train_on_the_same_batches(story: Story, whole: Path) -> None:
    assert_same_figures(story.broken, whole)


def assert_same_figures(broken: Path, whole: Path) -> None:
    assert [entry["step"] for entry in entries(broken)] == list(range(1, N_STEPS + 1))
    for name in ("loss", "accuracy", "masked_share", "grad_norm"):
        found, expected = ([entry[name] for entry in entries(run)] for run in (broken, whole))
        np.testing.assert_allclose(found, expected, rtol=SAME_LOSS, err_msg=name)


@pytest.mark.slow
def test_the_weights_are_those_of_one_process(story: Story, whole: Path) -> None:
    name = f"checkpoints/step-{N_STEPS:06d}"
    expected, broken = (load_checkpoint(run / name) for run in (whole, story.broken))
    assert expected.meta["order"] == broken.meta["order"]
    for key, value in expected.model_state.items():
        torch.testing.assert_close(broken.model_state[key], value, rtol=0.02, atol=2e-4, msg=key)


@pytest.mark.slow
def test_a_machine_that_is_lost_and_started_again_joins_in_from_the_last_checkpoint(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """Two agents of torchrun on this machine, and all of the second one is killed."""
    port, out = free_port(), tmp_path / "run"

    def start(rank: int, kill_at: int) -> subprocess.Popen[bytes]:
        where = ["--node-rank", rank, "--master-addr", "127.0.0.1", "--master-port", port]
        launcher = ["--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 1, *where]
        worker = [TESTS / "torchrun_machine.py", kill_at]
        command = torchrun_command(*launcher, *worker, data=data, out=out)
        with (tmp_path / f"said-{rank}.txt").open("ab") as said:
            return subprocess.Popen(command, stdout=said, stderr=said)

    machines = [start(0, NEVER), start(1, KILL_AT)]
    try:
        assert machines[1].wait(PATIENCE_S) == -signal.SIGKILL
        machines.append(start(1, NEVER))
        said = (tmp_path / "said-0.txt").read_text
        assert [machine.wait(PATIENCE_S) for machine in machines[::2]] == [0, 0], said()
    finally:
        for machine in machines:
            machine.terminate()  # its agent ends the worker
            machine.wait(PATIENCE_S)
    assert f"resumed from {out}/checkpoints/step-{KILL_AT - 1:06d} at step {KILL_AT - 1}" in said()
    assert_same_figures(out, whole)


def free_port() -> int:
    """Return a port that nobody uses now, below those that the system gives to others."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with join_world(CPU) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert world.on_main(lambda: 7) == 7
        assert Agreement(world).hear(True)
        assert not Agreement(world).hear(False)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(MelstreamError, match=r"at most the number of GPUs here \(2\).*rank 3"),
        join_world(torch.device("cuda")),
    ):
        pass


def test_every_life_has_a_part_of_the_store_to_itself() -> None:
    """Whoever comes first, and whatever the dead have left there."""
    store, lives = dist.HashStore(), []
    for ranks in ((0, 1, 2), (2, 1, 0)):
        with ThreadPoolExecutor(3) as pool:
            parts = [pool.submit(fresh_store, store, rank, 3) for rank in ranks]
        for rank, part in zip(ranks, parts, strict=True):
            assert not part.result().check([f"of rank {rank}"])
            part.result().set(f"of rank {rank}", "")
        assert all(part.result().check([f"of rank {rank}" for rank in ranks]) for part in parts)
        lives.append(store.get("life"))
    assert lives[0].split()[0] != lives[1].split()[0]


def test_an_error_that_cannot_travel_becomes_one_that_can() -> None:
    class Local(Exception):
        pass

    assert repr(_picklable(MelstreamError("no"))) == "MelstreamError('no')"
    assert repr(_picklable(Local("no"))) == "MelstreamError('Local: no')"


def test_what_fails_in_the_main_process_fails_everywhere() -> None:
    with pytest.raises(MelstreamError, match="no"):
        World(CPU).on_main(fail)


def test_what_fails_in_any_process_fails_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(found: list[Exception | None], own: Exception | None) -> None:
        found[:] = [None, None, own, MelstreamError("yes")]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(MelstreamError, match="no"):
        World(CPU, 2, 4).on_all(fail)
    with pytest.raises(MelstreamError, match="yes"):
        World(CPU, 2, 4).on_all(lambda: 7)
    monkeypatch.setattr(dist, "all_gather_object", lambda found, own: None)
    assert World(CPU, 2, 4).on_all(lambda: 7) == 7


def fail() -> None:
    raise MelstreamError("no")
