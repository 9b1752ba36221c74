"""``melstream pretrain``: an encoder learns from unlabelled log-mels."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from ..model.encoder import AudioEncoder, EncoderConfig
from ..model.objectives import build_objective
from ..model.optim import parameter_groups
from ..model.pretraining import PretrainingModel
from ..pipeline.batch import Batch
from ..pipeline.loader import LoaderConfig
from ..pipeline.masks import count_masked
from ..shards.dataset import Dataset
from .distributed import World
from .model_folder import ModelCard
from .recipe import PretrainRecipe
from .text_tables import many
from .train_step import Learner
from .training import Result, Trainer, finish_run
from .training_data import (
    Places,
    band_statistics,
    open_data,
    run_config,
    training_batches,
)
from .utilisation import samples_per_s_at_peak
from .wandb_log import require_wandb

MIN_MASKED_STEPS = 2  # a masked step needs another one as its distractor


def pretrain(
    recipe: PretrainRecipe,
    data: Places,
    out: Path,
    *,
    device: torch.device,
    console: Console,
    resume: bool = False,
    world: World | None = None,
) -> Result:
    """Pre-train an encoder.

    Args:
        recipe: all of the run.
        data: the data set, or those of a mixture; their labels are not used.
        out: folder of the run; ``out/model`` holds the encoder at the end.
        device: where to train.
        console: where progress is shown.
        resume: go on from the last checkpoint in ``out``.
        world: this process among those of the run; None: it is the only one.

    Raises:
        ValueError: the recipe and the data set do not fit.
        DatasetError: no data set, or ``out`` holds another run.
    """
    world = world or World(device)
    require_wandb(recipe.train.wandb_project)
    datasets = open_data(data, recipe.data)
    features = datasets[0].manifest.features
    encoder_config = recipe.model.encoder_config(features.n_mels)
    order, crops, loader = training_batches(
        datasets,
        recipe,
        stride=encoder_config.stride,
        min_frames=MIN_MASKED_STEPS * encoder_config.stride,
        mask=recipe.mask,
        world=world,
        console=console,
    )
    _tell_of_short_clips(datasets, recipe, crops, console)
    statistics = band_statistics(datasets, order.shares)
    model = _build(recipe, encoder_config, statistics).to(world.device)
    learner = _learner(recipe, model, crops, world)
    config = run_config(recipe.model_dump(mode="json"), order, features)
    trainer = Trainer(
        learner,
        order,
        loader,
        recipe=recipe,
        folder=out,
        config=config,
        card=_card(recipe, encoder_config, datasets),
        console=console,
        world=world,
    )
    result = trainer.run("pre-training", resume=resume)
    if result.is_complete:
        finish_run(out, trainer.final_weights, trainer.final_card(), world=world)
    return result


def _tell_of_short_clips(
    datasets: Sequence[Dataset], recipe: PretrainRecipe, crops: LoaderConfig, console: Console
) -> None:
    """Say that short clips lower the masked share of the batches they are in."""
    assert crops.crop_frames is not None
    crop_s, least_s = recipe.data.crop_s, recipe.data.min_s
    n_short = sum(
        int(((index.n_frames < crops.crop_frames) & (index.duration_s >= least_s)).sum())
        for index in (dataset.index for dataset in datasets)
    )
    if n_short:
        console.print(
            f"warning: {many(n_short, 'clip')} shorter than a crop of {crop_s:g} s: no clip of a "
            "batch is masked in more steps than its shortest allows; --set data.min_s="
            f"{crop_s:g} leaves them out",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _build(
    recipe: PretrainRecipe, config: EncoderConfig, statistics: tuple[Tensor, Tensor]
) -> PretrainingModel:
    """Build encoder and objective with fresh weights, the same on every process."""
    torch.manual_seed(recipe.train.seed)
    saves_memory = recipe.train.checkpoints_activations
    encoder = AudioEncoder(config.model_copy(update={"checkpoints_activations": saves_memory}))
    encoder.normalizer.set_statistics(*statistics)
    objective = build_objective(recipe.objective.name, recipe.objective.options, config)
    return PretrainingModel(encoder, objective)


def _learner(
    recipe: PretrainRecipe, model: PretrainingModel, crops: LoaderConfig, world: World
) -> Learner:
    encoder, n_frames = model.encoder.config, crops.crop_frames
    assert n_frames is not None
    n_steps = n_frames // encoder.stride
    n_masked = count_masked(n_steps, recipe.mask)
    if n_masked == n_steps:
        raise ValueError(
            f"`mask.mask_length` ({recipe.mask.mask_length}) hides all {n_steps} latent steps of a "
            "crop: lower it, or lengthen `data.crop_s`"
        )
    return Learner(
        model,
        parameter_groups(model, recipe.optim.lr, recipe.optim.weight_decay),
        _losses,
        prepare=lambda step, seed: model.set_step(step),
        peak_samples_per_s=samples_per_s_at_peak(
            encoder, n_frames, device=world.device, precision=recipe.train.precision
        ),
    )


def _card(recipe: PretrainRecipe, encoder: EncoderConfig, datasets: Sequence[Dataset]) -> ModelCard:
    return ModelCard(
        kind="encoder",
        encoder=encoder,
        features=datasets[0].manifest.features,
        crop_s=recipe.data.crop_s,
        trained_on=tuple(dataset.manifest.fingerprint for dataset in datasets),
        steps=0,
    )


def _losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return model(batch.logmel, batch.n_frames_if_padded, batch.mask, batch.distractors)
