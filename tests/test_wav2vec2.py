"""InfoNCE against a naive float64 loop, and what a wrong call is told."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from melstream.model import AudioEncoder, EncoderConfig, Wav2Vec2, Wav2Vec2Config
from melstream.model.objectives.wav2vec2 import (
    _equal_rows,
    chance_accuracy,
    info_nce,
    masked_steps,
)

CONFIG = EncoderConfig(
    n_mels=8, latent_dim=16, dim=16, n_layers=1, n_heads=2, ffn_dim=32, dropout=0.0
)
TOLERANCE = 1e-5  # float32 against float64, logits up to 10


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    context, targets = torch.randn(2, 3, 7, 16, generator=rng)
    return context, targets, torch.randint(7, (3, 7, 20), generator=rng)


def naive_info_nce(
    context: Tensor, targets: Tensor, distractors: Tensor, temperature: float
) -> tuple[float, float]:
    losses, hits = [], []
    c, q = context.double().numpy(), targets.double().numpy()
    for b, t in np.ndindex(c.shape[:2]):

        def logit(row: int, b: int = b, t: int = t) -> float:
            norms = np.linalg.norm(c[b, t]) * np.linalg.norm(q[b, row])
            return float(c[b, t] @ q[b, row] / norms / temperature)

        rows = [int(row) for row in distractors[b, t] if (q[b, row] != q[b, t]).any()]
        others = [logit(row) for row in rows]
        losses.append(math.log(sum(map(math.exp, [logit(t), *others]))) - logit(t))
        hits.append(bool(others) and logit(t) > max(others))
    return float(np.mean(losses)), float(np.mean(hits))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_info_nce_is_the_naive_loop(temperature: float) -> None:
    context, targets, distractors = drawn()
    loss, accuracy = info_nce(context, targets, distractors, temperature=temperature)
    required = naive_info_nce(context, targets, distractors, temperature)
    assert (float(loss), float(accuracy)) == pytest.approx(required, abs=TOLERANCE)


def test_copies_of_the_target_are_left_out() -> None:
    context, targets, distractors = drawn()
    targets[:, 3] = targets[:, 5]  # silence, say: two steps that sound the same
    targets[1] = targets[1, 0]
    loss, accuracy = info_nce(context, targets, distractors, temperature=0.1)
    required = naive_info_nce(context, targets, distractors, 0.1)
    assert (float(loss), float(accuracy)) == pytest.approx(required, abs=TOLERANCE)


def test_equal_rows_are_found_among_rows_that_hardly_differ() -> None:
    rng = torch.Generator().manual_seed(0)
    near = torch.randint(-1, 2, (4, 60, 3), generator=rng)  # 27 rows, all of them again and again
    for rows in (near, near.float() * 2.0**-100, near.bfloat16().float() * -1):
        required = (rows[:, :, None] == rows[:, None]).all(-1)
        assert torch.equal(_equal_rows(rows), required)
        assert 60 * 4 < int(required.sum()) < required.numel() / 10
    far = torch.randn(4, 60, 256, generator=rng)
    far[1, 7] = far[1, 30]
    assert torch.equal(_equal_rows(far), torch.cdist(far, far, p=torch.inf) == 0)


def test_collapsed_targets_have_accuracy_zero_and_finite_gradients() -> None:
    context, targets, distractors = drawn()
    targets = targets[:1, :1].expand(3, 7, 16).clone().requires_grad_()
    context.requires_grad_()
    loss, accuracy = info_nce(context, targets, distractors, temperature=0.1)
    loss.backward()
    assert float(accuracy) == 0.0
    assert context.grad is not None
    assert targets.grad is not None
    assert context.grad.isfinite().all()
    assert targets.grad.isfinite().all()


def test_context_equal_to_the_targets_is_always_right() -> None:
    _, targets, distractors = drawn()
    _, accuracy = info_nce(targets, targets, distractors, temperature=0.1)
    # a step whose every distractor is itself has nothing to be right against
    has_rival = (distractors != torch.arange(7)[:, None]).any(dim=-1)
    assert float(accuracy) == pytest.approx(float(has_rival.float().mean()))


def test_info_nce_is_float32_under_autocast() -> None:
    context, targets, distractors = drawn()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = info_nce(context, targets, distractors, temperature=0.1)
    required = info_nce(context, targets, distractors, temperature=0.1)
    assert torch.equal(torch.stack(found), torch.stack(required))


def test_masked_steps_are_in_order_of_time() -> None:
    rng = torch.Generator().manual_seed(0)
    mask = torch.zeros(5, 300, dtype=torch.bool)
    mask.scatter_(1, torch.rand(5, 300, generator=rng).argsort(dim=1)[:, :80], True)
    steps = masked_steps(mask, n_masked=80)
    assert steps.tolist() == [row.nonzero().flatten().tolist() for row in mask]


def forward(mask: Tensor, distractors: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    objective = Wav2Vec2(Wav2Vec2Config(), CONFIG)
    return objective(
        AudioEncoder(CONFIG),
        logmel=torch.randn(2, 40, 8),
        n_frames=torch.tensor([40, 20]),
        mask=mask,
        distractors=distractors,
        step=torch.tensor(0),
    )


def test_the_masked_share_counts_valid_steps_only() -> None:
    mask = (torch.arange(10) < 3).expand(2, -1)
    scalars = forward(mask, torch.zeros(2, 3, 5, dtype=torch.int32))
    assert float(scalars["masked_share"]) == pytest.approx(6 / 15)


@pytest.mark.parametrize(
    ("mask_shape", "distractors_shape", "match"),
    [
        ((2, 9), (2, 3, 5), r"shape \(2, 10\), found \(2, 9\)"),
        ((2, 10), (3, 3, 5), r"`distractors` must have shape \(2, masked steps, distractors\)"),
        ((2, 10), (2, 3, 0), r"none of them 0, found \(2, 3, 0\)"),
        ((2, 10), (2, 4, 5), r"must have 4 masked steps, .* found \[3, 3\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    mask_shape: tuple[int, int], distractors_shape: tuple[int, int, int], match: str
) -> None:
    mask = (torch.arange(mask_shape[1]) < 3).expand(mask_shape)
    with pytest.raises(ValueError, match=match):
        forward(mask, torch.zeros(distractors_shape, dtype=torch.int64))


@pytest.mark.parametrize(("n_masked", "n_distractors"), [(2, 1), (5, 20), (65, 100), (400, 100)])
def test_chance_is_what_guessing_gives(n_masked: int, n_distractors: int) -> None:
    """Distractors are drawn with replacement: what is drawn twice is no other choice."""
    rng = np.random.default_rng(0)
    draws = rng.integers(n_masked - 1, size=(400, n_distractors))
    right = [1 / (1 + len(np.unique(row))) for row in draws]
    assert chance_accuracy(n_masked, n_distractors) == pytest.approx(np.mean(right), rel=0.02)
