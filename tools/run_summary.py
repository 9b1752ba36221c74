"""What a training run did: its curves, its best step, what went wrong, its weakest classes.

Read from the run's own small files; no weights are loaded and no data set is opened.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..shards.errors import DatasetError
from .health import Circumstances, Entry, HealthConfig, find_illness
from .hours import percent
from .inspection import Finding
from .run_folder import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    EVALUATIONS_GLOB,
    HEADLINE,
    METRICS_NAME,
    MODEL_NAME,
    is_claimed,
)

VALIDATION = "valid/"  # what the names of held-out figures start with
MAX_DATA_WAIT = 0.1  # share of the time; above, the loader is what limits the run
MAX_AFTER_BEST = 0.3  # share of the steps after the best one; above, they were for nothing
MAX_FILE_BYTES = 256 * 2**20


class ClassResult(BaseModel):
    """One class of an evaluation; None where the measure is not defined."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    label: str
    n_positives: int = Field(ge=0, description="clips of the class that were evaluated")
    ap: float | None = Field(description="average precision")
    auc: float | None
    recall: float | None = Field(description="share of the class's clips found; single_label only")


class Evaluation(BaseModel):
    """What ``melstream evaluate --out`` wrote."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="of the file")
    n_clips: int = Field(ge=0)
    mAP: float | None = None
    mAUC: float | None = None
    d_prime: float | str | None = None
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    classes: tuple[ClassResult, ...]

    def weakest(self) -> list[ClassResult]:
        """Return the classes that were measured, the one with the lowest AP first."""
        measured = [one for one in self.classes if one.ap is not None]
        return sorted(measured, key=lambda one: (one.ap or 0.0, one.n_positives, one.label))

    def ranked(self) -> list[ClassResult]:
        """Return every class, the weakest first, those without a clip last."""
        return self.weakest() + [one for one in self.classes if one.ap is None]


class Curve(BaseModel):
    """One figure over the run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: tuple[int, ...] = Field(description="ascending")
    values: tuple[float, ...] = Field(description="one per step")


class RunSummary(BaseModel):
    """What there is to say about a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    folder: Path
    task: Literal["pretrain", "finetune"]
    config: dict[str, Any] = Field(description="recipe, fingerprint of the data set, features")
    curves: dict[str, Curve] = Field(description="by name; held-out figures start with `valid/`")
    headline: str | None = Field(
        description="name of the curve that chose the best step; none without held-out data"
    )
    is_complete: bool = Field(description="it came to its last step and wrote its model")
    is_training: bool = Field(default=False, description="a process trains in its folder now")
    checkpoints: tuple[int, ...] = Field(description="steps whose checkpoints are there")
    evaluations: tuple[Evaluation, ...] = Field(description="those that lie in the folder")

    @property
    def n_steps(self) -> int:
        """Steps the recipe asks for."""
        return int(self.config["recipe"]["train"]["steps"])

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return max((curve.steps[-1] for curve in self.curves.values()), default=0)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and figure of the best result on held-out data; None without any."""
        if self.headline is None:
            return None
        curve = self.curves[self.headline]
        value = max(curve.values)
        return curve.steps[curve.values.index(value)], value

    def last(self, name: str) -> float | None:
        """Return the last value of a curve, or None where there is none."""
        return self.curves[name].values[-1] if name in self.curves else None


def is_run(place: str | Path) -> bool:
    """Say whether a place is the folder of a training run."""
    folder = Path(place)
    return (folder / CONFIG_NAME).is_file() and (folder / METRICS_NAME).is_file()


def read_run(folder: Path) -> RunSummary:
    """Read a run.

    Args:
        folder: what ``--out`` of ``melstream pretrain`` or ``finetune`` named.

    Raises:
        DatasetError: it is no run, or its files are not those of one.
    """
    if not is_run(folder):
        raise DatasetError(
            f"{folder} is no training run: {CONFIG_NAME} and {METRICS_NAME} are required; give "
            "the folder that --out of 'melstream pretrain' or 'melstream finetune' named"
        )
    config = _read_json(folder / CONFIG_NAME)
    recipe = config.get("recipe")
    if not _is_recipe(recipe):
        raise DatasetError(
            f"{folder / CONFIG_NAME} must hold the recipe of a run with train.steps; copy the "
            "run again"
        )
    curves = _read_curves(folder / METRICS_NAME)
    metric = VALIDATION + HEADLINE.get(recipe.get("tagger", {}).get("task", ""), "")
    return RunSummary(
        folder=folder,
        task="finetune" if "tagger" in recipe else "pretrain",
        config=config,
        curves=curves,
        headline=metric if metric in curves else None,
        is_complete=(folder / MODEL_NAME).is_dir(),
        is_training=is_claimed(folder),
        checkpoints=_checkpoint_steps(folder / CHECKPOINTS_NAME),
        evaluations=tuple(read_evaluations(folder)),
    )


def find_warnings(run: RunSummary) -> list[Finding]:
    """Say what went wrong in a run, and what to do about it."""
    return [finding for check in _CHECKS for finding in check(run)]


def _unfinished(run: RunSummary) -> Iterator[Finding]:
    if not run.is_complete and not run.is_training and not _is_dead(run):
        last = run.checkpoints[-1] if run.checkpoints else None
        start = (
            "starts over, for it has no checkpoint"
            if last is None
            else f"goes on from step {last:,}"
        )
        step = max(run.step, last or 0)  # the last steps may not have been logged
        yield Finding(
            code="unfinished",
            message=f"the run stopped at step {step:,} of {run.n_steps:,}",
            remedy=f"start it again with --resume, it {start}",
        )


def _is_dead(run: RunSummary) -> bool:
    """Say whether a run that goes on would be stopped again where it was."""
    recipe = run.config["recipe"]
    most = recipe["train"].get("max_skipped_steps", math.inf)
    is_stopped = recipe.get("health", {}).get("alarm") == "stop" and any(_ill(run))
    return is_stopped or (run.last("skipped_steps") or 0) > most


def _ill(run: RunSummary) -> Iterator[Finding]:
    """Judge the log as the run's own alarm does, whatever it was set to."""
    recipe = run.config["recipe"]
    warmup_steps = recipe.get("optim", {}).get("warmup_steps") or 0
    frozen = recipe.get("finetune", {}).get("freeze_body_steps", 0)
    thaw_step = run.n_steps if frozen == "all" else frozen
    circumstances = Circumstances(warmup_steps, run.n_steps, thaw_step)
    known = {k: v for k, v in recipe.get("health", {}).items() if k in HealthConfig.model_fields}
    config = HealthConfig.model_validate(known | {"alarm": "warn"})
    illness = find_illness(_entries(run), config, circumstances)
    if illness is not None:
        message, _, remedy = illness.partition(" Usual remedy: ")
        yield Finding(code="ill", message=message.rstrip("."), remedy=remedy)


def _entries(run: RunSummary) -> list[Entry]:
    """Put the lines of the log together again, those of training figures."""
    entries: dict[int, Entry] = {}
    for name in ("grad_norm", "accuracy", "chance", "target_std", "code_perplexity"):
        curve = run.curves.get(name)
        for step, value in zip(curve.steps, curve.values, strict=True) if curve else ():
            entries.setdefault(step, {"step": step})[name] = value
    return [entries[step] for step in sorted(entries)]


def _skips_steps(run: RunSummary) -> Iterator[Finding]:
    n_skipped = int(run.last("skipped_steps") or 0)
    if n_skipped:
        yield Finding(
            code="skipped_steps",
            message=f"{n_skipped} of {run.step:,} steps had a gradient of NaN or inf and were "
            "skipped",
            remedy="a lower optim.lr or a longer optim.warmup_steps; more than "
            "train.max_skipped_steps end a run",
        )


def _waits_for_data(run: RunSummary) -> Iterator[Finding]:
    share = data_wait(run)
    if share is not None and share > MAX_DATA_WAIT:
        yield Finding(
            code="data_wait",
            message=f"{percent(share)} of the time went into waiting for data",
            remedy="'melstream bench loader' shows what limits it; a local copy of the shards "
            "or a larger cache often helps",
        )


def _trained_too_long(run: RunSummary) -> Iterator[Finding]:
    if run.best is None or len(run.curves[run.headline or ""].steps) < 3:
        return
    step, value = run.best
    if (run.step - step) / run.step > MAX_AFTER_BEST:
        last = run.curves[run.headline or ""].values[-1]
        n_averaged = run.config["recipe"]["train"].get("average_last")
        of_model = (
            f"the model is the mean of the last {n_averaged} checkpoints, train.average_last=0 "
            "takes the best step"
            if n_averaged
            else "the model has the weights of the best step"
        )
        yield Finding(
            code="past_best",
            message=f"held-out {_metric(run)} was best at step {step:,} ({value:.3f}) and is "
            f"{last:.3f} at the end",
            remedy=f"{of_model}; fewer steps or more data would do as well",
        )


def _learns_nothing(run: RunSummary) -> Iterator[Finding]:
    loss = run.curves.get("loss")
    if loss is None or len(loss.values) < 5:
        return
    if min(loss.values[1:]) >= loss.values[0]:
        yield Finding(
            code="no_progress",
            message=f"the loss never fell below its first value, {loss.values[0]:.3f}",
            remedy="try a lower optim.lr or a longer optim.warmup_steps",
        )


def _unmeasured(run: RunSummary) -> Iterator[Finding]:
    for evaluation in run.evaluations:
        n_empty = sum(one.n_positives == 0 for one in evaluation.classes)
        if n_empty:
            yield Finding(
                code="unmeasured",
                message=f"{n_empty} of {len(evaluation.classes)} classes have no clip in "
                f"{evaluation.name}, its means say nothing about them",
                remedy="evaluate on a data set that has clips of every class",
            )


_CHECKS = (
    _ill, _skips_steps, _unfinished, _waits_for_data, _trained_too_long, _learns_nothing,
    _unmeasured,
)  # fmt: skip


def data_wait(run: RunSummary) -> float | None:
    """Return the share of time spent waiting for data, without the first entry's warm-up."""
    curve = run.curves.get("data_wait_share")
    if curve is None:
        return None
    values = curve.values[1:]
    return sum(values) / len(values) if values else None


def _metric(run: RunSummary) -> str:
    return (run.headline or "").removeprefix(VALIDATION)


def _is_recipe(recipe: Any) -> TypeGuard[dict[str, Any]]:
    """Say whether the sections that are shown are there, as sections."""
    if not isinstance(recipe, dict):
        return False
    sections = (recipe.get(name, {}) for name in ("train", "tagger", "model", "optim", "data"))
    if not all(isinstance(section, dict) for section in sections):
        return False
    return isinstance(recipe.get("train", {}).get("steps"), int)


def _read_bytes(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DatasetError(f"{path} must be under {MAX_FILE_BYTES} bytes, it is no file of a run")
    return path.read_bytes()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} must be JSON, found none ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} must be a JSON object, found {type(content).__name__}")
    return content


def _read_curves(path: Path) -> dict[str, Curve]:
    """Read ``metrics.jsonl``; a line torn by a crash, and what is not finite, is left out."""
    points: dict[str, dict[int, float]] = {}
    for line in _read_bytes(path).splitlines():
        try:
            entry = json.loads(line, parse_int=float)  # whole numbers can be too large for one
            step = int(entry.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
        for name, value in entry.items():
            if isinstance(value, float) and math.isfinite(value):
                points.setdefault(name, {})[step] = value
    return {
        name: Curve(steps=tuple(sorted(found)), values=tuple(found[step] for step in sorted(found)))
        for name, found in points.items()
    }


def _checkpoint_steps(folder: Path) -> tuple[int, ...]:
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return tuple(sorted(int(name) for name in names if name.isdecimal()))


def read_evaluations(folder: Path) -> Iterator[Evaluation]:
    """Read the evaluations that lie in the folder of a run, by name.

    Raises:
        DatasetError: a file of that name is none.
    """
    for path in sorted(folder.glob(EVALUATIONS_GLOB)):
        try:
            yield Evaluation.model_validate({**_read_json(path), "name": path.name})
        except ValidationError as error:
            raise DatasetError(
                f"{path} must be written by 'melstream evaluate --out', found something else; "
                "remove it, or evaluate again"
            ) from error
