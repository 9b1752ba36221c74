"""Groups, rates and AdamW against a written-out update."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from melstream.model import (
    AudioEncoder,
    EncoderConfig,
    OptimConfig,
    PretrainingModel,
    build_objective,
    build_optimizer,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)

CONFIG = EncoderConfig(n_mels=8, latent_dim=16, dim=16, n_layers=1, n_heads=2, ffn_dim=32)


def pretraining_model() -> PretrainingModel:
    return PretrainingModel(AudioEncoder(CONFIG), build_objective("wav2vec2", {}, CONFIG))


def test_biases_norms_and_the_mask_embedding_do_not_decay() -> None:
    model = pretraining_model()
    decaying, others = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free = {names[id(parameter)] for parameter in others["params"]}
    assert free == {
        name for name in names.values() if name.endswith(("bias", "norm.weight", "mask_embedding"))
    }
    assert {names[id(p)] for p in decaying["params"]} == set(names.values()) - free


def test_what_wants_no_gradient_is_in_no_group() -> None:
    frozen, learning = nn.Linear(3, 4), nn.Linear(4, 2)
    frozen.requires_grad_(False)
    groups = parameter_groups(nn.Sequential(frozen, learning), 1e-4, 0.01)
    assert [group["params"] for group in groups] == [[learning.weight], [learning.bias]]


def test_body_and_head_keep_their_own_rates() -> None:
    body, head = nn.Linear(3, 4), nn.Linear(4, 2)
    groups = parameter_groups(body, 1e-4, 0.01) + parameter_groups(head, 1e-2, 0.01)
    optimizer = build_optimizer(groups, OptimConfig())
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [2.5e-5, 2.5e-5, 2.5e-3, 2.5e-3]


def test_a_module_without_matrices_has_one_group() -> None:
    (group,) = parameter_groups(nn.LayerNorm(4), lr=1.0, weight_decay=0.1)
    assert group["weight_decay"] == 0.0


def test_two_steps_are_adamw_written_out() -> None:
    config = OptimConfig(lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5)
    linear = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    weight = float(linear.weight.detach())
    optimizer = build_optimizer(parameter_groups(linear, config.lr, 0.5), config)
    first = second = 0.0
    for step, gradient in enumerate((0.3, -2.0), start=1):
        linear.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        first = 0.8 * first + 0.2 * gradient
        second = 0.9 * second + 0.1 * gradient**2
        update = first / (1 - 0.8**step) / (math.sqrt(second / (1 - 0.9**step)) + 1e-6)
        weight = weight * (1 - 0.1 * 0.5) - 0.1 * update
        assert float(linear.weight.detach()) == pytest.approx(weight)


def test_a_cosine_rises_falls_and_ends_at_the_minimum() -> None:
    config = OptimConfig(warmup_steps=20, min_lr_ratio=0.1)
    factors = [learning_rate(step, 200, config) for step in range(201)]
    assert factors[0] == pytest.approx(1 / 20)
    assert factors[:20] == sorted(factors[:20])
    assert factors[19] == factors[20] == 1.0
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[110] == pytest.approx(0.55)
    assert factors[200] == pytest.approx(0.1)


def test_a_constant_schedule_stays_at_the_peak() -> None:
    config = OptimConfig(warmup_steps=0, schedule="constant")
    assert {learning_rate(step, 50, config) for step in range(51)} == {1.0}


@pytest.mark.parametrize(
    ("step", "n_steps", "match"),
    [
        (-1, 100, r"`step` must be in 0..n_steps \(100\), found -1"),
        (101, 100, r"`step` must be in 0..n_steps \(100\), found 101"),
        (0, 10, r"`warmup_steps` must be below `n_steps` \(10\), found 10"),
        (0, 0, r"`warmup_steps` must be below `n_steps` \(0\)"),
    ],
)
def test_a_step_outside_the_run_is_refused(step: int, n_steps: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        learning_rate(step, n_steps, OptimConfig(warmup_steps=10))


@pytest.mark.parametrize("options", [{"lr": 0}, {"betas": (0.9, 1.0)}, {"clip_norm": math.nan}])
def test_an_impossible_config_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OptimConfig.model_validate(options)
