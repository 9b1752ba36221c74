"""One update: it is the one torch makes, skips what is not finite, and never waits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from melstream.model.optim import OptimConfig, parameter_groups
from melstream.pipeline.batch import Batch
from melstream.tools import train_step
from melstream.tools.distributed import World
from melstream.tools.recipe import TrainConfig
from melstream.tools.train_step import Learner, Updater, split_batch

CPU = torch.device("cpu")
OPTIM = OptimConfig(lr=0.01, warmup_steps=0, schedule="constant", clip_norm=0.5)


def batch(n_samples: int = 8, *, spoiled: bool = False) -> Batch:
    numbers = torch.Generator().manual_seed(n_samples)
    logmel = torch.randn(n_samples, 6, 4, generator=numbers)
    if spoiled:
        logmel[0, 0, 0] = torch.nan
    return Batch(
        step=0,
        logmel=logmel,
        n_frames=torch.full((n_samples,), 6),
        labels=torch.rand(n_samples, 3, generator=numbers),
        mask=None,
        distractors=None,
        sources=torch.zeros(n_samples, dtype=torch.int64),
        rows=torch.arange(n_samples),
        keys=tuple(str(number) for number in range(n_samples)),
        is_padded=False,
    )


def losses(module: nn.Module, part: Batch) -> dict[str, Tensor]:
    assert part.labels is not None
    return {"loss": (module(part.logmel.flatten(1)) - part.labels).square().mean()}


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3))


def updater(module: nn.Module, *, train: dict[str, Any] | None = None, **options: Any) -> Updater:
    groups = options.pop("groups", parameter_groups(module, OPTIM.lr, 0.1))
    learner = Learner(module, groups, losses, **options)
    config = TrainConfig(steps=100, **(train or {}))
    return Updater(learner, train=config, optim=OPTIM, world=World(CPU))


def snapshot(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_an_update_is_the_one_that_torch_makes() -> None:
    module, reference = network(), network()
    plain = torch.optim.AdamW(
        parameter_groups(reference, OPTIM.lr, 0.1), betas=OPTIM.betas, eps=OPTIM.eps, foreach=False
    )
    steps = updater(module)
    for step in range(3):
        steps.update(step, batch())
        losses(reference, batch())["loss"].backward()
        nn.utils.clip_grad_norm_(reference.parameters(), OPTIM.clip_norm)
        plain.step()
        plain.zero_grad()
    for found, expected in zip(snapshot(module), snapshot(reference), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("n_parts", [2, 4, 8])
def test_the_parts_of_a_batch_add_up_to_the_batch(n_parts: int) -> None:
    whole, parted = network(), network()
    one = updater(whole).update(0, batch())
    many = updater(parted, train={"accumulate": n_parts}).update(0, batch())
    torch.testing.assert_close(many["loss"], one["loss"])
    torch.testing.assert_close(many["grad_norm"], one["grad_norm"])
    for found, expected in zip(snapshot(parted), snapshot(whole), strict=True):
        torch.testing.assert_close(found, expected)


class Parallel(nn.Module):
    """Stands for ``DistributedDataParallel``; writes down when gradients would be exchanged."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.exchanged: list[bool] = []
        self.is_quiet = False

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self.is_quiet = True
        yield
        self.is_quiet = False

    def forward(self, *inputs: Tensor) -> Tensor:
        self.exchanged.append(not self.is_quiet)
        return self.module(*inputs)


def test_processes_exchange_gradients_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "DistributedDataParallel", Parallel)
    monkeypatch.setattr(World, "parallel", lambda world, module: Parallel(module))
    steps = updater(network(), train={"accumulate": 4})
    steps.update(0, batch())
    assert isinstance(steps._parallel, Parallel)
    assert steps._parallel.exchanged == [False, False, False, True]


def test_a_batch_that_cannot_be_parted_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"must divide the samples .* \(8\), found 3"):
        next(split_batch(batch(), 3))
    parts = list(split_batch(batch(), 2))
    assert [part.keys for part in parts] == [("0", "1", "2", "3"), ("4", "5", "6", "7")]


def test_a_step_without_a_finite_gradient_changes_nothing() -> None:
    """Neither weights nor moments; the run goes on as if the step had not been."""
    spoiled, clean = network(), network()
    one, other = updater(spoiled), updater(clean)
    for step, is_spoiled in enumerate((False, True, False)):
        before = snapshot(spoiled)
        figures = one.update(step, batch(spoiled=is_spoiled))
        assert bool(figures["is_skipped"]) == is_spoiled
        assert all(map(torch.equal, before, snapshot(spoiled))) == is_spoiled
        if not is_spoiled:
            other.update(step, batch())
    assert all(map(torch.equal, snapshot(spoiled), snapshot(clean)))
    assert int(one.n_skipped) == 1
    moments = (updater.optimizer.state_dict()["state"] for updater in (one, other))
    for found, expected in zip(*(states.values() for states in moments), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


class NoWaiting(TorchDispatchMode):
    """Refuse the operations by which the host waits for the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in self.WAITING, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_in_an_update_waits_for_the_device(precision: str) -> None:
    train = {"accumulate": 2, "average_decay": 0.9, "precision": precision}
    steps = updater(network(dropout=0.1), train=train)
    steps.update(0, batch())  # the optimiser makes its state in the first step
    with NoWaiting():
        steps.update(1, batch())
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense waits"):
        steps.n_skipped.item()


def test_float32_products_of_a_loss_go_back_in_float32() -> None:
    """Autocast left on for the backward pass would make bfloat16 of them."""

    def exact(module: nn.Module, part: Batch) -> dict[str, Tensor]:
        with torch.autocast("cpu", enabled=False):
            return losses(module, part)

    found = []
    for precision in ("float32", "bfloat16"):
        module = network()
        learner = Learner(module, parameter_groups(module, OPTIM.lr, 0.1), exact)
        config = TrainConfig(steps=100, precision=precision)
        steps = Updater(learner, train=config, optim=OPTIM, world=World(CPU))
        found.append(steps.update(0, batch())["grad_norm"])
    assert torch.equal(*found)


def frozen(module: nn.Sequential, n_steps: int) -> Iterator[dict[str, Any]]:
    yield from parameter_groups(module[3], OPTIM.lr, 0.0)
    for group in parameter_groups(module[0], OPTIM.lr, 0.0):
        yield group | {"frozen_steps": n_steps}


def test_a_frozen_body_rests_without_dropout_and_then_moves() -> None:
    module = network(dropout=0.5)
    steps = updater(module, groups=list(frozen(module, 2)), body=module[2])
    weight = module[0].weight
    for step, rests in enumerate((True, True, False)):
        before = weight.detach().clone()
        steps.update(step, batch())
        assert torch.equal(weight, before) == rests
        assert module[2].training != rests


def test_a_group_may_have_a_warmup_of_its_own() -> None:
    module = network()
    groups = parameter_groups(module[0], 1.0, 0.0)
    groups += [group | {"warmup_steps": 4} for group in parameter_groups(module[3], 2.0, 0.0)]
    steps = updater(module, groups=groups)
    found = []
    for step in range(5):
        steps.update(step, batch())
        found.append([group["lr"] for group in steps.optimizer.param_groups[::2]])
    assert found == [[1.0, 0.5], [1.0, 1.0], [1.0, 1.5], [1.0, 2.0], [1.0, 2.0]]


def test_what_a_step_draws_depends_on_the_step_alone() -> None:
    one, other = (updater(network(dropout=0.5)) for _ in range(2))
    torch.manual_seed(7)
    expected = one.update(5, batch())["loss"]
    torch.manual_seed(8)
    assert torch.equal(other.update(5, batch())["loss"], expected)
    assert not torch.equal(updater(network(dropout=0.5)).update(6, batch())["loss"], expected)


def test_the_average_stands_in_for_the_weights_for_a_while() -> None:
    module = network()
    steps = updater(module, train={"average_decay": 0.9})
    for step in range(3):
        steps.update(step, batch())
    own = snapshot(module)
    assert steps.average is not None
    average = steps.average.state_dict()
    with steps.averaged_weights():
        assert all(torch.equal(value, average[n]) for n, value in module.state_dict().items())
    assert all(map(torch.equal, own, snapshot(module)))
    assert not all(torch.equal(value, average[n]) for n, value in module.state_dict().items())
