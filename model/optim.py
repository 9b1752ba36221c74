"""The optimiser: which parameters decay, at which rate, and how the rate moves.

AdamW. Rates are a pure function of the step, so there is no scheduler state to save.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

_FUSED_DEVICES = {"cpu", "cuda", "mps"}
_Decay = Annotated[float, Field(ge=0, lt=1, description="share of a moment kept per step")]


class OptimConfig(BaseModel):
    """AdamW and its schedule.

    Defaults where the paper gives no value: fairseq's data2vec recipe for AudioSet,
    whose authors follow the paper.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(default=5e-4, gt=0, allow_inf_nan=False, description="peak rate, per step")
    betas: tuple[_Decay, _Decay] = Field(default=(0.9, 0.98), description="decays of both moments")
    eps: float = Field(default=1e-6, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(
        default=0.01, ge=0, description="share of a weight lost per step, times lr"
    )
    warmup_steps: int = Field(default=10_000, ge=0, description="steps of linear rise to the peak")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="after the warm-up"
    )
    min_lr_ratio: float = Field(
        default=0.0, ge=0, le=1, description="where the cosine ends, as a share of the peak"
    )
    clip_norm: float = Field(
        default=1.0,
        gt=0,
        description="largest norm of the gradient of all parameters; inf: no limit",
    )


def parameter_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Part a module's parameters into those that decay and those that do not.

    Biases, norms and embeddings of a single vector (the mask embedding) do not decay;
    they are just the parameters with one dimension. Concatenate the lists of several
    modules to train them at rates of their own.

    Args:
        module: each of its parameters that wants a gradient lands in one group.
        lr: peak rate of these parameters, per step.
        weight_decay: of the parameters with two dimensions or more.

    Returns:
        Up to two groups for ``build_optimizer``; ``base_lr`` keeps the peak rate,
        while ``lr`` moves. (``Any``: torch's own form of a group.)
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decaying = [parameter for parameter in learning if parameter.ndim >= 2]
    others = [parameter for parameter in learning if parameter.ndim < 2]
    return [
        {"params": params, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for params, decay in ((decaying, weight_decay), (others, 0.0))
        if params
    ]


def build_optimizer(groups: Sequence[dict[str, Any]], config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW, fused into one kernel where the device has one.

    Args:
        groups: of ``parameter_groups``; they bring their rates and decays along.
        config: betas and eps.

    Returns:
        The optimiser; its groups' rates are moved by ``set_learning_rate``.
    """
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(
        list(groups),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=devices <= _FUSED_DEVICES,
    )


def learning_rate(step: int, n_steps: int, config: OptimConfig) -> float:
    """Give the factor on every peak rate at one step.

    It rises linearly, ``(step + 1) / warmup_steps``, so that the first step moves
    already; then it stays at 1, or falls along half a cosine to ``min_lr_ratio``,
    which it would reach at ``n_steps``, one past the last step.

    Args:
        step: optimiser step, from 0.
        n_steps: steps of the whole run.
        config: schedule, warm-up and end.

    Returns:
        Factor in [0, 1]; no unit.

    Raises:
        ValueError: ``step`` outside 0..n_steps, or a warm-up as long as the run.

    >>> config = OptimConfig(warmup_steps=10)
    >>> [learning_rate(step, 110, config) for step in (0, 9, 10, 60, 110)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    if not 0 <= step <= n_steps:
        raise ValueError(f"`step` must be in 0..n_steps ({n_steps}), found {step}")
    if config.warmup_steps >= n_steps:
        raise ValueError(
            f"`warmup_steps` must be below `n_steps` ({n_steps}), found {config.warmup_steps}; "
            "shorten the warm-up or lengthen the run"
        )
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / (n_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of every group to its peak rate times ``factor``.

    Args:
        optimizer: of ``build_optimizer``, with groups of ``parameter_groups``.
        factor: of ``learning_rate``.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
