"""``melstream demo``: the whole story on the recordings that ship, by the verbs' functions.

    build train, eval -> inspect -> pre-train -> fine-tune (pre-trained, from scratch) -> evaluate

Run again, it finds everything there and only prints the results.
"""

import time
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..model.metrics import TaggingMetrics, tagging_metrics
from ..shards.dataset import Dataset, open_dataset
from ..shards.spec import PRESETS
from ..shards.storage import open_storage
from .build import build
from .build_plan import PlanSettings, make_plan
from .build_report import print_report
from .build_workers import run_jobs
from .corpora import folder as folder_corpus
from .evaluate import evaluate
from .finetune import finetune
from .inspect import inspect_dataset
from .inspect_page import print_inspection
from .pretrain import pretrain
from .progress import progress
from .recipe import FinetuneRecipe, PretrainRecipe
from .recipe_file import load_recipe
from .training import Result

PRETRAIN_RECIPE = "demo-pretrain"
FINETUNE_RECIPE = "demo-finetune"
SEEDS = (0, 1, 2)
COLUMNS = ("accuracy", "mAP", "mAUC")


def run_demo(out: Path, *, source: Path | None, n_jobs: int, console: Console) -> None:
    """Tell the whole story.

    Args:
        out: folder for shards and runs.
        source: folder with ``train/<class>/`` and ``eval/<class>/``; None takes the
            recordings that ship.
        n_jobs: processes that build.
        console: where it is told.
    """
    start = time.monotonic()
    recordings = source or Path(str(resources.files("melstream.tools") / "recordings"))
    train, held_out = (
        _build(recordings / split, out / "shards" / split, n_jobs, console)
        for split in ("train", "eval")
    )
    _title(console, f"melstream inspect {train.folder}")
    print_inspection(inspect_dataset(train), console)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _pretrain(train, out, device, console)
    results = {"majority class": [majority(train, held_out)]}
    for name, encoder in (("from scratch", None), ("pre-trained", out / "pretrain")):
        runs = _finetune(name, encoder, train, out, device, console)
        results[name] = [_evaluate(run, held_out, device, console) for run in runs]
    console.print()
    _print_results(results, held_out, out, console)
    console.print(f"done in {time.monotonic() - start:.0f} s", highlight=False)


def majority(train: Dataset, held_out: Dataset) -> TaggingMetrics:
    """Evaluate what needs no model: score every clip by the training set's class shares.

    Returns:
        the metrics on ``held_out``, whose classes are among those of ``train``.
    """
    names = train.manifest.label_names
    n_classes = len(names)
    places = np.array([names.index(name) for name in held_out.manifest.label_names])
    counts = np.bincount(train.index.label_ids, minlength=n_classes)
    scores = np.tile((counts / counts.sum()).astype(np.float32), (len(held_out), 1))
    labels = np.zeros((len(held_out), n_classes), bool)
    rows = np.repeat(np.arange(len(held_out)), np.diff(held_out.index.label_indptr))
    labels[rows, places[held_out.index.label_ids]] = True
    return tagging_metrics(scores, labels, "single_label")


def _build(source: Path, out: Path, n_jobs: int, console: Console) -> Dataset:
    _title(console, f"melstream build folder {source.parent.name}/{source.name} --out {out}")
    settings = PlanSettings(corpus="folder", features=PRESETS["conformer64"])
    plan = make_plan(folder_corpus.scan(source), settings)
    with progress("building", plan.n_clips, console) as report:
        built = build(plan, open_storage(out), lambda jobs: run_jobs(jobs, n_jobs), report)
    print_report(built, console)
    return open_dataset(out)


def _pretrain(train: Dataset, out: Path, device: torch.device, console: Console) -> None:
    run = out / "pretrain"
    _title(console, f"melstream pretrain {PRETRAIN_RECIPE} --data {train.folder} --out {run}")
    recipe = load_recipe(PRETRAIN_RECIPE, PretrainRecipe)
    result = pretrain(recipe, train.folder, run, device=device, console=console, resume=True)
    _require_complete(result)
    if result.figures:
        console.print(
            f"contrastive accuracy {result.figures['accuracy']:.1%} among "
            f"{recipe.mask.n_distractors} distractors, {result.wall_s:.0f} s",
            highlight=False,
        )


def _finetune(
    name: str,
    encoder: Path | None,
    train: Dataset,
    out: Path,
    device: torch.device,
    console: Console,
) -> list[Path]:
    """Fine-tune once per seed; with so few clips one run says little."""
    runs = [out / f"finetune-{name.replace(' ', '-')}-{seed}" for seed in SEEDS]
    from_where = f" --encoder {encoder}" if encoder else ""
    for seed, run in zip(SEEDS, runs, strict=True):
        _title(
            console,
            f"melstream finetune {FINETUNE_RECIPE} --data {train.folder}{from_where} --out {run} "
            f"--set train.seed={seed}",
        )
        result = finetune(
            load_recipe(FINETUNE_RECIPE, FinetuneRecipe, [f"train.seed={seed}"]),
            train.folder,
            run,
            device=device,
            console=console,
            encoder_path=encoder,
            resume=True,
        )
        _require_complete(result)
    return runs


def _evaluate(
    run: Path, held_out: Dataset, device: torch.device, console: Console
) -> TaggingMetrics:
    _title(console, f"melstream evaluate {run} --data {held_out.folder}")
    metrics, _ = evaluate(run, held_out.folder, device=device)
    summary = metrics.summary()
    console.print("  ".join(f"{column} {summary[column]:.3f}" for column in COLUMNS))
    return metrics


def _require_complete(result: Result) -> None:
    """Stop the story where a run was stopped; its checkpoint is written."""
    if not result.is_complete:
        raise KeyboardInterrupt


def _print_results(
    results: dict[str, list[TaggingMetrics]], held_out: Dataset, out: Path, console: Console
) -> None:
    title = f"{len(held_out)} held-out recordings, mean ± deviation of {len(SEEDS)} seeds"
    table = Table("", *COLUMNS, title=title, title_justify="left")
    for name, metrics in results.items():
        summaries = [one.summary() for one in metrics]
        table.add_row(name, *(_spread([s[column] for s in summaries]) for column in COLUMNS))
    console.print(table)
    for what, path in (
        ("shards", out / "shards"),
        ("encoder", out / "pretrain" / "model"),
        ("tagger", out / f"finetune-pre-trained-{SEEDS[0]}" / "model"),
        ("curves", f"tensorboard --logdir {out}"),
    ):
        console.print(f"{what:8} {path}", highlight=False, markup=False)


def _spread(values: list[float]) -> str:
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def _title(console: Console, command: str) -> None:
    """Show the command that does by hand what follows."""
    console.print()
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")), soft_wrap=True)
