"""Forward passes on a GPU that is not there: torch's fake tensors refuse what would wait for it.

They have shapes, types and a device, and no values: whatever asks for a value, as a branch on a
mask does, or brings two devices together, is an error.
"""

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from melstream.model.encoder import AudioEncoder, EncoderConfig
from melstream.model.objectives import build_objective
from melstream.model.pretraining import PretrainingModel
from melstream.model.tagger import Tagger, TaggerConfig

CONFIG = EncoderConfig(n_mels=8, latent_dim=16, dim=16, n_layers=2, n_heads=2, ffn_dim=32)
N_FRAMES, N_STEPS, N_MASKED = 40, 10, 4
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    with FakeTensorMode(), GPU:
        yield


def log_mels() -> torch.Tensor:
    return torch.randn(3, N_FRAMES, CONFIG.n_mels).half()


def lengths(is_padded: bool) -> torch.Tensor | None:
    return torch.full((3,), N_FRAMES) if is_padded else None


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("options", [{}, {"quantizer": {}}])
def test_pretraining(options: dict[str, object], is_padded: bool) -> None:
    model = PretrainingModel(
        AudioEncoder(CONFIG), build_objective("wav2vec2", options, CONFIG)
    ).train()
    mask = torch.zeros(3, N_STEPS, dtype=torch.bool)
    distractors = torch.zeros(3, N_MASKED, 20, dtype=torch.int32)
    figures = model(log_mels(), lengths(is_padded), mask, distractors)
    assert {(value.device, value.shape) for value in figures.values()} == {(GPU, ())}


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("pooling", ["linear_softmax", "mean", "attention"])
def test_tagging(pooling: str, is_padded: bool) -> None:
    config = TaggerConfig.model_validate({"pooling": pooling})
    tagger = Tagger(AudioEncoder(CONFIG), config, 5).train()
    logits = tagger(log_mels(), lengths(is_padded))
    loss = tagger.loss(logits, torch.zeros(3, 5))
    assert (logits.device, logits.shape, loss.shape) == (GPU, (3, 5), ())


def test_what_waits_is_refused() -> None:
    with pytest.raises(DataDependentOutputException):
        bool(torch.zeros(3).any())
