"""The conformer's parts against torch's own modules."""

import pytest
import torch
from torch import nn

from melstream.model import conformer as conformer_module
from melstream.model.conformer import (
    ConformerBlock,
    Convolution,
    SampleNorm,
    SelfAttention,
)

TOLERANCE = 1e-5  # float32, other order of the same sums


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 11, 16, generator=torch.Generator().manual_seed(0))


def padding(*n_valid: int) -> torch.Tensor:
    return torch.arange(11) >= torch.tensor(n_valid)[:, None]


def block(dropout: float = 0.0) -> ConformerBlock:
    torch.manual_seed(1)
    return ConformerBlock(16, n_heads=4, ffn_dim=32, kernel_size=5, dropout=dropout)


def test_sample_norm_is_group_norm_with_one_group(x: torch.Tensor) -> None:
    ours, reference = SampleNorm(16), nn.GroupNorm(1, 16)
    for module in (ours, reference):
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(2))
        nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(3))
    required = reference(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(ours(x), required, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_attention_is_multi_head_attention(x: torch.Tensor) -> None:
    ours = SelfAttention(16, n_heads=4, dropout=0.0)
    reference = nn.MultiheadAttention(16, 4, batch_first=True)
    reference.in_proj_weight.copy_(ours.qkv.weight)
    reference.in_proj_bias.copy_(ours.qkv.bias.normal_())
    reference.out_proj.load_state_dict(ours.out.state_dict())
    normed, padding_mask = ours.norm(x), padding(11, 7, 1)
    required, _ = reference(normed, normed, normed, key_padding_mask=padding_mask)
    found = ours(x, padding_mask)
    torch.testing.assert_close(found, required, atol=TOLERANCE, rtol=TOLERANCE)


class Through(nn.Module):
    def forward(self, x: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
        return x


def test_convolution_reaches_half_a_kernel_and_keeps_the_step_count(x: torch.Tensor) -> None:
    convolution = Convolution(16, kernel_size=5)
    convolution.sample_norm = Through()  # type: ignore[assignment]  # it sees the whole sample
    changed = x.clone()
    changed[:, 5] += 1.0
    difference = (convolution(changed) - convolution(x)).abs().amax(dim=(0, 2))
    assert difference.shape == (11,)
    assert (difference > 0).nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


def test_a_depthwise_gradient_lies_as_its_weight_does(x: torch.Tensor) -> None:
    """Otherwise DistributedDataParallel copies it, and warns."""
    convolution = Convolution(16, kernel_size=5)
    convolution(x).sum().backward()
    weight = convolution.depthwise.weight
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()


def test_triton_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container without one has a GPU all the same."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert not conformer_module._has_triton()


@torch.no_grad()
def test_a_sample_does_not_see_its_neighbours_in_the_batch(x: torch.Tensor) -> None:
    conformer, padding_mask = block(), padding(11, 7, 3)
    together = conformer(x, padding_mask)
    for row in range(3):
        alone = conformer(x[row : row + 1], padding_mask[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_a_padding_mask_without_padding_changes_nothing(x: torch.Tensor) -> None:
    conformer = block()
    torch.testing.assert_close(conformer(x, padding(11, 11, 11)), conformer(x, None))


def test_a_sample_of_nothing_but_padding_stays_finite(x: torch.Tensor) -> None:
    conformer = block()
    x.requires_grad_()
    out = conformer(x, padding(11, 4, 0))
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_dropout_is_drawn_in_training_only(x: torch.Tensor) -> None:
    conformer = block(dropout=0.5)
    assert not torch.equal(conformer(x, None), conformer(x, None))
    conformer.eval()
    assert torch.equal(conformer(x, None), conformer(x, None))


@torch.no_grad()
def test_sample_norm_equals_group_norm_over_the_valid_steps(x: torch.Tensor) -> None:
    norm = SampleNorm(x.shape[2])
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.uniform_(-1, 1)
    mask = padding(11, 7, 3)
    found = norm(x, mask)
    for row, n_valid in enumerate((11, 7, 3)):
        valid = x[row : row + 1, :n_valid].transpose(1, 2)
        required = torch.nn.functional.group_norm(valid, 1, norm.weight, norm.bias)
        torch.testing.assert_close(
            found[row, :n_valid], required[0].T, atol=TOLERANCE, rtol=TOLERANCE
        )


def test_sample_norm_has_the_gradients_of_group_norm_over_the_valid_steps(
    x: torch.Tensor,
) -> None:
    n_samples, n_steps, dim = x.shape
    n_valid = [1 + number % n_steps for number in range(n_samples)]
    norm, reference = SampleNorm(dim), nn.GroupNorm(1, dim)
    for parameter, other in zip(norm.parameters(), reference.parameters(), strict=True):
        nn.init.normal_(parameter)
        other.data.copy_(parameter)
    own, other_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    padding_mask = torch.arange(n_steps) >= torch.tensor(n_valid)[:, None]
    factors = torch.randn(x.shape) * ~padding_mask[..., None]
    (norm(own, padding_mask) * factors).sum().backward()
    for row, n in enumerate(n_valid):
        expected = reference(other_x[row : row + 1, :n].mT).mT
        (expected * factors[row : row + 1, :n]).sum().backward()
    torch.testing.assert_close(own.grad, other_x.grad, atol=1e-5, rtol=1e-4)
    for parameter, other in zip(norm.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-5, rtol=1e-4)
