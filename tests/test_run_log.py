"""Figures: how they are averaged, where they are written, what a terminal shows of them."""

import io
import json
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from melstream.tools.distributed import World
from melstream.tools.live_view import Panel, curve, live_view
from melstream.tools.run_log import JsonLines, RunLog, Window
from melstream.tools.wandb_log import require_wandb

ALONE = World(torch.device("cpu"))


def figures(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in ({"is_skipped": 0.0} | values).items()}


def test_a_window_averages_the_steps_that_count() -> None:
    window = Window()
    window.add(figures(loss=1.0, accuracy=0.5), 8, waited_s=0.25, total_s=0.5)
    window.add(figures(loss=torch.nan, accuracy=0.0, is_skipped=1.0), 8, waited_s=0.0, total_s=0.5)
    window.add(figures(loss=2.0, accuracy=0.7), 8, waited_s=0.25, total_s=1.0)
    found = window.figures(ALONE)
    assert found["loss"] == 1.5
    assert found["accuracy"] == pytest.approx(0.6)
    assert "is_skipped" not in found
    assert found["samples_per_s"] == pytest.approx(24 / 2, rel=0.1)
    assert found["data_wait_share"] == pytest.approx(0.25, rel=0.1)


def test_a_window_goes_on_from_what_a_checkpoint_holds() -> None:
    steps = [
        figures(loss=0.1, accuracy=0.3),
        figures(loss=torch.inf, accuracy=0.0, is_skipped=1.0),
        figures(loss=0.7, accuracy=0.2),
    ]
    whole, first = Window(), Window()
    for window, taken in ((whole, steps), (first, steps[:2])):
        for step in taken:
            window.add(step, 8, waited_s=0.0, total_s=1.0)
    state = json.loads(json.dumps(first.state(ALONE), allow_nan=False))
    second = Window.of_state(state, torch.device("cpu"))
    second.add(steps[2], 8, waited_s=0.0, total_s=1.0)
    for name in ("loss", "accuracy"):
        assert second.figures(ALONE)[name] == whole.figures(ALONE)[name]
    assert Window().state(ALONE) == {}
    assert Window.of_state({}, torch.device("cpu")).steps == []


def test_a_log_that_cannot_be_written_says_where_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: JsonLines, step: int, values: dict[str, float]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JsonLines, "write", full)
    with (
        closing(RunLog(tmp_path, 0, world=ALONE)) as log,
        pytest.raises(OSError, match=rf"log of {tmp_path}: .* No space left .* --resume goes on"),
    ):
        log.write(1, {"loss": 1.0})


def test_a_window_of_skipped_steps_has_no_loss() -> None:
    window = Window()
    window.add(figures(loss=torch.nan, is_skipped=1.0), 8, waited_s=0.0, total_s=1.0)
    assert window.figures(ALONE).keys() == {"samples_per_s", "data_wait_share"}


def test_a_log_is_cut_back_to_the_step_a_run_resumes_at(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, world=ALONE)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step, "grad_norm": 1.0})
        log.write(step, {"valid/mAP": 0.1 * step})
    log.close()
    log = RunLog(tmp_path, 2, world=ALONE)
    assert [entry["step"] for entry in log.entries] == [1, 2]
    log.write(3, {"loss": 9.0, "grad_norm": 1.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 3]
    assert lines[-1]["loss"] == 9.0
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, 9)]
    assert [event.step for event in board.Scalars("valid/mAP")] == [1, 2]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, world=World(torch.device("cpu"), rank=1, size=2))
    log.write(1, {"loss": 1.0, "grad_norm": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert log.last == {"loss": 1.0, "grad_norm": 1.0}


class FakeWandb:
    """The part of wandb that is used; its service cannot be reached."""

    def __init__(self, key: str | None) -> None:
        self.api = SimpleNamespace(api_key=key)
        self.errors = SimpleNamespace(CommError=ConnectionError)
        self.Settings = SimpleNamespace
        self.calls: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []

    def init(self, **options: Any) -> SimpleNamespace:
        self.calls.append(options)
        if options["mode"] == "online":
            raise self.errors.CommError("no route to host")
        return SimpleNamespace(
            log=lambda figures, step: self.logged.append((step, figures)), finish=lambda: None
        )


@pytest.mark.parametrize(("key", "modes"), [(None, ["offline"]), ("k", ["online", "offline"])])
def test_wandb_gets_the_figures_and_never_holds_up_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, modes: list[str]
) -> None:
    fake = FakeWandb(key)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    ids = set()
    for step in (0, 1):  # a run and its resumption
        log = RunLog(tmp_path, step, world=ALONE, wandb_project="audio", config={"recipe": {}})
        log.write(step + 1, {"loss": 1.0})
        log.close()
        ids.add(fake.calls[-1]["id"])
    assert [call["mode"] for call in fake.calls] == modes * 2
    assert fake.logged == [(1, {"loss": 1.0}), (2, {"loss": 1.0})]
    assert len(ids) == 1
    assert fake.calls[0]["resume"] == "allow"


def test_lines_that_a_crash_has_torn_do_not_spoil_those_that_follow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\xff\xfe\n{"st\n{"step": 2}')
    log = RunLog(tmp_path, 2, world=ALONE)
    log.write(3, {"loss": 1.0})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_bytes().splitlines()] == [1, 2, 3]


def test_wandb_that_is_not_installed_is_an_error_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_wandb("")
    with pytest.raises(ValueError, match=r"`train.wandb_project` is 'audio' .*pip install"):
        require_wandb("audio")


def test_a_terminal_shows_bar_figures_and_curves() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with live_view("pre-training", 200, console) as view:
        assert isinstance(view, Panel)
        view.step(50)
        view.figures(10, {"loss": 4.0, "accuracy": 0.1})
        view.figures(20, {"loss": 2.5, "accuracy": 0.617})
        console.print(view.render())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("pre-training", "50/200", "2.5", "█▁", "61.7%", "▁█"):
        assert text in shown


def test_without_a_terminal_there_are_a_few_plain_lines() -> None:
    console = Console(file=io.StringIO(), width=100)
    with live_view("pre-training", 100, console) as view:
        for step in range(1, 101):
            view.step(step)
            view.figures(step, {"loss": 2.0, "accuracy": 0.5})
        view.figures(100, {"valid/accuracy": 0.25, "valid/d_prime": 1.0})
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 11
    assert lines[-1] == "pre-training validated at 100: accuracy 0.250"
    assert lines[0].startswith("pre-training 10/100 loss 2.000 accuracy 0.500")


def test_a_curve_fits_its_width() -> None:
    assert curve([3.0], width=4) == "▁"
    assert curve([1.0] * 9, width=4) == "▁▁▁▁"
    assert curve([float(n) for n in range(80)], width=8) == "▁▂▃▄▅▆▇█"
