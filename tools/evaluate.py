"""``melstream evaluate``: a tagger is measured on a data set, each clip exactly once."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from ..model.metrics import TaggingMetrics, tagging_metrics
from ..model.tagger import Tagger, Task
from ..pipeline.loader import Loader, LoaderConfig
from ..pipeline.order import EvaluationOrder
from ..pipeline.shard_cache import CacheConfig
from ..shards.dataset import Dataset, open_dataset
from ..shards.errors import DatasetError
from ..shards.files import write_bytes
from .distributed import World
from .model_folder import ModelCard, load_tagger, require_features
from .selection import rows_of_splits

_log = logging.getLogger(__name__)

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Predictions:
    """Scores and truth of every clip of a data set.

    Shape:
        scores float32 (n, n_classes), labels bool (n, n_classes), keys n strings.
    """

    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.bool_]
    keys: tuple[str, ...]

    def metrics(self, task: Task) -> TaggingMetrics:
        """Return mAP, mAUC, d-prime, accuracy and the figures per class."""
        return tagging_metrics(self.scores, self.labels, task)


@torch.inference_mode()
def predict(
    tagger: Tagger,
    card: ModelCard,
    dataset: Dataset,
    *,
    rows: npt.NDArray[np.int64] | None = None,
    world: World | None = None,
    cache: CacheConfig | None = None,
    heed: Callable[[], object] = lambda: None,
) -> Predictions:
    """Score every clip of a data set once; what is longer than a minute, by its first minute.

    Args:
        tagger: the model, on its device; left in evaluation mode.
        card: its label names and features.
        dataset: what to score; its classes must be among the model's.
        rows: the clips to score, ascending rows of the index; None: all.
        world: the processes that share the work, each ends up with all of it; None: one.
        cache: how a data set in an object store is read.
        heed: called before each batch; what it raises ends the scoring.

    Raises:
        ValueError: features or classes do not fit the model, or there is nothing to score.
    """
    require_features(card, dataset.manifest, dataset.url)
    world = world or World(next(tagger.parameters()).device)
    rows = np.arange(len(dataset)) if rows is None else rows
    if not len(rows):
        raise ValueError(f"`rows` must name clips of {dataset.url} to score, found none")
    order = EvaluationOrder(rows, BATCH_SIZE * world.size)
    config = LoaderConfig(stride=card.encoder.stride)
    loader = Loader(
        dataset,
        order,
        config,
        label_names=card.label_names,
        rank=world.rank,
        world_size=world.size,
        cache=cache,
        pins=world.device.type == "cuda",
    )
    tagger.eval()
    scores, labels, served = [], [], []
    with closing(loader.batches(0, order.steps_per_epoch)) as batches:
        for batch in batches:
            heed()
            assert batch.labels is not None
            if (batch.rows >= 0).any():
                moved = batch.to(world.device)
                logits = tagger(moved.logmel, moved.n_frames)
                scores.append(tagger.scores(logits).float().cpu())
            else:  # the last process may have nothing left to do
                scores.append(torch.zeros_like(batch.labels))
            labels.append(batch.labels)
            served.append(batch.rows)
    found = world.gather(torch.cat(served)).numpy()
    is_real = found >= 0
    names = dataset.index.sample_keys()
    return Predictions(
        world.gather(torch.cat(scores)).numpy()[is_real],
        world.gather(torch.cat(labels)).numpy()[is_real].astype(bool),
        tuple(bytes(names[row]).decode("ascii") for row in found[is_real]),
    )


def evaluate(
    model: Path, data: str | Path, *, device: torch.device, splits: Sequence[str] = ()
) -> tuple[TaggingMetrics, ModelCard]:
    """Evaluate a fine-tuned model on a data set.

    It warns of clips that are scored in part, and of a data set that was learnt from.

    Args:
        model: run or model folder of ``melstream finetune``.
        data: a labelled data set.
        device: where to compute.
        splits: of the data set, to measure on these alone; none: on all of it.

    Raises:
        DatasetError: no tagger, no data set, or one without labels.
        ValueError: the data set has no such split, or does not fit the model.
    """
    tagger, card = load_tagger(model)
    dataset = open_dataset(data)
    if not dataset.manifest.label_names:
        raise DatasetError(
            f"{data} has no labels to measure against; build it from a labelled corpus"
        )
    assert card.tagger is not None
    _warn_of_learnt_clips(card, dataset, splits)
    rows = rows_of_splits(dataset, "--split", splits) if splits else None
    warn_of_cut_clips(dataset, rows)
    predictions = predict(tagger.to(device), card, dataset, rows=rows)
    return predictions.metrics(card.tagger.task), card


def _warn_of_learnt_clips(card: ModelCard, dataset: Dataset, splits: Sequence[str]) -> None:
    """Say that a model has learnt from what it is measured on, or from what that was made of.

    A set of other splits than those that were learnt from is none of it.
    """
    of_data, last = set(dataset.manifest.lineage), card.trained_on[-1:]
    measured = set(splits) or dataset.splits_of()
    is_apart = card.splits and not measured & set(card.splits)
    is_of_one = of_data & set(last) or dataset.manifest.fingerprint in card.made_of
    if is_of_one and not is_apart:
        _log.warning(
            "the model was trained on clips of %s: its figures there say little", dataset.url
        )
    elif of_data & set(card.trained_on[:-1]):
        _log.warning(
            "the encoder has learnt from clips of %s before it was fine-tuned, perhaps without "
            "labels: the figures there may flatter",
            dataset.url,
        )


def warn_of_cut_clips(dataset: Dataset, rows: npt.NDArray[np.int64] | None = None) -> None:
    """Say how many clips are taken by their first minute only; rows None: of all clips."""
    n_frames = dataset.index.n_frames if rows is None else dataset.index.n_frames[rows]
    n_cut = int((n_frames > LoaderConfig().max_frames).sum())
    if n_cut:
        _log.warning(
            "%d of %d clips are longer than a minute, and only their first minute counts; for all "
            "of a recording, build with --window-seconds",
            n_cut,
            len(n_frames),
        )


def as_json(metrics: TaggingMetrics, card: ModelCard) -> dict[str, Any]:
    """Return the figures of an evaluation as plain data, classes by name."""
    recall = [None] * metrics.n_classes if metrics.recall is None else metrics.recall
    columns = (metrics.n_positives, metrics.average_precision, metrics.auc, recall)
    classes = [
        {
            "label": name,
            "n_positives": int(n),
            "ap": _or_none(ap),
            "auc": _or_none(auc),
            "recall": _or_none(r),
        }
        for name, n, ap, auc, r in zip(card.label_names, *columns, strict=True)
    ]
    summary = {name: _json_number(value) for name, value in metrics.summary().items()}
    return {"n_clips": metrics.n_samples, **summary, "classes": classes}


def _json_number(value: float | int) -> float | int | str:
    """Keep whole numbers whole; write an infinite d' as a word, since JSON has none."""
    return value if isinstance(value, int) or np.isfinite(value) else str(value)


def _or_none(value: float | None) -> float | None:
    """Turn a figure that is not defined into JSON's null."""
    return None if value is None or not np.isfinite(value) else float(value)


def write_report(path: Path, metrics: TaggingMetrics, card: ModelCard) -> None:
    """Write the figures to a JSON file."""
    write_bytes(path, (json.dumps(as_json(metrics, card), indent=1) + "\n").encode())


def print_metrics(metrics: TaggingMetrics, card: ModelCard, console: Console, top: int) -> None:
    """Print the figures, and ``top`` classes from the weakest on, if any."""
    summary = "  ".join(f"{name} {_figure(value)}" for name, value in metrics.summary().items())
    console.print(summary, highlight=False)
    if not top:
        return
    rows = as_json(metrics, card)["classes"]
    measured = [row for row in rows if row["ap"] is not None]
    measured.sort(key=lambda row: row["ap"])
    table = Table("class", "clips", "AP", "AUC", "recall", title="per class, weakest first")
    for row in measured[:top]:
        figures = [_figure(row[name]) for name in ("ap", "auc", "recall")]
        table.add_row(row["label"], str(row["n_positives"]), *figures)
    console.print(table)


def _figure(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
