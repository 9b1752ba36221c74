"""Which checkpoint the processes of a run go on from, and what travels between them for it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from melstream.model.checkpoint import save_checkpoint
from melstream.shards.errors import DatasetError
from melstream.tools.distributed import World
from melstream.tools.run_checkpoints import RunCheckpoints
from melstream.tools.run_folder import require_shared

CPU = torch.device("cpu")
WEIGHTS = {"w": torch.arange(100_000.0)}


class TwoProcesses:
    """Collectives of two processes that run one after the other, the main one first.

    Attributes:
        rank: whose turn it is.
        sent: what travelled, pickled.
        problem: what the other process says has gone wrong for it.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sent: list[bytes] = []
        self.problem: Exception | None = None
        self.rank = 0
        self._from_main: list[bytes] = []
        patch.setattr(dist, "broadcast_object_list", self._broadcast)
        patch.setattr(dist, "all_gather_object", self._gather)

    def turn(self, rank: int) -> World:
        self.rank = rank
        return World(CPU, rank, 2)

    def _broadcast(self, objects: list[Any], src: int, device: torch.device) -> None:
        if self.rank == src:
            self._from_main.append(pickle.dumps(objects))
            self.sent.append(self._from_main[-1])
        else:
            objects[:] = pickle.loads(self._from_main.pop(0))

    def _gather(self, found: list[Any], own: Any) -> None:
        self.sent.append(pickle.dumps(own))
        found[self.rank], found[1 - self.rank] = own, self.problem


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> TwoProcesses:
    return TwoProcesses(monkeypatch)


@pytest.fixture
def checkpoints(quiet: Console) -> Callable[[Path], RunCheckpoints]:
    return lambda folder: RunCheckpoints(folder, {}, every=2, keep_last=2, console=quiet)


def save(run: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(
            run / "checkpoints", step, model_state=WEIGHTS, optimizer_state={}, meta={"run": {}}
        )


def test_every_process_reads_the_checkpoint_that_the_main_one_chose(
    tmp_path: Path, processes: TwoProcesses, checkpoints: Callable[[Path], RunCheckpoints]
) -> None:
    save(tmp_path, 2, 4)
    (tmp_path / "checkpoints" / "step-000004" / "optimizer.pt").write_bytes(b"torn")
    main = checkpoints(tmp_path).shared_last(processes.turn(0))
    save(tmp_path, 4)  # not what the main process has seen
    other = checkpoints(tmp_path).shared_last(processes.turn(1))
    assert main is not None
    assert other is not None
    assert (main.step, other.step) == (2, 2)
    assert torch.equal(other.model_state["w"], WEIGHTS["w"])
    assert sum(map(len, processes.sent)) < 1_000  # its name, and that nothing went wrong


def test_a_run_without_checkpoints_has_none_in_any_process(
    tmp_path: Path, processes: TwoProcesses, checkpoints: Callable[[Path], RunCheckpoints]
) -> None:
    assert checkpoints(tmp_path).shared_last(processes.turn(0)) is None
    assert checkpoints(tmp_path).shared_last(processes.turn(1)) is None


def test_a_process_that_cannot_read_it_says_that_the_folder_must_be_shared(
    tmp_path: Path, processes: TwoProcesses, checkpoints: Callable[[Path], RunCheckpoints]
) -> None:
    save(tmp_path / "main", 2)
    checkpoints(tmp_path / "main").shared_last(processes.turn(0))
    with pytest.raises(DatasetError) as caught:
        checkpoints(tmp_path / "other").shared_last(processes.turn(1))
    assert "process 1 on " in str(caught.value)
    assert f"{tmp_path}/other/checkpoints/step-000002/checkpoint.json" in str(caught.value)
    assert str(caught.value).endswith("--out must be a folder that all machines share")
    processes.problem = caught.value
    with pytest.raises(DatasetError, match="process 1 on"):
        checkpoints(tmp_path / "main").shared_last(processes.turn(0))


def test_a_run_folder_that_is_not_shared_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"process 3 on .*config.json, .* all machines share"):
        require_shared(tmp_path, 3)
    (tmp_path / "config.json").write_text("{}")
    require_shared(tmp_path, 3)
