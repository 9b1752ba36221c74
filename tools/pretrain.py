"""``melstream pretrain``: an encoder learns from unlabelled log-mels."""

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..model.encoder import AudioEncoder
from ..model.objectives import build_objective
from ..model.optim import parameter_groups
from ..model.pretraining import PretrainingModel
from ..pipeline.batch import Batch
from ..pipeline.loader import Loader, LoaderConfig
from ..pipeline.masks import MaskConfig
from ..pipeline.order import OrderConfig, TrainingOrder
from ..shards.dataset import Dataset, open_dataset
from ..shards.spec import FeatureSpec
from .model_folder import ModelCard, write_model
from .recipe import DataConfig, PretrainRecipe
from .run_folder import MODEL_NAME, claim_run
from .training import Learner, Result, Trainer

MIN_MASKED_STEPS = 2  # a masked step needs another one as its distractor
CONSTANT_BAND_STD = 1e-3  # of a log-mel; float16 rounds by more


def pretrain(
    recipe: PretrainRecipe,
    data: str | Path,
    out: Path,
    *,
    device: torch.device,
    console: Console,
    resume: bool = False,
) -> Result:
    """Pre-train an encoder.

    Args:
        recipe: all of the run.
        data: the data set; its labels are not used.
        out: folder of the run; ``out/model`` holds the encoder at the end.
        device: where to train.
        console: where progress is shown.
        resume: go on from the last checkpoint in ``out``.

    Raises:
        ValueError: the recipe and the data set do not fit.
        DatasetError: no data set, or ``out`` holds another run.
    """
    dataset = open_dataset(data)
    encoder_config = recipe.model.encoder_config(dataset.manifest.features.n_mels)
    order = training_order(
        dataset,
        recipe.data,
        seed=recipe.train.seed,
        min_frames=MIN_MASKED_STEPS * encoder_config.stride,
        console=console,
    )
    loader_config = training_crops(
        recipe.data,
        dataset.manifest.features,
        stride=encoder_config.stride,
        mask=recipe.mask,
        seed=recipe.train.seed,
    )
    torch.manual_seed(recipe.train.seed)
    encoder = AudioEncoder(encoder_config)
    encoder.normalizer.set_statistics(*band_statistics(dataset))
    objective = build_objective(recipe.objective.name, recipe.objective.options, encoder_config)
    model = PretrainingModel(encoder, objective).to(device)
    config = run_config(recipe.model_dump(mode="json"), dataset)
    claim_run(out, config, resume=resume)

    def losses(batch: Batch) -> dict[str, Tensor]:
        return model(batch.logmel, batch.n_frames, batch.mask, batch.distractors)

    groups = parameter_groups(model, recipe.optim.lr, recipe.optim.weight_decay)
    trainer = Trainer(
        Learner(model, groups, losses),
        order,
        Loader(dataset, order, loader_config),
        train=recipe.train,
        optim=recipe.optim,
        folder=out,
        meta=config,
        console=console,
    )
    result = trainer.run("pre-training", resume=resume)
    if result.is_complete:
        card = ModelCard(
            kind="encoder",
            encoder=encoder_config,
            features=dataset.manifest.features,
            crop_s=recipe.data.crop_s,
            trained_on=(dataset.manifest.fingerprint,),
            steps=result.step,
        )
        write_model(out / MODEL_NAME, encoder.state_dict(), card)
    return result


def training_order(
    dataset: Dataset, config: DataConfig, *, seed: int, min_frames: int, console: Console
) -> TrainingOrder:
    """Return the order over the clips that are long enough, and say how many are not."""
    manifest, index = dataset.manifest, dataset.index
    rows = np.flatnonzero((index.duration_s >= config.min_s) & (index.n_frames >= min_frames))
    n_short = len(dataset) - len(rows)
    if n_short:
        min_s = max(config.min_s, manifest.features.duration_s(min_frames))
        console.print(
            f"{len(rows)} of {len(dataset)} clips take part, "
            f"{n_short} are shorter than {min_s:g} s",
            highlight=False,
        )
    order_config = OrderConfig(
        seed=seed,
        global_batch_size=config.batch_size,
        n_streams=config.n_streams,
        shuffle_bytes=config.shuffle_bytes,
        tail=config.tail,
    )
    return TrainingOrder(dataset.index, manifest.fingerprint, order_config, rows)


def training_crops(
    config: DataConfig, features: FeatureSpec, *, stride: int, mask: MaskConfig | None, seed: int
) -> LoaderConfig:
    """Return the loader's settings: crops of a whole number of latent steps."""
    n_steps = round(config.crop_s * features.frame_rate_hz / stride)
    if n_steps < 2:
        raise ValueError(
            f"`data.crop_s` must give at least 2 latent steps, found {config.crop_s} s"
        )
    return LoaderConfig(crop_frames=n_steps * stride, stride=stride, mask=mask, seed=seed)


def band_statistics(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per mel band, float32, shape (n_mels,) each.

    A band that never moves gets the deviation 1: it stays zero after normalisation. (The
    narrow bands at the bottom of ``kaldi128`` hold no bin of the FFT, as in its peers.)
    """
    manifest = dataset.manifest
    std = torch.tensor(manifest.band_std)
    return torch.tensor(manifest.band_mean), torch.where(std > CONSTANT_BAND_STD, std, 1.0)


def run_config(recipe: dict[str, object], dataset: Dataset) -> dict[str, object]:
    """Return everything that decides the weights of a run, as plain data."""
    return {
        "recipe": recipe,
        "fingerprint": dataset.manifest.fingerprint,
        "features": dataset.manifest.features.model_dump(mode="json"),
    }
