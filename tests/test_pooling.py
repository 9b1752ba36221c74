"""Pooling against naive float64 loops, also where a naive float32 form breaks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from melstream.model.pooling import linear_softmax, pool_logits, pool_probabilities

TOLERANCE = 1e-5  # float32 against float64

Pool = Callable[[Tensor, Tensor | None], Tensor]


def scores_for(logits: Tensor) -> Tensor:
    rng = torch.Generator().manual_seed(7)
    return 3 * torch.randn(logits.shape, generator=rng)


POOLS: dict[str, Pool] = {
    "linear_softmax": linear_softmax,
    "mean": lambda x, pad: pool_probabilities(x, pad, log_weights=torch.zeros_like(x)),
    "attention": lambda x, pad: pool_probabilities(x, pad, log_weights=scores_for(x)),
    "mean_logits": lambda x, pad: pool_logits(x, pad, log_weights=torch.zeros_like(x)),
    "attention_logits": lambda x, pad: pool_logits(x, pad, log_weights=scores_for(x)),
}


def naive(name: str, logits: Tensor, n_valid: list[int]) -> np.ndarray:
    """The definition: a sigmoid per step, a weighted mean, the logit of that."""
    x, scores = logits.double().numpy(), scores_for(logits).double().numpy()
    pooled = np.empty((x.shape[0], x.shape[2]))
    for b, c in np.ndindex(pooled.shape):
        logit, score = x[b, : n_valid[b], c], scores[b, : n_valid[b], c]
        p = 1 / (1 + np.exp(-logit))
        weights = np.exp(score) if name.startswith("attention") else np.ones_like(p)
        if name == "linear_softmax":
            weights = p
        if name.endswith("logits"):
            pooled[b, c] = (weights * logit).sum() / weights.sum()
        else:
            present, absent = (weights * p).sum(), (weights / (1 + np.exp(logit))).sum()
            pooled[b, c] = np.log(present / absent)
    return pooled


def drawn(scale: float) -> tuple[Tensor, Tensor, list[int]]:
    rng = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(3, 9, 5, generator=rng)
    n_valid = [9, 4, 1]
    return logits, torch.arange(9) >= torch.tensor(n_valid)[:, None], n_valid


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])  # a float32 sigmoid is 1.0 from 17 on
def test_pooling_is_the_naive_loop(name: str, scale: float) -> None:
    logits, padding_mask, n_valid = drawn(scale)
    found = POOLS[name](logits, padding_mask).double().numpy()
    required = naive(name, logits, n_valid)
    np.testing.assert_allclose(found, required, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("extreme", [-1e4, 1e4, 0.0])
def test_extreme_logits_give_finite_values_and_gradients(name: str, extreme: float) -> None:
    logits, padding_mask, _ = drawn(1.0)
    logits = torch.full_like(logits, extreme).requires_grad_()
    pooled = POOLS[name](logits, padding_mask)
    pooled.sum().backward()
    torch.testing.assert_close(pooled, torch.full_like(pooled, extreme))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_published_log_space_form_is_the_same_number() -> None:
    logits, _, _ = drawn(2.0)
    log_p = torch.nn.functional.logsigmoid(logits.double())
    s = (2 * log_p).logsumexp(dim=1) - log_p.logsumexp(dim=1)
    required = s - torch.log(-torch.expm1(s))
    torch.testing.assert_close(
        linear_softmax(logits, None).double(), required, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", POOLS)
def test_padding_never_contributes(name: str) -> None:
    logits, padding_mask, _ = drawn(1.0)
    spoiled = logits.masked_fill(padding_mask[..., None], 1e4).requires_grad_()
    pooled = POOLS[name](spoiled, padding_mask)
    pooled.sum().backward()
    assert torch.equal(pooled, POOLS[name](logits, padding_mask))
    assert spoiled.grad is not None
    assert (spoiled.grad[padding_mask] == 0).all()
    assert (spoiled.grad[~padding_mask] != 0).all()


@pytest.mark.parametrize("name", POOLS)
def test_a_sample_without_a_valid_step_stays_finite(name: str) -> None:
    logits, padding_mask, _ = drawn(1.0)
    padding_mask[1] = True
    logits.requires_grad_()
    pooled = POOLS[name](logits, padding_mask)
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", POOLS)
def test_no_padding_mask_means_no_padding(name: str) -> None:
    logits, padding_mask, _ = drawn(1.0)
    assert torch.equal(
        POOLS[name](logits, None), POOLS[name](logits, torch.zeros_like(padding_mask))
    )


def test_pooling_is_float32_under_autocast() -> None:
    logits, padding_mask, _ = drawn(3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_softmax(logits, padding_mask)
    assert found.dtype == torch.float32
    assert torch.equal(found, linear_softmax(logits, padding_mask))
