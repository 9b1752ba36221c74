"""The mel filter banks are those of torchaudio, Kaldi and librosa."""

import librosa
import numpy as np
import pytest
import torch
import torchaudio

from melstream.shards.mel import hz_to_mel, mel_edges_hz, mel_filters, mel_to_hz
from melstream.shards.spec import PRESETS, FeatureSpec

# The references compute corner frequencies in float32; weights are in [0, 1].
WEIGHT_TOLERANCE = 2e-5


@pytest.mark.parametrize("n_mels", [23, 64])
@pytest.mark.parametrize("mel_scale", ["htk", "slaney"])
def test_hz_triangles_are_torchaudios_and_librosas(n_mels: int, mel_scale: str) -> None:
    spec = FeatureSpec.model_validate({"n_mels": n_mels, "mel_scale": mel_scale})
    filters = mel_filters(spec)
    theirs = torchaudio.functional.melscale_fbanks(
        257, 20.0, 8000.0, n_mels, 16_000, norm=None, mel_scale=mel_scale
    )
    np.testing.assert_allclose(filters, theirs.numpy().T, atol=WEIGHT_TOLERANCE)
    theirs = librosa.filters.mel(
        sr=16_000, n_fft=512, n_mels=n_mels, fmin=20, htk=mel_scale == "htk", norm=None
    )
    np.testing.assert_allclose(filters, theirs, atol=WEIGHT_TOLERANCE)


@pytest.mark.parametrize("n_mels", [23, 64, 128])
def test_mel_triangles_are_kaldis(n_mels: int) -> None:
    theirs, centres_hz = torchaudio.compliance.kaldi.get_mel_banks(
        n_mels, 512, 16_000.0, 20.0, 8000.0, 100.0, -500.0, 1.0
    )
    theirs = torch.nn.functional.pad(theirs, (0, 1))  # Kaldi leaves out the bin at 8 kHz
    spec = FeatureSpec(n_mels=n_mels, mel_triangles="mel")
    np.testing.assert_allclose(mel_filters(spec), theirs, atol=WEIGHT_TOLERANCE)
    np.testing.assert_allclose(mel_edges_hz(spec)[1:-1], centres_hz[:, 0], rtol=1e-5)


def test_only_the_fourth_band_of_kaldi128_has_no_weight() -> None:
    is_empty = {
        name: np.flatnonzero(~mel_filters(s).any(axis=1)).tolist() for name, s in PRESETS.items()
    }
    assert is_empty == {"conformer64": [], "kaldi128": [3]}


@pytest.mark.parametrize("mel_scale", ["htk", "slaney"])
def test_the_scales_are_librosas_and_go_back(mel_scale: str) -> None:
    hz = np.array([0.0, 20.0, 440.0, 999.0, 1000.0, 1001.0, 8000.0, 22_050.0])
    mel = hz_to_mel(hz, mel_scale=mel_scale)
    # librosa's 2595 log10 is 1127.01 ln: the constants are rounded differently.
    np.testing.assert_allclose(mel, librosa.hz_to_mel(hz, htk=mel_scale == "htk"), rtol=1e-5)
    np.testing.assert_allclose(mel_to_hz(mel, mel_scale=mel_scale), hz, rtol=1e-12)
