"""Averages of weights: over time while training (EMA), or of several checkpoints."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of a module's floating-point state.

    After step t, counted from 0, the average keeps the share d_t = min(decay,
    (1 + t) / (10 + t)) of itself: early steps weigh little, whatever the decay (as
    TensorFlow's and timm's averages do).

    Args:
        module: what is averaged; the average starts as a copy of it, on its device.
        decay: share of the average kept per step, in [0, 1).

    Raises:
        ValueError: ``decay`` outside [0, 1).
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), found {decay}")
        self.decay = decay
        self._average = {name: value.detach().clone() for name, value in _state(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after an optimiser step.

        Args:
            module: of the same structure as the first one.
            step: optimiser step, from 0.
        """
        kept = min(self.decay, (1 + step) / (10 + step))
        state = _state(module)
        names = [name for name, value in state.items() if value.is_floating_point()]
        # One kernel for all of them on a GPU, where one for each would take a step's time.
        own, new = ([weights[name] for name in names] for weights in (self._average, state))
        torch._foreach_lerp_(own, new, 1 - kept)  # pyright: ignore[reportPrivateImportUsage]
        for name in state.keys() - set(names):
            self._average[name].copy_(state[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights, under the names of the module's own state dict."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from an average of ``state_dict``.

        Raises:
            ValueError: other names or shapes.
        """
        _require_same_names(self._average, state)
        for name, value in self._average.items():
            value.copy_(state[name])


def average_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average the weights of several checkpoints of one run.

    Args:
        states: state dicts of one structure, at least one.

    Returns:
        The mean of each floating-point tensor, summed in float64, in its own dtype; other
        tensors are those of the last state.

    Raises:
        ValueError: no state, or states of different structure.
    """
    if not states:
        raise ValueError("`states` must hold at least one state dict, found none")
    for state in states[1:]:
        _require_same_names(states[0], state)
    return {name: _mean([state[name] for state in states]) for name in states[0]}


def _mean(values: Sequence[Tensor]) -> Tensor:
    if not values[0].is_floating_point():
        return values[-1].clone()
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value in values:
        total += value
    return (total / len(values)).to(values[0].dtype)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return module.state_dict()


def _require_same_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    differing = sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in expected or name not in found or expected[name].shape != found[name].shape
    )
    if differing:
        raise ValueError(
            f"both must have weights of the same names and shapes, {len(differing)} differ "
            f"(first: {differing[0]})"
        )
