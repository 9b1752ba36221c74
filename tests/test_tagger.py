"""The tagger's tasks, poolings and losses."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from melstream.model import AudioEncoder, EncoderConfig, Tagger, TaggerConfig

CONFIG = EncoderConfig(
    n_mels=8, latent_dim=16, dim=16, n_layers=1, n_heads=2, ffn_dim=32, dropout=0.0
)
TASKS = [
    ("multi_label", "linear_softmax"),
    ("multi_label", "mean"),
    ("multi_label", "attention"),
    ("single_label", "mean"),
    ("single_label", "attention"),
]
each_task = pytest.mark.parametrize(("task", "pooling"), TASKS)


def build(task: str, pooling: str) -> Tagger:
    torch.manual_seed(0)
    config = TaggerConfig.model_validate({"task": task, "pooling": pooling, "dropout": 0.0})
    return Tagger(AudioEncoder(CONFIG), config, n_classes=5)


@pytest.fixture
def logmel() -> Tensor:
    return torch.randn(6, 40, 8, generator=torch.Generator().manual_seed(0))


@each_task
def test_gradient_reaches_every_parameter(task: str, pooling: str, logmel: Tensor) -> None:
    tagger = build(task, pooling)
    logits = tagger(logmel, torch.full((6,), 33))
    tagger.loss(logits, torch.eye(5)[[0, 1, 2, 3, 4, 0]]).backward()
    assert logits.shape == (6, 5)
    for name, parameter in tagger.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@each_task
@torch.no_grad()
def test_padding_frames_do_not_matter(task: str, pooling: str, logmel: Tensor) -> None:
    tagger, n_frames = build(task, pooling), torch.tensor([40, 40, 32, 20, 8, 4])
    spoiled = logmel.clone()
    for row, n_valid in enumerate(n_frames.tolist()):
        spoiled[row, n_valid:] = torch.nan
    assert torch.equal(tagger(spoiled, n_frames), tagger(logmel, n_frames))


@each_task
def test_one_batch_can_be_learned_by_heart(task: str, pooling: str, logmel: Tensor) -> None:
    tagger, labels = build(task, pooling), torch.eye(5)[[0, 1, 2, 3, 4, 0]]
    optimizer = torch.optim.AdamW(tagger.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        tagger.loss(tagger(logmel), labels).backward()
        optimizer.step()
    scores = tagger.scores(tagger(logmel))
    assert torch.equal(scores.argmax(dim=1), labels.argmax(dim=1))


def test_scores_are_probabilities_of_the_task() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0, 5.0, -3.0]])
    multi, single = build("multi_label", "mean"), build("single_label", "mean")
    torch.testing.assert_close(multi.scores(logits), 1 / (1 + torch.exp(-logits)))
    torch.testing.assert_close(single.scores(logits), logits.exp() / logits.exp().sum())


def test_losses_are_the_cross_entropies_of_the_scores() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0, 5.0, -3.0], [0.0, 0.5, 1.0, -0.5, 0.0]])
    labels = torch.tensor([[1.0, 0.0, 0.0, 0.7, 0.0], [0.0, 0.0, 1.0, 0.0, 0.3]])
    multi, single = build("multi_label", "mean"), build("single_label", "mean")
    p = multi.scores(logits)
    binary = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(multi.loss(logits, labels), binary)
    soft = labels / labels.sum(dim=1, keepdim=True)
    categorical = -(soft * single.scores(logits).log()).sum(dim=1).mean()
    torch.testing.assert_close(single.loss(logits, soft), categorical)


def test_linear_softmax_is_refused_for_a_single_label() -> None:
    with pytest.raises(ValidationError, match="`pooling` must be mean or attention"):
        TaggerConfig(task="single_label")


def test_a_tagger_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="`n_classes` must be at least 1, found 0"):
        Tagger(AudioEncoder(CONFIG), TaggerConfig(), n_classes=0)


def test_body_and_head_are_all_of_it() -> None:
    tagger = build("multi_label", "attention")
    n_parts = len([*tagger.encoder.parameters(), *tagger.head.parameters()])
    assert n_parts == len([*tagger.parameters()])
