"""Masks over latents while fine-tuning: shares, lengths, and what the tagger sees of them."""

import pytest
import torch

from melstream.model import (
    AudioEncoder,
    EncoderConfig,
    HidingConfig,
    Tagger,
    TaggerConfig,
    draw_hidden,
)

CONFIG = EncoderConfig(n_mels=8, latent_dim=16, dim=16, n_layers=2, n_heads=2, ffn_dim=32)


def draw(n_frames: torch.Tensor, seed: int = 0, **options: float) -> torch.Tensor:
    return draw_hidden(
        n_frames,
        HidingConfig.model_validate(options),
        stride=4,
        n_steps=100,
        latent_dim=128,
        generator=torch.Generator().manual_seed(seed),
    )


def test_the_default_hides_nothing() -> None:
    assert not draw(torch.full((3,), 400)).any()


@pytest.mark.parametrize(("share", "length"), [(0.45, 2), (0.65, 10)])
def test_the_hidden_share_is_the_formulas(share: float, length: int) -> None:
    hidden = draw(torch.full((400,), 400), step_share=share, step_length=length)[:, :, 0]
    required = 1 - (1 - share / length) ** length
    # assumption: 400 clips of at least 10 spans that are drawn by themselves
    assert float(hidden.float().mean()) == pytest.approx(required, abs=5 * 0.5 / 4000**0.5)
    by_place = hidden.float().mean(dim=0)
    assert float(by_place[0]) == pytest.approx(required, abs=5 * 0.5 / 400**0.5)


def test_hidden_spans_are_at_least_as_long_as_asked() -> None:
    hidden = draw(torch.full((50,), 400), step_share=0.2, step_length=3)[:, 3:-3, 0]
    for row in hidden.int().tolist():
        runs = "".join(map(str, row)).strip("1").split("0")
        assert all(len(run) >= 3 for run in runs if run)


def test_padding_is_not_hidden_and_channels_are_hidden_in_every_step() -> None:
    hidden = draw(torch.tensor([400, 42]), step_share=0.9, step_length=1)
    assert hidden[1, :10].any()
    assert not hidden[1, 10:].any()
    channels = draw(torch.tensor([400, 42]), channel_share=0.5, channel_length=16)
    assert torch.equal(channels, channels[:, :1].expand_as(channels))
    assert 0 < int(channels[0, 0].sum()) < 128


def test_the_same_generator_hides_the_same() -> None:
    n_frames = torch.full((3,), 400)
    first, second, other = (draw(n_frames, seed, step_share=0.5) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_tagger_does_not_see_what_is_hidden() -> None:
    torch.manual_seed(0)
    tagger = Tagger(AudioEncoder(CONFIG), TaggerConfig(), 3).eval()
    logmel, n_frames = torch.randn(2, 40, 8), torch.tensor([40, 24])
    hidden = torch.zeros(2, 10, 16, dtype=torch.bool)
    hidden[:, 2:4] = True
    required = tagger(logmel, n_frames, hidden)
    logmel[:, 8:16] = torch.randn(2, 8, 8)
    assert torch.equal(tagger(logmel, n_frames, hidden), required)
    assert not torch.allclose(tagger(logmel, n_frames), required)
