"""Is a run alive? A judgement on the figures it has logged, with cause and remedy.

A contrastive run can die without an error: the loss is a number, and nothing is learnt. What
it has logged tells. The judgement is a function of the log alone, so a resumed run judges as
the one before would have, and ``metrics.jsonl`` of a dead run can be judged again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..shards.errors import MelstreamError

Entry = dict[str, float]
"""One line of the log: ``step`` and figures, means over the steps since the line before."""

N_RECENT = 3  # entries that have to agree: one bad batch is no illness
N_FIRST, N_USUAL = 5, 10  # entries, the first and those just before, that tell what is usual
HARMLESS_NORM = 1.0  # of a gradient: whatever it was before, this is no explosion
MIN_PATIENCE = 200  # steps after the warm-up in which no run has to have learnt anything


class HealthConfig(BaseModel):
    """``[health]``: when a run counts as dead, and what happens then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alarm: Literal["stop", "warn", "off"] = Field(
        default="stop", description="stop the run, print a warning and go on, or do not look"
    )
    learns_within: int = Field(
        default=2_000,
        ge=1,
        description="steps after the warm-up in which contrastive accuracy has to leave chance; "
        "a shorter run has half of its own, at least 200",
    )
    chance_factor: float = Field(
        default=1.5, gt=1, description="odds of being right below so many times a guess's are none"
    )
    min_target_std: float = Field(
        default=1e-3, gt=0, description="deviation of a target's channels below which they are one"
    )
    min_perplexity: float = Field(
        default=2.0, ge=1, description="codes in use below which a codebook is dead"
    )
    max_norm_factor: float = Field(
        default=100.0, gt=1, description="times its usual size at which the gradient explodes"
    )


class DeadRunError(MelstreamError):
    """A run was stopped because it learns nothing any more; the message has cause and remedy."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a judgement has to know beside the log.

    Args:
        warmup_steps: of the learning rate.
        n_steps: of the run.
        thaw_step: of a body that rests before it; its gradient is no explosion of the head's.
    """

    warmup_steps: int
    n_steps: int
    thaw_step: int = 0


def find_illness(
    entries: Sequence[Entry], config: HealthConfig, circumstances: Circumstances
) -> str | None:
    """Judge a run by its log.

    Args:
        entries: lines of training figures in order of steps.
        config: bounds.
        circumstances: of the run.

    Returns:
        What is wrong, the usual cause and the usual remedy; None for a run that is well.
    """
    if len(entries) < N_RECENT or config.alarm == "off":
        return None
    found = (check(entries, config, circumstances) for check in _CHECKS)
    return next((illness for illness in found if illness is not None), None)


def _collapsed_targets(
    entries: Sequence[Entry], config: HealthConfig, _: Circumstances
) -> str | None:
    worst = _recent(entries, "target_std", max)
    if worst is None or worst >= config.min_target_std:
        return None
    return (
        f"the targets have collapsed: their standard deviation is {worst:.1e}, below "
        f"{config.min_target_std:g}, so all masked steps look alike. Usual causes: a learning rate "
        "or weight decay that is too high, or silent data. Usual remedy: a new run with a third "
        "of optim.lr and twice optim.warmup_steps; 'melstream inspect' shows silence in the data"
    )


def _dead_codebook(entries: Sequence[Entry], config: HealthConfig, _: Circumstances) -> str | None:
    best = _recent(entries, "code_perplexity", max)
    if best is None or best >= config.min_perplexity:
        return None
    return (
        f"the codebooks have collapsed: a codebook uses {best:.2f} codes, below "
        f"{config.min_perplexity:g}. Usual causes: a diversity loss that weighs too little, or a "
        "Gumbel temperature that falls too fast. Usual remedy: a new run with a higher "
        "objective.options.diversity_weight and a slower quantizer.gumbel_temperature_decay there"
    )


def _exploding_gradient(
    entries: Sequence[Entry], config: HealthConfig, circumstances: Circumstances
) -> str | None:
    if entries[-1]["step"] > circumstances.thaw_step:
        entries = [entry for entry in entries if entry["step"] > circumstances.thaw_step]
    norms = [entry["grad_norm"] for entry in entries[:-N_RECENT] if "grad_norm" in entry]
    least = _recent(entries, "grad_norm", min)
    if len(norms) < N_FIRST or least is None:
        return None
    # What was usual lately grows along with a norm that explodes slowly: hence the first ones.
    usual = min(median(norms[:N_FIRST]), median(norms[-N_USUAL:]))
    if least <= max(config.max_norm_factor * usual, HARMLESS_NORM):
        return None
    return (
        f"the gradient explodes: its norm is at least {least:.3g} now and was {usual:.3g}. Usual "
        "causes: a learning rate that is too high, or a warm-up that is too short. Usual remedy: "
        "a new run with half of optim.lr and twice optim.warmup_steps"
    )


def _no_learning(
    entries: Sequence[Entry], config: HealthConfig, circumstances: Circumstances
) -> str | None:
    warmup_steps = circumstances.warmup_steps
    patience = min(config.learns_within, (circumstances.n_steps - warmup_steps) // 2)
    deadline = warmup_steps + max(patience, MIN_PATIENCE)
    chance, accuracy = _recent(entries, "chance", fmean), _recent(entries, "accuracy", fmean)
    if chance is None or accuracy is None or entries[-N_RECENT]["step"] <= deadline:
        return None
    if _odds(accuracy) >= config.chance_factor * _odds(chance):
        return None
    return (
        f"nothing is learnt: after {entries[-1]['step']:.0f} steps contrastive accuracy is "
        f"{accuracy:.2%}, a guess gives {chance:.2%}. Usual causes: a learning rate that is too "
        "high or too low, masks longer than what the context tells, or data that is silent or all "
        "alike. Usual remedy: a new run with a third of optim.lr or a shorter mask.mask_length; "
        "'melstream inspect' shows what the data holds"
    )


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else math.inf


_CHECKS: tuple[Callable[[Sequence[Entry], HealthConfig, Circumstances], str | None], ...] = (
    _collapsed_targets,
    _dead_codebook,
    _exploding_gradient,
    _no_learning,
)


def _recent(
    entries: Sequence[Entry], name: str, summarise: Callable[[list[float]], float]
) -> float | None:
    """Summarise a figure over the last entries; None where one of them lacks it."""
    values = [entry[name] for entry in entries[-N_RECENT:] if name in entry]
    return summarise(values) if len(values) == N_RECENT else None
