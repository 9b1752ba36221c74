"""The training benchmark counts, measures and compares what it says."""

import json

import pytest
import torch
from typer.testing import CliRunner

from melstream.model import EncoderConfig
from melstream.shards.dataset import Dataset
from melstream.tools.bench_train import TrainSettings, bench_train, flops_per_sample
from melstream.tools.cli import app

CPU = torch.device("cpu")


def settings(**changes: object) -> TrainSettings:
    encoder = EncoderConfig(n_layers=2, dim=32, latent_dim=32, ffn_dim=64, n_heads=2)
    chosen = {"encoder": encoder, "device": CPU, "precision": "float32", "n_steps": 2}
    return TrainSettings(**{**chosen, "n_latent_steps": 20} | changes)  # type: ignore[arg-type]


def test_operations_are_those_of_the_matrix_products() -> None:
    """Linear layers by formula: 2 operations per weight and step forward, 4 backward."""
    dim, ffn, steps, layers = 32, 64, 20, 2
    block = 4 * dim * ffn + 3 * dim * dim + 4 * dim * dim
    ends = 256 * dim + dim * dim
    attention = 2 * steps * dim
    required = steps * (6 * (layers * (block + attention) + ends) - 2 * 256 * dim)
    assert flops_per_sample(settings()) == pytest.approx(required, rel=0.1)  # and the loss


def test_a_data_set_gives_the_batches(small_dataset: Dataset) -> None:
    (cost,) = bench_train(settings(data=small_dataset.folder, n_latent_steps=4), [8])
    assert cost.batch_size == 8
    assert cost.samples_per_s == pytest.approx(8 / cost.step_s)
    assert 0 < cost.data_wait_share < 1
    assert cost.data_sheet_share is None


@pytest.mark.slow
def test_the_command_prints_json_beside_peers() -> None:
    options = ["--preset", "tiny", "--batch-size", "1", "--steps", "1", "--crop-seconds", "0.5"]
    result = CliRunner().invoke(
        app, ["bench", "train", *options, "--device", "cpu", "--bfloat16", "--vs", "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert [step["batch_size"] for step in found["steps"]] == [1]
    assert [times["name"] for times in found["encoders"]][:2] == [
        "melstream",
        "torchaudio Conformer",
    ]
