"""Masks over latents while fine-tuning: shares, lengths, and what the tagger sees of them."""

import itertools

import pytest
import torch

from melstream.model import (
    AudioEncoder,
    EncoderConfig,
    Hidden,
    HidingConfig,
    Tagger,
    TaggerConfig,
    draw_hidden,
)

CONFIG = EncoderConfig(n_mels=8, latent_dim=16, dim=16, n_layers=2, n_heads=2, ffn_dim=32)


def draw(n_frames: torch.Tensor, seed: int = 0, **options: float) -> Hidden:
    return draw_hidden(
        n_frames,
        HidingConfig.model_validate(options),
        stride=4,
        n_steps=100,
        latent_dim=128,
        generator=torch.Generator().manual_seed(seed),
    )


def test_the_default_hides_nothing() -> None:
    hidden = draw(torch.full((3,), 400))
    assert not hidden.steps.any()
    assert not hidden.channels.any()


@pytest.mark.parametrize(("share", "length"), [(0.45, 2), (0.65, 10)])
def test_the_hidden_share_is_the_formulas(share: float, length: int) -> None:
    hidden = draw(torch.full((400,), 400), step_share=share, step_length=length).steps
    required = 1 - (1 - share / length) ** length
    # assumption: 400 clips of at least 10 spans that are drawn by themselves
    assert float(hidden.float().mean()) == pytest.approx(required, abs=5 * 0.5 / 4000**0.5)
    by_place = hidden.float().mean(dim=0)
    assert float(by_place[0]) == pytest.approx(required, abs=5 * 0.5 / 400**0.5)


def test_hidden_spans_are_at_least_as_long_as_asked() -> None:
    hidden = draw(torch.full((50,), 400), step_share=0.2, step_length=3).steps[:, 3:-3]
    for row in hidden.int().tolist():
        runs = "".join(map(str, row)).strip("1").split("0")
        assert all(len(run) >= 3 for run in runs if run)


def test_padding_is_not_hidden_and_bands_of_channels_are() -> None:
    hidden = draw(torch.tensor([400, 42]), step_share=0.9, step_length=1)
    assert hidden.steps[1, :10].any()
    assert not hidden.steps[1, 10:].any()
    hidden = draw(torch.tensor([400, 42]), channel_share=0.5, channel_length=16)
    assert not hidden.steps.any()
    assert 0 < int(hidden.channels[0].sum()) < 128


def test_the_same_generator_hides_the_same() -> None:
    n_frames = torch.full((3,), 400)
    first, second, other = (draw(n_frames, seed, step_share=0.5) for seed in (1, 1, 2))
    assert torch.equal(first.steps, second.steps)
    assert not torch.equal(first.steps, other.steps)


def test_the_tagger_does_not_see_what_is_hidden() -> None:
    torch.manual_seed(0)
    tagger = Tagger(AudioEncoder(CONFIG), TaggerConfig(), 3).eval()
    logmel, n_frames = torch.randn(2, 40, 8), torch.tensor([40, 24])
    hidden = Hidden(torch.zeros(2, 10, dtype=torch.bool), torch.zeros(2, 16, dtype=torch.bool))
    hidden.steps[:, 2:4] = True
    required = tagger(logmel, n_frames, hidden)
    logmel[:, 8:16] = torch.randn(2, 8, 8)
    assert torch.equal(tagger(logmel, n_frames, hidden), required)
    assert not torch.allclose(tagger(logmel, n_frames), required)


@torch.no_grad()
def test_in_place_of_hidden_steps_stands_the_mask_embedding_and_hidden_channels_are_zero() -> None:
    encoder = AudioEncoder(CONFIG).eval()
    encoder.mask_embedding.copy_(torch.randn(16))
    seen: list[torch.Tensor] = []
    encoder.context_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logmel = torch.randn(2, 40, 8)
    hidden = draw_hidden(
        torch.tensor([40, 40]),
        HidingConfig(step_share=0.4, channel_share=0.3, channel_length=2),
        stride=4, n_steps=10, latent_dim=16, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    encoder(logmel, None, hidden)
    latents = encoder.latents(logmel)[0]
    for sample, step, channel in itertools.product(range(2), range(10), range(16)):
        required = latents[sample, step, channel]
        if hidden.steps[sample, step]:
            required = encoder.mask_embedding[channel]
        if hidden.channels[sample, channel]:
            required = torch.tensor(0.0)
        assert seen[0][sample, step, channel] == required
    assert hidden.steps.any()
    assert hidden.channels.any()


def test_weights_from_before_there_was_a_mask_embedding_hide_with_zeros() -> None:
    encoder = AudioEncoder(CONFIG)
    state = encoder.state_dict()
    del state["mask_embedding"]
    encoder.mask_embedding.fill_(1.0)
    encoder.load_state_dict(state)
    assert not encoder.mask_embedding.any()
