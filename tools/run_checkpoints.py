"""The checkpoints of one run: what goes in, which are kept, and which one a run goes on from.

A run goes on from its last checkpoint. One that is damaged (a file is missing, short or
altered) is renamed to ``refused-step-…`` with a warning, and the one before it is taken: a
job that restarts by itself at night has nobody to ask. A checkpoint that is whole but foreign
(of another run, data set or format) is an error: there somebody mixed up folders.
"""

import math
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from ..model.atomic_folder import clear_leftovers
from ..model.averaging import average_states
from ..model.checked_files import CheckpointError, DamagedCheckpointError
from ..model.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    set_aside,
)
from ..shards.errors import DatasetError, MelstreamError
from .distributed import World
from .run_folder import CHECKPOINTS_NAME, differences, not_shared
from .text_tables import many
from .train_step import Updater


@dataclass(slots=True)
class Progress:
    """Where a run stands; goes into checkpoints.

    Args:
        step: updates done.
        best_metric, best_step: of the validation that was best so far; None and -1 before.
        n_worse: validations since then.
        validated_step: of the last validation.
    """

    step: int = 0
    best_metric: float | None = None
    best_step: int = -1
    n_worse: int = 0
    validated_step: int = -1

    def take(self, metric: float) -> bool:
        """Take in the figure of a validation; say whether it is the best so far."""
        self.validated_step = self.step
        is_best = metric > (-math.inf if self.best_metric is None else self.best_metric)
        if is_best:
            self.best_metric, self.best_step, self.n_worse = metric, self.step, 0
        else:
            self.n_worse += 1
        return is_best


class RunCheckpoints:
    """Save and restore one run.

    Args:
        folder: of the run.
        config: everything that decides the run's weights; kept in each checkpoint.
        every: steps from one regular checkpoint to the next; others are of a validation, of
            the end, or of a run that was stopped.
        keep_last: how many regular ones to keep, beside the newest and the best.
        console: where warnings are shown.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], *, every: int, keep_last: int, console: Console
    ) -> None:
        self._root = folder / CHECKPOINTS_NAME
        self._config, self._every, self._keep_last = config, every, keep_last
        self._console = console

    def save(
        self, model_state: dict[str, Tensor], updater: Updater, at: Progress, state: dict[str, Any]
    ) -> None:
        """Write a checkpoint and remove those that are not needed any more.

        Args:
            model_state: weights by name.
            updater: optimiser, moving average and count of skipped steps.
            at: where the run stands.
            state: what else it takes to go on, as plain data.

        Raises:
            MelstreamError: a weight is not finite.
            CheckpointError: the disk is full, for example; the others are untouched.
        """
        if not all(value.isfinite().all() for value in model_state.values()):
            raise MelstreamError(
                f"weights are not finite at step {at.step}, checkpoints before it are kept; start "
                "a new run with lower learning rates or a lower optim.clip_norm"
            )
        average = updater.average
        save_checkpoint(
            self._root,
            at.step,
            model_state=model_state,
            optimizer_state=updater.optimizer.state_dict(),
            average_state=None if average is None else average.state_dict(),
            meta={
                "run": self._config,
                "progress": asdict(at),
                "n_skipped": int(updater.n_skipped),
                **state,
            },
        )
        regular = self._regular(at.step, self._keep_last)
        prune_checkpoints(self._root, 1, keep={self._path(at.best_step), *regular})

    def last(self) -> Checkpoint | None:
        """Return the last checkpoint that is whole; None for a run that has none yet.

        Raises:
            CheckpointError: none is whole, or it is of another format version.
            DatasetError: it is of another run.
        """
        clear_leftovers(self._root)  # one that was being replaced when the run died is put back
        while (path := latest_checkpoint(self._root)) is not None:
            try:
                checkpoint = load_checkpoint(path)
            except DamagedCheckpointError as error:
                self._refuse(path, error)
                continue
            self._require_same_run(checkpoint)
            return checkpoint
        if refused := sorted(self._root.glob("refused-*")):
            raise DamagedCheckpointError(
                f"{refused[-1]} is damaged and no checkpoint before it is whole",
                "start anew in another --out",
                refused[-1],
            )
        return None

    def shared_last(self, world: World) -> Checkpoint | None:
        """Return the checkpoint that all processes go on from: the main one chooses, each reads.

        Only the name travels; the files are read from a folder that all machines share.

        Raises:
            CheckpointError, DatasetError: as ``last``, in every process; or one of them cannot
                read what the main one has chosen.
        """
        own: list[Checkpoint | None] = []

        def choose() -> str | None:
            own.append(self.last())
            return None if own[0] is None else own[0].path.name

        name = world.on_main(choose)
        return world.on_all(lambda: own[0] if own else self._read_chosen(name, world.rank))

    def average_last(self, n: int, step: int) -> dict[str, Tensor]:
        """Average the weights of the last regular checkpoints, that of ``step`` among them.

        Where the run keeps a moving average, these are the average's. A run that was stopped in
        between has checkpoints of other steps, too: they are left out.
        """
        paths = self._regular(step, n)
        found = [weights for path in paths if (weights := self._whole_weights(path)) is not None]
        if len(found) < n:
            reason = "; lower train.checkpoint_every next time" if len(paths) < n else ""
            self._warn(
                f"the model is the average of {many(len(found), 'checkpoint')}, not of {n}: the "
                f"run has no more{reason}"
            )
        return average_states(found)

    def weights(self, step: int) -> dict[str, Tensor] | None:
        """Return the weights that were validated at a step; None if their checkpoint is damaged.

        Then it says so.
        """
        return self._whole_weights(self._path(step))

    def _whole_weights(self, path: Path) -> dict[str, Tensor] | None:
        try:
            return load_checkpoint(path).weights
        except DamagedCheckpointError as error:
            self._warn(f"{error.reason}; the model is made without it")
            return None

    def _path(self, step: int) -> Path:
        return self._root / f"step-{step:06d}"

    def _refuse(self, path: Path, error: DamagedCheckpointError) -> None:
        aside = set_aside(path)
        before = latest_checkpoint(self._root)
        if before is None:
            remedy = f"it is {aside} now and there is none before it: start anew in another --out"
            raise DamagedCheckpointError(error.reason, remedy, aside) from error
        self._warn(f"{error.reason}; it is {aside} now, and the run goes on from {before}")

    def _regular(self, step: int, n: int) -> list[Path]:
        """Return the last n checkpoints of every so many steps, that of ``step`` being one."""
        steps = {*range(self._every, step, self._every), step}
        paths = (self._path(step) for step in sorted(steps, reverse=True))
        return list(islice((path for path in paths if path.is_dir()), n))

    def _warn(self, text: str) -> None:
        self._console.print(f"warning: {text}", style="yellow", highlight=False, markup=False)

    def _read_chosen(self, name: str | None, rank: int) -> Checkpoint | None:
        """Read what the main process has found whole."""
        if name is None:
            return None
        try:
            return load_checkpoint(self._root / name)
        except CheckpointError as error:
            if (self._root / name).is_dir():
                raise
            raise not_shared(f"the main process's checkpoint ({error.reason})", rank) from error

    def _require_same_run(self, checkpoint: Checkpoint) -> None:
        changed = differences(checkpoint.meta.get("run", {}), self._config)
        if changed:
            raise DatasetError(
                f"{checkpoint.path} belongs to another run ({'; '.join(changed)}); to go on from "
                f"the one before it: rm -r {checkpoint.path}"
            )
