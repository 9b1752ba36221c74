"""Cheap dropout and attention against torch's own, and the shares that they drop."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melstream.model import dropout as dropout_module
from melstream.model.conformer import ConformerBlock
from melstream.model.dropout import add_dropout, attention, feed_forward

TOLERANCE = 1e-5  # float32, other order of the same sums
P = 0.3


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dropped(x: Tensor, p: float = P) -> Tensor:
    return add_dropout(torch.zeros_like(x), x, dropout=p)


@pytest.mark.parametrize("p", [0.001, 0.1, P])
def test_dropout_keeps_the_mean_and_drops_the_share(p: float) -> None:
    torch.manual_seed(0)
    out = torch.stack([dropped(torch.ones(1000), p) for _ in range(200)])
    # assumption: five standard deviations of the mean of 200 thresholds in steps of 1 / 256
    assert float((out == 0).float().mean()) == pytest.approx(p, abs=5 * 0.5 / 256 / 200**0.5 + 1e-3)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)])


def test_dropout_draws_elements_by_themselves() -> None:
    torch.manual_seed(0)
    zeros = (dropped(torch.ones(4001)) == 0).float()
    pairs = torch.stack([zeros[:-1], zeros[1:]])
    assert abs(float(pairs.corrcoef()[0, 1])) < 0.05


def test_the_gradient_of_dropout_is_what_it_multiplied_by() -> None:
    x = randn(7, 9).requires_grad_()
    out = dropped(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x, out)


def test_the_same_seed_drops_the_same() -> None:
    torch.manual_seed(3)
    first = dropped(torch.ones(5, 7))
    torch.manual_seed(3)
    assert torch.equal(dropped(torch.ones(5, 7)), first)
    assert torch.equal(dropped(torch.ones(5), p=0.0), torch.ones(5))


def drawn(*shape: int) -> Tensor:
    """Give the factors 0.0 or 1.0 that the first draw of this shape after seed 0 gives."""
    torch.manual_seed(0)
    kept = (dropped(torch.ones(shape)) != 0).float()
    torch.manual_seed(0)
    return kept


def assert_same_with_gradients(ours, plain, inputs: list[Tensor]) -> None:  # type: ignore[no-untyped-def]
    results = []
    for function in (ours, plain):
        out = function(*inputs)
        gradient = randn(*out.shape, seed=99)
        results.append((out.detach(), *torch.autograd.grad(out, inputs, gradient)))
    for found, required in zip(*results, strict=True):
        torch.testing.assert_close(found, required, atol=TOLERANCE, rtol=TOLERANCE)


def test_add_dropout_is_a_scaled_sum() -> None:
    kept = drawn(4, 6)
    assert_same_with_gradients(
        lambda x, y: add_dropout(x, y, dropout=P, scale=0.5),
        lambda x, y: x + 0.5 * y * kept / (1 - P),
        [randn(4, 6).requires_grad_(), randn(4, 6, seed=1).requires_grad_()],
    )


def test_feed_forward_is_its_parts_in_turn() -> None:
    widen, narrow = nn.Linear(5, 12), nn.Linear(12, 5)
    kept = drawn(4, 6, 12)
    parameters = [*widen.parameters(), *narrow.parameters()]
    assert_same_with_gradients(
        lambda x, *_: feed_forward(x, widen, narrow, dropout=P),
        lambda x, w1, b1, w2, b2: F.linear(F.silu(F.linear(x, w1, b1)) * kept / (1 - P), w2, b2),
        [randn(4, 6, 5).requires_grad_(), *parameters],
    )


@pytest.mark.parametrize("n_heads_at_once", [1, 5, 99])
@pytest.mark.parametrize("n_valid", [None, [8, 5, 1]])
def test_attention_with_dropout_is_the_plain_formula(
    n_valid: list[int] | None, n_heads_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout_module, "_CHUNK_BYTES", n_heads_at_once * 4 * 8 * 8)
    kept = drawn(3, 4, 8, 8)
    is_valid = None if n_valid is None else torch.arange(8) < torch.tensor(n_valid)[:, None]

    def plain(qkv: Tensor) -> Tensor:
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.mT / 4**0.5
        if is_valid is not None:
            scores = scores.masked_fill(~is_valid[:, None, None, :], -torch.inf)
        return (scores.softmax(-1) * kept / (1 - P) @ value).transpose(1, 2)

    def ours(qkv: Tensor) -> Tensor:
        return attention(qkv, is_valid=is_valid, dropout=P)

    assert_same_with_gradients(ours, plain, [randn(3, 8, 3, 4, 4).requires_grad_()])


def test_attention_without_a_valid_step_is_finite() -> None:
    x = randn(1, 4, 3, 2, 4).requires_grad_()
    is_valid = torch.zeros(1, 4, dtype=torch.bool)
    out = attention(x, is_valid=is_valid, dropout=P)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw as in a compiled graph."""
    monkeypatch.setattr(dropout_module, "_has_fast_kernels", lambda _: True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.usefixtures("hashed")
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.999])
def test_a_compiled_graph_drops_the_share(p: float) -> None:
    torch.manual_seed(0)
    out = torch.stack([dropped(torch.ones(100, 100), p) for _ in range(100)])
    share = (out == 0).float().mean((1, 2))
    # assumption: five standard deviations of a mean of a million, four of a deviation of 100
    assert float(share.mean()) == pytest.approx(p, abs=5 * (p * (1 - p)) ** 0.5 / 1e3)
    assert float(share.std()) == pytest.approx((p * (1 - p)) ** 0.5 / 1e2, rel=0.3)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)])


@pytest.mark.usefixtures("hashed")
def test_a_compiled_graph_draws_elements_and_calls_by_themselves() -> None:
    torch.manual_seed(0)
    zeros = torch.stack([(dropped(torch.ones(64, 256)) == 0).float() for _ in range(60)])
    centred = zeros - zeros.mean()
    for shift in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 2), (0, 0, 128), (1, 0, 1)]:
        product = centred * centred.roll(shift, (0, 1, 2))
        # assumption: five standard deviations of a mean of a million
        assert abs(float(product.mean())) < 5 * P * (1 - P) / zeros.numel() ** 0.5
    per_place = zeros.mean(0).var() / (P * (1 - P) / len(zeros))
    assert float(per_place) == pytest.approx(1, abs=0.06)


@pytest.mark.slow
def test_a_compiled_graph_drops_the_same_backwards() -> None:
    x = torch.ones(40, 64, requires_grad=True)
    out = torch.compile(dropped, backend="aot_eager", fullgraph=True)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out)
    assert 0 < int((out == 0).sum()) < out.numel()


def test_an_exported_graph_takes_torchs_own_kernels() -> None:
    block = ConformerBlock(8, n_heads=2, ffn_dim=16, kernel_size=3, dropout=P)
    traced = torch.export.export(block, (torch.ones(2, 4, 8), None))
    assert any("dropout" in str(node.target) for node in traced.graph.nodes)


def test_bfloat16_autocast_stays_close() -> None:
    widen, narrow, x = nn.Linear(16, 48), nn.Linear(48, 16), randn(2, 8, 16)

    def run() -> Tensor:
        torch.manual_seed(0)
        gathered = attention(widen(x).unflatten(-1, (3, 4, 4)), is_valid=None, dropout=P)
        narrowed = feed_forward(gathered.flatten(2), widen, narrow, dropout=P)
        return torch.stack([narrowed, add_dropout(x, narrowed, dropout=P)])

    def gradients(out: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(out.sum(), [*widen.parameters(), *narrow.parameters()]))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
        assert feed_forward(x, widen, narrow, dropout=P).dtype == torch.bfloat16
    required = run()
    # assumption: 8 bits of mantissa, values of about one
    torch.testing.assert_close(found.float(), required, atol=0.03, rtol=0.03)
    for gradient, exact in zip(gradients(found), gradients(required), strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - exact).norm() / exact.norm()) < 0.03
