"""Cheap dropout and attention against torch's own, and the shares that they drop."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melstream.model.dropout import Dropout, attention, silu_dropout_linear

TOLERANCE = 1e-5  # float32, other order of the same sums
P = 0.3


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("p", [0.001, 0.1, P])
def test_dropout_keeps_the_mean_and_drops_the_share(p: float) -> None:
    torch.manual_seed(0)
    dropout = Dropout(p)
    out = torch.stack([dropout(torch.ones(1000)) for _ in range(200)])
    # assumption: five standard deviations of the mean of 200 thresholds in steps of 1 / 256
    assert float((out == 0).float().mean()) == pytest.approx(p, abs=5 * 0.5 / 256 / 200**0.5 + 1e-3)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)])


def test_dropout_draws_elements_by_themselves() -> None:
    torch.manual_seed(0)
    dropped = (Dropout(P)(torch.ones(4001)) == 0).float()
    pairs = torch.stack([dropped[:-1], dropped[1:]])
    assert abs(float(pairs.corrcoef()[0, 1])) < 0.05


def test_the_gradient_of_dropout_is_what_it_multiplied_by() -> None:
    x = randn(7, 9).requires_grad_()
    out = Dropout(P)(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x, out)


def test_the_same_seed_drops_the_same() -> None:
    dropout = Dropout(P)
    torch.manual_seed(3)
    first = dropout(torch.ones(5, 7))
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(5, 7)), first)
    assert torch.equal(dropout.eval()(torch.ones(5)), torch.ones(5))


def test_silu_dropout_linear_is_the_three_in_turn() -> None:
    linear = nn.Linear(12, 5)
    x, gradient = randn(4, 6, 12), randn(4, 6, 5, seed=1)
    torch.manual_seed(0)
    is_kept = Dropout(P)(torch.ones_like(x)) != 0
    torch.manual_seed(0)
    found, found_gradients = _with_gradients(
        linear, x, gradient, lambda y: silu_dropout_linear(y * 1, linear, dropout=P)
    )
    required, required_gradients = _with_gradients(
        linear, x, gradient, lambda y: linear(F.silu(y) * is_kept / (1 - P))
    )
    torch.testing.assert_close(found, required, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(found_gradients, required_gradients, atol=TOLERANCE, rtol=TOLERANCE)


def _with_gradients(linear, x, gradient, function):  # type: ignore[no-untyped-def]
    x = x.clone().requires_grad_()
    out = function(x)
    return out.detach(), torch.autograd.grad(out, [x, linear.weight, linear.bias], gradient)


def test_attention_with_dropout_is_the_plain_formula() -> None:
    query, key, value, gradient = (randn(2, 3, 8, 4, seed=seed) for seed in range(4))
    is_valid = torch.arange(8) < torch.tensor([8, 5])[:, None]

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.mT / 2).masked_fill(~is_valid[:, None, None, :], -torch.inf)
        torch.manual_seed(0)
        is_kept = Dropout(P)(torch.ones(2, 3, 8, 8)) != 0
        return scores.softmax(-1) * is_kept / (1 - P) @ v

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(0)
        return attention(q, k, v, is_valid=is_valid, dropout=P)

    results = []
    for function in (ours, plain):
        inputs = [x.clone().requires_grad_() for x in (query, key, value)]
        out = function(*inputs)
        results.append((out.detach(), *torch.autograd.grad(out, inputs, gradient)))
    for found, required in zip(*results, strict=True):
        torch.testing.assert_close(found, required, atol=TOLERANCE, rtol=TOLERANCE)


def test_attention_without_a_valid_step_is_finite() -> None:
    x = randn(1, 2, 4, 4).requires_grad_()
    is_valid = torch.zeros(1, 4, dtype=torch.bool)
    out = attention(x, x, x, is_valid=is_valid, dropout=P)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_traced_graph_takes_torchs_own_kernels() -> None:
    traced = torch.export.export(Dropout(P), (torch.ones(3, 4),))
    assert any("dropout" in str(node.target) for node in traced.graph.nodes)


def test_bfloat16_autocast_stays_close() -> None:
    linear = nn.Linear(16, 16)
    x = randn(2, 8, 16)

    def run() -> Tensor:
        torch.manual_seed(0)
        heads = linear(x).unflatten(-1, (4, 4)).transpose(1, 2)
        gathered = attention(heads, heads, heads, is_valid=None, dropout=P).transpose(1, 2)
        return silu_dropout_linear(linear(gathered.flatten(2)), linear, dropout=P)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
    found.sum().backward()
    assert found.dtype == torch.bfloat16
    assert linear.weight.grad is not None
    assert linear.weight.grad.isfinite().all()
    # assumption: 8 bits of mantissa, values of about one
    torch.testing.assert_close(found.float(), run(), atol=0.03, rtol=0.03)
