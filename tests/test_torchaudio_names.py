"""Our modules, with the reference's weights, give the reference's numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from melstream.model import (
    AudioEncoder,
    EncoderConfig,
    Wav2Vec2,
    Wav2Vec2Config,
    convert_torchaudio_state,
)
from melstream.model.objectives.wav2vec2 import info_nce, masked_steps

CONFIG = EncoderConfig(dim=64, n_layers=2, n_heads=4, ffn_dim=128, hides_padding=False)
TENSORS = load_file(Path(__file__).parent / "data" / "conformer_wav2vec2_a.safetensors")
IO = {name.removeprefix("io."): t for name, t in TENSORS.items() if name.startswith("io.")}
STATE = {name.removeprefix("model."): t for name, t in TENSORS.items() if name.startswith("model.")}
TOLERANCE = 1e-5  # the oracle's own: float32, other order of the same sums
N_MASKED = IO["targets"].shape[1]


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    encoder = AudioEncoder(CONFIG)
    state, _ = convert_torchaudio_state(STATE)
    encoder.load_state_dict(state)
    return encoder.eval()


@pytest.fixture(scope="module")
def objective() -> Wav2Vec2:
    objective = Wav2Vec2(Wav2Vec2Config(), CONFIG)
    _, state = convert_torchaudio_state(STATE)
    objective.load_state_dict(state, strict=True)
    return objective.eval()


@pytest.fixture(scope="module")
def layers(encoder: AudioEncoder) -> list[Tensor]:
    """Each block's output on the reference's padded log-mels."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
        for block in encoder.context_encoder.blocks
    ]
    with torch.no_grad():
        encoder(IO["log_mel"], IO["lengths"])
    for hook in hooks:
        hook.remove()
    return outputs


def local_distractors() -> Tensor:
    """The oracle counts rows over the whole batch; ours count within a sample."""
    return IO["negative_indices"] - N_MASKED * torch.arange(2)[:, None, None]


def assert_close(found: Tensor, required: Tensor) -> None:
    torch.testing.assert_close(found, required, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_latents_equal_the_reference(encoder: AudioEncoder) -> None:
    assert_close(encoder.feature_encoder.stack_and_project(IO["log_mel"]), IO["latents"])
    assert torch.equal(IO["lengths"] // CONFIG.stride, IO["latent_lengths"])


@pytest.mark.parametrize("layer", [0, 1])
def test_each_layer_equals_the_reference_on_padded_input(layers: list[Tensor], layer: int) -> None:
    assert_close(layers[layer], IO[f"layer{layer}"])


@torch.no_grad()
def test_the_padding_mask_comes_from_the_lengths(encoder: AudioEncoder) -> None:
    _, padding_mask = encoder.latents(IO["log_mel"], IO["lengths"])
    assert padding_mask is not None
    assert torch.equal((~padding_mask).sum(dim=1), IO["latent_lengths"])


@torch.no_grad()
def test_context_without_lengths_equals_the_reference(encoder: AudioEncoder) -> None:
    context, padding_mask = encoder(IO["log_mel"], None)
    assert padding_mask is None
    assert_close(context, IO["context_no_lengths"])


@torch.no_grad()
def test_context_of_masked_latents_equals_the_reference(
    encoder: AudioEncoder, objective: Wav2Vec2
) -> None:
    latents, _ = encoder.latents(IO["log_mel"], None)
    context = encoder.context_encoder(objective.hide(latents, IO["mask"].bool()))
    assert_close(context, IO["context_masked_input"])
    assert torch.equal(encoder.mask_embedding, objective.mask_embedding)


@torch.no_grad()
def test_targets_equal_the_reference(encoder: AudioEncoder, objective: Wav2Vec2) -> None:
    latents, _ = encoder.latents(IO["log_mel"], None)
    steps = masked_steps(IO["mask"].bool(), n_masked=N_MASKED)
    hidden = latents.take_along_dim(steps[..., None], dim=1)
    assert_close(objective.target_projection(hidden), IO["targets"])


@torch.no_grad()
def test_loss_of_the_reference_outputs_equals_the_reference() -> None:
    steps = masked_steps(IO["mask"].bool(), n_masked=N_MASKED)
    context = IO["context_masked_input"].take_along_dim(steps[..., None], dim=1)
    loss, _ = info_nce(context, IO["targets"], local_distractors(), temperature=0.1)
    assert_close(loss, IO["loss"][0])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@torch.no_grad()
def test_loss_from_log_mel_to_end_equals_the_reference(
    encoder: AudioEncoder, objective: Wav2Vec2, dtype: torch.dtype
) -> None:
    scalars = objective(
        encoder,
        logmel=IO["log_mel"],
        n_frames=None,
        mask=IO["mask"].bool(),
        distractors=local_distractors().to(dtype),
        step=torch.tensor(0),
    )
    assert_close(scalars["loss"], IO["loss"][0])
    assert scalars["masked_share"] == pytest.approx(N_MASKED / 50)


def test_every_output_of_the_oracle_is_compared() -> None:
    compared = {
        *("latents", "latent_lengths", "layer0", "layer1", "context_no_lengths"),
        *("context_masked_input", "targets", "loss"),
    }
    inputs = {"log_mel", "lengths", "mask", "negative_indices"}
    assert compared | inputs == set(IO)


def test_a_model_without_pretraining_parts_converts_to_the_same_encoder() -> None:
    plain = {
        name.removeprefix("wav2vec2."): tensor
        for name, tensor in STATE.items()
        if name.startswith("wav2vec2.")
    }
    encoder_state, objective_state = convert_torchaudio_state(plain)
    assert encoder_state.keys() == convert_torchaudio_state(STATE)[0].keys()
    assert not objective_state
    assert not encoder_state["mask_embedding"].any()


@pytest.mark.parametrize(
    "name", ["model.wav2vec2.feature_extractor.linear_layer.weight", "encoder.conformer.0.x.bias"]
)
def test_an_unknown_tensor_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        convert_torchaudio_state({name: torch.zeros(1)})


def test_a_head_of_fine_tuning_is_to_be_left_out() -> None:
    with pytest.raises(ValueError, match=r"'aux.weight'; leave its head out"):
        convert_torchaudio_state({"aux.weight": torch.zeros(1)})
