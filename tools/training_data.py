"""What a run learns from: its data sets, their order, its crops, and the memory that takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor

from ..pipeline.loader import Loader, LoaderConfig
from ..pipeline.masks import MaskConfig
from ..pipeline.mixture import MixtureOrder, mix_orders
from ..pipeline.order import OrderConfig, TrainingOrder
from ..shards.dataset import Dataset, open_dataset
from ..shards.spec import FeatureSpec
from ..shards.storage import open_storage
from .band_sums import BandSums
from .distributed import World
from .hours import megabytes
from .recipe import DataConfig, Recipe

CONSTANT_BAND_STD = 1e-3  # of a log-mel; float16 rounds by more

RunOrder = TrainingOrder | MixtureOrder
Places = str | Path | Sequence[str | Path]


def open_data(places: Places, config: DataConfig) -> tuple[Dataset, ...]:
    """Open the data set of a run, or those of a mixture.

    Raises:
        ValueError: ``data.shares`` are not one for each.
        DatasetError: no data set there.
    """
    places = [places] if isinstance(places, str | Path) else list(places)
    if config.shares is not None and len(config.shares) != len(places):
        raise ValueError(
            f"`data.shares` must have one share for each --data ({len(places)}), found "
            f"{len(config.shares)}"
        )
    return tuple(open_dataset(open_storage(place, timeout_s=config.timeout_s)) for place in places)


def training_batches(
    datasets: Sequence[Dataset],
    recipe: Recipe,
    *,
    stride: int,
    min_frames: int,
    mask: MaskConfig | None = None,
    chosen: npt.NDArray[np.int64] | None = None,
    world: World,
    console: Console,
) -> tuple[RunOrder, LoaderConfig, Loader]:
    """Return the order of a run, its crops, and the loader of this process.

    Args:
        datasets: the clips.
        recipe: of the run.
        stride: log-mel frames per latent step.
        min_frames: shorter clips are left out.
        mask: what pre-training masks; None: nothing.
        chosen: the rows of the one data set that may take part, ascending; None: all.
        world: this process among those of the run.
        console: where is said how many clips take part, and the memory bounds.
    """
    seed = recipe.train.seed
    order = training_order(
        datasets, recipe.data, seed=seed, min_frames=min_frames, console=console, chosen=chosen
    )
    features = datasets[0].manifest.features
    crops = training_crops(recipe.data, features, stride=stride, mask=mask, seed=seed)
    loader = training_loader(
        datasets, order, crops, config=recipe.data, world=world, console=console
    )
    return order, crops, loader


def training_order(
    datasets: Sequence[Dataset],
    config: DataConfig,
    *,
    seed: int,
    min_frames: int,
    console: Console,
    chosen: npt.NDArray[np.int64] | None = None,
) -> RunOrder:
    """Return the order over the clips that are long enough, and say how many are not.

    Args:
        datasets: the clips.
        config: batches, weights and shares.
        seed: of the order.
        min_frames: shorter clips are left out, as are those under ``config.min_s``.
        console: where it is said.
        chosen: the rows of the one data set that may take part, ascending; None: all.
    """
    order_config = OrderConfig(
        seed=seed,
        global_batch_size=config.batch_size,
        n_streams=config.n_streams,
        shuffle_bytes=config.shuffle_bytes,
        tail=config.tail,
        weights=config.weights,
    )
    rows = [
        _long_enough(dataset, config, min_frames=min_frames, console=console, chosen=chosen)
        for dataset in datasets
    ]
    n_clips = sum(map(len, rows))
    if n_clips < config.batch_size and config.tail == "wrap":
        console.print(
            f"warning: a batch of {config.batch_size} is more than the {n_clips} clips there are, "
            "so that clips stand in it several times; --set data.batch_size=…",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    return mix_orders(datasets, order_config, config.shares, rows)


def _long_enough(
    dataset: Dataset,
    config: DataConfig,
    *,
    min_frames: int,
    console: Console,
    chosen: npt.NDArray[np.int64] | None,
) -> npt.NDArray[np.int64]:
    index = dataset.index
    rows = np.arange(len(dataset)) if chosen is None else chosen
    is_long = (index.duration_s[rows] >= config.min_s) & (index.n_frames[rows] >= min_frames)
    n_short = int((~is_long).sum())
    min_s = max(config.min_s, dataset.manifest.features.duration_s(min_frames))
    if n_short:
        console.print(
            f"{len(rows) - n_short} of {len(rows)} clips take part, {n_short} are shorter than "
            f"{min_s:g} s",
            highlight=False,
        )
    if n_short == len(rows):
        raise ValueError(
            f"every clip of {dataset.url} is shorter than {min_s:g} s, the longest has "
            f"{index.duration_s[rows].max():.3g} s: lower `data.min_s`, and `data.crop_s` with it: "
            "--set data.min_s=… --set data.crop_s=…"
        )
    return rows[is_long]


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


def training_loader(
    datasets: Sequence[Dataset],
    order: RunOrder,
    crops: LoaderConfig,
    *,
    config: DataConfig,
    world: World,
    console: Console,
) -> Loader:
    """Return the loader of this process, and say how much memory it may take."""
    loader = Loader(
        datasets, order, crops, rank=world.rank, world_size=world.size, cache=config.cache,
        pins=world.device.type == "cuda",
    )  # fmt: skip
    bounds = loader.memory_bytes()
    parts = ", ".join(f"{name} {megabytes(n_bytes)}" for name, n_bytes in bounds.items())
    total = megabytes(sum(bounds.values()))
    console.print(f"loader: at most {total} of memory ({parts})", highlight=False, soft_wrap=True)
    return loader


def band_statistics(
    datasets: Sequence[Dataset], shares: Sequence[float] = (1.0,)
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per mel band, float32, shape (n_mels,) each.

    Those of a mixture weigh its data sets by their shares. A band that never moves gets the
    deviation 1: it stays zero after normalisation. (The narrow bands at the bottom of
    ``kaldi128`` hold no bin of the FFT, as in its peers.)
    """
    weights = np.array(shares)
    means = np.array([dataset.manifest.band_mean for dataset in datasets])
    stds = np.array([dataset.manifest.band_std for dataset in datasets])
    mean = weights @ means
    return _to_normalise_by(mean, np.sqrt(weights @ (stds**2 + (means - mean) ** 2)))


def row_statistics(dataset: Dataset, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return what ``band_statistics`` does of some clips only, whose log-mels are read for it."""
    features = dataset.manifest.features
    sums = BandSums.zero(features.n_mels)
    for row in rows.tolist():
        sums += BandSums.of(dataset.read_stored(row), features)
    mean, std = map(np.array, sums.mean_and_std())
    return _to_normalise_by(mean, std)


def _to_normalise_by(
    mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    std = np.where(std > CONSTANT_BAND_STD, std, 1.0)
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)


def run_config(
    recipe: dict[str, object], order: RunOrder, features: FeatureSpec
) -> dict[str, object]:
    """Return everything that decides the weights of a run, as plain data."""
    return {
        "recipe": recipe,
        "fingerprint": order.fingerprint,
        "features": features.model_dump(mode="json"),
    }
