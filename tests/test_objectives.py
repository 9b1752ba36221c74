"""What every objective must do, for each one in the list."""

import pytest
import torch
from torch import Tensor, nn

from melstream.model import (
    OBJECTIVES,
    AudioEncoder,
    EncoderConfig,
    PretrainingModel,
    build_objective,
)

QUANTIZER = {"n_groups": 2, "n_codes": 8, "gumbel_temperature_end": 0.5}
VARIANTS = [
    *(pytest.param((name, {}), id=name) for name in OBJECTIVES),
    pytest.param(("wav2vec2", {"quantizer": QUANTIZER}), id="wav2vec2-quantizer"),
]
CONFIG = EncoderConfig(
    n_mels=8, latent_dim=32, dim=32, n_layers=2, n_heads=2, ffn_dim=64, dropout=0.0,
    first_kernel_size=5, kernel_size=3,
)  # fmt: skip
N_STEPS, N_MASKED, N_DISTRACTORS = 16, 6, 10


class FixedContext(nn.Module):
    """Context that does not depend on the latents: only targets can move the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.randn(N_STEPS, CONFIG.dim))

    def forward(self, latents: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self.context.expand(latents.shape[0], -1, -1)


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> PretrainingModel:
    torch.manual_seed(0)
    name, options = request.param
    return PretrainingModel(AudioEncoder(CONFIG), build_objective(name, options, CONFIG))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    order = torch.rand(4, N_STEPS - 2, generator=rng).argsort(dim=1)
    mask = torch.zeros(4, N_STEPS, dtype=torch.bool)
    mask.scatter_(1, order[:, :N_MASKED], True)  # the last two steps stay free: padding
    shape = (4, N_MASKED, N_DISTRACTORS)
    return {
        "logmel": torch.randn(4, 4 * N_STEPS, 8, generator=rng),
        "n_frames": torch.tensor([64, 63, 60, 56]),
        "mask": mask,
        "distractors": torch.randint(N_MASKED, shape, generator=rng, dtype=torch.int32),
    }


def test_scalars_are_finite_float32_and_only_the_loss_has_a_gradient(
    model: PretrainingModel, batch: dict[str, Tensor]
) -> None:
    scalars = model(**batch)
    for name, scalar in scalars.items():
        assert scalar.shape == (), name
        assert scalar.dtype == torch.float32, name
        assert scalar.isfinite(), name
        assert scalar.requires_grad == (name == "loss"), name


def test_gradient_reaches_every_parameter(
    model: PretrainingModel, batch: dict[str, Tensor]
) -> None:
    model(**batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_targets_of_unmasked_steps_do_not_matter(
    model: PretrainingModel, batch: dict[str, Tensor]
) -> None:
    model.eval()  # a quantizer draws its choices in training
    model.encoder.context_encoder = FixedContext()  # type: ignore[assignment]
    required = model(**batch)["loss"]
    is_masked = batch["mask"].repeat_interleave(4, dim=1)[..., None]
    logmel, noise = batch["logmel"], torch.randn_like(batch["logmel"])
    batch["logmel"] = torch.where(is_masked, logmel, noise)
    assert torch.equal(model(**batch)["loss"], required)
    batch["logmel"] = torch.where(is_masked, noise, logmel)
    assert not torch.isclose(model(**batch)["loss"], required)


def test_what_the_mask_hides_does_not_reach_the_context(
    model: PretrainingModel, batch: dict[str, Tensor]
) -> None:
    seen: list[Tensor] = []
    model.encoder.context_encoder.register_forward_hook(lambda *args: seen.append(args[2]))
    model(**batch)
    is_masked = batch["mask"].repeat_interleave(4, dim=1)[..., None]
    batch["logmel"] = torch.where(is_masked, torch.randn_like(batch["logmel"]), batch["logmel"])
    model(**batch)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.slow
def test_one_batch_can_be_overfitted(model: PretrainingModel, batch: dict[str, Tensor]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = float(model(**batch)["loss"].detach())
    for _ in range(120):
        optimizer.zero_grad()
        loss = model(**batch)["loss"]
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 * first


def test_loss_is_finite_under_bfloat16_autocast(
    model: PretrainingModel, batch: dict[str, Tensor]
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_unknown_objective_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"one of wav2vec2, .* found 'wav2vec3'"):
        build_objective("wav2vec3", {}, CONFIG)


def test_an_unknown_option_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"has the options temperature, .* found tau"):
        build_objective("wav2vec2", {"tau": 0.1}, CONFIG)


def test_options_reach_the_config() -> None:
    objective = build_objective("wav2vec2", {"temperature": 0.5}, CONFIG)
    assert objective.config == OBJECTIVES["wav2vec2"][0](temperature=0.5)
    with pytest.raises(ValueError, match="greater than 0"):
        build_objective("wav2vec2", {"temperature": 0.0}, CONFIG)
