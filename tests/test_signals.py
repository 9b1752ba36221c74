"""A run that is told to stop: once, it writes a checkpoint first; by a second Ctrl-C, at once."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_training import SMALL, assert_same_run, run_pretrain
from test_training_survival import checkpoint, die_at
from typer.testing import CliRunner

from melstream.shards.dataset import Dataset
from melstream.tools.cli import app
from melstream.tools.signals import catch_signals


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Tests that run in the background of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def data(built: Callable[[str], Dataset]) -> Dataset:
    return built("eval")


def command_line(data: Dataset, out: Path) -> list[str]:
    sets = [word for override in [*SMALL, "train.steps=5"] for word in ("--set", override)]
    where = ["--data", str(data.folder), "--out", str(out), "--device", "cpu"]
    return ["pretrain", "demo-pretrain", *where, *sets]


def press_ctrl_c_twice() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_exits_with_0(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    die_at(monkeypatch, 1, lambda: os.kill(os.getpid(), number))
    result = CliRunner().invoke(app, command_line(data, tmp_path / "run"))
    assert result.exit_code == 0, result.output
    assert "stopped at step 2, checkpoint written; --resume goes on" in result.output


def test_a_second_ctrl_c_stops_at_once_and_the_last_checkpoint_stays(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pretrain(data, tmp_path / "whole", quiet)
    with monkeypatch.context() as patch:
        die_at(patch, 6, press_ctrl_c_twice)
        with pytest.raises(KeyboardInterrupt):
            run_pretrain(data, tmp_path / "broken", quiet)
    assert "Ctrl-C again stops without" in quiet.file.getvalue()  # type: ignore[attr-defined]
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()] == [
        "step-000004"
    ]
    run_pretrain(data, tmp_path / "broken", quiet, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_second_ctrl_c_while_a_checkpoint_is_written_leaves_the_one_before(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pretrain(data, tmp_path / "whole", quiet)
    original = torch.save

    def interrupted(state: Any, file: Path) -> None:
        original(state, file)
        if "step-000008" in str(file):
            press_ctrl_c_twice()

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_pretrain(data, tmp_path / "broken", quiet)
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()] == [
        "step-000004"
    ]
    run_pretrain(data, tmp_path / "broken", quiet, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_stop_is_noted_where_nothing_can_be_said() -> None:
    def say() -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    with catch_signals(say) as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]


def test_sigterm_may_come_twice(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    die_at(monkeypatch, 5, terminate)
    result = run_pretrain(data, tmp_path / "run", quiet)
    assert (result.step, result.is_complete) == (6, False)
    assert checkpoint(tmp_path / "run", 6).is_dir()


def test_the_command_line_tells_a_second_ctrl_c_how_to_go_on(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_at(monkeypatch, 1, press_ctrl_c_twice)
    result = CliRunner().invoke(app, command_line(data, tmp_path / "run"))
    assert result.exit_code == 130
    assert "interrupted; --resume goes on from the last checkpoint" in result.output
