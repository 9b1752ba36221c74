"""The page of a training run: curves, best step, what went wrong, results per class."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from .hours import percent
from .pages.page import write_page
from .pages.plot import Plot, bars_height, figure, named_bars, plain
from .run_page import best_text, evaluation_remedy, run_facts
from .run_summary import (
    VALIDATION,
    Evaluation,
    RunSummary,
    data_wait,
    find_warnings,
    read_run,
)

N_WEAKEST = 15  # classes shown as bars; the table has all


@dataclass(frozen=True, slots=True)
class Look:
    """How one curve of a run is shown.

    Args:
        title: of the plot.
        reading: what to read from it.
        unit: of the upright axis.
        digits: how its ticks are written, in d3's language.
    """

    title: str
    reading: str
    unit: str = ""
    digits: str = "~g"


LOOKS = {
    "loss": Look(
        "Training loss",
        "It should fall, fast at first; a jump up means that the learning rate is too high.",
        "loss",
    ),
    "accuracy": Look(
        "Contrastive accuracy",
        "Masked steps whose true target is told from every distractor; at 0 the targets have "
        "collapsed.",
        "share of masked steps",
        ".0%",
    ),
    "lr": Look(
        "Learning rate",
        "Of the first group of weights: it rises over the warm-up, then follows the schedule.",
        "learning rate",
    ),
    "body_lr": Look(
        "Learning rate of the body",
        "The encoder's; at 0 as long as only the head learns.",
        "learning rate",
    ),
    "grad_norm": Look(
        "Gradient norm",
        "Before clipping; it should stay level, and its spikes go with jumps of the loss.",
        "norm",
    ),
    "samples_per_s": Look(
        "Speed",
        "Clips trained on per second; a dip means that something else took the machine.",
        "clips/s",
        "~s",
    ),
    "data_wait_share": Look(
        "Waiting for data",
        "Time in which training stood still because no batch was ready; under 1 % is good.",
        "share of the time",
        ".1%",
    ),
    "target_std": Look(
        "Spread of the targets",
        "Near 0 all targets are the same and nothing is learnt.",
        "standard deviation",
    ),
    "masked_share": Look(
        "Masked share",
        "Steps that were masked; it follows from the recipe and should stay level.",
        "share of steps",
        ".0%",
    ),
    "skipped_steps": Look(
        "Skipped steps",
        "Steps so far whose gradient was NaN or inf; more than a few, and the run is stopped.",
        "steps",
    ),
    "mfu": Look(
        "Model FLOPs utilisation",
        "Useful arithmetic beside what the GPU could do.",
        "share of the peak",
        ".0%",
    ),
    "perplexity": Look(
        "Codebook perplexity", "Codes in use; near 1 the codebook has collapsed.", "codes"
    ),
}
"""Of the curves that every run or every objective logs, in the order in which they are shown;
others follow, by their own names."""


def write_run_report(folder: Path, path: Path) -> int:
    """Write the page of a run.

    Args:
        folder: what ``--out`` of ``melstream pretrain`` or ``finetune`` named.
        path: the HTML file.

    Returns:
        its size in bytes.

    Raises:
        DatasetError: the folder holds no run.
    """
    run = read_run(folder)
    trained = [name for name in run.curves if not name.startswith(VALIDATION)]
    trained.sort(key=lambda name: list(LOOKS).index(name) if name in LOOKS else len(LOOKS))
    curves = [_curve_plot(run, number, name) for number, name in enumerate(trained)]
    held_out = list(_held_out_plots(run))
    results = [_class_plots(number, one) for number, one in enumerate(run.evaluations)]
    return write_page(
        path,
        "run.html.jinja",
        [*curves, *held_out, *(plot for pair in results for plot in pair)],
        version=version("melstream"),
        run=run,
        warnings=find_warnings(run),
        tiles=_tiles(run),
        facts=run_facts(run),
        curves=curves,
        held_out=held_out,
        evaluations=list(zip(run.evaluations, results, strict=True)),
        evaluation_tiles=_evaluation_tiles,
        remedy=evaluation_remedy(run),
    )


def _tiles(run: RunSummary) -> list[tuple[str, str, str]]:
    loss, speed, wait = run.last("loss"), run.last("samples_per_s"), data_wait(run)
    tiles = [("Steps", f"{run.step:,}", f"of {run.n_steps:,}")]
    if loss is not None:
        tiles.append(("Loss", f"{loss:.3f}", f"{run.curves['loss'].values[0]:.3f} at first"))
    if run.best is not None:
        step, value = run.best
        metric = _metric_name(run.headline or "")
        tiles.append((f"Best {metric}", f"{value:.3f}", f"held out, at step {step:,}"))
    elif "accuracy" in run.curves:
        tiles.append(("Contrastive accuracy", percent(run.last("accuracy") or 0.0), "at the end"))
    if speed is not None and wait is not None:
        tiles.append(("Speed", f"{speed:,.0f} clips/s", "at the end"))
        tiles.append(("Waiting for data", f"{percent(wait)}", "of the time"))
    return tiles


def _evaluation_tiles(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    names = {
        "accuracy": ("Accuracy", "clips whose class scores highest"),
        "balanced_accuracy": ("Balanced accuracy", "every class counts the same"),
        "mAP": ("mAP", "mean average precision over classes"),
        "mAUC": ("mAUC", "mean area under the ROC curve"),
        "d_prime": ("d-prime", "of the mean AUC"),
    }
    tiles = [("Clips", f"{evaluation.n_clips:,}", evaluation.name)]
    for name, (title, detail) in names.items():
        value = getattr(evaluation, name)
        if value is not None:
            tiles.append((title, f"{value:.3f}" if isinstance(value, float) else value, detail))
    return tiles


def _curve_plot(run: RunSummary, number: int, name: str) -> Plot:
    look = LOOKS.get(name, Look(name, "A figure that the objective logs by this name."))
    curve = run.curves[name]
    shown = "%{y:.2%}" if look.digits.endswith("%") else "%{y:.4g}"
    line = _line(curve.steps, curve.values, look.title, shown)
    y = {"title": {"text": look.unit}, "tickformat": look.digits}
    if look.digits.endswith("%"):
        y["rangemode"] = "tozero"
    drawn = figure(line, x="step", y=y, showlegend=False)
    return Plot(f"curve-{number}", look.title, look.reading, drawn)


def _line(steps: Any, values: Any, name: str, shown: str) -> go.Scatter:
    mode = "lines+markers" if len(steps) <= 60 else "lines"
    return go.Scatter(
        x=steps,
        y=values,
        mode=mode,
        name=plain(name),
        marker={"size": 5},
        hovertemplate=f"step %{{x:,}}<br>{shown}<extra>{plain(name)}</extra>",
    )


def _held_out_plots(run: RunSummary) -> Iterator[Plot]:
    names = [f"{VALIDATION}{name}" for name in ("accuracy", "balanced_accuracy", "mAP", "mAUC")]
    shown = [name for name in names if name in run.curves]
    if not shown:
        return
    lines = [
        _line(run.curves[n].steps, run.curves[n].values, _metric_name(n), "%{y:.3f}") for n in shown
    ]
    if run.best is not None:
        step, value = run.best
        lines.append(_best_mark(step, value))
    yield Plot(
        "held-out",
        "On held-out data",
        f"Higher is better, 1 is perfect. Best step: {best_text(run)}.",
        figure(*lines, x="step", y={"title": {"text": "figure, 0 to 1"}, "range": [0, 1.04]}),
        is_wide=True,
    )


def _metric_name(curve: str) -> str:
    return curve.removeprefix(VALIDATION).replace("_", " ")


def _best_mark(step: int, value: float) -> go.Scatter:
    return go.Scatter(
        x=[step],
        y=[value],
        mode="markers",
        name="best step",
        marker={"size": 13, "symbol": "circle-open", "line": {"width": 2}},
        hovertemplate=f"best: step {step:,}<br>{value:.3f}<extra></extra>",
    )


def _class_plots(number: int, evaluation: Evaluation) -> list[Plot]:
    """Return the weakest classes, and every class by its clips and its average precision."""
    weakest = evaluation.weakest()
    if not weakest:
        return []
    shown = weakest[:N_WEAKEST]
    names = [f"{one.label} ({one.n_positives:,})" for one in shown]
    bars = named_bars(names, [one.ap for one in shown], "average precision", digits=".2f")
    bars.update_xaxes(range=[0, 1.08])
    dots = go.Scatter(
        x=[one.n_positives for one in weakest],
        y=[one.ap for one in weakest],
        mode="markers",
        marker={"size": 9, "opacity": 0.75},
        customdata=[plain(one.label) for one in weakest],
        hovertemplate="%{customdata}<br>%{x:,} clips<br>AP %{y:.3f}<extra></extra>",
    )
    y = {"title": {"text": "average precision"}, "range": [-0.03, 1.05]}
    x = {"title": {"text": "clips of the class in the evaluation"}, "rangemode": "tozero"}
    if max(one.n_positives for one in weakest) > 200:
        x["type"] = "log"
    return [
        Plot(
            f"weakest-{number}",
            "The weakest classes",
            "Average precision of the classes that do worst, with their number of clips.",
            bars,
            height=bars_height(len(shown)),
        ),
        Plot(
            f"classes-{number}",
            "Every class by its clips",
            "Low on the left: too few clips to learn from or to judge by. Low on the right: "
            "hard, or labelled badly.",
            figure(dots, x=x, y=y),
            height=bars_height(len(shown)),
        ),
    ]
