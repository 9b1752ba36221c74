"""``melstream pretrain``: an encoder learns from unlabelled log-mels."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from ..model.encoder import AudioEncoder, EncoderConfig
from ..model.objectives import build_objective
from ..model.optim import OptimConfig, parameter_groups
from ..model.pretraining import PretrainingModel
from ..pipeline.batch import Batch
from ..pipeline.loader import LoaderConfig
from ..pipeline.masks import MaskConfig, count_masked
from ..shards.dataset import Dataset
from .distributed import World
from .model_folder import ModelCard, load_encoder, require_features, weights_digest
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
    encoder_path: Path | None = None,
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
        encoder_path: run, model or checkpoint folder, whose encoder and mask embedding learn on, as
            on audio of another kind; None: fresh weights.
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
    encoder, history = _encoder(recipe, datasets, encoder_path)
    start = None if encoder_path is None else weights_digest(encoder)
    if start is not None:
        _tell_of_other_sizes(recipe, encoder.config, console)
    order, crops, loader = training_batches(
        datasets,
        recipe,
        stride=encoder.config.stride,
        min_frames=MIN_MASKED_STEPS * encoder.config.stride,
        mask=recipe.mask,
        world=world,
        console=console,
    )
    _tell_of_short_clips(datasets, recipe, crops, console)
    if start is None:
        encoder.normalizer.set_statistics(*band_statistics(datasets, order.shares))
    assert crops.crop_frames is not None
    _require_context(recipe.mask, crops.crop_frames // encoder.config.stride)
    learner = pretraining_learner(
        _with_objective(recipe, encoder).to(world.device),
        recipe.optim,
        peak_samples_per_s=samples_per_s_at_peak(
            encoder.config,
            crops.crop_frames,
            device=world.device,
            precision=recipe.train.precision,
        ),
    )
    config = run_config(recipe.model_dump(mode="json"), order, features)
    if start is not None:
        config |= {"encoder": {"start": start, **encoder.config.model_dump()}}
    trainer = Trainer(
        learner,
        order,
        loader,
        recipe=recipe,
        folder=out,
        config=config,
        card=_card(recipe, encoder.config, datasets, history),
        console=console,
        world=world,
    )
    result = trainer.run("pre-training", resume=resume)
    if result.is_complete:
        finish_run(out, trainer.final_model, world=world)
    return result


def _tell_of_other_sizes(recipe: PretrainRecipe, given: EncoderConfig, console: Console) -> None:
    """Say that a recipe's encoder is not the one that learns on."""
    asked = recipe.model.encoder_config(given.n_mels).model_dump()
    names = [name for name, value in given.model_dump().items() if asked[name] != value]
    names = [name for name in names if name != "checkpoints_activations"]
    if names:
        told = ", ".join(f"{name} {getattr(given, name)} for {asked[name]}" for name in names)
        console.print(
            f"the encoder that is given learns on, not the one of [model]: {told}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


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


def _encoder(
    recipe: PretrainRecipe, datasets: Sequence[Dataset], path: Path | None
) -> tuple[AudioEncoder, tuple[str, ...]]:
    """Return the encoder, the same on every process, and the data sets it has learnt from."""
    torch.manual_seed(recipe.train.seed)
    changes = {"checkpoints_activations": recipe.train.checkpoints_activations}
    if path is None:
        config = recipe.model.encoder_config(datasets[0].manifest.features.n_mels)
        return AudioEncoder(config.model_copy(update=changes)), ()
    encoder, card = load_encoder(path, changes)
    for dataset in datasets:
        require_features(card, dataset.manifest, dataset.url)
    return encoder, card.trained_on


def _with_objective(recipe: PretrainRecipe, encoder: AudioEncoder) -> PretrainingModel:
    """Put a fresh objective beside the encoder; it goes on with the mask embedding, if any."""
    objective = build_objective(recipe.objective.name, recipe.objective.options, encoder.config)
    embedding = getattr(objective, "mask_embedding", None)
    if embedding is not None and encoder.mask_embedding.any():
        embedding.data.copy_(encoder.mask_embedding)
    return PretrainingModel(encoder, objective)


def _require_context(mask: MaskConfig, n_steps: int) -> None:
    """Refuse masks that hide a whole crop."""
    if count_masked(n_steps, mask) == n_steps:
        raise ValueError(
            f"`mask.mask_length` ({mask.mask_length}) hides all {n_steps} latent steps of a crop: "
            "lower it, or lengthen `data.crop_s`"
        )


def pretraining_learner(
    model: PretrainingModel, optim: OptimConfig, *, peak_samples_per_s: float | None = None
) -> Learner:
    """Say how a training step learns from a batch with masks.

    Args:
        model: encoder and objective, on their device.
        optim: peak rate and weight decay.
        peak_samples_per_s: what a process could do at its device's peak; None: not known.
    """
    return Learner(
        model,
        parameter_groups(model, optim.lr, optim.weight_decay),
        pretraining_losses,
        prepare=lambda step, seed: model.set_step(step),
        peak_samples_per_s=peak_samples_per_s,
    )


def pretraining_losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Compute the objective's scalars of a batch with masks, on the model's device."""
    return model(batch.logmel, batch.n_frames_if_padded, batch.mask, batch.distractors)


def _card(
    recipe: PretrainRecipe,
    encoder: EncoderConfig,
    datasets: Sequence[Dataset],
    history: tuple[str, ...],
) -> ModelCard:
    return ModelCard(
        kind="encoder",
        encoder=encoder.model_copy(update={"checkpoints_activations": False}),
        features=datasets[0].manifest.features,
        crop_s=recipe.data.crop_s,
        trained_on=(*history, *(dataset.manifest.fingerprint for dataset in datasets)),
        steps=0,
    )
