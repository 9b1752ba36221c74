"""ESC-50 from its own files: five folds, each evaluated by the model that has not seen it."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SPEC
from rich.console import Console
from typer.testing import CliRunner

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError
from melstream.shards.storage import open_storage
from melstream.tools.build import build
from melstream.tools.build_plan import PlanSettings, make_plan
from melstream.tools.build_workers import run_here
from melstream.tools.cli import app
from melstream.tools.corpora import esc50
from melstream.tools.evaluate import as_json, evaluate
from melstream.tools.finetune import finetune
from melstream.tools.fold_results import FoldResult, print_folds, summarise
from melstream.tools.folds import finetune_folds
from melstream.tools.model_folder import load_tagger
from melstream.tools.parts import Part, part_of_splits
from melstream.tools.recipe import FinetuneRecipe
from melstream.tools.recipe_file import load_recipe
from melstream.tools.selection import Selection
from melstream.tools.subset import subset

CPU = torch.device("cpu")
SETS = ["model.preset=tiny", "model.overrides.n_layers=1", "data.batch_size=4", "data.crop_s=1.0"]
STEPS = ["train.steps=3", "train.precision=float32", "optim.warmup_steps=1"]
REST = ["finetune.head_warmup_steps=1", "finetune.freeze_body_steps=1"]


@pytest.fixture(scope="module")
def folded(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Fifteen real recordings of three classes under ESC-50's names, three in each fold."""
    root = tmp_path_factory.mktemp("ESC-50-master")
    (root / "audio").mkdir()
    (root / "meta").mkdir()
    classes = sorted((recordings / "train").iterdir())[:3]
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for target, folder in enumerate(classes):
            for number, path in enumerate(sorted(folder.glob("*.flac"))[:5]):
                name = f"{number + 1}-{100 + number}-A-{target}"
                shutil.copyfile(path, root / "audio" / f"{name}.flac")
                row = [f"{name}.wav", number + 1, target, folder.name, False, 100 + number, "A"]
                table.writerow(row)
    plan = make_plan(esc50.scan(root), PlanSettings(corpus="esc50", features=SPEC))
    build(plan, open_storage(root / "shards"), run_here, lambda done, note: None)
    return open_dataset(root / "shards")


@pytest.mark.slow
def test_each_fold_is_measured_by_a_model_that_has_not_seen_it(
    folded: Dataset, tmp_path: Path, quiet: Console
) -> None:
    recipe = load_recipe("finetune-esc50", FinetuneRecipe, [*SETS, *STEPS, *REST])
    results = finetune_folds(recipe, folded.folder, tmp_path / "run", device=CPU, console=quiet)
    assert results is not None
    assert [result.name for result in results] == [f"fold-{n}" for n in range(1, 6)]
    written = json.loads((tmp_path / "run" / "folds.json").read_text())
    accuracies = [result.figures["accuracy"] for result in results]
    assert written["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert written["std"]["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    for number, result in enumerate(results):
        config = json.loads((tmp_path / "run" / result.name / "config.json").read_text())
        assert config["part"] == result.name
        card = load_tagger(tmp_path / "run" / result.name)[1]
        assert card.trained_on == (folded.manifest.fingerprint,)
        assert written["folds"][result.name]["accuracy"] == accuracies[number]
    with pytest.raises(DatasetError, match=r"it holds several runs, give one, such as \S+/fold-1"):
        load_tagger(tmp_path / "run")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "run")])
    assert "mean ± std" in shown.stdout
    as_data = CliRunner().invoke(app, ["inspect", str(tmp_path / "run"), "--json"])
    assert json.loads(as_data.stdout) == written
    again = finetune_folds(
        recipe, folded.folder, tmp_path / "run", device=CPU, console=quiet, resume=True
    )
    assert again == results


def test_folds_are_the_splits_that_have_samples(
    folded: Dataset, tmp_path: Path, quiet: Console
) -> None:
    some = Selection(splits=("fold-2", "fold-4"))
    found = subset(folded, open_storage(tmp_path / "some"), some, lambda done, note: None)
    recipe = load_recipe("finetune-esc50", FinetuneRecipe, [*SETS, *STEPS, *REST])
    results = finetune_folds(recipe, found.url, tmp_path / "run", device=CPU, console=quiet)
    assert results is not None
    assert [result.name for result in results] == ["fold-2", "fold-4"]


def test_from_scratch_the_held_out_fold_decides_nothing(
    folded: Dataset, tmp_path: Path, quiet: Console
) -> None:
    recipe = load_recipe("finetune-esc50", FinetuneRecipe, [*SETS, *STEPS, *REST])
    rows = np.arange(len(folded))
    part = Part("a part", train=rows[::2], held_out=rows[1::2])
    finetune(recipe, folded.url, tmp_path, device=CPU, console=quiet, part=part)
    logmel = np.concatenate([folded.read_logmel(row) for row in rows[::2].tolist()])
    normalizer = load_tagger(tmp_path)[0].encoder.normalizer
    np.testing.assert_allclose(normalizer.mean, logmel.mean(0, np.float64), rtol=1e-5)
    np.testing.assert_allclose(normalizer.std, logmel.std(0, np.float64), rtol=1e-4)


def test_splits_of_one_data_set_are_learnt_from_validated_on_and_evaluated(
    folded: Dataset, tmp_path: Path
) -> None:
    words = ["finetune", "finetune-esc50", "--data", folded.url, "--out", str(tmp_path / "run")]
    words += ["--split", "fold-1", "--split", "fold-2", "--valid-split", "fold-3"]
    words += [word for override in [*SETS, *STEPS, *REST] for word in ("--set", override)]
    result = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert load_tagger(tmp_path / "run")[1].splits == ("fold-1", "fold-2")
    valid = json.loads((tmp_path / "run" / "evaluation-valid.json").read_text())
    scored = [evaluated(tmp_path / "run", folded, f"fold-{number}") for number in (3, 4)]
    assert valid == scored[0]
    words = ["evaluate", str(tmp_path / "run"), "--data", folded.url, "--split", "fold-3"]
    out = tmp_path / "new" / "evaluation.json"
    assert CliRunner().invoke(app, [*words, "--device", "cpu", "--out", str(out)]).exit_code == 0
    assert json.loads(out.read_text()) == valid
    assert scored[1]["n_clips"] == 3


def evaluated(run: Path, data: Dataset, *splits: str) -> dict[str, Any]:
    metrics, card = evaluate(run, data.url, device=CPU, splits=splits)
    return as_json(metrics, card)


def test_a_figure_that_a_fold_lacks_is_the_mean_of_the_others(quiet: Console) -> None:
    results = [
        FoldResult("one", {"accuracy": 0.5}),
        FoldResult("two", {"accuracy": 0.7, "mAUC": 0.8}),
    ]
    assert summarise(results) == {
        "mean": {"accuracy": pytest.approx(0.6), "mAUC": 0.8},
        "std": {"accuracy": pytest.approx(0.02**0.5), "mAUC": None},
        "folds": {"one": {"accuracy": 0.5}, "two": {"accuracy": 0.7, "mAUC": 0.8}},
    }
    print_folds(results, quiet)
    assert "one        │ 0.500         │ -" in quiet.file.getvalue()  # type: ignore[attr-defined]


def test_a_part_is_all_but_the_splits_to_validate_on(folded: Dataset) -> None:
    split = folded.index.split
    part = part_of_splits(folded, (), ("fold-5",))
    assert part.held_out is not None
    assert part.train.tolist() == np.flatnonzero(split != split[part.held_out[0]]).tolist()
    assert part.splits == ("fold-1", "fold-2", "fold-3", "fold-4")
    assert part_of_splits(folded, ("fold-2",), ()).held_out is None
    two = part_of_splits(folded, ("fold-1", "fold-2"), ())
    assert part_of_splits(folded, ("fold-2", "fold-1"), ()).name == two.name
    with pytest.raises(ValueError, match=r"must differ, found 'fold-1' in both"):
        part_of_splits(folded, ("fold-1",), ("fold-1",))
    with pytest.raises(ValueError, match=r"`--valid-split` must be a name in the data set \(fold-"):
        part_of_splits(folded, (), ("fold-6",))


@pytest.mark.parametrize(
    ("learnt", "measured", "is_told"),
    [((), ("fold-1",), True), (("fold-1",), (), True), (("fold-1",), ("fold-1",), True),
     (("fold-1",), ("fold-2",), False)],
)  # fmt: skip
def test_an_evaluation_on_what_was_learnt_from_says_so(
    folded: Dataset,
    tmp_path: Path,
    quiet: Console,
    caplog: pytest.LogCaptureFixture,
    learnt: tuple[str, ...],
    measured: tuple[str, ...],
    is_told: bool,
) -> None:
    recipe = load_recipe("finetune-esc50", FinetuneRecipe, [*SETS, *STEPS, *REST])
    part = part_of_splits(folded, learnt, ()) if learnt else None
    finetune(recipe, folded.url, tmp_path / "run", device=CPU, console=quiet, part=part)
    evaluated(tmp_path / "run", folded, *measured)
    assert ("its figures there say little" in caplog.text) is is_told
    caplog.clear()
    chosen = Selection(splits=measured)
    found = subset(folded, open_storage(tmp_path / "some"), chosen, lambda done, note: None)
    evaluated(tmp_path / "run", open_dataset(found.url))
    assert ("its figures there say little" in caplog.text) is is_told


def test_a_model_of_a_subset_is_told_where_it_is_measured_on_the_whole(
    folded: Dataset, tmp_path: Path, quiet: Console, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = load_recipe("finetune-esc50", FinetuneRecipe, [*SETS, *STEPS, *REST])
    sets = []
    for name in ("fold-1", "fold-2"):
        place = open_storage(tmp_path / name)
        chosen = Selection(splits=(name,))
        sets.append(subset(folded, place, chosen, lambda done, note: None).url)
    finetune(recipe, sets[0], tmp_path / "run", device=CPU, console=quiet)
    evaluated(tmp_path / "run", open_dataset(sets[1]))
    assert "say little" not in caplog.text
    evaluated(tmp_path / "run", folded)
    assert "say little" in caplog.text


def test_a_set_without_folds_is_refused(
    small_dataset: Dataset, tmp_path: Path, quiet: Console
) -> None:
    recipe = load_recipe("finetune-esc50", FinetuneRecipe, ["train.validate_every=1"])
    with pytest.raises(DatasetError, match=r"at least two splits .* found 0; build it from"):
        finetune_folds(recipe, small_dataset.folder, tmp_path, device=CPU, console=quiet)
    assert "the held-out fold chooses the step" in quiet.file.getvalue()  # type: ignore[attr-defined]
