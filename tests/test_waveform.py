"""From a file to a mono waveform at the spec's rate, and what is refused on the way."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
import soxr
from audio_files import write_soundfile

from melstream.pipeline.logmel import LogMel
from melstream.pipeline.waveform import load_waveform, resample, to_mono
from melstream.shards.errors import SampleError
from melstream.shards.spec import PRESETS, FeatureSpec

Array = npt.NDArray[np.float32]

SPEC = PRESETS["conformer64"]
RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000]

EDGE_SAMPLES = 200  # where a resampler's filter meets the silence outside
HQ_TOLERANCE = 1e-4  # soxr's HQ is good to about 100 dB
RESAMPLE_POLY_TOLERANCE = 5e-3  # scipy's default filter is good to about 60 dB


def sine(hz: float, rate: int, duration_s: float = 1.0, amplitude: float = 0.5) -> Array:
    times = np.arange(round(rate * duration_s)) / rate
    return (amplitude * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def write(path: Path, waveform: Array, rate: int = 16_000, *, n_channels: int = 1) -> Path:
    samples = np.tile(waveform[:, None], (1, n_channels)) if waveform.ndim == 1 else waveform
    return write_soundfile(path, samples, rate, "WAV", "FLOAT")


def assert_rejected(path: Path, reason: str, message: str, **options: float) -> None:
    with pytest.raises(SampleError, match=message) as error:
        load_waveform(path, SPEC, **options)
    assert error.value.reason == reason


@pytest.mark.parametrize("n_channels", [1, 2, 6])
def test_mono_is_the_mean_of_the_channels(n_channels: int) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (1_000, n_channels)).astype(np.float32)
    mono = to_mono(samples)
    assert mono.dtype == np.float32
    np.testing.assert_allclose(mono, samples.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(to_mono(np.asfortranarray(samples)), mono)


@pytest.mark.parametrize("shape", [(100,), (100, 0), (1, 2, 3)])
def test_mono_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(n_samples, n_channels\), found"):
        to_mono(np.zeros(shape, np.float32))


@pytest.mark.parametrize("rate", RATES)
def test_a_resampled_sine_is_the_sine_at_the_new_rate(rate: int) -> None:
    ours = resample(sine(440, rate), from_rate=rate, to_rate=16_000)
    assert ours.dtype == np.float32
    assert len(ours) == 16_000
    inside = slice(EDGE_SAMPLES, -EDGE_SAMPLES)
    np.testing.assert_allclose(ours[inside], sine(440, 16_000)[inside], atol=HQ_TOLERANCE)


def test_resampling_is_soxrs_and_near_scipys() -> None:
    noise = np.random.default_rng(0).standard_normal(44_100)
    low = scipy.signal.sosfilt(scipy.signal.butter(8, 4_000, fs=44_100, output="sos"), noise)
    waveform = (0.1 * low).astype(np.float32)
    ours = resample(waveform, from_rate=44_100, to_rate=16_000)
    np.testing.assert_array_equal(ours, soxr.resample(waveform, 44_100, 16_000, quality="HQ"))
    theirs = scipy.signal.resample_poly(waveform, 160, 441)
    inside = slice(EDGE_SAMPLES, -EDGE_SAMPLES)
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=RESAMPLE_POLY_TOLERANCE)


def test_what_the_new_rate_cannot_hold_is_filtered_out() -> None:
    ours = resample(sine(12_000, 48_000), from_rate=48_000, to_rate=16_000)
    assert np.abs(ours[EDGE_SAMPLES:-EDGE_SAMPLES]).max() < HQ_TOLERANCE


def test_the_same_rate_changes_nothing() -> None:
    waveform = sine(440, 16_000)
    assert resample(waveform, from_rate=16_000, to_rate=16_000) is waveform


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("n_channels", [1, 2, 6])
def test_a_file_is_loaded_at_the_specs_rate(tmp_path: Path, rate: int, n_channels: int) -> None:
    path = write(tmp_path / "clip.wav", sine(440, rate), rate, n_channels=n_channels)
    loaded = load_waveform(path, SPEC)
    assert loaded.waveform.shape == (16_000,)
    assert loaded.waveform.dtype == np.float32
    inside = slice(EDGE_SAMPLES, -EDGE_SAMPLES)
    expected = sine(440, 16_000)
    np.testing.assert_allclose(loaded.waveform[inside], expected[inside], atol=HQ_TOLERANCE)
    assert (loaded.sample_rate_original, loaded.n_channels) == (rate, n_channels)
    assert loaded.duration_s == 1.0


def test_the_specs_quality_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", sine(440, 44_100), 44_100)
    quick = load_waveform(path, FeatureSpec(resampler_quality="QQ")).waveform
    expected = soxr.resample(sine(440, 44_100), 44_100, 16_000, quality="QQ")
    np.testing.assert_array_equal(quick, expected)


def test_peak_and_level_are_those_of_a_sine(tmp_path: Path) -> None:
    right = -sine(440, 16_000, amplitude=0.25)
    path = write(tmp_path / "clip.wav", np.stack([sine(440, 16_000, amplitude=1), right], axis=1))
    loaded = load_waveform(path, SPEC)
    assert loaded.peak == pytest.approx(1.0, abs=1e-4)
    assert loaded.rms_dbfs == pytest.approx(20 * np.log10(0.375 / np.sqrt(2)), abs=1e-3)


def test_peak_may_be_negative_or_beyond_full_scale(tmp_path: Path) -> None:
    waveform = sine(440, 16_000, amplitude=0.1)
    waveform[100] = -3
    assert load_waveform(write(tmp_path / "clip.wav", waveform), SPEC).peak == 3


def test_ten_milliseconds_are_too_short(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", sine(440, 44_100, 0.01), 44_100)
    assert_rejected(path, "too_short", "at least 0.025 s are required, found 0.01 s")


def test_the_shortest_duration_can_be_set(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", sine(440, 16_000, 0.5))
    assert_rejected(path, "too_short", "at least 1 s are required", min_duration_s=1.0)
    assert load_waveform(path, SPEC, min_duration_s=0.5).duration_s == 0.5
    short = write(tmp_path / "short.wav", sine(440, 16_000, 0.01))
    assert len(load_waveform(short, SPEC, min_duration_s=0).waveform) == 160


@pytest.mark.parametrize("rate", RATES)
def test_what_is_long_enough_has_a_frame(tmp_path: Path, rate: int) -> None:
    kaldi = PRESETS["kaldi128"]
    n_samples = -(-rate * 25 // 1_000)
    path = write(tmp_path / "clip.wav", sine(440, rate)[:n_samples], rate)
    assert LogMel(kaldi)(load_waveform(path, kaldi).waveform).shape == (1, 128)
    write(path, sine(440, rate)[: n_samples - 1], rate)
    assert_rejected(path, "too_short", "required")


def test_silence_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", np.zeros(16_000, np.float32), n_channels=2)
    assert_rejected(path, "silent", "every sample is zero")


def test_channels_that_cancel_out_are_silent(tmp_path: Path) -> None:
    left = sine(440, 44_100)
    path = write(tmp_path / "clip.wav", np.stack([left, -left], axis=1), 44_100)
    assert_rejected(path, "silent", "channels cancel out when mixed")


def test_the_faintest_sound_is_not_silent(tmp_path: Path) -> None:
    waveform = np.zeros(16_000, np.float32)
    waveform[8_000] = 1e-30
    loaded = load_waveform(write(tmp_path / "clip.wav", waveform), SPEC)
    assert np.isfinite(loaded.rms_dbfs)
    assert np.isfinite(LogMel(SPEC)(loaded.waveform)).all()


def test_what_cannot_be_decoded_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    assert_rejected(path, "missing", "found none")
    path.write_text("not audio")
    assert_rejected(path, "undecodable", "not recognised")


def test_the_recordings_that_ship_all_load(recordings: Path) -> None:
    paths = sorted(recordings.glob("*/*/*.flac"))
    assert len(paths) > 50
    for path in paths:
        loaded = load_waveform(path, SPEC)
        assert loaded.duration_s == pytest.approx(len(loaded.waveform) / 16_000, abs=1e-4)
        assert -80 < loaded.rms_dbfs < 0
