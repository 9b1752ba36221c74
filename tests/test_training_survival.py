"""What can go wrong in a run on real audio, and how it goes on."""

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_train_step import NoWaiting
from test_training import CPU, SMALL, assert_same_run, losses, run_pretrain, weights

from melstream.model import dropout
from melstream.model.averaging import average_states
from melstream.model.checked_files import CheckpointError
from melstream.model.checkpoint import load_checkpoint
from melstream.model.objectives import wav2vec2
from melstream.pipeline.batch import Batch
from melstream.shards.dataset import Dataset
from melstream.shards.errors import DatasetError, MelstreamError
from melstream.tools import pretrain as pretrain_module
from melstream.tools.finetune import finetune
from melstream.tools.health import DeadRunError
from melstream.tools.model_folder import load_encoder, load_tagger
from melstream.tools.recipe import FinetuneRecipe
from melstream.tools.recipe_file import load_recipe
from melstream.tools.train_step import Updater
from melstream.tools.training import Result

EVERYTHING = [
    *SMALL,
    "train.steps=8",
    "train.checkpoint_every=2",
    "train.keep_last=9",
    "train.accumulate=2",
    "train.average_decay=0.9",
    "train.validate_every=4",
    "data.batch_size=8",
    "data.weights.formula=inverse_sqrt",
    "finetune.freeze_body_steps=3",
    "finetune.head_warmup_steps=4",
    "finetune.layer_drop=0.2",
    "finetune.dropout=0.2",
    "augment.mixup_share=0.7",
    "augment.rolls=true",
    "augment.frequency_masks=1",
    "augment.time_masks=1",
    "hiding.step_share=0.3",
    "hiding.channel_share=0.1",
    "hiding.channel_length=8",
]


@pytest.fixture(scope="module")
def data(built: Callable[[str], Dataset]) -> Dataset:
    return built("eval")


def run_finetune(
    data: Dataset, out: Path, quiet: Console, *sets: str, valid: bool = False, resume: bool = False
) -> Result:
    recipe = load_recipe("demo-finetune", FinetuneRecipe, sets)
    held_out = data.folder if valid else None
    return finetune(
        recipe, data.folder, out, device=CPU, console=quiet, valid=held_out, resume=resume
    )


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def die_at(patch: pytest.MonkeyPatch, step: int, death: Callable[[], None]) -> None:
    original = Updater.update

    def dying(self: Updater, at: int, batch: Batch) -> dict[str, torch.Tensor]:
        if at == step:
            death()
        return original(self, at, batch)

    patch.setattr(Updater, "update", dying)


def crash() -> None:
    raise RuntimeError("killed")


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [3, 6])
def test_a_run_with_everything_switched_on_resumes_bit_for_bit(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    run_finetune(data, tmp_path / "whole", quiet, *EVERYTHING, valid=True)
    with monkeypatch.context() as patch:
        die_at(patch, dies_at, crash)
        with pytest.raises(RuntimeError, match="killed"):
            run_finetune(data, tmp_path / "broken", quiet, *EVERYTHING, valid=True)
    run_finetune(data, tmp_path / "broken", quiet, *EVERYTHING, valid=True, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    one, other = (load_checkpoint(checkpoint(tmp_path / n, 8)) for n in ("whole", "broken"))
    assert one.average_state is not None
    assert other.average_state is not None
    for name, value in one.average_state.items():
        assert torch.equal(other.average_state[name], value)


@pytest.mark.slow
def test_no_step_of_any_kind_waits_for_the_device(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model takes the kernels of a GPU here, and leaves out the check that a CPU makes."""
    original = Updater.update

    def watched(self: Updater, step: int, batch: Batch) -> dict[str, torch.Tensor]:
        if step in (0, 3):  # the optimiser makes its state
            return original(self, step, batch)
        with NoWaiting():
            return original(self, step, batch)

    monkeypatch.setattr(Updater, "update", watched)
    monkeypatch.setattr(wav2vec2, "_check_masking", lambda *tensors: None)
    monkeypatch.setattr(dropout, "_has_fast_kernels", lambda x: True)
    run_finetune(data, tmp_path / "fine", quiet, *EVERYTHING)
    run_pretrain(data, tmp_path / "pre", quiet, "train.steps=3")


def test_recomputing_activations_changes_no_loss(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "kept", quiet, "train.steps=4")
    run_pretrain(
        data, tmp_path / "run", quiet, "train.steps=4", "train.checkpoints_activations=true"
    )
    assert losses(tmp_path / "run") == losses(tmp_path / "kept")
    assert not load_encoder(tmp_path / "run")[0].config.checkpoints_activations


def test_a_step_in_bfloat16_is_close_to_one_in_float32(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "one", quiet, "train.steps=4")
    run_pretrain(data, tmp_path / "other", quiet, "train.steps=4", "train.precision=bfloat16")
    found, expected = losses(tmp_path / "other"), losses(tmp_path / "one")
    assert found != expected
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=0.02)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "other").values())


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "whole", quiet)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    (checkpoint(tmp_path / "broken", 10) / "optimizer.pt").write_bytes(b"torn")
    run_pretrain(data, tmp_path / "broken", quiet, resume=True)
    said = " ".join(quiet.file.getvalue().split())  # type: ignore[attr-defined]
    assert "warning: " in said
    assert "optimizer.pt must have the sha256" in said
    assert "refused-step-000010 now, and the run goes on from" in said
    assert "resumed from" in said
    assert "at step 8" in said
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_checkpoint_that_was_being_replaced_is_the_one_a_run_goes_on_from(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "run", quiet)
    last = checkpoint(tmp_path / "run", 10)
    last.rename(last.with_name(f".replaced-{last.name}"))  # killed between the two renames
    run_pretrain(data, tmp_path / "run", quiet, resume=True)
    said = " ".join(quiet.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"resumed from {last} at step 10" in said


def test_a_run_without_a_whole_checkpoint_does_not_start_over_by_itself(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "run", quiet)
    for step in (8, 10):
        (checkpoint(tmp_path / "run", step) / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match="there is none before it: start anew"):
        run_pretrain(data, tmp_path / "run", quiet, resume=True)
    for _ in range(2):  # torchrun starts its processes again
        with pytest.raises(CheckpointError, match=r"refused-step-000010 is damaged.* start anew"):
            run_pretrain(data, tmp_path / "run", quiet, resume=True)
    assert losses(tmp_path / "run")


def test_two_processes_never_train_in_one_folder(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_again() -> None:
        monkeypatch.undo()
        with pytest.raises(DatasetError, match="another process trains in"):
            run_pretrain(data, tmp_path / "run", quiet, resume=True)

    run_pretrain(data, tmp_path / "whole", quiet)
    die_at(monkeypatch, 3, run_again)
    assert run_pretrain(data, tmp_path / "run", quiet).is_complete
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_checkpoint_of_another_run_is_refused(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "run", quiet)
    run_pretrain(data, tmp_path / "other", quiet, "train.steps=12", "optim.lr=2e-3")
    shutil.copytree(checkpoint(tmp_path / "other", 12), checkpoint(tmp_path / "run", 12))
    with pytest.raises(DatasetError) as caught:
        run_pretrain(data, tmp_path / "run", quiet, resume=True)
    assert "belongs to another run (`recipe.optim.lr`: saved 0.002, now 0.001" in str(caught.value)
    remedy = f"to go on from the one before it: rm -r {checkpoint(tmp_path / 'run', 12)}"
    assert str(caught.value).endswith(remedy)


def spoil(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    original, counter = pretrain_module.pretraining_losses, itertools.count()

    def spoiled(*arguments: Any) -> dict[str, torch.Tensor]:
        figures = original(*arguments)
        factor = torch.inf if next(counter) in steps else 1.0
        return figures | {"loss": figures["loss"] * factor}

    monkeypatch.setattr(pretrain_module, "pretraining_losses", spoiled)


def test_steps_that_are_not_finite_are_skipped_and_counted(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 3, 6)
    result = run_pretrain(data, tmp_path / "run", quiet, "train.max_skipped_steps=2")
    assert result.is_complete
    assert sorted(set(range(1, 11)) - losses(tmp_path / "run").keys()) == [4, 7]
    assert load_checkpoint(checkpoint(tmp_path / "run", 10)).meta["n_skipped"] == 2
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_too_many_of_them_stop_the_run_and_a_resume_remembers(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 2, 5)
    with pytest.raises(MelstreamError, match=r"2 of 6 steps .* more than .*\(1\); start a new"):
        run_pretrain(data, tmp_path / "run", quiet, "train.max_skipped_steps=1")
    monkeypatch.undo()
    sets = ["train.max_skipped_steps=3"]
    assert run_pretrain(data, tmp_path / "run", quiet, *sets, resume=True).is_complete
    assert load_checkpoint(checkpoint(tmp_path / "run", 10)).meta["n_skipped"] == 1


def test_a_dead_run_is_stopped_and_may_be_overruled(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    """Targets of real audio have a deviation of about 0.6: a bound above it is an alarm."""
    bound = "health.min_target_std=5"
    with pytest.raises(DeadRunError, match=r"stopped at step 3: the targets have collapsed"):
        run_pretrain(data, tmp_path / "run", quiet, bound)
    warn = [bound, "health.alarm=warn"]
    assert run_pretrain(data, tmp_path / "run", quiet, *warn, resume=True).is_complete
    said = quiet.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("the targets have collapsed") == 1  # not at each of the seven entries


def test_the_mean_of_the_last_checkpoints_becomes_the_model(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    sets = ["train.steps=9", "train.checkpoint_every=3", "train.average_last=2"]
    run_finetune(data, tmp_path / "run", quiet, *SMALL, *sets)
    states = [load_checkpoint(checkpoint(tmp_path / "run", step)).model_state for step in (6, 9)]
    tagger, _ = load_tagger(tmp_path / "run")
    expected = average_states(states)
    assert all(torch.equal(value, expected[name]) for name, value in tagger.state_dict().items())


def test_a_mean_is_made_of_the_checkpoints_that_are_whole(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    sets = [*SMALL, "train.steps=9", "train.checkpoint_every=3", "train.average_last=2"]
    run_finetune(data, tmp_path / "run", quiet, *sets)
    (checkpoint(tmp_path / "run", 6) / "model.safetensors").write_bytes(b"")
    run_finetune(data, tmp_path / "run", quiet, *sets, resume=True)
    last = load_checkpoint(checkpoint(tmp_path / "run", 9)).model_state
    tagger, _ = load_tagger(tmp_path / "run")
    assert all(torch.equal(value, last[name]) for name, value in tagger.state_dict().items())
    said = " ".join(quiet.file.getvalue().split())  # type: ignore[attr-defined]
    assert "the model is made without it" in said
    assert "the model is the average of 1 checkpoint, not of 2" in said


def test_a_complete_run_without_checkpoints_keeps_its_model(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "run", quiet)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run" / "model").iterdir()}
    log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert run_pretrain(data, tmp_path / "run", quiet, resume=True).is_complete
    assert {p.name: p.read_bytes() for p in (tmp_path / "run" / "model").iterdir()} == before
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log


def test_a_run_that_was_stopped_in_between_logs_and_averages_the_same(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [*SMALL, "train.steps=9", "train.checkpoint_every=3", "train.average_last=3",
            "train.keep_last=3", "train.log_every=4"]  # fmt: skip
    run_finetune(data, tmp_path / "whole", quiet, *sets)
    for step in (1, 4):
        with monkeypatch.context() as patch:
            die_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
            result = run_finetune(data, tmp_path / "broken", quiet, *sets, resume=True)
        assert (result.is_complete, result.step) == (False, step + 1)
    run_finetune(data, tmp_path / "broken", quiet, *sets, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    one, other = (load_tagger(tmp_path / name)[0].state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_average_of_fewer_checkpoints_says_so(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    sets = [*SMALL, "train.steps=3", "train.average_last=2"]
    run_finetune(data, tmp_path / "run", quiet, *sets)
    said = " ".join(quiet.file.getvalue().split())  # type: ignore[attr-defined]
    assert "the model is the average of 1 checkpoint, not of 2" in said


def test_the_moving_average_becomes_the_model(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_finetune(data, tmp_path / "run", quiet, *SMALL, "train.steps=4", "train.average_decay=0.9")
    expected = load_checkpoint(checkpoint(tmp_path / "run", 4)).average_state
    assert expected is not None
    tagger, _ = load_tagger(tmp_path / "run")
    assert all(torch.equal(value, expected[name]) for name, value in tagger.state_dict().items())


def test_class_balanced_sampling_serves_rare_classes_more_often(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    """The order that a recipe asks for is the one of the pipeline; it stands in checkpoints."""
    run_finetune(
        data, tmp_path / "run", quiet, *SMALL, "train.steps=3", "data.weights.formula=inverse"
    )
    order = load_checkpoint(checkpoint(tmp_path / "run", 3)).meta["order"]
    assert order["weights"]["formula"] == "inverse"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"]["data"]["weights"]["smoothing"] == 0.01
