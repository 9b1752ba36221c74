"""What a fine-tuning run is refused for, or told, before its first step."""

import numpy as np
import numpy.typing as npt
from rich.console import Console

from ..shards.dataset import Dataset
from ..shards.errors import DatasetError, listed
from .inspect_leaks import is_shared
from .recipe import FinetuneRecipe
from .text_tables import many


def require_same_labels(held_out: Dataset, dataset: Dataset) -> None:
    """Refuse a validation set that a model of the training set cannot be measured on."""
    dataset.manifest.features.require_same(held_out.manifest.features, held_out.url)
    unknown = set(held_out.manifest.label_names) - set(dataset.manifest.label_names)
    if unknown or not held_out.manifest.label_names:
        found = f"{listed(sorted(unknown))} beside them" if unknown else "none"
        raise DatasetError(
            f"{held_out.url} must have labels among those of {dataset.url}, found {found}; "
            "build both with one label list"
        )


def require_labels(dataset: Dataset, task: str, rows: npt.NDArray[np.int64] | None = None) -> None:
    """Refuse clips that can neither teach the task nor measure it; None: all of a data set."""
    if not dataset.manifest.label_names:
        raise DatasetError(
            f"{dataset.url} has no labels; build it from a labelled corpus, a csv one with "
            "--label-column"
        )
    rows = np.arange(len(dataset)) if rows is None else rows
    counts = np.diff(dataset.index.label_indptr)[rows]
    if not counts.any():
        raise DatasetError(
            f"{dataset.url} must have labels on some of the clips that are learnt from, and of "
            "those that are held out, found none"
        )
    if task != "single_label":
        return
    if (counts != 1).any():
        place = int(np.flatnonzero(counts != 1)[0])
        first = dataset.key(int(rows[place]))
        raise DatasetError(
            f'tagger.task = "single_label" needs one label per clip, {int((counts != 1).sum())} of '
            f"{len(counts)} clips have another number (first: {first}, {counts[place]}); "
            'leave unlabelled ones out (melstream subset --where "n_labels>=1"), or use '
            '"multi_label"'
        )


def warn_of_leak(
    held_out: Dataset,
    rows: npt.NDArray[np.int64] | None,
    dataset: Dataset,
    chosen: npt.NDArray[np.int64] | None,
    console: Console,
) -> None:
    """Say how many of the clips to validate on, rows of a data set, are learnt from."""
    shared = is_shared(held_out, dataset, slice(None) if chosen is None else chosen)
    shared = shared if rows is None else shared[rows]
    n_shared = int(shared.sum())
    if n_shared:
        console.print(
            f"warning: {n_shared:,} of {many(len(shared), 'clip')} to validate on are learnt from "
            "too, by key, audio or recording, which flatters the figures; 'melstream subset "
            "--not-in' leaves them out, --split and --valid-split take splits of a data set",
            style="yellow", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip


def warn_of_frozen_noise(recipe: FinetuneRecipe, console: Console) -> None:
    """Say what of a body from scratch does not learn, though it knows nothing yet."""
    resting = []
    if recipe.n_frozen_steps:
        resting.append(
            f"for {recipe.n_frozen_steps} steps only the head learns, on a body of random weights "
            "(--set finetune.freeze_body_steps=0)"
        )
    if recipe.finetune.freezes_feature_encoder:
        resting.append(
            "the feature encoder stays random (--set finetune.freezes_feature_encoder=false)"
        )
    if resting:
        console.print(
            f"warning: no --encoder: {', and '.join(resting)}; give --encoder, or that",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def tell_of_padding(
    recipe: FinetuneRecipe,
    dataset: Dataset,
    chosen: npt.NDArray[np.int64] | None,
    console: Console,
) -> None:
    """Say that no clip, of the chosen ones if any, fills a crop."""
    duration_s = dataset.index.duration_s if chosen is None else dataset.index.duration_s[chosen]
    longest_s = float(duration_s.max())
    if longest_s < recipe.data.crop_s / 1.5:
        console.print(
            f"no clip fills a crop of {recipe.data.crop_s:g} s, the longest has {longest_s:.3g} s: "
            f"the rest is padding, which takes time; --set data.crop_s={longest_s:.2g}",
            highlight=False,
            soft_wrap=True,
        )
