"""The training loop of ``pretrain`` and ``finetune``: one step after the other, resumable.

The loop knows neither task: a ``Learner`` says what is trained and how a batch becomes
losses. The place in the run is one number, the step; checkpoints hold it with the weights,
the optimiser and the state of the order.

    train_step       one update          run_log   scalars        health      is it alive?
    run_checkpoints  what is kept        live_view the terminal   distributed many processes
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ..pipeline.batch import Batch, on_device
from ..pipeline.loader import Loader
from ..shards.errors import MelstreamError
from .distributed import Agreement, World
from .health import Circumstances, DeadRunError, find_illness
from .live_view import View, live_view
from .model_folder import ModelCard, model_part, read_model, write_model
from .recipe import Recipe
from .run_checkpoints import Progress, RunCheckpoints
from .run_folder import MODEL_NAME, REPORT_NAME, claim_run, claimed, require_shared
from .run_log import RunLog, Window
from .signals import catch_signals
from .train_step import Learner, Updater, require_parts
from .training_data import RunOrder


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


class _StopError(Exception):
    """Some process was asked to stop; raised in all of them at the same place."""


def finish_run(
    folder: Path,
    model: Callable[[], tuple[Mapping[str, Tensor], ModelCard]],
    *,
    world: World,
    measure: Callable[[], object] = lambda: None,
) -> None:
    """Write what a finished run leaves beside its log and checkpoints: its model, and a page.

    Args:
        folder: of the run.
        model: gives the run's model and its card, in the main process.
        world: this process among those of the run; each of them has to call.
        measure: called by each when the model is written, and before the page is.
    """
    from .run_report import write_run_report  # plotly takes half a second to import

    def write() -> None:
        weights, card = model()
        write_model(folder / MODEL_NAME, weights, card)

    world.on_main(write)
    measure()
    world.on_main(lambda: write_run_report(folder, folder / REPORT_NAME))


class Trainer:
    """Run a learner over an order.

    Args:
        learner: what is trained.
        order, loader: the batches, by step; the loader gives this process its share.
        recipe: its sections for the optimiser, the loop and the alarm.
        folder: of the run.
        config: everything that decides the run's weights; kept in every checkpoint.
        card: of the model that the run makes, without its steps.
        console: where progress is shown.
        world: this process among those of the run.
    """

    def __init__(
        self,
        learner: Learner,
        order: RunOrder,
        loader: Loader,
        *,
        recipe: Recipe,
        folder: Path,
        config: dict[str, Any],
        card: ModelCard,
        console: Console,
        world: World,
    ) -> None:
        n_samples = len(order.positions(0, rank=world.rank, world_size=world.size))
        require_parts(n_samples, recipe.train.accumulate)
        self._card = card
        self._learner, self._order, self._loader = learner, order, loader
        self._train, self._health = recipe.train, recipe.health
        self._circumstances = Circumstances(
            recipe.optim.warmup_steps, recipe.train.steps, thaw_step=recipe.n_frozen_steps
        )
        self._folder, self._config, self._console = folder, config, console
        self._world = world
        self._updater = Updater(learner, train=recipe.train, optim=recipe.optim, world=world)
        self._checkpoints = RunCheckpoints(
            folder,
            config,
            every=recipe.train.checkpoint_every,
            keep_last=recipe.train.keep_last,
            console=console,
        )
        self._at, self._window = Progress(), Window()
        self._is_finished = False
        self._illness: str | None = None

    def run(self, title: str, *, resume: bool) -> Result:
        """Train to the last step, until validation gets no better, or until SIGTERM or Ctrl-C.

        Args:
            title: shown beside the progress bar.
            resume: start from the last checkpoint, if there is one; so does a process that
                torchrun started anew.

        Raises:
            DatasetError: the folder holds another run, any run without ``resume``, or is not the
                same one for all processes.
            MelstreamError: more steps than allowed had no finite gradient.
            DeadRunError: the run learns nothing any more.
            CheckpointError: no checkpoint can be used, or none can be written.
            KeyboardInterrupt: Ctrl-C came twice; no checkpoint was written for it.
        """
        start = time.monotonic()
        resume = resume or self._world.n_restarts > 0
        with ExitStack() as stack:
            self._world.on_main(lambda: self._claim(stack, resume=resume))
            self._world.on_all(lambda: require_shared(self._folder, self._world.rank))
            if resume:
                self._restore()
            if self._is_finished:
                return Result(0, True, {}, time.monotonic() - start)
            log = stack.enter_context(closing(self._open_log()))
            received = stack.enter_context(catch_signals(self._answer_ctrl_c))
            view = stack.enter_context(live_view(title, self._train.steps, self._console))
            is_complete = self._loop(log, view, received)
        return Result(self._at.step, is_complete, log.last, time.monotonic() - start)

    def final_model(self) -> tuple[Mapping[str, Tensor], ModelCard]:
        """Return the weights that become the model, and their card.

        The mean of the last checkpoints if the recipe asks for it; else the weights that did
        best on held-out data; without such data, or if their checkpoint is damaged, the last
        ones. Where the run keeps a moving average, these are the average's.
        """
        if self._is_finished:
            return read_model(self._folder)
        step, weights = self._final_weights()
        card = self._card.model_copy(update={"steps": step})
        return model_part(weights, card), card

    def _final_weights(self) -> tuple[int, dict[str, Tensor]]:
        step, best_step = self._at.step, self._at.best_step
        if self._train.average_last:
            return step, self._checkpoints.average_last(self._train.average_last, step)
        if 0 <= best_step < step and (best := self._checkpoints.weights(best_step)) is not None:
            return best_step, best
        average = self._updater.average
        return step, (self._learner.module if average is None else average).state_dict()

    def _claim(self, stack: ExitStack, *, resume: bool) -> None:
        claim_run(self._folder, self._config, resume=resume)
        stack.enter_context(claimed(self._folder))

    def _open_log(self) -> RunLog:
        return RunLog(
            self._folder,
            self._at.step,
            world=self._world,
            wandb_project=self._train.wandb_project,
            config=self._config,
        )

    def _loop(self, log: RunLog, view: View, received: list[int]) -> bool:
        """Train; say whether the run is over, and was not stopped."""
        agreement = Agreement(self._world)

        def heed() -> None:
            if agreement.hear(bool(received)):
                raise _StopError

        is_saved, is_complete = True, False
        with suppress(_StopError):
            if self._at.step > 0:  # the run may have died while it validated
                self._validate_and_save(log, view, heed)
            self._updater.train_mode(self._at.step)
            with closing(self._loader.batches(self._at.step, self._train.steps)) as on_host:
                batches = on_device(on_host, self._world.device)
                while not self._is_over():
                    self._timed_step(batches)
                    view.step(self._at.step)
                    if self._is_due(self._train.log_every):
                        self._write(log, view)
                    is_saved = self._is_due(self._train.checkpoint_every)
                    if is_saved:  # before the validation: a run that dies in it loses nothing
                        self._save()
                    is_saved |= self._validate_and_save(log, view, heed)
                    if not self._is_over():
                        heed()
            is_complete = True
        agreement.finish()
        if not is_saved:
            self._save()
        return is_complete

    def _is_due(self, every: int) -> bool:
        """Say whether something that happens every so many steps, and at the end, is due."""
        is_last = self._at.step == self._train.steps
        return is_last or (every > 0 and self._at.step % every == 0)

    def _is_over(self) -> bool:
        """Say whether all steps are done, or validation has got no better for too long."""
        is_stale = 0 < self._train.stop_after <= self._at.n_worse
        return is_stale or self._at.step == self._train.steps

    def _timed_step(self, batches: Iterator[Batch]) -> None:
        start = time.perf_counter()
        batch = next(batches)
        waited_s = time.perf_counter() - start
        figures = self._updater.update(self._at.step, batch)
        self._at.step += 1
        total_s = time.perf_counter() - start
        self._window.add(figures, len(batch.rows), waited_s=waited_s, total_s=total_s)

    def _write(self, log: RunLog, view: View) -> None:
        figures = self._window.figures(self._world) | self._updater.rates(self._at.step - 1)
        self._window = Window()
        n_skipped = int(self._updater.n_skipped)  # waits for the device, as the figures have
        thaw_step = self._circumstances.thaw_step
        is_all_moving = not thaw_step or self._at.step >= thaw_step + self._train.log_every
        if self._learner.peak_samples_per_s is not None and is_all_moving:
            at_peak = self._learner.peak_samples_per_s * self._world.size
            figures["mfu"] = figures["samples_per_s"] / at_peak
        self._world.on_main(
            lambda: log.write(self._at.step, figures | {"skipped_steps": n_skipped})
        )
        view.figures(self._at.step, figures)
        if n_skipped > self._train.max_skipped_steps:
            raise MelstreamError(
                f"{n_skipped} of {self._at.step} steps had a gradient of NaN or inf and were "
                f"skipped, more than train.max_skipped_steps ({self._train.max_skipped_steps}); "
                "start a new run with a lower optim.lr or a longer optim.warmup_steps, or go on "
                "from the last checkpoint: --resume --set train.max_skipped_steps=N. If they came "
                "from the first step on, 'melstream inspect' the data"
            )
        illness = self._world.on_main(
            lambda: find_illness(log.entries, self._health, self._circumstances)
        )
        if illness is not None:
            self._raise_alarm(illness)
        self._illness = illness

    def _raise_alarm(self, illness: str) -> None:
        if self._health.alarm == "stop":
            raise DeadRunError(
                f"stopped at step {self._at.step}: {illness}. To go on all the same: "
                "--resume --set health.alarm=warn"
            )
        if self._illness is None:  # a run that stays ill says so once
            self._console.print(
                f"warning at step {self._at.step}: {illness}", style="yellow", highlight=False
            )

    def _answer_ctrl_c(self) -> None:
        # torchrun passes a second Ctrl-C on as SIGTERM.
        again = "" if self._world.size > 1 else "; Ctrl-C again stops without"
        self._say(f"stopping after this step, with a checkpoint{again}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False)

    def _validate_and_save(self, log: RunLog, view: View, heed: Callable[[], object]) -> bool:
        """Validate if it is due, and save what it changed; say whether that was so."""
        is_due = self._is_due(self._train.validate_every)
        if self._learner.validate is None or not is_due or self._at.validated_step == self._at.step:
            return False
        with self._updater.averaged_weights(), self._eagerly():
            measured = self._learner.validate(heed)
        self._updater.train_mode(self._at.step)
        # JSON has no NaN or inf; d' is infinite where everything is right
        figures = {f"valid/{n}": value for n, value in measured.items() if math.isfinite(value)}
        self._world.on_main(lambda: log.write(self._at.step, figures))
        view.figures(self._at.step, figures)
        metric = measured.get(self._learner.metric, -math.inf)  # undefined: no best
        if not self._at.take(metric) and not self._is_over():
            return False
        self._save()
        return True

    def _eagerly(self) -> AbstractContextManager[object]:
        """Compile nothing for a validation: its shapes would use up the compiler's limit."""
        return torch.compiler.set_stance("force_eager") if self._train.compile else nullcontext()

    def _save(self) -> None:
        state = {
            "order": self._order.state(self._at.step),
            "window": self._window.state(self._world),
            "card": self._card.model_copy(update={"steps": self._at.step}).model_dump(mode="json"),
        }
        weights = self._learner.module.state_dict()
        self._world.on_main(lambda: self._checkpoints.save(weights, self._updater, self._at, state))

    def _restore(self) -> None:
        checkpoint = self._checkpoints.shared_last(self._world)
        if checkpoint is None:
            model = self._folder / MODEL_NAME
            self._is_finished = self._world.on_main(model.is_dir)
            if self._is_finished:
                self._say(f"the run is complete and its checkpoints are gone: {model} stays")
                return
            self._say(f"no checkpoint in {self._folder} yet: starting at step 0")
            return
        self._at = Progress(**checkpoint.meta["progress"])
        self._window = Window.of_state(checkpoint.meta.get("window", {}), self._world.device)
        self._at.step = self._order.resume(checkpoint.meta["order"])
        self._learner.module.load_state_dict(checkpoint.model_state)
        self._updater.restore(checkpoint)
        self._console.print(
            f"resumed from {checkpoint.path} at step {self._at.step}",
            highlight=False,
            soft_wrap=True,
        )
