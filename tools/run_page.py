"""A training run in the terminal."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from .hours import percent
from .run_summary import Evaluation, RunSummary, data_wait, find_warnings
from .text_tables import MAX_MARKS, safe, table, trend

MIN_MARKS = 8  # of a curve, however narrow the terminal


def print_run(run: RunSummary, console: Console, *, top: int = 10) -> None:
    """Print a page about a run, warnings first.

    Args:
        run: what to print.
        console: where to.
        top: classes to list, weakest first.
    """
    console.print(safe(str(run.folder), "bold"))
    for warning in find_warnings(run):
        console.print(safe(f"! {warning.message}", "yellow"))
        console.print(safe(f"  {warning.remedy}", "dim"))
    facts = table("", "")
    for name, text in run_facts(run):
        facts.add_row(name, safe(text))
    console.print(facts)
    if run.curves:
        console.print(_curves(run, console.width))
    for evaluation in run.evaluations:
        console.print(safe(f"{evaluation.name}: {summary(evaluation)}"))
        console.print(_classes(evaluation, top))
    if run.task == "finetune" and not run.evaluations:
        console.print(safe(evaluation_remedy(run), "dim"))


def run_json(run: RunSummary) -> str:
    """Return everything as JSON, with the warnings."""
    warnings = [finding.model_dump() for finding in find_warnings(run)]
    return json.dumps({**run.model_dump(mode="json"), "warnings": warnings}, indent=1)


def _state(run: RunSummary) -> str:
    if run.is_complete:
        return ""
    return ", training now" if run.is_training else ", not finished"


def run_facts(run: RunSummary) -> list[tuple[str, str]]:
    """Return what to know first about a run, as names and texts."""
    recipe = run.config["recipe"]
    data = recipe.get("data", {})
    speed, wait = run.last("samples_per_s"), data_wait(run)
    facts = [
        ("task", "pre-training" if run.task == "pretrain" else "fine-tuning"),
        ("steps", f"{run.step:,} of {run.n_steps:,}{_state(run)}"),
        *([("best step", best_text(run))] if run.task == "finetune" else []),
        ("model", f"{_model_text(run)}, {recipe['train'].get('precision', '')}"),
        ("batch", f"{data.get('batch_size', '?')} clips of {data.get('crop_s', '?')} s"),
        ("peak learning rate", _rate_text(recipe)),
        ("data set", f"fingerprint {run.config.get('fingerprint', 'unknown')}"),
        ("checkpoints", ", ".join(f"step {step:,}" for step in run.checkpoints) or "none"),
    ]
    if speed is not None:
        waiting = "" if wait is None else f", {percent(wait)} of the time waiting for data"
        facts.insert(2, ("speed", f"{speed:,.0f} clips/s{waiting}"))
    return facts


def _model_text(run: RunSummary) -> str:
    """Name the encoder: by the recipe's preset, or by its sizes where it came from a run."""
    encoder = run.config.get("encoder", {})
    if encoder.get("start") is None:
        return str(run.config["recipe"].get("model", {}).get("preset", "its encoder"))
    return f"an encoder of {encoder['n_layers']} blocks, {encoder['dim']} wide, that was given"


def _rate_text(recipe: dict[str, Any]) -> str:
    """Give the peak learning rate, of a tagger those of head and body."""
    rate = f"{recipe.get('optim', {}).get('lr', '?')}"
    options = recipe.get("finetune", {})
    if "head_lr" not in options:
        return rate
    body = "the body rests" if options.get("freeze_body_steps") == "all" else f"{rate} of the body"
    return f"{options['head_lr']} of the head, {body}"


def best_text(run: RunSummary) -> str:
    """Say which step was best, and by what."""
    train = run.config["recipe"]["train"]
    if train.get("average_last"):
        return f"the mean of the last {train['average_last']} checkpoints is the model"
    if run.best is None:
        last = "moving average of the" if train.get("average_decay") else "last"
        return f"no held-out data was given (--valid): the {last} weights are the model"
    step, value = run.best
    return f"{step:,}, held-out {(run.headline or '').removeprefix('valid/')} {value:.3f}"


def summary(evaluation: Evaluation) -> str:
    """Return the single figures of an evaluation as one line."""
    figures = (
        (name, getattr(evaluation, name))
        for name in ("mAP", "mAUC", "d_prime", "accuracy", "balanced_accuracy")
    )
    shown = (
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures
        if value is not None
    )
    return ", ".join((f"{evaluation.n_clips:,} clips", *shown))


def evaluation_remedy(run: RunSummary) -> str:
    """Say how to get the results per class."""
    return (
        f"for the results per class: melstream evaluate {run.folder} --data URL "
        f"--out {run.folder / 'evaluation.json'}"
    )


def _curves(run: RunSummary, width: int) -> Table:
    shown = table("", "", "", "")
    shown.title, shown.title_justify = "curves, first step to last", "left"
    rows = [
        (name, f"{curve.values[-1]:.4g}", f"{min(curve.values):.4g} to {max(curve.values):.4g}")
        for name, curve in run.curves.items()
    ]
    n_taken = sum(1 + max(map(len, column)) for column in zip(*rows, strict=True))
    n_marks = min(MAX_MARKS, max(MIN_MARKS, width - n_taken - 1))
    for name, last, bounds in rows:
        drawn = trend(run.curves[name].values, n_marks)
        shown.add_row(safe(name), drawn, last, bounds)
    return shown


def _classes(evaluation: Evaluation, top: int) -> Table:
    shown = table("class", "clips", "AP", "AUC", "recall", right=range(1, 5))
    weakest = evaluation.weakest()
    for one in weakest[:top]:
        figures = (one.ap, one.auc, one.recall)
        texts = ("-" if figure is None else f"{figure:.3f}" for figure in figures)
        shown.add_row(safe(one.label), f"{one.n_positives:,}", *texts)
    if len(weakest) > top:
        shown.add_row(safe(f"{len(weakest) - top} more, all of them better", "dim"))
    return shown
