"""Every packaged recipe loads, builds its model without memory, and says what it needs."""

from pathlib import Path

import pytest
import torch

from melstream.model.encoder import AudioEncoder
from melstream.model.objectives import build_objective
from melstream.model.pretraining import PretrainingModel
from melstream.model.tagger import Tagger
from melstream.tools.finetune import learning_groups
from melstream.tools.recipe import FinetuneRecipe, PretrainRecipe
from melstream.tools.recipe_file import as_toml, load_recipe, packaged_recipes

N_MELS, N_CLASSES = 64, 527
NAMES = sorted(packaged_recipes())
PRETRAINING = [name for name in NAMES if "pretrain" in name]
FINE_TUNING = [name for name in NAMES if name not in PRETRAINING]
N_PARAMETERS = {"pretrain-cf-s": 18_428_416, "pretrain-cf-l": 88_133_120}  # the paper's


def test_the_recipes_that_are_promised_are_there() -> None:
    assert NAMES == [
        "demo-finetune",
        "demo-pretrain",
        "finetune-audioset-20k",
        "finetune-audioset-2m",
        "finetune-esc50",
        "linear-probe",
        "pretrain-cf-l",
        "pretrain-cf-s",
    ]


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_pretraining_recipe_builds_its_model(name: str) -> None:
    recipe = load_recipe(name, PretrainRecipe)
    config = recipe.model.encoder_config(N_MELS)
    with torch.device("meta"):
        objective = build_objective(recipe.objective.name, recipe.objective.options, config)
        model = PretrainingModel(AudioEncoder(config), objective)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert n_parameters == N_PARAMETERS.get(name, n_parameters)


@pytest.mark.parametrize("name", FINE_TUNING)
def test_a_finetuning_recipe_builds_its_model(name: str) -> None:
    recipe = load_recipe(name, FinetuneRecipe)
    with torch.device("meta"):
        encoder = AudioEncoder(recipe.model.encoder_config(N_MELS))
        tagger = Tagger(encoder, recipe.tagger, N_CLASSES)
    groups = learning_groups(tagger, recipe)
    learning = {id(parameter) for group in groups for parameter in group["params"]}
    resting = set(map(id, tagger.encoder.feature_encoder.parameters()))
    expected = set(map(id, tagger.parameters()))
    if recipe.finetune.freezes_feature_encoder:
        expected -= resting
    assert learning == expected
    assert {group["base_lr"] for group in groups} == {recipe.finetune.head_lr, recipe.optim.lr}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_needs_and_what_the_paper_reports(name: str) -> None:
    comments = [line for line in packaged_recipes()[name].splitlines() if line.startswith("#")]
    text = " ".join(comments).lower()
    for word in ("gpu", "memory", "paper"):
        assert word in text
    if not name.startswith("demo"):
        for word in ("gpu hours", "memory ", "disk ", "melstream ", "computed, not measured"):
            assert word in text


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_written_as_a_file_that_gives_it_again(name: str, tmp_path: Path) -> None:
    schema = PretrainRecipe if name in PRETRAINING else FinetuneRecipe
    recipe, file = load_recipe(name, schema), tmp_path / "mine.toml"
    file.write_text(as_toml(recipe))
    assert load_recipe(str(file), schema) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_can_be_cut_for_accumulation(name: str) -> None:
    recipe = load_recipe(name, PretrainRecipe if name in PRETRAINING else FinetuneRecipe)
    assert recipe.data.batch_size % recipe.train.accumulate == 0
