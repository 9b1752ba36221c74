"""What came of the folds of ``melstream finetune --folds``: ``folds.json`` and its table."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..shards.errors import DatasetError

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


def is_folds(place: str | Path) -> bool:
    """Say whether a place is the folder of folds that are all done."""
    return (Path(place) / SUMMARY_NAME).is_file()


def read_folds(folder: Path) -> list[FoldResult]:
    """Read what ``summarise`` made.

    Raises:
        DatasetError: the file is damaged.
    """
    path = folder / SUMMARY_NAME
    try:
        folds = json.loads(path.read_bytes())["folds"]
        return [
            FoldResult(name, {n: float(value) for n, value in figures.items()})
            for name, figures in folds.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} is damaged ({error}); 'melstream finetune --folds --resume' writes it again"
        ) from error


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
    heads = (name.replace("_", " ") for name in figures)
    table = Table("held out", *heads, title="each fold by the model that has not seen it")
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
