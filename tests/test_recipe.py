"""Recipes are checked before any work starts, and say what is wrong with them."""

from pathlib import Path

import pytest

from melstream.tools.recipe import FinetuneRecipe, PretrainRecipe
from melstream.tools.recipe_file import is_overridden, load_recipe, packaged_recipes


def test_set_overrides_one_field() -> None:
    recipe = load_recipe(
        "demo-pretrain",
        PretrainRecipe,
        ["optim.lr=3e-4", "train.steps = 700", "data.tail=wrap", "model.overrides.n_layers=2"],
    )
    assert (recipe.optim.lr, recipe.train.steps, recipe.data.tail) == (3e-4, 700, "wrap")
    assert recipe.model.encoder_config(64).n_layers == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", "unknown key `optim.learning_rate`.*valid keys there: .*lr"),
        ("optim.weigth_decay=1", "did you mean 'weight_decay'"),
        ("optimizer.lr=1", "unknown key `optimizer`.*did you mean 'optim'"),
        ("train.steps=many", "`train.steps`: input should be a valid integer"),
        ("train.steps=0", "`train.steps`: input should be greater than or equal to 1"),
        ("train.steps", "`--set` takes section.field=value"),
        ("train.steps.more=1", "'steps' is a value, not a section"),
        ("train.validate_every=5", "`train.validate_every` must be 0 in pre-training.*found 5"),
    ],
)
def test_a_wrong_override_is_explained(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("demo-pretrain", PretrainRecipe, [override])


def test_an_unknown_key_in_a_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(packaged_recipes()["demo-pretrain"].replace("[mask]", "[mask]\nspan = 3"))
    with pytest.raises(ValueError, match=r"unknown key `mask.span`.*mask_length"):
        load_recipe(str(path), PretrainRecipe)


def test_a_file_that_is_not_toml_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("steps: 100")
    with pytest.raises(ValueError, match="is not valid TOML"):
        load_recipe(str(path), PretrainRecipe)


def test_a_recipe_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'nope'.*demo-pretrain"):
        load_recipe("nope", PretrainRecipe)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("model.preset=huge", "`model.preset` must be one of tiny, cf-s, cf-l, found 'huge'"),
        ("model.overrides.width=7", "model.overrides: unknown key `width`"),
        (
            "objective.name=none",
            "must be one of wav2vec2, or module:Class of your own",
        ),
        ("objective.name=no_such:Thing", "on PYTHONPATH, found: No module named 'no_such'"),
        (
            "objective.name=json:loads",
            "must be an nn.Module with a pydantic model as",
        ),
        ("objective.options.temperatur=3", "unknown key `temperatur`, did you mean 'temperature'"),
        (
            "objective.options.quantizer.n_group=2",
            "unknown key `quantizer.n_group`, did you mean 'n_groups'",
        ),
    ],
)
def test_what_model_and_objective_do_not_know_is_an_error(override: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_recipe("demo-pretrain", PretrainRecipe, [override])


def test_fine_tuning_has_an_optimiser_of_its_own(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[data]\nbatch_size = 8\ncrop_s = 1.0\n[optim]\n[train]\nsteps = 9_000\n")
    optim = load_recipe(str(own), FinetuneRecipe).optim
    assert (optim.lr, optim.eps, optim.warmup_steps) == (3e-5, 1e-8, 8_000)
    assert load_recipe("demo-finetune", FinetuneRecipe).optim.eps == 1e-6


def test_a_probe_stays_one_however_long_it_is() -> None:
    probe = load_recipe("linear-probe", FinetuneRecipe, ["train.steps=7_000"])
    assert probe.n_frozen_steps == 7_000


def test_a_body_that_would_never_move_is_refused() -> None:
    sets = ["train.steps=2_000", "optim.warmup_steps=10", "finetune.head_warmup_steps=10"]
    with pytest.raises(ValueError, match=r'below `train.steps` \(2000\), or "all" .* found 2000'):
        load_recipe("finetune-audioset-20k", FinetuneRecipe, sets)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.validate_every=5", True),
        (" train.validate_every = 5", True),
        ("train={steps=9,validate_every=5}", True),
        ("train.steps=9", False),
        ("train.validate=5", False),
    ],
)
def test_what_was_set_is_told_from_what_the_recipe_says(override: str, expected: bool) -> None:
    assert is_overridden("train.validate_every", ["optim.lr=1", override]) == expected
