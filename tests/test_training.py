"""Training on real recordings: it learns, it survives, and a resumed run loses nothing."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from conftest import make_sample, write_dataset
from rich.console import Console

from melstream.model.checkpoint import latest_checkpoint, load_checkpoint
from melstream.model.encoder import AudioEncoder, EncoderConfig
from melstream.pipeline.batch import Batch
from melstream.pipeline.loader import LoaderConfig
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError, MelstreamError
from melstream.shards.spec import PRESETS
from melstream.shards.storage import open_storage
from melstream.tools import evaluate as evaluate_module
from melstream.tools.build import build
from melstream.tools.build_plan import PlanSettings, make_plan
from melstream.tools.build_workers import run_here
from melstream.tools.corpora import folder
from melstream.tools.embed import embed
from melstream.tools.evaluate import evaluate, predict
from melstream.tools.finetune import finetune
from melstream.tools.model_folder import ModelCard, load_encoder, load_tagger, write_model
from melstream.tools.pretrain import pretrain
from melstream.tools.recipe import FinetuneRecipe, PretrainRecipe
from melstream.tools.recipe_file import load_recipe
from melstream.tools.train_step import Updater
from melstream.tools.training import Result

CPU = torch.device("cpu")
SMALL = [
    "model.overrides.n_layers=1",
    "model.overrides.dropout=0.1",  # so that the random state matters to a resume
    "data.batch_size=4",
    "data.crop_s=1.0",
    "optim.warmup_steps=2",
    "train.log_every=1",
    "train.checkpoint_every=4",
]


@pytest.fixture(scope="module")
def data(built: Callable[[str], Dataset]) -> Dataset:
    return built("eval")


def run_pretrain(
    data: Dataset,
    out: Path,
    quiet: Console,
    *sets: str,
    resume: bool = False,
    encoder: Path | None = None,
) -> Result:
    recipe = load_recipe("demo-pretrain", PretrainRecipe, [*SMALL, "train.steps=10", *sets])
    return pretrain(
        recipe, data.folder, out, device=CPU, console=quiet, encoder_path=encoder, resume=resume
    )


def run_finetune(
    data: Dataset, out: Path, quiet: Console, *sets: str, encoder: Path | None = None
) -> Result:
    recipe = load_recipe("demo-finetune", FinetuneRecipe, [*SMALL, "train.steps=6", *sets])
    return finetune(recipe, data.folder, out, device=CPU, console=quiet, encoder_path=encoder)


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def weights(run: Path) -> dict[str, torch.Tensor]:
    path = latest_checkpoint(run / "checkpoints")
    assert path is not None
    return load_checkpoint(path).model_state


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


def test_the_same_seed_gives_the_same_run(data: Dataset, tmp_path: Path, quiet: Console) -> None:
    run_pretrain(data, tmp_path / "one", quiet)
    run_pretrain(data, tmp_path / "two", quiet)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    run_pretrain(data, tmp_path / "three", quiet, "train.seed=1")
    assert losses(tmp_path / "one") != losses(tmp_path / "three")


@pytest.mark.parametrize("dies_at", [2, 4, 7])
def test_a_killed_run_resumes_bit_for_bit(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    run_pretrain(data, tmp_path / "whole", quiet)
    original = Updater.update

    def dying(self: Updater, step: int, batch: Batch) -> dict[str, torch.Tensor]:
        if step == dies_at:
            raise RuntimeError("killed")
        return original(self, step, batch)

    monkeypatch.setattr(Updater, "update", dying)
    with pytest.raises(RuntimeError, match="killed"):
        run_pretrain(data, tmp_path / "broken", quiet)
    monkeypatch.undo()
    assert run_pretrain(data, tmp_path / "broken", quiet, resume=True).is_complete
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on_from_it(
    data: Dataset,
    tmp_path: Path,
    quiet: Console,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    run_pretrain(data, tmp_path / "whole", quiet)
    original = Updater.update

    def signalled(self: Updater, step: int, batch: Batch) -> dict[str, torch.Tensor]:
        if step == 5:
            os.kill(os.getpid(), number)
        return original(self, step, batch)

    monkeypatch.setattr(Updater, "update", signalled)
    result = run_pretrain(data, tmp_path / "broken", quiet)
    monkeypatch.undo()
    assert (result.is_complete, result.step) == (False, 6)
    assert not (tmp_path / "broken" / "model").exists()
    run_pretrain(data, tmp_path / "broken", quiet, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_folder_is_never_taken_over(data: Dataset, tmp_path: Path, quiet: Console) -> None:
    out = tmp_path / "run"
    run_pretrain(data, out, quiet)
    with pytest.raises(DatasetError, match="add --resume to go on"):
        run_pretrain(data, out, quiet)
    with pytest.raises(DatasetError, match=r"`recipe.optim.lr`: saved 0.001, now 0.5"):
        run_pretrain(data, out, quiet, "optim.lr=0.5", resume=True)
    with pytest.raises(DatasetError, match="must be a folder, found a file"):
        run_pretrain(data, out / "config.json", quiet)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"must be new or empty, found notes.txt"):
        run_pretrain(data, tmp_path / "other", quiet)


def test_a_checkpoint_embeds_as_the_model_made_of_it(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "run", quiet)
    clips = []
    for place in ("model", "checkpoints/step-000010"):
        out, run = tmp_path / f"{len(clips)}.zarr", tmp_path / "run" / place
        embed(run, [data.url], out, device=CPU, console=quiet)
        clips.append(np.asarray(zarr.open_group(str(out), mode="r")["clips"]))
    np.testing.assert_array_equal(*clips)


def test_more_clips_in_a_batch_than_there_are_is_told(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_finetune(data, tmp_path / "run", quiet, "data.batch_size=100", "data.crop_s=30")
    said = " ".join(quiet.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"a batch of 100 is more than the {len(data)} clips there are" in said
    assert "no clip fills a crop of 30 s, the longest has" in said


def test_a_finished_run_has_all_its_files(data: Dataset, tmp_path: Path, quiet: Console) -> None:
    out = tmp_path / "run"
    result = run_pretrain(data, out, quiet)
    assert sorted(losses(out)) == list(range(1, 11))
    assert {"loss", "accuracy", "grad_norm", "lr", "samples_per_s"} <= result.figures.keys()
    names = [path.name for path in sorted((out / "checkpoints").iterdir())]
    assert names == ["step-000008", "step-000010"]
    assert any((out / "tensorboard").iterdir())
    encoder, card = load_encoder(out)
    assert card.trained_on == (data.manifest.fingerprint,)
    state = weights(out)
    for name, tensor in encoder.named_parameters():
        assert torch.equal(tensor, state[f"encoder.{name}"])
    assert torch.equal(encoder.mask_embedding, state["objective.mask_embedding"])


def test_clips_shorter_than_a_crop_are_told_of(
    built: Callable[[str], Dataset], tmp_path: Path, quiet: Console
) -> None:
    sets = ["train.steps=2", "optim.warmup_steps=1", "data.crop_s=1.2", "data.min_s=0.5"]
    data = built("eval")
    n_short = int(((data.index.duration_s >= 0.5) & (data.index.n_frames < 120)).sum())
    assert n_short > 1
    run_pretrain(data, tmp_path / "run", quiet, *sets)
    said = " ".join(quiet.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"{n_short} clips shorter than a crop of 1.2 s" in said


def test_pretraining_learns_on_real_audio(
    built: Callable[[str], Dataset], tmp_path: Path, quiet: Console
) -> None:
    """After 60 steps it finds the masked step five times as often as chance, 1 in 21."""
    sets = ["train.steps=60", "optim.lr=2e-3", "data.batch_size=8", "train.log_every=10"]
    result = run_pretrain(built("train"), tmp_path / "run", quiet, *sets)
    assert result.figures["accuracy"] > 5 / 21
    assert result.figures["loss"] < 0.9 * np.log(21)


OWN_OBJECTIVE = """
import torch
from pydantic import BaseModel
from torch import nn


class Config(BaseModel):
    weight: float = 1.0


class Regression(nn.Module):
    config_class = Config

    def __init__(self, config, encoder_config):
        super().__init__()
        self.weight = config.weight
        self.mask_embedding = nn.Parameter(torch.zeros(encoder_config.latent_dim))
        self.out = nn.Linear(encoder_config.dim, encoder_config.latent_dim)

    def forward(self, encoder, *, logmel, n_frames, mask, distractors, step):
        latents, padding_mask = encoder.latents(logmel, n_frames)
        hidden = torch.where(mask[..., None], self.mask_embedding, latents)
        missed = self.out(encoder.context_encoder(hidden, padding_mask)) - latents.detach()
        return {"loss": self.weight * missed[mask].square().mean()}
"""


def test_an_objective_of_ones_own_trains(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_objective.py").write_text(OWN_OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    own = "objective.name=own_objective:Regression"
    with pytest.raises(ValueError, match="has the options weight, found wait"):
        run_pretrain(data, tmp_path / "run", quiet, own, "objective.options.wait=2")
    run_pretrain(data, tmp_path / "run", quiet, own, "objective.options.weight=2")
    found = losses(tmp_path / "run")
    assert found[10] < found[1]
    assert load_encoder(tmp_path / "run")[0].mask_embedding.any()


def test_pretraining_goes_on_with_an_encoder(
    data: Dataset, built: Callable[[str], Dataset], tmp_path: Path, quiet: Console
) -> None:
    first, other, out = tmp_path / "first", built("train"), tmp_path / "on"
    run_pretrain(data, first, quiet)
    hardly = ["optim.lr=1e-12", "train.steps=4"]
    run_pretrain(other, out, quiet, *hardly, "model.overrides.dropout=0.3", encoder=first)
    assert "not the one of [model]: dropout" in quiet.file.getvalue()  # type: ignore[attr-defined]
    (before, card), (after, its_card) = load_encoder(first), load_encoder(out)
    for name, tensor in before.state_dict().items():  # mask embedding and normaliser, too
        torch.testing.assert_close(after.state_dict()[name], tensor, rtol=0, atol=1e-9)
    assert before.mask_embedding.any()
    assert card.trained_on == (data.manifest.fingerprint,)
    assert its_card.trained_on == (data.manifest.fingerprint, other.manifest.fingerprint)
    with pytest.raises(DatasetError, match=r"`encoder`: saved \{.*, now None"):
        run_pretrain(other, out, quiet, *hardly, "model.overrides.dropout=0.3", resume=True)
    hardly.append("model.overrides.dropout=0.3")
    assert run_pretrain(other, out, quiet, *hardly, encoder=first, resume=True).is_complete
    # The encoder of a tagger, whose body has learnt, will do as well.
    run_finetune(data, tmp_path / "tagger", quiet, encoder=first)
    run_pretrain(other, tmp_path / "from-tagger", quiet, *hardly, encoder=tmp_path / "tagger")


def test_pretraining_goes_on_with_the_features_it_knows(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    encoder = AudioEncoder(EncoderConfig(n_mels=128, dim=8, latent_dim=8, n_layers=1, n_heads=2))
    card = ModelCard(
        kind="encoder", encoder=encoder.config, features=PRESETS["kaldi128"], crop_s=1.0,
        trained_on=(), steps=1,
    )  # fmt: skip
    write_model(tmp_path / "model", encoder.state_dict(), card)
    with pytest.raises(DatasetError, match="features differ"):
        run_pretrain(data, tmp_path / "run", quiet, encoder=tmp_path / "model")
    assert not (tmp_path / "run").exists()


def test_fine_tuning_starts_from_the_pretrained_weights(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "pre", quiet)
    sets = ["finetune.freeze_body_steps=all"]
    run_finetune(data, tmp_path / "fine", quiet, *sets, encoder=tmp_path / "pre")
    encoder, _ = load_encoder(tmp_path / "pre")
    tagger, card = load_tagger(tmp_path / "fine")
    assert card.label_names == data.manifest.label_names
    for name, tensor in encoder.state_dict().items():  # the body rested for all six steps
        assert torch.equal(tensor, tagger.encoder.state_dict()[name]), name


def test_the_body_moves_once_it_is_not_frozen(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "pre", quiet)
    sets = ["finetune.freeze_body_steps=5"]
    run_finetune(data, tmp_path / "fine", quiet, *sets, encoder=tmp_path / "pre")
    encoder, _ = load_encoder(tmp_path / "pre")
    tagger, _ = load_tagger(tmp_path / "fine")
    moved = [
        not torch.equal(tensor, tagger.encoder.state_dict()[name])
        for name, tensor in encoder.named_parameters()
    ]
    assert all(moved)


def test_fine_tuning_fits_the_clips_it_sees_and_evaluation_says_so(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    sets = ["train.steps=80", "data.batch_size=8", "optim.lr=2e-3", "model.overrides.dropout=0.0"]
    run_finetune(data, tmp_path / "fine", quiet, *sets)
    metrics, _ = evaluate(tmp_path / "fine", data.folder, device=CPU)
    assert metrics.accuracy is not None
    assert metrics.accuracy > 0.6
    assert metrics.n_samples == len(data)


def test_evaluation_scores_every_clip_once_in_order(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_finetune(data, tmp_path / "fine", quiet)
    tagger, card = load_tagger(tmp_path / "fine")
    found = predict(tagger, card, data)
    assert list(found.keys) == [key.decode() for key in data.index.sample_keys()]
    assert found.scores.shape == (len(data), len(data.manifest.label_names))
    np.testing.assert_allclose(found.scores.sum(1), 1, rtol=1e-5)
    for row in range(len(data)):
        assert np.flatnonzero(found.labels[row]).tolist() == data.index.labels(row).tolist()


def test_single_label_training_refuses_clips_with_other_numbers_of_labels(
    tmp_path: Path, quiet: Console
) -> None:
    unlabelled = write_dataset(tmp_path / "unlabelled", [[make_sample(n) for n in range(8)]]).folder
    recipe = load_recipe("demo-finetune", FinetuneRecipe)
    with pytest.raises(DatasetError, match="has no labels"):
        finetune(recipe, unlabelled, tmp_path / "fine", device=CPU, console=quiet)
    assert not (tmp_path / "fine").exists()


def test_a_model_of_other_features_is_refused(
    data: Dataset, recordings: Path, tmp_path: Path, quiet: Console
) -> None:
    settings = PlanSettings(corpus="folder", features=PRESETS["kaldi128"])
    plan = make_plan(folder.scan(recordings / "eval"), settings)
    build(plan, open_storage(tmp_path / "kaldi"), run_here, lambda done, note: None)
    run_finetune(data, tmp_path / "fine", quiet, "train.steps=3")
    with pytest.raises((ValueError, DatasetError), match="n_mels"):
        evaluate(tmp_path / "fine", tmp_path / "kaldi", device=CPU)


def test_the_wrong_kind_of_model_is_refused(data: Dataset, tmp_path: Path, quiet: Console) -> None:
    run_pretrain(data, tmp_path / "pre", quiet)
    with pytest.raises(DatasetError, match="must hold a tagger, found an encoder"):
        evaluate(tmp_path / "pre", data.folder, device=CPU)
    with pytest.raises(DatasetError, match="no model at"):
        evaluate(tmp_path / "nothing", data.folder, device=CPU)


def test_masks_cover_kaldi_features_whose_lowest_bands_never_move(
    recordings: Path, tmp_path: Path, quiet: Console
) -> None:
    settings = PlanSettings(corpus="folder", features=PRESETS["kaldi128"])
    plan = make_plan(folder.scan(recordings / "eval"), settings)
    build(plan, open_storage(tmp_path / "kaldi"), run_here, lambda done, note: None)
    dataset = open_dataset(tmp_path / "kaldi")
    assert min(dataset.manifest.band_std) < 1e-3
    result = run_pretrain(dataset, tmp_path / "run", quiet, "train.steps=3")
    assert np.isfinite(result.figures["loss"])


def test_a_log_torn_by_a_crash_does_not_stop_a_resume(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    out = tmp_path / "run"
    run_pretrain(data, out, quiet)
    expected = losses(out)
    shutil.rmtree(out / "checkpoints" / "step-000010")
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    run_pretrain(data, out, quiet, resume=True)
    assert losses(out) == expected


def test_the_encoder_of_a_tagger_can_be_tuned_again(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_finetune(data, tmp_path / "first", quiet)
    sets = ["finetune.freeze_body_steps=all"]
    run_finetune(data, tmp_path / "second", quiet, *sets, encoder=tmp_path / "first")
    (first, _), (second, card) = (load_tagger(tmp_path / name) for name in ("first", "second"))
    for name, tensor in first.encoder.state_dict().items():  # the body rested for all six steps
        assert torch.equal(tensor, second.encoder.state_dict()[name]), name
    assert not torch.equal(first.head.classifier.weight, second.head.classifier.weight)
    assert card.trained_on == (data.manifest.fingerprint,) * 2


def test_an_unfinished_run_is_not_taken_for_a_model(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run_pretrain(data, tmp_path / "run", quiet)
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(DatasetError, match="is not finished; go on with it by --resume"):
        load_encoder(tmp_path / "run")


def test_weights_that_are_not_finite_never_replace_a_checkpoint(
    data: Dataset, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Updater.update

    def spoiling(self: Updater, step: int, batch: Batch) -> dict[str, torch.Tensor]:
        figures = original(self, step, batch)
        if step == 6:
            with torch.no_grad():
                next(self._learner.module.parameters()).fill_(torch.nan)
        return figures

    monkeypatch.setattr(Updater, "update", spoiling)
    with pytest.raises(MelstreamError, match="weights are not finite at step 8"):
        run_pretrain(data, tmp_path / "run", quiet)
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-000004"


def test_a_checkpoint_is_a_start_for_fine_tuning(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    run = tmp_path / "run"
    run_pretrain(data, run, quiet)
    shutil.rmtree(run / "model")  # as if it had not come to its end
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    with pytest.raises(DatasetError, match=f"not finished; .* its last checkpoint: {checkpoint}"):
        run_finetune(data, tmp_path / "tagger", quiet, encoder=run)
    encoder, card = load_encoder(checkpoint)
    assert card.steps == 10
    for name, value in encoder.named_parameters():
        assert torch.equal(value, weights(run)[f"encoder.{name}"])
    assert torch.equal(encoder.mask_embedding, weights(run)["objective.mask_embedding"])
    run_finetune(data, tmp_path / "tagger", quiet, encoder=checkpoint)
    last = latest_checkpoint(tmp_path / "tagger" / "checkpoints")
    assert last is not None
    from_run, from_checkpoint = load_tagger(tmp_path / "tagger")[0], load_tagger(last)[0]
    for name, value in from_run.state_dict().items():
        assert torch.equal(from_checkpoint.state_dict()[name], value)


def test_a_damaged_config_is_named(data: Dataset, tmp_path: Path, quiet: Console) -> None:
    run_pretrain(data, tmp_path / "run", quiet)
    (tmp_path / "run" / "config.json").write_text('{"recipe": ')
    with pytest.raises(DatasetError, match=r"run/config.json is damaged .* another --out"):
        run_pretrain(data, tmp_path / "run", quiet, resume=True)


def test_a_run_is_not_resumed_with_another_encoder(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    for seed in (1, 2):
        run_pretrain(data, tmp_path / f"encoder-{seed}", quiet, f"train.seed={seed}")
    wide = ["model.overrides.dim=128"]
    run_pretrain(data, tmp_path / "wide", quiet, *wide)
    run_finetune(data, tmp_path / "run", quiet, encoder=tmp_path / "encoder-1")
    recipe = load_recipe("demo-finetune", FinetuneRecipe, [*SMALL, "train.steps=6"])
    for other, difference in (("encoder-2", "encoder.start"), ("wide", "encoder.dim")):
        with pytest.raises(DatasetError, match=f"`{difference}`: saved"):
            finetune(
                recipe, data.folder, tmp_path / "run", device=CPU, console=quiet,
                encoder_path=tmp_path / other, resume=True,
            )  # fmt: skip


def test_clips_that_are_scored_in_part_are_counted(
    data: Dataset,
    tmp_path: Path,
    quiet: Console,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_finetune(data, tmp_path / "run", quiet)
    evaluate(tmp_path / "run", data.folder, device=CPU)
    assert [message.partition(" was ")[2] for message in caplog.messages] == [
        f"trained on clips of {data.folder}: its figures there say little"
    ]
    longest = int(data.index.n_frames.max())
    monkeypatch.setattr(
        evaluate_module, "LoaderConfig", partial(LoaderConfig, max_frames=longest - 1)
    )
    evaluate(tmp_path / "run", data.folder, device=CPU)
    n_longest = int((data.index.n_frames == longest).sum())
    assert f"{n_longest} of {len(data)} clips are longer than a minute" in caplog.text


def test_clips_that_are_all_too_short_name_the_field_and_the_longest(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    longest = f"the longest has {data.index.duration_s.max():.3g} s: lower `data.min_s`"
    with pytest.raises(ValueError, match=f"shorter than 99 s, {longest}"):
        run_pretrain(data, tmp_path / "run", quiet, "data.min_s=99")


def test_a_mask_that_hides_every_step_is_refused(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    with pytest.raises(ValueError, match=r"`mask.mask_length` \(30\) hides all 25 latent steps"):
        run_pretrain(data, tmp_path / "run", quiet, "mask.mask_length=30")


def test_parts_that_do_not_divide_a_batch_claim_no_folder(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    with pytest.raises(ValueError, match=r"`train.accumulate` must divide .* \(4\), found 3"):
        run_pretrain(data, tmp_path / "run", quiet, "train.accumulate=3")
    assert run_pretrain(data, tmp_path / "run", quiet, "train.accumulate=2").is_complete


def test_accumulation_mixes_the_clips_that_a_whole_batch_mixes(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    """Also where a part is one clip, which has nobody in it to be mixed with."""
    sets = (
        "augment.mixup_share=1.0",
        "augment.time_masks=1",
        "augment.rolls=true",
        "finetune.dropout=0.0",
    )
    curves = []
    for n_parts in (1, 2, 4):
        out = tmp_path / str(n_parts)
        run_finetune(data, out, quiet, *sets, f"train.accumulate={n_parts}")
        curves.append(list(losses(out).values()))
    assert curves[1:] == [pytest.approx(curves[0], rel=1e-4)] * 2


def test_a_body_of_random_weights_that_rests_is_warned_of(
    data: Dataset, tmp_path: Path, quiet: Console
) -> None:
    frozen = ["finetune.freeze_body_steps=all", "finetune.freezes_feature_encoder=true"]
    run_finetune(data, tmp_path / "run", quiet, *frozen)
    said = " ".join(quiet.file.getvalue().split())  # type: ignore[attr-defined]
    assert "no --encoder: for 6 steps only the head learns, on a body of random weights" in said
    assert "and the feature encoder stays random" in said
