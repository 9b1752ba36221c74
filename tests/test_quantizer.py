"""The product quantizer against the paper's formulas, and the loss that uses it."""

import math

import pytest
import torch
from torch import Tensor

from melstream.model import AudioEncoder, EncoderConfig, GumbelQuantizer, QuantizerConfig, Wav2Vec2
from melstream.model import Wav2Vec2Config as Config
from melstream.model.objectives.wav2vec2 import info_nce

SIZES = QuantizerConfig(n_groups=2, n_codes=5)
TOLERANCE = 1e-5  # float32, other order of the same sums
STEP = torch.tensor(0)


@pytest.fixture
def quantizer() -> GumbelQuantizer:
    torch.manual_seed(0)
    return GumbelQuantizer(8, SIZES)


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(1))


def test_values_are_the_chosen_codes_side_by_side(
    quantizer: GumbelQuantizer, latents: Tensor
) -> None:
    for is_training in (True, False):
        found = quantizer.train(is_training)(latents, STEP)
        first, second = (quantizer.entries[g, found.codes[..., g]] for g in range(2))
        assert torch.equal(found.values, torch.cat([first, second], dim=-1))


def test_evaluation_takes_the_likeliest_entry(quantizer: GumbelQuantizer, latents: Tensor) -> None:
    logits = quantizer.choose(latents).unflatten(-1, (2, 5))
    assert torch.equal(quantizer.eval()(latents, STEP).codes, logits.argmax(dim=-1))


def test_training_draws_from_the_softmax_at_any_temperature(quantizer: GumbelQuantizer) -> None:
    latent = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(3))
    codes = quantizer(latent.expand(1, 4000, 8), torch.tensor(10**9)).codes[0, :, 0]
    required = (quantizer.choose(latent)[0, 0, :5]).softmax(dim=0)
    found = codes.bincount(minlength=5) / 4000
    torch.testing.assert_close(found, required.detach(), atol=5 * 0.5 / 4000**0.5, rtol=0)


def test_the_gradient_is_that_of_the_softmax(quantizer: GumbelQuantizer, latents: Tensor) -> None:
    """Straight through: hard values, and the slope of the soft choice."""
    weights = torch.randn(3, 40, 8)
    torch.manual_seed(5)
    found = torch.autograd.grad((quantizer(latents, STEP).values * weights).sum(),
                                quantizer.choose.weight)[0]  # fmt: skip
    torch.manual_seed(5)
    logits = quantizer.choose(latents).unflatten(-1, (2, 5))
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / SIZES.gumbel_temperature_start).softmax(dim=-1)
    values = torch.einsum("bmgv,gvw->bmgw", soft, quantizer.entries).flatten(2)
    required = torch.autograd.grad((values * weights).sum(), quantizer.choose.weight)[0]
    torch.testing.assert_close(found, required, atol=TOLERANCE, rtol=TOLERANCE)


def test_diversity_loss_and_perplexity_are_the_papers(
    quantizer: GumbelQuantizer, latents: Tensor
) -> None:
    found = quantizer(latents, STEP)
    probabilities = quantizer.choose(latents).unflatten(-1, (2, 5)).softmax(dim=-1)
    mean = probabilities.reshape(-1, 2, 5).double().mean(dim=0).tolist()
    perplexities = [math.exp(-sum(p * math.log(p) for p in row)) for row in mean]
    diversity_loss = float(found.diversity_loss.detach())
    assert diversity_loss == pytest.approx((10 - sum(perplexities)) / 10, abs=1e-6)
    assert float(found.perplexity) == pytest.approx(sum(perplexities) / 2, rel=1e-5)


def test_equal_use_of_all_entries_costs_nothing(quantizer: GumbelQuantizer) -> None:
    torch.nn.init.zeros_(quantizer.choose.weight)
    found = quantizer.eval()(torch.randn(2, 3, 8), STEP)
    assert float(found.diversity_loss.detach()) == pytest.approx(0, abs=1e-6)
    assert float(found.code_perplexity) == 1  # the likeliest of equals is always the same one


@pytest.mark.parametrize("step", [0, 1, 1000, 200_000, 10**7])
def test_the_temperature_is_a_function_of_the_step(quantizer: GumbelQuantizer, step: int) -> None:
    found = quantizer.temperature(torch.tensor(step))
    assert float(found) == pytest.approx(max(0.5, 2 * 0.999995**step), rel=1e-5)


def test_distractors_of_the_same_codes_are_left_out() -> None:
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(2, (2, 12, 2), generator=rng)
    entries = torch.randn(2, 2, 4, generator=rng)
    targets = torch.cat([entries[g][codes[..., g]] for g in range(2)], dim=-1)
    context = torch.randn(2, 12, 8, generator=rng)
    distractors = torch.randint(12, (2, 12, 20), generator=rng)
    required = info_nce(context, targets, distractors, temperature=0.1)
    nearly = targets + 1e-6 * torch.randn(targets.shape, generator=rng)  # as a product may round
    found = info_nce(context, nearly, distractors, temperature=0.1, identities=codes)
    torch.testing.assert_close(found, required, atol=1e-3, rtol=1e-3)


def test_the_loss_is_contrastive_plus_weighted_diversity() -> None:
    sizes = EncoderConfig(n_mels=8, latent_dim=8, dim=8, n_layers=1, n_heads=2, ffn_dim=16)
    objective = Wav2Vec2(Config(quantizer=SIZES, diversity_weight=0.3), sizes)
    scalars = objective(
        AudioEncoder(sizes),
        logmel=torch.randn(2, 40, 8),
        n_frames=None,
        mask=(torch.arange(10) < 4).expand(2, -1),
        distractors=torch.randint(4, (2, 4, 6)),
        step=torch.tensor(7),
    )
    required = scalars["contrastive_loss"] + 0.3 * scalars["diversity_loss"]
    torch.testing.assert_close(scalars["loss"].detach(), required)
    assert 1 <= float(scalars["perplexity"]) <= 5
    assert float(scalars["gumbel_temperature"]) == pytest.approx(2 * 0.999995**7)


def test_codebooks_that_do_not_divide_the_latents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`n_groups` must divide `latent_dim` \(8\), found 3"):
        GumbelQuantizer(8, QuantizerConfig(n_groups=3))
