"""``melstream finetune``: an encoder and a new head learn labels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor, nn

from ..model.augment import augment
from ..model.encoder import AudioEncoder
from ..model.hiding import draw_hidden
from ..model.optim import parameter_groups
from ..model.tagger import Tagger
from ..pipeline.batch import Batch
from ..shards.dataset import Dataset
from .distributed import World
from .evaluate import predict, warn_of_cut_clips, write_report
from .finetune_checks import (
    require_labels,
    require_same_labels,
    tell_of_padding,
    warn_of_frozen_noise,
    warn_of_leak,
)
from .model_folder import ModelCard, load_encoder, load_tagger, require_features, weights_digest
from .parts import Part
from .recipe import FinetuneRecipe
from .run_folder import HEADLINE, VALIDATION_NAME
from .train_step import Learner
from .training import Result, Trainer, finish_run
from .training_data import (
    band_statistics,
    open_data,
    row_statistics,
    run_config,
    training_batches,
)
from .utilisation import samples_per_s_at_peak
from .wandb_log import require_wandb

_AUGMENTATION = 0x5851F42D4C957F2D  # tells its draws from dropout's, of the same seed


def finetune(
    recipe: FinetuneRecipe,
    data: str | Path,
    out: Path,
    *,
    device: torch.device,
    console: Console,
    encoder_path: Path | None = None,
    valid: str | Path | None = None,
    part: Part | None = None,
    resume: bool = False,
    world: World | None = None,
) -> Result:
    """Fine-tune a tagger.

    Args:
        recipe: all of the run.
        data: the labelled data set.
        out: folder of the run; ``out/model`` holds the tagger at the end.
        device: where to train.
        console: where progress is shown.
        encoder_path: run or model folder, also of a tagger; None trains from scratch.
        valid: data set to validate on every ``train.validate_every`` steps and at the end;
            the weights that did best there become the model, whose results on it, class by
            class, are written to ``out/evaluation-valid.json``. None: the last weights do.
        part: learn from a part of ``data`` only, and perhaps validate on another.
        resume: go on from the last checkpoint in ``out``.
        world: this process among those of the run; None: it is the only one.

    Raises:
        ValueError: the recipe and the data set do not fit.
        DatasetError: no data set, no labels, no encoder, or ``out`` holds another run.
    """
    world = world or World(device)
    require_wandb(recipe.train.wandb_project)
    (dataset,) = open_data(data, recipe.data)
    chosen = None if part is None else part.train
    require_labels(dataset, recipe.tagger.task, chosen)
    held_out, rows = _held_out(recipe, dataset, valid, part, console)
    if held_out is not None:
        require_labels(held_out, recipe.tagger.task, rows)
        warn_of_leak(held_out, rows, dataset, chosen, console)
        if world.is_main:
            warn_of_cut_clips(held_out, rows)
    if part is None and len(dataset.used_splits) > 1:
        console.print(
            f"learns from every split of {dataset.url}: {', '.join(dataset.used_splits.values())}; "
            "--split takes some of them",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if encoder_path is None:
        warn_of_frozen_noise(recipe, console)
    tagger, card = _build(recipe, dataset, encoder_path, part)
    start = None if encoder_path is None else weights_digest(tagger.encoder)
    tagger.to(world.device)
    order, _, loader = training_batches(
        [dataset], recipe, stride=card.encoder.stride, min_frames=1,
        chosen=chosen, world=world, console=console,
    )  # fmt: skip
    tell_of_padding(recipe, dataset, chosen, console)
    config = run_config(recipe.model_dump(mode="json"), order, card.features)
    config |= {"trained_on": card.trained_on, "part": None if part is None else part.name}
    config |= {"valid": None if held_out is None else held_out.manifest.fingerprint}
    config |= {"encoder": {"start": start, **card.encoder.model_dump()}}
    trainer = Trainer(
        _learner(recipe, tagger, card, _validation(recipe, tagger, card, held_out, rows, world)),
        order, loader, recipe=recipe, folder=out, config=config, card=card, console=console,
        world=world,
    )  # fmt: skip
    result = trainer.run("fine-tuning", resume=resume)
    if result.is_complete:
        finish_run(
            out, trainer.final_model, world=world,
            measure=lambda: _write_evaluation(recipe, out, held_out, rows, world),
        )  # fmt: skip
    return result


def _held_out(
    recipe: FinetuneRecipe,
    dataset: Dataset,
    valid: str | Path | None,
    part: Part | None,
    console: Console,
) -> tuple[Dataset | None, npt.NDArray[np.int64] | None]:
    """Give the data set to validate on and its rows, None for all of them.

    Say so where the recipe wants one and there is none.
    """
    if part is not None and part.held_out is not None:
        return dataset, part.held_out
    if valid is not None:
        (held_out,) = open_data(valid, recipe.data)
        require_same_labels(held_out, dataset)
        return held_out, None
    if recipe.train.stop_after:
        raise ValueError(
            f"`train.stop_after` ({recipe.train.stop_after}) needs held-out data; give --valid or "
            "--valid-split, or --set train.stop_after=0"
        )
    if recipe.train.validate_every:
        console.print(
            f"no --valid: the recipe would validate every {recipe.train.validate_every} steps, now "
            "the last weights become the model",
            highlight=False,
            soft_wrap=True,
        )
    return None, None


def _build(
    recipe: FinetuneRecipe,
    dataset: Dataset,
    encoder_path: Path | None,
    part: Part | None,
) -> tuple[Tagger, ModelCard]:
    """Build the tagger and its card; its new weights are the same on every process."""
    torch.manual_seed(recipe.train.seed)
    encoder, history = _body(recipe, dataset, encoder_path, None if part is None else part.train)
    manifest = dataset.manifest
    card = ModelCard(
        kind="tagger",
        encoder=encoder.config.model_copy(update={"checkpoints_activations": False}),
        features=manifest.features,
        crop_s=recipe.data.crop_s,
        tagger=recipe.tagger,
        label_names=manifest.label_names,
        trained_on=(*history, manifest.fingerprint),
        splits=() if part is None else part.splits,
        made_of=manifest.made_of,
        steps=0,
    )
    return Tagger(encoder, recipe.tagger, len(manifest.label_names)), card


def _validation(
    recipe: FinetuneRecipe,
    tagger: Tagger,
    card: ModelCard,
    held_out: Dataset | None,
    rows: npt.NDArray[np.int64] | None,
    world: World,
) -> Callable[[Callable[[], object]], dict[str, float]] | None:
    """Return what measures the tagger on held-out clips; None where there are none."""
    if held_out is None:
        return None

    def validate(heed: Callable[[], object]) -> dict[str, float]:
        predictions = predict(
            tagger, card, held_out, rows=rows, world=world, cache=recipe.data.cache, heed=heed
        )
        return predictions.metrics(tagger.config.task).summary()

    return validate


def _write_evaluation(
    recipe: FinetuneRecipe,
    run: Path,
    held_out: Dataset | None,
    rows: npt.NDArray[np.int64] | None,
    world: World,
) -> None:
    """Measure the finished model on the held-out clips, each class alone."""
    if held_out is None:
        return
    tagger, card = world.on_all(lambda: load_tagger(run))
    tagger.to(world.device)
    predictions = predict(tagger, card, held_out, rows=rows, world=world, cache=recipe.data.cache)
    world.on_main(
        lambda: write_report(run / VALIDATION_NAME, predictions.metrics(tagger.config.task), card)
    )


def _learner(
    recipe: FinetuneRecipe,
    tagger: Tagger,
    card: ModelCard,
    validate: Callable[[Callable[[], object]], dict[str, float]] | None,
) -> Learner:
    encoder = tagger.encoder
    generator = torch.Generator(next(tagger.parameters()).device)

    def augmented(batch: Batch) -> Batch:
        assert batch.labels is not None
        logmel, n_frames, labels = augment(
            batch.logmel,
            batch.n_frames,
            batch.labels,
            recipe.augment,
            fill=encoder.normalizer.mean,
            generator=generator,
        )
        return replace(batch, logmel=logmel, n_frames=n_frames, labels=labels)

    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        hidden = draw_hidden(
            batch.n_frames,
            recipe.hiding,
            stride=card.encoder.stride,
            n_steps=batch.logmel.shape[1] // card.encoder.stride,
            latent_dim=card.encoder.latent_dim,
            generator=generator,
        )
        logits = model(batch.logmel, batch.n_frames_if_padded, hidden)
        return {"loss": tagger.loss(logits, batch.labels)}

    return Learner(
        tagger,
        learning_groups(tagger, recipe),
        losses,
        body=encoder,
        prepare=lambda step, seed: generator.manual_seed(seed ^ _AUGMENTATION),
        transform=augmented,
        validate=validate,
        metric=HEADLINE[recipe.tagger.task],
        peak_samples_per_s=samples_per_s_at_peak(
            card.encoder,
            round(card.crop_s * card.features.frame_rate_hz),
            device=generator.device,
            precision=recipe.train.precision,
        ),
    )


def _body(
    recipe: FinetuneRecipe,
    dataset: Dataset,
    path: Path | None,
    rows: npt.NDArray[np.int64] | None,
) -> tuple[AudioEncoder, tuple[str, ...]]:
    """Return the encoder, with the recipe's regularisation, and the data sets it learnt from."""
    changes = {
        "layer_drop": recipe.finetune.layer_drop,
        "dropout": recipe.finetune.dropout,
        "checkpoints_activations": recipe.train.checkpoints_activations,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if path is None:
        config = recipe.model.encoder_config(dataset.manifest.features.n_mels)
        encoder = AudioEncoder(config.model_copy(update=changes))
        statistics = band_statistics([dataset]) if rows is None else row_statistics(dataset, rows)
        encoder.normalizer.set_statistics(*statistics)
        return encoder, ()
    encoder, card = load_encoder(path, changes)
    require_features(card, dataset.manifest, dataset.url)
    return encoder, card.trained_on


def learning_groups(tagger: Tagger, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """Head and body at their own rates and warm-ups; the body rests during the first steps."""
    options, decay = recipe.finetune, recipe.optim.weight_decay
    head = parameter_groups(tagger.head, options.head_lr, decay)
    if options.head_warmup_steps is not None:
        head = [group | {"warmup_steps": options.head_warmup_steps} for group in head]
    parts = [tagger.encoder.context_encoder]
    if options.freezes_feature_encoder:
        tagger.encoder.feature_encoder.requires_grad_(False)
    else:
        parts = [tagger.encoder.feature_encoder, *parts]
    body = parameter_groups(nn.ModuleList(parts), recipe.optim.lr, decay)
    return head + [group | {"frozen_steps": recipe.n_frozen_steps} for group in body]
