"""``melstream finetune``: an encoder and a new head learn labels."""

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..model.encoder import AudioEncoder
from ..model.optim import parameter_groups
from ..model.tagger import Tagger
from ..pipeline.loader import Batch, Loader
from ..shards.dataset import Dataset, open_dataset
from ..shards.errors import DatasetError
from .evaluate import predict
from .model_folder import ModelCard, load_encoder, require_features, write_model
from .pretrain import band_statistics, run_config, training_crops, training_order
from .recipe import FinetuneRecipe
from .run_folder import HEADLINE, MODEL_NAME, claim_run
from .training import Learner, Result, Trainer


def finetune(
    recipe: FinetuneRecipe,
    data: str | Path,
    out: Path,
    *,
    device: torch.device,
    console: Console,
    encoder_path: Path | None = None,
    valid: str | Path | None = None,
    resume: bool = False,
) -> Result:
    """Fine-tune a tagger.

    Args:
        recipe: all of the run.
        data: the labelled data set.
        out: folder of the run; ``out/model`` holds the tagger at the end.
        device: where to train.
        console: where progress is shown.
        encoder_path: run or model folder of ``melstream pretrain``; None trains from scratch.
        valid: data set to validate on every ``train.validate_every`` steps and at the end;
            the weights that did best there become the model. None: the last weights do.
        resume: go on from the last checkpoint in ``out``.

    Raises:
        ValueError: the recipe and the data set do not fit.
        DatasetError: no data set, no labels, no encoder, or ``out`` holds another run.
    """
    dataset = open_dataset(data)
    _require_labels(dataset, recipe.tagger.task)
    held_out = None if valid is None else open_dataset(valid)
    if held_out is not None:
        _require_same_labels(held_out, dataset)
    torch.manual_seed(recipe.train.seed)
    encoder, history = _body(recipe, dataset, encoder_path)
    tagger = Tagger(encoder, recipe.tagger, len(dataset.manifest.label_names)).to(device)
    card = _card(recipe, dataset, encoder, history)
    order = training_order(
        dataset, recipe.data, seed=recipe.train.seed, min_frames=1, console=console
    )
    crops = training_crops(
        recipe.data,
        card.features,
        stride=encoder.config.stride,
        mask=None,
        seed=recipe.train.seed,
    )
    config = run_config(recipe.model_dump(mode="json"), dataset) | {"trained_on": card.trained_on}
    claim_run(out, config, resume=resume)
    trainer = Trainer(
        _learner(recipe, tagger, card, held_out),
        order,
        Loader(dataset, order, crops),
        train=recipe.train,
        optim=recipe.optim,
        folder=out,
        meta=config,
        console=console,
    )
    result = trainer.run("fine-tuning", resume=resume)
    if result.is_complete:
        write_model(out / MODEL_NAME, trainer.best_weights(), card)
    return result


def _card(
    recipe: FinetuneRecipe, dataset: Dataset, encoder: AudioEncoder, history: tuple[str, ...]
) -> ModelCard:
    manifest = dataset.manifest
    return ModelCard(
        kind="tagger",
        encoder=encoder.config,
        features=manifest.features,
        crop_s=recipe.data.crop_s,
        tagger=recipe.tagger,
        label_names=manifest.label_names,
        trained_on=(*history, manifest.fingerprint),
        steps=recipe.train.steps,
    )


def _learner(
    recipe: FinetuneRecipe, tagger: Tagger, card: ModelCard, held_out: Dataset | None
) -> Learner:
    task = recipe.tagger.task

    def losses(batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        return {"loss": tagger.loss(tagger(batch.logmel, batch.n_frames), batch.labels)}

    def validate() -> dict[str, float]:
        assert held_out is not None
        return predict(tagger, card, held_out).metrics(task).summary()

    return Learner(
        tagger,
        _groups(tagger, recipe),
        losses,
        validate=None if held_out is None else validate,
        metric=HEADLINE[task],
    )


def _body(
    recipe: FinetuneRecipe, dataset: Dataset, path: Path | None
) -> tuple[AudioEncoder, tuple[str, ...]]:
    """Return the encoder and the data sets it has learnt from."""
    if path is None:
        encoder = AudioEncoder(recipe.model.encoder_config(dataset.manifest.features.n_mels))
        encoder.normalizer.set_statistics(*band_statistics(dataset))
        return encoder, ()
    encoder, card = load_encoder(path)
    require_features(card, dataset.manifest, dataset.url)
    return encoder, card.trained_on


def _groups(tagger: Tagger, recipe: FinetuneRecipe) -> list[dict[str, object]]:
    """Head and body at their own rates; the body rests during the first steps."""
    decay = recipe.optim.weight_decay
    body = parameter_groups(tagger.encoder, recipe.optim.lr, decay)
    head = parameter_groups(tagger.head, recipe.finetune.head_lr, decay)
    return head + [g | {"frozen_steps": recipe.finetune.freeze_body_steps} for g in body]


def _require_same_labels(held_out: Dataset, dataset: Dataset) -> None:
    """Refuse a validation set that a model of the training set cannot be measured on."""
    held_out.manifest.features.require_same(dataset.manifest.features, held_out.url)
    unknown = set(held_out.manifest.label_names) - set(dataset.manifest.label_names)
    if unknown or not held_out.manifest.label_names:
        found = f"{sorted(unknown)[:5]} beside them" if unknown else "none"
        raise DatasetError(
            f"{held_out.url} must have labels among those of {dataset.url}, found {found}; "
            "build both with one label list"
        )


def _require_labels(dataset: Dataset, task: str) -> None:
    """Refuse a data set that cannot teach the task."""
    if not dataset.manifest.label_names:
        raise DatasetError(f"{dataset.url} has no labels; build it from a labelled corpus")
    if task != "single_label":
        return
    counts = np.diff(dataset.index.label_indptr)
    if (counts != 1).any():
        row = int(np.flatnonzero(counts != 1)[0])
        raise DatasetError(
            f'tagger.task = "single_label" needs one label per clip, {int((counts != 1).sum())} of '
            f"{len(counts)} clips have another number (first: {dataset.key(row)}, {counts[row]}); "
            'use "multi_label"'
        )
