"""Weights of torchaudio's ``conformer_wav2vec2`` models, under our names.

torchaudio's prototypes held a re-implementation of the model of Srivastava et al.
2022 until release 2.9. Its checkpoints load into ours: same modules, other names, and
pointwise convolutions and depthwise ones of other ranks.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_ENCODER_NAMES = {
    "feature_extractor.linear_layer": "feature_encoder.projection",
    "encoder.feature_projection.layer_norm": "feature_encoder.norm",
    "encoder.feature_projection.projection": "context_encoder.projection",
}
_OBJECTIVE_NAMES = {
    "mask_generator.mask_embedding": "mask_embedding",
    "negative_sampler.preprocessor.weight": "target_projection.weight",
    "negative_sampler.preprocessor.bias": "target_projection.bias",
}
_BLOCK_NAMES = {
    "ffn1.sequential.0": "first_ffn.norm",
    "ffn1.sequential.1": "first_ffn.widen",
    "ffn1.sequential.4": "first_ffn.narrow",
    "conv_module.layer_norm": "convolution.norm",
    "conv_module.sequential.0": "convolution.gate",
    "conv_module.sequential.2": "convolution.depthwise",
    "conv_module.sequential.3": "convolution.sample_norm",
    "conv_module.sequential.5": "convolution.mix",
    "self_attn_layer_norm": "attention.norm",
    "self_attn.in_proj": "attention.qkv",
    "self_attn.out_proj": "attention.out",
    "ffn2.sequential.0": "second_ffn.norm",
    "ffn2.sequential.1": "second_ffn.widen",
    "ffn2.sequential.4": "second_ffn.narrow",
    "final_layer_norm": "norm",
}


def convert_torchaudio_state(
    state: Mapping[str, Tensor], *, stride: int = 4
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a state dict of torchaudio's model, with or without its pre-training parts.

    The encoder takes it as it is; ``hides_padding=False`` gives its numbers on padded input:

        encoder = AudioEncoder(PRESETS["cf-s"].model_copy(update={"hides_padding": False}))
        encoder_state, _ = convert_torchaudio_state(torch.load("conformer_wav2vec2_base.pt"))
        encoder.load_state_dict(encoder_state)

    Args:
        state: of ``conformer_wav2vec2_pretrain_model`` or ``conformer_wav2vec2_model``.
        stride: frames per latent step; torchaudio's ``extractor_stride``.

    Returns:
        encoder_state: for ``AudioEncoder``, with a normaliser that changes nothing: torchaudio
            normalises outside the model. The mask embedding is in both; without the pre-training
            parts it is zeros.
        objective_state: for ``Wav2Vec2``; empty without the pre-training parts.

    Raises:
        ValueError: a name that the model does not have, or a head of fine-tuning (``aux``).
    """
    encoder_state: dict[str, Tensor] = {}
    objective_state: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _OBJECTIVE_NAMES:
            objective_state[_OBJECTIVE_NAMES[name]] = tensor
        else:
            ours = _encoder_name(name.removeprefix("wav2vec2."))
            encoder_state[ours] = _reshape(ours, tensor)
    latent_dim, n_stacked = encoder_state["feature_encoder.projection.weight"].shape
    n_mels = n_stacked // stride
    learnt = objective_state.get("mask_embedding")
    encoder_state["mask_embedding"] = torch.zeros(latent_dim) if learnt is None else learnt
    encoder_state["normalizer.mean"] = torch.zeros(n_mels)
    encoder_state["normalizer.std"] = torch.ones(n_mels)
    return encoder_state, objective_state


def _encoder_name(name: str) -> str:
    owner, _, kind = re.sub(r"_(weight|bias)$", r".\1", name).rpartition(".")  # in_proj_weight
    block = re.fullmatch(r"encoder\.conformer\.(\d+)\.(.+)", owner)
    if block and block[2] in _BLOCK_NAMES:
        return f"context_encoder.blocks.{block[1]}.{_BLOCK_NAMES[block[2]]}.{kind}"
    if owner in _ENCODER_NAMES:
        return f"{_ENCODER_NAMES[owner]}.{kind}"
    remedy = "leave its head out" if owner == "aux" else "strip any prefix of your own"
    raise ValueError(
        f"expected the state dict of torchaudio's `conformer_wav2vec2_model`, "
        f"found a tensor named {name!r}; {remedy}"
    )


def _reshape(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(("gate.weight", "mix.weight")):
        return tensor.squeeze(2)  # (out, in, 1) -> (out, in)
    if name.endswith("depthwise.weight"):
        return tensor.unsqueeze(2)  # (D, 1, kernel) -> (D, 1, 1, kernel)
    return tensor
