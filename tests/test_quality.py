"""The figures of a clip against naive versions, and what they say of real recordings."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf
import soxr
import xxhash
from audio_files import write_soundfile

from melstream.pipeline import quality
from melstream.pipeline.decode import decode
from melstream.pipeline.logmel import LogMel
from melstream.pipeline.quality import (
    bandwidth_hz,
    hash_samples,
    mean_squares,
    measure_levels,
    silence_share,
)
from melstream.pipeline.waveform import load_waveform, prepare
from melstream.shards.errors import SampleError
from melstream.shards.spec import PRESETS

Array = npt.NDArray[np.float32]

SPEC = PRESETS["conformer64"]
FULL_SCALE = np.float32(32767 / 32768)


def noise(n_samples: int, n_channels: int = 1, scale: float = 0.4) -> Array:
    shape = (n_samples, n_channels)
    return np.random.default_rng(0).normal(0.01, scale, shape).astype(np.float32)


@pytest.mark.parametrize("n_channels", [1, 2, 6])
@pytest.mark.parametrize("kernel", [quality._scan, quality._scan.py_func], ids=["njit", "python"])
def test_levels_are_those_of_a_naive_version(
    n_channels: int, kernel: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "_scan", kernel)
    samples = noise(1_001, n_channels)
    samples[7, 0], samples[8, -1] = FULL_SCALE, -FULL_SCALE
    samples[9] = np.nextafter(FULL_SCALE, np.float32(0))
    levels = measure_levels(samples)
    assert levels.peak == np.abs(samples).max()
    assert levels.clipped_share == np.mean(np.abs(samples) >= FULL_SCALE)
    assert 0 < levels.clipped_share < 0.1
    assert levels.dc_offset == pytest.approx(samples.astype(np.float64).mean(), rel=1e-9)
    assert levels.dc_offset == pytest.approx(samples.mean(axis=1).mean(), rel=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_peak_that_is_not_finite_is_seen(bad: float) -> None:
    samples = noise(100, 2)
    samples[50, 1] = bad
    assert not np.isfinite(measure_levels(samples).peak)


@pytest.mark.parametrize(
    "samples", [np.zeros((0, 2), np.float32), np.zeros((9, 2)), np.zeros((2, 9), np.float32).T]
)
def test_levels_refuse_other_arrays(samples: Array) -> None:
    with pytest.raises(ValueError, match="must be float32, C-contiguous and not empty, found"):
        measure_levels(samples)


@pytest.mark.parametrize("n_samples", [0, 1, 159, 160, 161, 1_000])
def test_mean_squares_are_those_of_a_naive_version(n_samples: int) -> None:
    waveform = noise(n_samples)[:, 0]
    blocks = [waveform[i : i + 160].astype(np.float64) for i in range(0, n_samples, 160)]
    expected = [np.mean(block**2) for block in blocks]
    np.testing.assert_allclose(mean_squares(waveform, 160), expected, rtol=1e-12)
    python = np.empty(len(expected))
    quality._fill_mean_squares.py_func(waveform, 160, python)
    np.testing.assert_allclose(python, expected, rtol=1e-12)


def test_a_block_has_a_sample() -> None:
    with pytest.raises(ValueError, match="`block_samples` must be at least 1, found 0"):
        mean_squares(np.zeros(9, np.float32), 0)


def test_the_silent_share_of_a_clip(tmp_path: Path) -> None:
    waveform = np.zeros((16_000, 1), np.float32)
    waveform[:4_000] = 0.5
    waveform[4_000:8_000] = 10 ** (-61 / 20)
    waveform[8_000:12_000] = 10 ** (-59 / 20)
    path = write_soundfile(tmp_path / "clip.wav", waveform, 16_000, "WAV", "FLOAT")
    assert load_waveform(path, SPEC).silence_share == 0.5
    assert silence_share(mean_squares(waveform[:, 0], 160)) == 0.5


def test_the_hash_is_equal_where_the_samples_are(tmp_path: Path, recordings: Path) -> None:
    source = recordings / "train" / "tabla" / "tabla_tun3.flac"
    samples, rate = sf.read(source, dtype="float32", always_2d=True)
    kinds = [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")]
    paths = [
        write_soundfile(tmp_path / f"{kind}-{subtype}", samples, rate, kind, subtype)
        for kind, subtype in [*kinds, ("AIFF", "PCM_16"), ("WAV", "FLOAT")]
    ]
    hashes = {load_waveform(path, SPEC).audio_hash for path in [source, *paths]}
    assert len(hashes) == 1
    assert 0 <= hashes.pop() < 2**64


def test_the_hash_tells_samples_channels_and_rate_apart() -> None:
    samples = noise(4_000, 2)
    changed = samples.copy()
    changed[3_999, 1] = np.nextafter(changed[3_999, 1], np.float32(2))
    several = [
        hash_samples(samples, 44_100),
        hash_samples(samples, 48_000),
        hash_samples(samples.reshape(-1, 1), 44_100),
        hash_samples(changed, 44_100),
        hash_samples(samples[:-1], 44_100),
    ]
    assert len(set(several)) == len(several)
    assert hash_samples(np.asfortranarray(samples), 44_100) == several[0]
    head = np.array([2, 44_100], "<u8").tobytes()
    assert several[0] == xxhash.xxh3_64_intdigest(head + samples.tobytes())


def test_the_figures_of_a_file(tmp_path: Path) -> None:
    samples = noise(44_100, 2)
    path = write_soundfile(tmp_path / "clip.wav", samples, 44_100, "WAV", "FLOAT")
    loaded = load_waveform(path, SPEC)
    assert loaded.peak == np.abs(samples).max()
    assert loaded.clipped_share == np.mean(np.abs(samples) >= FULL_SCALE)
    assert loaded.dc_offset == pytest.approx(samples.mean(), abs=1e-6)
    assert loaded.silence_share == 0
    assert loaded.audio_hash == hash_samples(samples, 44_100)
    again = prepare(decode(path), SPEC)
    np.testing.assert_array_equal(again.waveform, loaded.waveform)
    assert again.audio_hash == loaded.audio_hash


def test_a_segment_is_loaded_as_a_file_of_its_own(tmp_path: Path) -> None:
    samples = noise(44_100)
    path = write_soundfile(tmp_path / "clip.wav", samples, 44_100, "WAV", "FLOAT")
    part = write_soundfile(tmp_path / "part.wav", samples[4_410:22_050], 44_100, "WAV", "FLOAT")
    loaded, expected = (
        load_waveform(path, SPEC, start_s=0.1, duration_s=0.4),
        load_waveform(part, SPEC),
    )
    np.testing.assert_array_equal(loaded.waveform, expected.waveform)
    assert (loaded.audio_hash, loaded.duration_s) == (expected.audio_hash, 0.4)
    with pytest.raises(SampleError, match=r"at least 0\.5 s are required, found 0\.4 s"):
        load_waveform(path, SPEC, start_s=0.1, duration_s=0.4, min_duration_s=0.5)


@pytest.mark.parametrize("preset", PRESETS)
def test_noise_of_all_frequencies_reaches_fmax(preset: str) -> None:
    spec = PRESETS[preset]
    waveform = noise(16_000, scale=0.1)[:, 0]
    assert bandwidth_hz(LogMel(spec)(waveform), spec) == pytest.approx(spec.fmax)
    half = LogMel(spec)(waveform).astype(np.float16)
    assert bandwidth_hz(half, spec) == pytest.approx(spec.fmax)


@pytest.mark.parametrize("preset", PRESETS)
def test_recordings_that_were_once_at_8_khz_are_seen(recordings: Path, preset: str) -> None:
    spec = PRESETS[preset]
    logmel = LogMel(spec)
    found = []
    for path in itertools.islice(sorted(recordings.glob("train/*/*.flac")), 0, None, 2):
        samples, rate = sf.read(path, dtype="float32", always_2d=True)
        waveform = samples.mean(axis=1) / 2
        telephone = soxr.resample(soxr.resample(waveform, rate, 8_000), 8_000, rate)
        telephone = np.round(telephone * 32768).astype(np.float32) / 32768  # a 16-bit file
        before, after = (
            bandwidth_hz(logmel(soxr.resample(x, rate, 16_000)), spec)
            for x in (waveform, telephone)
        )
        assert after <= before
        found.append(after)
    assert len(found) > 20
    assert np.mean(np.array(found) < 4_400) > 0.9
    assert 3_600 < np.median(found) < 4_300


def test_nothing_has_no_bandwidth() -> None:
    logmel = LogMel(SPEC)(np.zeros(16_000, np.float32))
    assert bandwidth_hz(logmel, SPEC) == 0
    assert bandwidth_hz(logmel[:1], SPEC) == 0


def test_a_clip_that_is_cut_off_counts_without_its_ends() -> None:
    times = np.arange(16_000) / 16_000
    tone = (0.5 * np.cos(2 * np.pi * 1_000 * times)).astype(np.float32)
    assert bandwidth_hz(LogMel(SPEC)(tone), SPEC) < 1_400


@pytest.mark.parametrize("shape", [(0, 64), (9, 63), (64,)])
def test_bandwidth_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`logmel` must have shape \(n_frames, 64\), found"):
        bandwidth_hz(np.zeros(shape, np.float32), SPEC)
