"""Augmentations against closed forms and naive loops; what they may not touch."""

import math

import pytest
import torch
from torch import Tensor

from melstream.model import AugmentConfig, augment
from melstream.model.augment import mixup, roll, spec_masks

N_FRAMES = torch.tensor([12, 9, 5, 1])
FILL = torch.tensor([-7.0, -8.0, -9.0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def logmel() -> Tensor:
    return torch.randn(4, 12, 3, generator=generator(9)) - 5


@pytest.fixture
def labels() -> Tensor:
    return torch.eye(4)


def test_the_default_changes_nothing(logmel: Tensor, labels: Tensor) -> None:
    found = augment(
        logmel.half(), N_FRAMES, labels, AugmentConfig(), fill=FILL, generator=generator()
    )
    assert torch.equal(found[0], logmel.half().float())
    assert torch.equal(found[1], N_FRAMES)
    assert torch.equal(found[2], labels)


def test_the_same_generator_gives_the_same_batch(logmel: Tensor, labels: Tensor) -> None:
    config = AugmentConfig(mixup_share=0.7, rolls=True, time_masks=2, frequency_masks=1)
    runs = [
        augment(logmel, N_FRAMES, labels, config, fill=FILL, generator=generator(seed))
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_rolling_turns_the_valid_frames_and_leaves_the_padding(logmel: Tensor) -> None:
    rolled = roll(logmel, N_FRAMES, generator=generator())
    shifts = []
    for row, n in enumerate(N_FRAMES.tolist()):
        turns = [logmel[row, :n].roll(-shift, dims=0) for shift in range(n)]
        shifts += [shift for shift, turn in enumerate(turns) if torch.equal(rolled[row, :n], turn)]
        assert torch.equal(rolled[row, n:], logmel[row, n:])
    assert len(shifts) == 4
    assert any(shifts)


def test_every_shift_is_as_likely() -> None:
    ramp = torch.arange(5.0)[None, :, None].expand(4000, 5, 1)
    first = roll(ramp, torch.full((4000,), 5), generator=generator())[:, 0, 0]
    counts = first.long().bincount(minlength=5)
    assert counts.min() > 800 - 5 * math.sqrt(640)  # five standard deviations


def test_mixup_is_data2vecs_mix_of_powers_and_labels(logmel: Tensor, labels: Tensor) -> None:
    mixed, n_frames, mixed_labels = mixup(
        logmel, N_FRAMES, labels, share=1.0, generator=generator()
    )
    for row in range(4):
        r, other = float(mixed_labels[row, row]), (row - 1) % 4
        assert 0.5 <= r <= 1
        assert float(mixed_labels[row, other]) == pytest.approx(1 - r)
        assert n_frames[row] == max(N_FRAMES[row], N_FRAMES[other])
        for t in range(int(n_frames[row])):
            a = logmel[row, t].double().exp() if t < N_FRAMES[row] else 0
            b = logmel[other, t].double().exp() if t < N_FRAMES[other] else 0
            required = ((r**2 * a + (1 - r) ** 2 * b) / (r**2 + (1 - r) ** 2)).log()
            torch.testing.assert_close(mixed[row, t].double(), required, atol=1e-5, rtol=1e-5)
    assert mixed.isfinite().all()


def test_mixup_of_waveforms_has_these_powers_on_average() -> None:
    noise = torch.randn(2, 200, 512, generator=generator(), dtype=torch.float64)
    r = 0.7
    wave = (r * noise[0] + (1 - r) * 3 * noise[1]) / math.sqrt(r**2 + (1 - r) ** 2)
    required = torch.fft.rfft(wave).abs().square().mean()
    a, b = (torch.fft.rfft(x).abs().square().mean() for x in (noise[0], 3 * noise[1]))
    found = (r**2 * a + (1 - r) ** 2 * b) / (r**2 + (1 - r) ** 2)
    assert float(found) == pytest.approx(float(required), rel=0.02)


def test_mixup_takes_a_share_of_the_clips() -> None:
    labels = torch.eye(2).repeat(2000, 1)
    _, _, mixed = mixup(
        torch.zeros(4000, 1, 1), torch.ones(4000).long(), labels, share=0.7, generator=generator()
    )
    share = float((mixed.amax(dim=1) < 1).float().mean())
    assert share == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / 4000))
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(4000))


def test_spec_masks_lie_inside_the_clip_and_are_no_wider_than_asked() -> None:
    config = AugmentConfig(
        time_masks=1, time_mask_share=0.5, frequency_masks=1, frequency_mask_share=0.25
    )
    n_frames = torch.arange(1, 41).repeat(50)
    hidden = spec_masks(n_frames, (40, 16), config, generator=generator())
    in_time, in_frequency = hidden.all(dim=2), hidden.all(dim=1)
    assert (in_time.sum(dim=1) <= n_frames * 0.5).all()
    assert not in_time[torch.arange(40) >= n_frames[:, None]].any()
    assert in_frequency.sum(dim=1).unique().tolist() == [0, 1, 2, 3, 4]
    widths = in_time[n_frames == 40].sum(dim=1)
    assert widths.min() < 3
    assert widths.max() > 17
    for mask in (in_time, in_frequency):  # one band each: it begins once
        begins = mask.int().diff(dim=1, prepend=torch.zeros(len(mask), 1, dtype=torch.int32))
        assert ((begins == 1).sum(dim=1) <= 1).all()


def test_masked_places_hold_the_fill(logmel: Tensor, labels: Tensor) -> None:
    config = AugmentConfig(time_masks=3, time_mask_share=0.6)
    found, _, _ = augment(logmel, N_FRAMES, labels, config, fill=FILL, generator=generator())
    is_filled = (found == FILL).all(dim=2)
    assert is_filled.any()
    assert torch.equal(found[~is_filled], logmel[~is_filled])
