"""Fine-tuning with held-out data: the best weights become the model, and are measured."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from test_training import CPU, SMALL, assert_same_run
from test_training_survival import checkpoint, crash, die_at, run_finetune

from melstream.model.checkpoint import load_checkpoint
from melstream.model.tagger import Tagger
from melstream.pipeline.loader import LoaderConfig
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError
from melstream.shards.spec import PRESETS
from melstream.shards.storage import open_storage
from melstream.tools import evaluate as evaluate_module
from melstream.tools import finetune as finetune_module
from melstream.tools.build import build
from melstream.tools.build_plan import PlanSettings, make_plan
from melstream.tools.build_workers import run_here
from melstream.tools.corpora import folder as folder_corpus
from melstream.tools.distributed import World
from melstream.tools.evaluate import Predictions, as_json, evaluate, predict
from melstream.tools.finetune import finetune
from melstream.tools.model_folder import load_tagger
from melstream.tools.parts import Part
from melstream.tools.recipe import FinetuneRecipe
from melstream.tools.recipe_file import load_recipe
from melstream.tools.run_summary import read_run


@pytest.fixture(scope="module")
def data(built: Callable[[str], Dataset]) -> Dataset:
    return built("eval")


@pytest.fixture
def other_features(tmp_path: Path, recordings: Path) -> Dataset:
    settings = PlanSettings(corpus="folder", features=PRESETS["kaldi128"])
    plan = make_plan(folder_corpus.scan(recordings / "eval"), settings)
    build(plan, open_storage(tmp_path / "kaldi"), run_here, lambda done, note: None)
    return open_dataset(tmp_path / "kaldi")


def test_validation_keeps_the_best_checkpoint(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    sets = [*SMALL, "train.steps=8", "train.validate_every=2", "train.keep_last=1"]
    recipe = load_recipe("demo-finetune", FinetuneRecipe, sets)
    out = tmp_path / "fine"
    finetune(recipe, data.folder, out, device=CPU, console=quiet, valid=data.folder)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    valid = {line["step"]: line["valid/accuracy"] for line in lines if "valid/accuracy" in line}
    assert sorted(valid) == [2, 4, 6, 8]
    best = max(valid, key=lambda step: (valid[step], -step))
    assert (out / "checkpoints" / f"step-{best:06d}").is_dir()


def test_the_validated_best_becomes_the_model(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.9])  # the last: of the model
    original = finetune_module.predict

    def graded(*arguments: Any, **options: Any) -> Any:
        predictions = original(*arguments, **options)
        metrics = replace(predictions.metrics("single_label"), accuracy=next(scores))
        return SimpleNamespace(metrics=lambda task: metrics)

    monkeypatch.setattr(finetune_module, "predict", graded)
    sets = [*SMALL, "train.steps=8", "train.validate_every=2", "train.keep_last=1"]
    recipe = load_recipe("demo-finetune", FinetuneRecipe, sets)
    out = tmp_path / "fine"
    finetune(recipe, data.folder, out, device=CPU, console=quiet, valid=data.folder)
    best = load_checkpoint(out / "checkpoints" / "step-000004").model_state
    tagger, card = load_tagger(out)
    assert card.steps == 4
    for name, tensor in tagger.state_dict().items():
        assert torch.equal(tensor, best[name]), name


def test_clips_that_are_validated_on_and_learnt_from_are_told(
    data: Dataset, built: Callable[[str], Dataset], tmp_path: Path, quiet: Console
) -> None:
    recipe = load_recipe("demo-finetune", FinetuneRecipe, [*SMALL, "train.steps=4"])
    run = tmp_path / "run"
    finetune(recipe, data.folder, run, device=CPU, console=quiet, valid=built("train").folder)
    assert "to validate on are learnt from" not in said(quiet)
    finetune(recipe, data.folder, tmp_path / "two", device=CPU, console=quiet, valid=data.folder)
    assert f"{len(data)} of {len(data)} clips to validate on are learnt from" in said(quiet)


def test_a_part_without_a_label_is_refused_before_any_work(
    built: Callable[[str], Dataset], tmp_path: Path, quiet: Console
) -> None:
    data = built("eval")
    sets = [*SMALL, "tagger.task=multi_label", "tagger.pooling=mean"]
    recipe = load_recipe("demo-finetune", FinetuneRecipe, sets)
    rows = np.arange(len(data))
    part = Part("nothing held out", train=rows, held_out=rows[:0])
    with pytest.raises(DatasetError, match=r"must have labels on some of the clips .* none"):
        finetune(recipe, data.folder, tmp_path / "run", device=CPU, console=quiet, part=part)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_validation_set_it_began_with(
    data: Dataset, built: Callable[[str], Dataset], tmp_path: Path, quiet: Console
) -> None:
    recipe = load_recipe("demo-finetune", FinetuneRecipe, [*SMALL, "train.steps=4"])
    how: dict[str, Any] = {"device": CPU, "console": quiet}
    finetune(recipe, data.folder, tmp_path / "run", **how, valid=data.folder)
    with pytest.raises(DatasetError, match=r"cannot be resumed .*\(`valid`: saved"):
        finetune(
            recipe, data.folder, tmp_path / "run", **how, valid=built("train").folder, resume=True
        )


def test_a_validation_set_that_does_not_fit_is_refused_before_any_work(
    data: Dataset, small_dataset: Dataset, tmp_path: Path, quiet: Console
) -> None:
    recipe = load_recipe("demo-finetune", FinetuneRecipe, SMALL)
    with pytest.raises(DatasetError, match="must have labels among those of"):
        finetune(
            recipe,
            data.folder,
            tmp_path / "fine",
            device=CPU,
            console=quiet,
            valid=small_dataset.folder,
        )
    assert not (tmp_path / "fine").exists()


def test_a_run_measures_its_final_model_class_by_class(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    """Here that is the mean of two checkpoints, which no validation has seen."""
    sets = ["train.steps=9", "train.checkpoint_every=3", "train.average_last=2"]
    run_finetune(data, tmp_path / "run", quiet, *SMALL, *sets, valid=True)
    metrics, card = evaluate(tmp_path / "run", data.folder, device=CPU)
    found = json.loads((tmp_path / "run" / "evaluation-valid.json").read_text())
    assert found == json.loads(json.dumps(as_json(metrics, card)))
    (evaluation,) = read_run(tmp_path / "run").evaluations
    assert [one.label for one in evaluation.classes] == list(data.manifest.label_names)
    assert evaluation.weakest()[0].label in (tmp_path / "run" / "report.html").read_text()


def test_a_run_without_held_out_data_measures_nothing(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_finetune(data, tmp_path / "run", quiet, *SMALL, "train.steps=3")
    assert not (tmp_path / "run" / "evaluation-valid.json").exists()


def grade(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Let validations give these accuracies, one after the other."""
    given, original = iter(scores), Predictions.metrics

    def graded(self: Predictions, task: Any) -> Any:
        metrics = original(self, task)
        object.__setattr__(metrics, "accuracy", next(given))
        return metrics

    monkeypatch.setattr(Predictions, "metrics", graded)


def test_training_stops_when_validation_gets_no_better(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [*SMALL, "train.steps=20", "train.validate_every=2", "train.stop_after=2"]
    grade(monkeypatch, 0.5, 0.6, 0.4, 0.6, 0.6, 0.6)  # the last two: of the model
    result = run_finetune(data, tmp_path / "run", quiet, *sets, valid=True)
    assert (result.step, result.is_complete) == (8, True)
    best = load_checkpoint(checkpoint(tmp_path / "run", 4)).model_state
    tagger, card = load_tagger(tmp_path / "run")
    assert card.steps == 4
    assert all(torch.equal(value, best[name]) for name, value in tagger.state_dict().items())
    again = run_finetune(data, tmp_path / "run", quiet, *sets, valid=True, resume=True)
    assert (again.step, again.is_complete) == (8, True)


def test_the_last_weights_become_the_model_where_the_best_are_damaged(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [*SMALL, "train.steps=6", "train.validate_every=2"]
    grade(monkeypatch, 0.5, 0.9, 0.4, 0.9, 0.4)  # the last two: of the model
    run_finetune(data, tmp_path / "run", quiet, *sets, valid=True)
    assert load_tagger(tmp_path / "run")[1].steps == 4
    (checkpoint(tmp_path / "run", 4) / "model.safetensors").write_bytes(b"")
    run_finetune(data, tmp_path / "run", quiet, *sets, valid=True, resume=True)
    last = load_checkpoint(checkpoint(tmp_path / "run", 6)).model_state
    assert "checkpoint_every" not in said(quiet)
    tagger, card = load_tagger(tmp_path / "run")
    assert card.steps == 6
    assert all(torch.equal(value, last[name]) for name, value in tagger.state_dict().items())
    assert "the model is made without it" in said(quiet)


def test_clips_of_which_a_validation_hears_the_first_minute_are_told(
    data: Dataset,
    tmp_path: Path,
    quiet: Console,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    longest = int(data.index.n_frames.max())
    short = partial(LoaderConfig, max_frames=longest - 1)
    monkeypatch.setattr(evaluate_module, "LoaderConfig", short)
    run_finetune(data, tmp_path / "run", quiet, *SMALL, "train.steps=3", valid=True)
    assert "clips are longer than a minute, and only their first minute counts" in caplog.text


def test_a_validation_set_with_other_features_is_told_from_the_training_set(
    data: Dataset, other_features: Dataset, tmp_path: Path, quiet: Console
) -> None:
    recipe = load_recipe("demo-finetune", FinetuneRecipe, SMALL)
    how: dict[str, Any] = {"device": CPU, "console": quiet, "valid": other_features.url}
    with pytest.raises(DatasetError, match=r"has n_mels=128, .* required is n_mels=64"):
        finetune(recipe, data.folder, tmp_path / "run", **how)


def test_a_recipe_that_validates_says_that_there_is_nothing_to_validate_on(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_finetune(data, tmp_path / "run", quiet, *SMALL, "train.steps=3", "train.validate_every=2")
    said = " ".join(quiet.file.getvalue().split())  # type: ignore[attr-defined]
    assert "no --valid: the recipe would validate every 2 steps" in said


def test_a_run_that_died_while_it_validated_loses_nothing(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [*SMALL, "train.steps=8", "train.validate_every=4", "train.keep_last=9"]
    run_finetune(data, tmp_path / "whole", quiet, *sets, valid=True)
    with monkeypatch.context() as patch:
        patch.setattr(Predictions, "metrics", lambda self, task: crash())
        with pytest.raises(RuntimeError, match="killed"):
            run_finetune(data, tmp_path / "broken", quiet, *sets, valid=True)
    assert checkpoint(tmp_path / "broken", 4).is_dir()
    run_finetune(data, tmp_path / "broken", quiet, *sets, valid=True, resume=True)
    assert validations(tmp_path / "whole") == validations(tmp_path / "broken")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("step", [3, 6])  # the last one is no other
def test_a_run_that_is_told_to_stop_while_it_validates_stops_there(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    sets = [*SMALL, "train.steps=6", "train.validate_every=3"]
    monkeypatch.setattr(evaluate_module, "BATCH_SIZE", 8)
    run_finetune(data, tmp_path / "whole", quiet, *sets, valid=True)
    original, asked = Tagger.scores, []

    def scores(self: Tagger, logits: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, logits)

    with monkeypatch.context() as patch:
        die_at(patch, step - 1, lambda: patch.setattr(Tagger, "scores", scores))
        result = run_finetune(data, tmp_path / "broken", quiet, *sets, valid=True)
    assert (result.is_complete, result.step, len(asked)) == (False, step, 1)
    assert checkpoint(tmp_path / "broken", step).is_dir()
    assert run_finetune(
        data, tmp_path / "broken", quiet, *sets, valid=True, resume=True
    ).is_complete
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert validations(tmp_path / "whole") == validations(tmp_path / "broken")


def said(console: Console) -> str:
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def entries(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def validations(run: Path) -> list[dict[str, float]]:
    return [
        {name: line[name] for name in line if name.startswith(("step", "valid"))}
        for line in entries(run)
    ]


def test_processes_share_the_clips_of_a_validation(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty-four clips: the first of two processes gets all, the second an empty batch."""
    run_finetune(data, tmp_path / "run", quiet, *SMALL, "train.steps=3")
    tagger, card = load_tagger(tmp_path / "run")
    alone = predict(tagger, card, data)
    monkeypatch.setattr(World, "gather", lambda world, values: values)
    for batch_size in (32, 4):
        monkeypatch.setattr(evaluate_module, "BATCH_SIZE", batch_size)
        parts = [predict(tagger, card, data, world=World(CPU, rank, 2)) for rank in (0, 1)]
        assert parts[0].keys + parts[1].keys == alone.keys
        scores = np.concatenate([part.scores for part in parts])
        np.testing.assert_allclose(scores, alone.scores, rtol=1e-4)
