"""One update: forward, backward, averaging over processes, clipping, the optimiser.

Nothing here waits for the device. A gradient that is not finite is noticed on the device,
where it makes the optimiser leave weights and moments as they are; the count of such steps
is read when figures are logged.

Dropout and every other draw of step t on rank r come from generators seeded with
(seed, t, r): a resumed run draws the same, and there is no random state to save.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..model.averaging import WeightAverage
from ..model.checkpoint import Checkpoint
from ..model.optim import OptimConfig, build_optimizer, learning_rate
from ..pipeline.batch import Batch
from ..pipeline.draws import derive_key
from .distributed import World
from .recipe import TrainConfig

_SEED_BITS = 63  # torch takes 64 with a sign
# Norms' gradients of scale and offset in kernels of their own: those that also give the gradient
# of the input leave so many partial sums that adding these up takes longer. measured: 2026-11-27,
# H200, two blocks of CF-L, 64 x 250 steps, forward and backward: 5.28 ms against 5.53 ms.
COMPILER_OPTIONS: dict[str, Any] = {"triton.mix_order_reduction": False}


@dataclass(frozen=True, slots=True)
class Learner:
    """What a run trains.

    Args:
        module: everything whose weights go into a checkpoint, on its device.
        groups: optimiser groups; ``lr`` is the peak. Those with ``frozen_steps`` do not move
            in the first steps, those with ``warmup_steps`` have a warm-up of their own.
        losses: the module, perhaps wrapped, and a batch on the device -> ``loss`` and
            whatever else is worth logging, scalars.
        body: the part that rests while its groups are frozen: no dropout, no gradient.
        prepare: called with step and seed before anything else of a step.
        transform: changes the process's share of a batch before it is cut into parts.
        validate: figures on held-out data of the module as it is, or None. It calls what it is
            given once per batch, which raises where the run has to stop.
        metric: the figure of ``validate`` by which the best checkpoint is kept (higher is better).
        peak_samples_per_s: what a process could do at its device's peak, with all of the module
            learning; None: not known.
    """

    module: nn.Module
    groups: list[dict[str, Any]]
    losses: Callable[[nn.Module, Batch], dict[str, Tensor]]
    body: nn.Module | None = None
    prepare: Callable[[int, int], object] = lambda step, seed: None
    transform: Callable[[Batch], Batch] = lambda batch: batch
    validate: Callable[[Callable[[], object]], dict[str, float]] | None = None
    metric: str = ""
    peak_samples_per_s: float | None = None


class Updater:
    """Make the updates of a learner.

    Args:
        learner: what is trained.
        train, optim: the recipe's sections.
        world: this process among those of the run.
    """

    def __init__(
        self, learner: Learner, *, train: TrainConfig, optim: OptimConfig, world: World
    ) -> None:
        self._learner, self._train, self._optim, self._world = learner, train, optim, world
        self._device = next(learner.module.parameters()).device
        self.optimizer = build_optimizer(learner.groups, optim)
        self.average = (
            WeightAverage(learner.module, decay=train.average_decay)
            if train.average_decay
            else None
        )
        self.n_skipped = torch.zeros((), dtype=torch.int64, device=self._device)
        self._frozen: tuple[bool, ...] | None = None
        self._parallel: nn.Module = learner.module
        if train.compile:
            learner.module.compile(options=COMPILER_OPTIONS)

    def train_mode(self, step: int) -> None:
        """Switch dropout on, but not in a body that rests at this step."""
        self._learner.module.train()
        if self._learner.body is not None:
            rests = any(self._rests(group, step) for group in self.optimizer.param_groups)
            self._learner.body.train(not rests)

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Take one step.

        Args:
            step: updates done before this one.
            batch: this process's share of the global batch, on the device.

        Returns:
            Scalars on the device: what the learner reports, the gradient norm before
            clipping, and ``is_skipped``, 1 where the gradient was not finite.
        """
        self._thaw(step)
        self._set_rates(step)
        self._seed(step)
        figures = self._accumulate(self._learner.transform(batch))
        norm = nn.utils.clip_grad_norm_(self._learner.module.parameters(), self._optim.clip_norm)
        is_skipped = ~norm.isfinite()
        # Fused AdamW leaves weights, moments and its count alone where this is 1: the way
        # torch's GradScaler goes, without the host knowing.
        self.optimizer.found_inf = is_skipped.float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.n_skipped += is_skipped
        if self.average is not None:
            self.average.update(self._learner.module, step)
        return figures | {"grad_norm": norm, "is_skipped": is_skipped.float()}

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the moving average into the module for a while, where there is one."""
        if self.average is None:
            yield
            return
        own = {name: value.clone() for name, value in self._learner.module.state_dict().items()}
        self._learner.module.load_state_dict(self.average.state_dict())
        try:
            yield
        finally:
            self._learner.module.load_state_dict(own)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over optimiser, moving average and the count of skipped steps."""
        self.optimizer.load_state_dict(checkpoint.optimizer_state)
        self.n_skipped.fill_(checkpoint.meta["n_skipped"])
        if self.average is not None and checkpoint.average_state is not None:
            self.average.load_state_dict(checkpoint.average_state)

    def rates(self, step: int) -> dict[str, float]:
        """Return the learning rates at a step: of the first group, and of the body, if any."""
        first, *_, last = self.optimizer.param_groups
        if self._learner.body is None:
            return {"lr": first["lr"]}
        return {"lr": first["lr"], "body_lr": 0.0 if self._rests(last, step) else last["lr"]}

    def _accumulate(self, batch: Batch) -> dict[str, Tensor]:
        """Sum up the gradients of the parts of a batch; return the mean of their figures."""
        n_parts = self._train.accumulate
        total: dict[str, Tensor] = {}
        for number, part in enumerate(split_batch(batch, n_parts)):
            is_last = number == n_parts - 1
            with self._synced_when(is_last):
                with self._autocast():
                    figures = self._learner.losses(self._parallel, part)
                # Outside: under autocast the float32 products of a loss would go back in bfloat16.
                (figures["loss"] / n_parts).backward()
            for name, value in figures.items():
                value = value.detach() / n_parts
                total[name] = total[name] + value if name in total else value
        return total

    def _synced_when(self, is_last: bool) -> AbstractContextManager[None]:
        """Let processes exchange gradients in the last part of a batch only."""
        if is_last or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return self._parallel.no_sync()

    def _autocast(self) -> torch.autocast:
        is_on = self._train.precision == "bfloat16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=is_on)

    def _rests(self, group: dict[str, Any], step: int) -> bool:
        return step < group.get("frozen_steps", 0)

    def _thaw(self, step: int) -> None:
        """Give gradients to the groups that move, and tell the processes which those are."""
        groups = self.optimizer.param_groups
        frozen = tuple(self._rests(group, step) for group in groups)
        if frozen == self._frozen:
            return
        for group, rests in zip(groups, frozen, strict=True):
            for parameter in group["params"]:
                parameter.requires_grad_(not rests)
        self._frozen = frozen
        self._parallel = self._world.parallel(self._learner.module)
        self.train_mode(step)

    def _set_rates(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            warmup_steps = group.get("warmup_steps", self._optim.warmup_steps)
            optim = self._optim.model_copy(update={"warmup_steps": warmup_steps})
            group["lr"] = group["base_lr"] * learning_rate(step, self._train.steps, optim)

    def _seed(self, step: int) -> None:
        seed = int(derive_key(self._train.seed, step, self._world.rank)) >> (64 - _SEED_BITS)
        torch.manual_seed(seed)  # of the CPU and of every GPU, whichever is current
        self._learner.prepare(step, seed)


def require_parts(n_samples: int, n_parts: int) -> None:
    """Refuse to cut so many samples of a process into so many equal parts.

    Raises:
        ValueError: one part would have fewer.
    """
    if n_samples % n_parts:
        raise ValueError(
            f"`train.accumulate` must divide the samples of a process per step ({n_samples}), "
            f"found {n_parts}"
        )


def split_batch(batch: Batch, n_parts: int) -> Iterator[Batch]:
    """Cut a batch into parts of equally many samples, in order.

    Raises:
        ValueError: it cannot be cut so.
    """
    n_samples = len(batch.rows)
    require_parts(n_samples, n_parts)
    size = n_samples // n_parts
    for start in range(0, n_samples, size):
        part = {
            field.name: value[start : start + size]
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), Tensor | tuple)
        }
        yield replace(batch, **part)
