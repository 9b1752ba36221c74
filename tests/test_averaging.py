"""Averages of weights against closed forms."""

import pytest
import torch
from torch import nn

from melstream.model import WeightAverage, average_states


def module(value: float) -> nn.Module:
    made = nn.BatchNorm1d(3)  # parameters, buffers, and a buffer of whole numbers
    nn.init.constant_(made.weight, value)
    assert made.num_batches_tracked is not None
    made.num_batches_tracked.fill_(int(value))
    return made


def test_the_average_is_the_closed_form() -> None:
    average = WeightAverage(module(0.0), decay=0.9)
    required = 0.0
    for step in range(200):
        average.update(module(step + 1.0), step)
        kept = min(0.9, (1 + step) / (10 + step))
        required = kept * required + (1 - kept) * (step + 1)
    state = average.state_dict()
    torch.testing.assert_close(state["weight"], torch.full((3,), required))
    assert int(state["num_batches_tracked"]) == 200


def test_an_average_goes_on_from_its_state() -> None:
    whole, first = (WeightAverage(module(1.0), decay=0.5) for _ in range(2))
    for step in range(4):
        whole.update(module(step), step)
    for step in range(2):
        first.update(module(step), step)
    second = WeightAverage(module(5.0), decay=0.5)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for step in range(2, 4):
        second.update(module(step), step)
    assert torch.equal(second.state_dict()["weight"], whole.state_dict()["weight"])


def test_an_average_loads_into_the_module() -> None:
    average = WeightAverage(module(2.0), decay=0.5)
    average.update(module(8.0), 100)
    target = module(0.0)
    target.load_state_dict(average.state_dict())
    torch.testing.assert_close(target.weight.detach(), torch.full((3,), 5.0))


def test_states_are_averaged_by_name() -> None:
    states = [module(value).state_dict() for value in (1.0, 2.0, 6.0)]
    mean = average_states(states)
    torch.testing.assert_close(mean["weight"], torch.full((3,), 3.0))
    assert mean["weight"].dtype == torch.float32
    assert int(mean["num_batches_tracked"]) == 6


def test_what_does_not_fit_is_refused() -> None:
    state = module(1.0).state_dict()
    with pytest.raises(ValueError, match="at least one state dict, found none"):
        average_states([])
    with pytest.raises(ValueError, match=r"1 differ \(first: extra\)"):
        average_states([state, state | {"extra": torch.zeros(1)}])
    with pytest.raises(ValueError, match=r"first: weight"):
        WeightAverage(module(1.0), decay=0.5).load_state_dict(state | {"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\), found 1"):
        WeightAverage(module(1.0), decay=1)
