"""The log-mel equals Kaldi's, MelSpectrogram's and librosa's, and a naive loop."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import librosa
import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from melstream.pipeline import logmel as module
from melstream.pipeline.lanes import LANES
from melstream.pipeline.logmel import LogMel, window
from melstream.pipeline.waveform import load_waveform
from melstream.shards.mel import mel_filters
from melstream.shards.spec import PRESETS, FeatureSpec

Array = npt.NDArray[np.floating]

AUDIBLE_TOLERANCE = 1e-3
"""Largest difference of log power in bands less than 80 dB below the frame's loudest."""

TOLERANCE = 0.05
"""The same in all bands. What a float32 FFT leaks lies about 125 dB below a full-scale sine,
near the floor; the references, in float64, leak nothing. float16 storage rounds by 0.008."""

CONFORMER = PRESETS["conformer64"]
KALDI = PRESETS["kaldi128"]
SLANEY = FeatureSpec(mel_scale="slaney", n_mels=40, fmin=0, fmax=7600)
AST = FeatureSpec.model_validate({**KALDI.model_dump(), "window": "hann_symmetric"})
KALDI_PLAIN = FeatureSpec.model_validate(
    {**KALDI.model_dump(), "n_mels": 23, "preemphasis": 0, "remove_dc": False}
)


def kaldi(waveform: Array, spec: FeatureSpec) -> Array:
    powers = torchaudio.compliance.kaldi.fbank(
        torch.from_numpy(waveform)[None].double(),
        num_mel_bins=spec.n_mels,
        low_freq=spec.fmin,
        high_freq=spec.fmax,
        window_type="povey" if spec.window == "povey" else "hanning",
        preemphasis_coefficient=spec.preemphasis,
        remove_dc_offset=spec.remove_dc,
        use_log_fbank=False,
    )
    return np.log(np.maximum(powers.numpy(), spec.log_floor))


def mel_spectrogram(waveform: Array, spec: FeatureSpec) -> Array:
    transform = torchaudio.transforms.MelSpectrogram(
        sample_rate=spec.sample_rate,
        n_fft=spec.n_fft,
        win_length=spec.win_length,
        hop_length=spec.hop_length,
        f_min=spec.fmin,
        f_max=spec.fmax,
        n_mels=spec.n_mels,
        pad_mode="constant",
        mel_scale=spec.mel_scale,
    ).double()
    powers = transform(torch.from_numpy(waveform).double()).numpy().T
    return np.log(np.maximum(powers, spec.log_floor))


def librosa_mel(waveform: Array, spec: FeatureSpec) -> Array:
    powers = librosa.feature.melspectrogram(
        y=waveform.astype(np.float64),
        sr=spec.sample_rate,
        n_fft=spec.n_fft,
        win_length=spec.win_length,
        hop_length=spec.hop_length,
        fmin=spec.fmin,
        fmax=spec.fmax,
        n_mels=spec.n_mels,
        htk=spec.mel_scale == "htk",
        norm=None,
        pad_mode="constant",
    ).T
    return np.log(np.maximum(powers, spec.log_floor))


REFERENCES = [
    pytest.param(KALDI, kaldi, id="kaldi128"),
    pytest.param(AST, kaldi, id="ast"),
    pytest.param(KALDI_PLAIN, kaldi, id="kaldi-plain"),
    pytest.param(CONFORMER, mel_spectrogram, id="conformer64-torchaudio"),
    pytest.param(CONFORMER, librosa_mel, id="conformer64-librosa"),
    pytest.param(SLANEY, mel_spectrogram, id="slaney-torchaudio"),
    pytest.param(SLANEY, librosa_mel, id="slaney-librosa"),
]


def naive(waveform: Array, spec: FeatureSpec) -> Array:
    """The definition in FeatureSpec's docstring, frame by frame in float64."""
    pad = spec.n_fft // 2 if spec.framing == "center" else 0
    offset = (spec.n_fft - spec.win_length) // 2 if spec.framing == "center" else 0
    padded = np.pad(waveform.astype(np.float64), pad)
    rows = []
    for t in range(spec.n_frames(len(waveform))):
        start = t * spec.hop_length + offset
        frame = padded[start : start + spec.win_length]
        frame = frame - frame.mean() * spec.remove_dc
        frame = frame - spec.preemphasis * np.concatenate([frame[:1], frame[:-1]])
        spectrum = np.fft.rfft(frame * window(spec), spec.n_fft)
        rows.append(mel_filters(spec) @ np.abs(spectrum) ** 2)
    powers = np.array(rows).reshape(-1, spec.n_mels)
    return np.log(np.maximum(powers, spec.log_floor))


def assert_close(ours: Array, reference: Array) -> None:
    assert ours.shape == reference.shape
    if not ours.size:
        return
    difference = np.abs(ours - reference)
    is_audible = reference > reference.max(axis=1, keepdims=True) - np.log(1e8)
    assert difference[is_audible].max() < AUDIBLE_TOLERANCE
    assert difference.max() < TOLERANCE


def tone(hz: float, n_samples: int = 8_000) -> Array:
    return np.sin(2 * np.pi * hz * np.arange(n_samples) / 16_000).astype(np.float32)


SIGNALS = {
    "one window": tone(440, 400),
    "odd length": tone(440, 4_001),
    "full-scale sine": tone(1000),
    "full-scale square": np.sign(tone(997)),
    "quiet sine": 1e-4 * tone(1000),
    "constant": np.full(8_000, 0.5, np.float32),
    "rumble on an offset": 0.9 + 0.1 * tone(50),
    "silence": np.zeros(8_000, np.float32),
    "click": np.eye(1, 8_000, 4_000, dtype=np.float32)[0],
    "noise": np.random.default_rng(0).uniform(-1, 1, 8 * LANES * 160 + 321).astype(np.float32),
}


@pytest.mark.filterwarnings("ignore:n_fft=512 is too large:UserWarning")  # librosa's advice
@pytest.mark.parametrize(("spec", "reference"), REFERENCES)
@pytest.mark.parametrize("name", SIGNALS)
def test_logmel_equals_the_reference_on_edge_cases(name: str, spec, reference) -> None:
    assert_close(LogMel(spec)(SIGNALS[name]), reference(SIGNALS[name], spec))


@pytest.mark.parametrize(("spec", "reference"), REFERENCES)
def test_logmel_equals_the_reference_on_recordings(recordings: Path, spec, reference) -> None:
    paths = sorted(recordings.glob("*/*/*.flac"))[::12]
    assert len(paths) > 3
    for path in paths:
        waveform = load_waveform(path, spec).waveform[: 3 * spec.sample_rate]
        assert_close(LogMel(spec)(waveform), reference(waveform, spec))


@pytest.mark.parametrize("n_samples", [0, 1, 159, 160, 399])
def test_shorter_than_a_window_is_padded_or_has_no_frame(n_samples: int) -> None:
    waveform = tone(440, n_samples)
    assert_close(LogMel(CONFORMER)(waveform), naive(waveform, CONFORMER))
    if n_samples:
        assert_close(LogMel(CONFORMER)(waveform), mel_spectrogram(waveform, CONFORMER))
    assert LogMel(KALDI)(waveform).shape == (0, 128)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_logmel_equals_a_naive_loop_for_any_spec(data: st.DataObject) -> None:
    n_fft = data.draw(st.integers(8, 80)) * 2
    win_length = data.draw(st.integers(3, n_fft))
    spec = FeatureSpec(
        n_fft=n_fft,
        win_length=win_length,
        hop_length=data.draw(st.integers(1, win_length)),
        n_mels=data.draw(st.integers(1, 20)),
        window=data.draw(st.sampled_from(["hann", "hann_symmetric", "povey"])),
        preemphasis=data.draw(st.sampled_from([0.0, 0.5, 0.97])),
        remove_dc=data.draw(st.booleans()),
        framing=data.draw(st.sampled_from(["center", "snip"])),
        mel_scale=data.draw(st.sampled_from(["htk", "slaney"])),
        mel_triangles=data.draw(st.sampled_from(["hz", "mel"])),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    waveform = rng.uniform(-1, 1, data.draw(st.integers(0, 500))).astype(np.float32)
    assert_close(LogMel(spec)(waveform), naive(waveform, spec))


def test_a_frame_does_not_depend_on_its_place() -> None:
    """Bit for bit: also over the borders of the rows that are computed together."""
    waveform = SIGNALS["noise"]
    whole = LogMel(KALDI)(waveform)
    for first in (1, 3, LANES - 1, 2 * LANES + 5):
        part = LogMel(KALDI)(waveform[first * 160 :])
        np.testing.assert_array_equal(part, whole[first:])


def test_a_strided_waveform_gives_the_same() -> None:
    stereo = np.random.default_rng(0).uniform(-1, 1, (5_000, 2)).astype(np.float32)
    ours = LogMel(CONFORMER)(stereo[:, 1])
    np.testing.assert_array_equal(ours, LogMel(CONFORMER)(stereo[:, 1].copy()))


def test_one_object_serves_many_threads() -> None:
    rng = np.random.default_rng(0)
    waveforms = [rng.uniform(-1, 1, n).astype(np.float32) for n in range(5_000, 45_000, 1_000)]
    logmel = LogMel(CONFORMER)
    expected = [logmel(waveform) for waveform in waveforms]
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(logmel, waveforms), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("hop_length", [1, 7, 24, 25])
@pytest.mark.parametrize("removes_dc", [False, True])
@pytest.mark.parametrize("first_sample", [-11, 0, 40])
def test_frames_equal_a_naive_loop(hop_length: int, removes_dc: bool, first_sample: int) -> None:
    rng = np.random.default_rng(0)
    weights = np.hanning(25).astype(np.float32)
    waveform = rng.uniform(-1, 1, 12 * hop_length + 25).astype(np.float32)  # ends early
    padded = np.pad(waveform.astype(np.float64), (11, 40 + LANES * hop_length))
    expected = np.zeros((32, LANES))
    for t in range(LANES):
        frame = padded[11 + first_sample + t * hop_length :][:25]
        frame = frame - frame.mean() * removes_dc
        expected[:25, t] = weights * (frame - 0.97 * np.concatenate([frame[:1], frame[:-1]]))

    hops = np.full((hop_length, LANES + 24 // hop_length), np.nan, np.float32)
    module._cut(waveform, first_sample, hops)
    frames = np.full((32, LANES), np.nan, np.float32)
    module._window(hops, weights, np.float32(0.97), removes_dc, frames)
    np.testing.assert_allclose(frames, expected, atol=1e-6)


def test_bands_equal_a_matrix_product() -> None:
    powers = np.random.default_rng(0).uniform(0, 1, (17, LANES)).astype(np.float32)
    powers[:, 2] *= 1e-9
    filters = mel_filters(FeatureSpec(n_fft=32, win_length=24, hop_length=8, n_mels=5))
    bands = np.full((5, LANES), np.nan, np.float32)
    module._project(powers, filters, module._bin_ranges(filters), np.float32(1e-3), bands)
    expected = np.maximum(filters.astype(np.float64) @ powers, 1e-3)
    np.testing.assert_allclose(bands, expected, rtol=1e-5)


def test_the_log_is_as_good_as_float32_can_hold() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(rng.uniform(-69, 80, 10_000)).astype(np.float32)  # from the lowest floor on
    values[:2_000] = rng.uniform(0.5, 2, 2_000)
    values[-4:] = [1, np.nan, -np.nan, np.inf]
    expected = np.log(values[:-3].astype(np.float64))
    logs = np.empty_like(values)
    module._log(values, np.empty_like(values), logs)
    np.testing.assert_allclose(logs[:-3], expected, rtol=3e-7, atol=1e-9)
    assert np.isnan(logs[-3:]).all()


@pytest.mark.parametrize("spec", [CONFORMER, KALDI])
def test_frames_with_a_nan_are_nan_and_no_others(spec: FeatureSpec) -> None:
    waveform = SIGNALS["full-scale sine"].copy()
    expected = LogMel(spec)(waveform)
    waveform[4_000] = np.nan
    is_nan = np.isnan(LogMel(spec)(waveform))
    has_weight = mel_filters(spec).any(axis=1)
    assert 2 <= is_nan[:, has_weight].all(axis=1).sum() == is_nan.any(axis=1).sum() <= 3
    is_whole = ~is_nan.any(axis=1)
    np.testing.assert_array_equal(LogMel(spec)(waveform)[is_whole], expected[is_whole])


@pytest.mark.parametrize(
    ("waveform", "found"),
    [
        (np.zeros(400, np.float64), "float64 of shape"),
        (np.zeros(400, np.int16), "int16 of shape"),
        (np.zeros((400, 2), np.float32), r"float32 of shape \(400, 2\)"),
    ],
)
def test_another_type_or_shape_is_refused(waveform: Array, found: str) -> None:
    with pytest.raises(ValueError, match=rf"`waveform` must be float32 .* found {found}"):
        LogMel(CONFORMER)(waveform)
