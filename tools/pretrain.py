"""``melstream pretrain``: an encoder learns from unlabelled log-mels."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor, nn

from ..model.encoder import AudioEncoder, EncoderConfig
from ..model.objectives import build_objective
from ..model.optim import parameter_groups
from ..model.pretraining import PretrainingModel
from ..pipeline.batch import Batch
from ..pipeline.loader import Loader, LoaderConfig
from ..pipeline.masks import MaskConfig
from ..pipeline.order import OrderConfig, TrainingOrder
from ..shards.dataset import Dataset, open_dataset
from ..shards.spec import FeatureSpec
from .distributed import World
from .model_folder import ModelCard
from .recipe import DataConfig, PretrainRecipe
from .run_folder import claim_run
from .train_step import Learner
from .training import Result, Trainer, finish_run
from .utilisation import samples_per_s_at_peak
from .wandb_log import require_wandb

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
    world: World | None = None,
) -> Result:
    """Pre-train an encoder.

    Args:
        recipe: all of the run.
        data: the data set; its labels are not used.
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
    dataset = open_dataset(data)
    encoder_config = recipe.model.encoder_config(dataset.manifest.features.n_mels)
    order = training_order(
        dataset,
        recipe.data,
        seed=recipe.train.seed,
        min_frames=MIN_MASKED_STEPS * encoder_config.stride,
        console=console,
    )
    crops = training_crops(
        recipe.data,
        dataset.manifest.features,
        stride=encoder_config.stride,
        mask=recipe.mask,
        seed=recipe.train.seed,
    )
    model = _build(recipe, encoder_config, dataset).to(world.device)
    config = run_config(recipe.model_dump(mode="json"), dataset)
    resume = resume or world.n_restarts > 0
    world.on_main(lambda: claim_run(out, config, resume=resume))
    learner = Learner(
        model,
        parameter_groups(model, recipe.optim.lr, recipe.optim.weight_decay),
        _losses,
        prepare=lambda step, seed: model.set_step(step),
        chance=1 / (1 + recipe.mask.n_distractors),
        peak_samples_per_s=samples_per_s_at_peak(
            encoder_config,
            crops.crop_frames or 0,
            device=world.device,
            precision=recipe.train.precision,
        ),
    )
    loader = Loader(dataset, order, crops, rank=world.rank, world_size=world.size)
    trainer = Trainer(
        learner,
        order,
        loader,
        recipe=recipe,
        folder=out,
        config=config,
        console=console,
        world=world,
    )
    result = trainer.run("pre-training", resume=resume)
    if result.is_complete and world.is_main:
        card = ModelCard(
            kind="encoder",
            encoder=encoder_config,
            features=dataset.manifest.features,
            crop_s=recipe.data.crop_s,
            trained_on=(dataset.manifest.fingerprint,),
            steps=result.step,
        )
        finish_run(out, _encoder_part(trainer.final_weights()), card)
    return result


def _build(recipe: PretrainRecipe, config: EncoderConfig, dataset: Dataset) -> PretrainingModel:
    """Build encoder and objective with fresh weights, the same on every process."""
    torch.manual_seed(recipe.train.seed)
    saves_memory = recipe.train.checkpoints_activations
    encoder = AudioEncoder(config.model_copy(update={"checkpoints_activations": saves_memory}))
    encoder.normalizer.set_statistics(*band_statistics(dataset))
    objective = build_objective(recipe.objective.name, recipe.objective.options, config)
    return PretrainingModel(encoder, objective)


def _losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return model(batch.logmel, batch.n_frames, batch.mask, batch.distractors)


def _encoder_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the encoder, under its own names."""
    prefix = "encoder."
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def training_order(
    dataset: Dataset,
    config: DataConfig,
    *,
    seed: int,
    min_frames: int,
    console: Console,
    chosen: npt.NDArray[np.int64] | None = None,
) -> TrainingOrder:
    """Return the order over the clips that are long enough, and say how many are not.

    Args:
        dataset: the clips.
        config: batches and weights.
        seed: of the order.
        min_frames: shorter clips are left out, as are those under ``config.min_s``.
        console: where it is said.
        chosen: the rows that may take part, ascending; None: all.
    """
    manifest, index = dataset.manifest, dataset.index
    rows = np.arange(len(dataset)) if chosen is None else chosen
    is_long = (index.duration_s[rows] >= config.min_s) & (index.n_frames[rows] >= min_frames)
    n_chosen, n_short = len(rows), int((~is_long).sum())
    rows = rows[is_long]
    if n_short:
        min_s = max(config.min_s, manifest.features.duration_s(min_frames))
        console.print(
            f"{len(rows)} of {n_chosen} clips take part, {n_short} are shorter than {min_s:g} s",
            highlight=False,
        )
    order_config = OrderConfig(
        seed=seed,
        global_batch_size=config.batch_size,
        n_streams=config.n_streams,
        shuffle_bytes=config.shuffle_bytes,
        tail=config.tail,
        weights=config.weights,
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
