"""``melstream finetune --folds``: train on all folds but one, evaluate on that, for each.

The folds are the splits of the data set, as the corpus gave them (ESC-50 has five).
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ..shards.dataset import open_dataset
from ..shards.files import write_bytes
from ..shards.keys import make_key
from .distributed import World
from .finetune import finetune
from .parts import fold_parts
from .recipe import FinetuneRecipe
from .run_folder import VALIDATION_NAME

SUMMARY_NAME = "folds.json"
FIGURES = ("accuracy", "balanced_accuracy", "mAP", "mAUC")  # those whose mean over folds tells


@dataclass(frozen=True, slots=True)
class FoldResult:
    """What came out of one fold.

    Args:
        name: of the split that was held out.
        figures: of ``FIGURES``, on it.
    """

    name: str
    figures: dict[str, float]


def finetune_folds(
    recipe: FinetuneRecipe,
    data: str | Path,
    out: Path,
    *,
    device: torch.device,
    console: Console,
    encoder_path: Path | None = None,
    resume: bool = False,
    world: World | None = None,
) -> list[FoldResult] | None:
    """Fine-tune once per fold and evaluate each model on the fold it has not seen.

    The held-out fold chooses nothing, unless the recipe asks for validation. A run that was
    stopped goes on with ``resume``; folds that are done stay.

    Args:
        recipe: of every fold.
        data: a labelled data set with at least two splits.
        out: gets a run folder per split, and ``folds.json`` with all figures.
        device: where to train.
        console: where progress is shown.
        encoder_path: run or model folder, also of a tagger; None trains from scratch.
        resume: go on with what is in ``out``.
        world: this process among those of the run; None: it is the only one.

    Returns:
        The folds' results in the order of the data set's splits; None for a run that was
        stopped.

    Raises:
        DatasetError: the data set has fewer than two splits.
    """
    world = world or World(device)
    dataset = open_dataset(data)
    if recipe.train.validate_every:
        console.print(
            "warning: the held-out fold chooses the step whose weights are measured on it, which "
            "flatters the figures; --set train.validate_every=0 takes the last weights",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    results = []
    for part in fold_parts(dataset):
        console.print(f"held out: {part.name}", style="bold", highlight=False)
        run = out / make_key(part.name)
        result = finetune(
            recipe,
            data,
            run,
            device=device,
            console=console,
            encoder_path=encoder_path,
            part=part,
            resume=resume and world.on_main(run.exists),
            world=world,
        )
        if not result.is_complete:
            return None
        results.append(FoldResult(part.name, world.on_main(partial(_figures, run))))
    if world.is_main:
        write_bytes(out / SUMMARY_NAME, (json.dumps(summarise(results), indent=1) + "\n").encode())
    return results


def summarise(results: list[FoldResult]) -> dict[str, object]:
    """Return mean and standard deviation over folds of each figure, and the folds themselves.

    A fold in which a figure is undefined, as mAUC is among clips of one class, does not count
    for it.
    """
    table = _figures_of_folds(results)
    return {
        "mean": {name: float(np.mean(values)) for name, values in table.items()},
        "std": {
            name: float(np.std(values, ddof=1)) if len(values) > 1 else None
            for name, values in table.items()
        },
        "folds": {result.name: result.figures for result in results},
    }


def print_folds(results: list[FoldResult], console: Console) -> None:
    """Print a row per fold, and the mean."""
    figures = _figures_of_folds(results)
    table = Table("held out", *figures, title="each fold by the model that has not seen it")
    for result in results:
        cells = (result.figures.get(name) for name in figures)
        table.add_row(result.name, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    table.add_section()
    table.add_row("mean ± std", *map(_mean_and_std, figures.values()))
    console.print(table)


def _figures_of_folds(results: list[FoldResult]) -> dict[str, list[float]]:
    """Return the values of each figure over the folds in which it is defined."""
    table = {name: [r.figures[name] for r in results if name in r.figures] for name in FIGURES}
    return {name: values for name, values in table.items() if values}


def _mean_and_std(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def _figures(run: Path) -> dict[str, float]:
    """Read what the finished model of one fold was found to do on it."""
    found = json.loads((run / VALIDATION_NAME).read_bytes())
    return {name: found[name] for name in FIGURES if found.get(name) is not None}
