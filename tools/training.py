"""The training loop of ``pretrain`` and ``finetune``: one step after the other, resumable.

The loop knows neither task: a ``Learner`` says what is trained and how a batch becomes
losses. The place in the run is one number, the step; checkpoints hold it with the weights,
the optimiser, the random state and the state of the order.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from ..model.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from ..model.optim import OptimConfig, build_optimizer, learning_rate, set_learning_rate
from ..pipeline.batch import Batch
from ..pipeline.loader import Loader
from ..pipeline.order import TrainingOrder
from ..shards.errors import MelstreamError
from ..shards.files import write_bytes
from .progress import Report, progress
from .recipe import TrainConfig
from .run_folder import CHECKPOINTS_NAME, METRICS_NAME, TENSORBOARD_NAME


@dataclass(frozen=True, slots=True)
class Learner:
    """What a run trains.

    Args:
        module: everything whose weights go into a checkpoint, on its device.
        groups: optimiser groups; ``lr`` is the peak, ``frozen_steps`` the first steps in
            which the group does not move.
        losses: a batch on the device -> ``loss`` and whatever else is worth logging, scalars.
        validate: figures on held-out data, or None.
        metric: the figure of ``validate`` by which the best checkpoint is kept (higher is better).
    """

    module: nn.Module
    groups: list[dict[str, Any]]
    losses: Callable[[Batch], dict[str, Tensor]]
    validate: Callable[[], dict[str, float]] | None = None
    metric: str = ""


@dataclass(slots=True)
class Progress:
    """Where a run stands; goes into checkpoints."""

    step: int = 0
    best_metric: float = -math.inf
    best_step: int = -1


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended.

    Args:
        step: updates done.
        is_complete: False after SIGTERM or Ctrl-C; ``--resume`` goes on.
        figures: the last logged scalars.
        wall_s: seconds of this run.
    """

    step: int
    is_complete: bool
    figures: dict[str, float]
    wall_s: float


class Trainer:
    """Run a learner over an order.

    Args:
        learner: what is trained.
        order, loader: the batches, by step.
        train, optim: the recipe's sections.
        folder: of the run.
        meta: plain data kept in every checkpoint.
        console: where progress is shown.
    """

    def __init__(
        self,
        learner: Learner,
        order: TrainingOrder,
        loader: Loader,
        *,
        train: TrainConfig,
        optim: OptimConfig,
        folder: Path,
        meta: dict[str, Any],
        console: Console,
    ) -> None:
        self._learner, self._order, self._loader = learner, order, loader
        self._train, self._optim = train, optim
        self._folder, self._meta, self._console = folder, meta, console
        self._device = next(learner.module.parameters()).device
        self._optimizer = build_optimizer(learner.groups, optim)
        self._at = Progress()

    def run(self, title: str, *, resume: bool) -> Result:
        """Train to the last step, or until SIGTERM or Ctrl-C.

        Args:
            title: shown beside the progress bar.
            resume: start from the last checkpoint, if there is one.

        Raises:
            MelstreamError: the loss is not finite.
            CheckpointError: the last checkpoint cannot be used.
        """
        start = time.monotonic()
        if resume:
            self._restore()
        log = _Log(self._folder, self._at.step)
        with (
            progress(title, self._train.steps, self._console) as report,
            _catch_signals() as interrupted,
        ):
            try:
                self._loop(log, report, interrupted)
            finally:
                log.close()
        is_complete = self._at.step == self._train.steps
        return Result(self._at.step, is_complete, log.last, time.monotonic() - start)

    def _loop(self, log: "_Log", report: Report, interrupted: list[int]) -> None:
        self._learner.module.train()
        window = _Window()
        with closing(self._loader.batches(self._at.step, self._train.steps)) as batches:
            while self._at.step < self._train.steps and not interrupted:
                window.add(*self._timed_step(batches))
                self._at.step += 1
                if self._is_due(self._train.log_every):
                    log.write(self._at.step, window.figures())
                    window = _Window()
                    report(self._at.step, f"loss {log.last['loss']:.3f}")
                if self._is_due(self._train.validate_every):
                    self._validate(log)
                if self._is_due(self._train.checkpoint_every):
                    self._save()
        if interrupted:
            self._save()

    def _is_due(self, every: int) -> bool:
        """Say whether something that happens every so many steps, and at the end, is due."""
        is_last = self._at.step == self._train.steps
        return is_last or (every > 0 and self._at.step % every == 0)

    def _timed_step(self, batches: Iterator[Batch]) -> tuple[dict[str, Tensor], int, float, float]:
        """Return figures (on the device), samples, seconds waited for data, seconds in all."""
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        figures = self._step(batch.to(self._device))
        return figures, len(batch.rows), waited, time.perf_counter() - start

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        """One update; returns what the learner reports, without waiting for the device."""
        factor = learning_rate(self._at.step, self._train.steps, self._optim)
        set_learning_rate(self._optimizer, factor)
        with torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._train.precision == "bfloat16"
        ):
            figures = self._learner.losses(batch)
        figures["loss"].backward()
        for group in self._optimizer.param_groups:
            if self._at.step < group.get("frozen_steps", 0):
                for parameter in group["params"]:
                    parameter.grad = None
        parameters = self._learner.module.parameters()
        norm = nn.utils.clip_grad_norm_(parameters, self._optim.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        rate = torch.tensor(self._optimizer.param_groups[0]["lr"])
        return {name: value.detach() for name, value in figures.items()} | {
            "grad_norm": norm.detach(),
            "lr": rate,
        }

    def _validate(self, log: "_Log") -> None:
        if self._learner.validate is None:
            return
        figures = self._learner.validate()
        self._learner.module.train()
        log.write(self._at.step, {f"valid/{name}": value for name, value in figures.items()})
        if figures[self._learner.metric] > self._at.best_metric:
            self._at.best_metric, self._at.best_step = figures[self._learner.metric], self._at.step
            self._save()

    def best_weights(self) -> dict[str, Tensor]:
        """Return the weights that did best on held-out data, or the last ones without it."""
        if self._at.best_step in (-1, self._at.step):
            return self._learner.module.state_dict()
        root = self._folder / CHECKPOINTS_NAME
        return load_checkpoint(root / _checkpoint_name(self._at.best_step)).model_state

    def _save(self) -> None:
        if not all(p.isfinite().all() for p in self._learner.module.parameters()):
            raise MelstreamError(
                f"weights are not finite at step {self._at.step}, the last checkpoint is kept; "
                "start a new run with a lower optim.lr or optim.clip_norm"
            )
        root = self._folder / CHECKPOINTS_NAME
        save_checkpoint(
            root,
            self._at.step,
            model_state=self._learner.module.state_dict(),
            optimizer_state=self._optimizer.state_dict(),
            rng_state=_random_state(self._device),
            meta=self._meta
            | {
                "order": self._order.state(self._at.step),
                "best_metric": self._at.best_metric if self._at.best_step >= 0 else None,
                "best_step": self._at.best_step,
            },
        )
        best = root / _checkpoint_name(self._at.best_step)
        prune_checkpoints(root, self._train.keep_last, keep={best})

    def _restore(self) -> None:
        path = latest_checkpoint(self._folder / CHECKPOINTS_NAME)
        if path is None:
            return
        checkpoint = load_checkpoint(path)
        self._at.step = self._order.resume(checkpoint.meta["order"])
        self._at.best_step = checkpoint.meta["best_step"]
        if checkpoint.meta["best_metric"] is not None:
            self._at.best_metric = checkpoint.meta["best_metric"]
        self._learner.module.load_state_dict(checkpoint.model_state)
        self._optimizer.load_state_dict(checkpoint.optimizer_state)
        _set_random_state(self._device, checkpoint.rng_state)
        self._console.print(f"resumed from {path} at step {self._at.step}", highlight=False)


@dataclass(slots=True)
class _Window:
    """Figures since the last log entry; tensors stay on the device until they are logged."""

    steps: list[dict[str, Tensor]] = field(default_factory=list)
    n_samples: int = 0
    waited_s: float = 0.0
    total_s: float = 0.0

    def add(
        self, figures: dict[str, Tensor], n_samples: int, waited_s: float, total_s: float
    ) -> None:
        self.steps.append(figures)
        self.n_samples += n_samples
        self.waited_s += waited_s
        self.total_s += total_s

    def figures(self) -> dict[str, float]:
        means = {
            name: float(torch.stack([step[name].float() for step in self.steps]).mean())
            for name in self.steps[0]
        }
        return means | {
            "samples_per_s": self.n_samples / self.total_s,
            "data_wait_share": self.waited_s / self.total_s,
        }


class _Log:
    """TensorBoard and ``metrics.jsonl``, cut back to the step a run resumes at."""

    def __init__(self, folder: Path, step: int) -> None:
        self.last: dict[str, float] = {}
        self._board = SummaryWriter(str(folder / TENSORBOARD_NAME), purge_step=step + 1)
        path = folder / METRICS_NAME
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        write_bytes(path, b"".join(line for line in lines if _is_up_to(line, step)))
        self._file = path.open("a")

    def write(self, step: int, figures: dict[str, float]) -> None:
        if not math.isfinite(figures.get("loss", 0.0)):
            raise MelstreamError(
                f"the loss is {figures['loss']} at step {step}; start a new run with a lower "
                "optim.lr or optim.clip_norm"
            )
        self.last |= figures
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _is_up_to(line: bytes, step: int) -> bool:
    """Say whether a line of ``metrics.jsonl`` is whole and not past the step."""
    try:
        return json.loads(line)["step"] <= step
    except json.JSONDecodeError:  # torn by a crash: the run writes it again
        return False


def _checkpoint_name(step: int) -> str:
    return f"step-{step:06d}"


@contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying, so that a checkpoint can be written."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
