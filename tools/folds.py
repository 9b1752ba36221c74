"""``melstream finetune --folds``: train on all folds but one, evaluate on that, for each.

The folds are the splits of the data set, as the corpus gave them (ESC-50 has five).
"""

import json
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from ..shards.dataset import open_dataset
from ..shards.files import write_bytes
from ..shards.keys import make_key
from .distributed import World
from .finetune import finetune
from .fold_results import FIGURES, SUMMARY_NAME, FoldResult, summarise
from .parts import fold_parts
from .recipe import FinetuneRecipe
from .run_folder import VALIDATION_NAME
from .text_tables import many


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
    n_apart = int((dataset.index.split < 0).sum())
    if n_apart:
        console.print(f"{many(n_apart, 'clip')} of no split take no part", highlight=False)
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


def _figures(run: Path) -> dict[str, float]:
    """Read what the finished model of one fold was found to do on it."""
    found = json.loads((run / VALIDATION_NAME).read_bytes())
    return {name: found[name] for name in FIGURES if found.get(name) is not None}
