"""A segment is a slice of the whole, windows follow one another, and limits hold."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf
import soxr
from audio_files import write_pyav, write_soundfile

from melstream.pipeline import decode as module
from melstream.pipeline.audio_reader import AudioReader
from melstream.pipeline.decode import Decoded, decode, decode_windows
from melstream.pipeline.pyav_reader import PyavReader
from melstream.shards.errors import SampleError

Samples = npt.NDArray[np.float32]

RATE = 44_100
N_S = 4.1
EXACT = {
    **{("WAV", codec): 0.0 for codec in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "IMA_ADPCM")},
    **{(kind, "PCM_16"): 0.0 for kind in ("FLAC", "AIFF", "AU", "CAF", "W64")},
    ("FLAC", "PCM_24"): 0.0,
    ("mp4", "alac"): 0.0,
    ("mov", "pcm_s16le"): 0.0,
    ("matroska", "flac"): 0.0,
    ("g722", "g722"): 0.0,
}
LOSSY = {  # largest difference between a segment and the slice
    ("OGG", "VORBIS"): 1e-6,  # of another decoder
    ("OGG", "OPUS"): 1e-3,
    ("webm", "libopus"): 1e-3,
    ("MP3", "MPEG_LAYER_III"): 0.0,  # decoded from the beginning
    ("adts", "aac"): 0.0,
    ("mpegts", "aac"): 0.0,
    ("mp4", "aac"): 0.0,  # without noise substitution
    ("matroska", "aac"): 0.0,
}
KINDS = EXACT | LOSSY
SEGMENTS = [(0.0, 1.0), (0.01, 0.02), (0.6, 0.5), (2.1, 0.9), (3.0, 0.3), (3.5, 0.2), (3.6, 9.0)]
NOISE_SHARE = 0.1  # of the RMS: what AAC draws anew


@pytest.fixture(scope="module")
def clip(recordings: Path) -> Samples:
    """Recordings that ship, one after the other, in stereo."""
    paths = sorted((recordings / "train").glob("*/*.flac"))
    parts = [sf.read(path, dtype="float32", always_2d=True)[0][:, :1] for path in paths[::3]]
    mono = np.concatenate(parts)[: int(N_S * RATE)]
    assert len(mono) == int(N_S * RATE)
    return np.concatenate([mono, -0.5 * mono], axis=1)


@pytest.fixture(scope="module")
def files(clip: Samples, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {
        (kind, codec): write(folder / f"{kind}-{codec}.{kind}", clip, kind, codec)
        for kind, codec in KINDS
    }


def write(path: Path, samples: Samples, kind: str, codec: str, **options: str) -> Path:
    rate = RATE
    if kind == "g722":
        rate, samples = 16_000, soxr.resample(samples[:, :1], RATE, 16_000)
    if "opus" in codec.lower():
        rate = 48_000
    if kind.isupper():
        return write_soundfile(path, samples, rate, kind, codec)
    options = {"aac_pns": "0"} | options if codec == "aac" else options
    return write_pyav(path, samples, rate, kind, codec, **options)


def slice_of(whole: Decoded, start_s: float, duration_s: float) -> Samples:
    rate = whole.sample_rate
    return whole.samples[round(start_s * rate) : round((start_s + duration_s) * rate)]


def collect(windows: Iterator[Decoded]) -> tuple[list[Decoded], SampleError | None]:
    """Return the windows, and what ended them."""
    found: list[Decoded] = []
    try:
        found.extend(windows)
    except SampleError as error:
        return found, error
    return found, None


def assert_rejected(path: Path, reason: str, message: str, **segment: float) -> None:
    with pytest.raises(SampleError, match=message) as error:
        decode(path, **segment)
    assert error.value.reason == reason
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_segment_is_a_slice_of_the_whole(
    files: dict[tuple[str, str], Path], kind: tuple[str, str]
) -> None:
    whole = decode(files[kind])
    for start_s, duration_s in SEGMENTS:
        segment = decode(files[kind], start_s=start_s, duration_s=duration_s)
        expected = slice_of(whole, start_s, duration_s)
        assert segment.samples.shape == expected.shape
        assert segment.samples.flags.c_contiguous
        np.testing.assert_allclose(segment.samples, expected, rtol=0, atol=KINDS[kind])
        assert segment.start_s == pytest.approx(start_s, abs=0.5 / whole.sample_rate)
        assert segment.duration_s == len(expected) / whole.sample_rate


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_aac_with_noise_substitution_stands_at_its_place(
    tmp_path: Path, clip: Samples, kind: str
) -> None:
    path = write(tmp_path / "clip", clip, kind, "aac", aac_pns="1")
    expected = slice_of(decode(path), 2.0, 1.0)
    found = decode(path, start_s=2.0, duration_s=1.0).samples
    assert np.std(found - expected) < NOISE_SHARE * np.std(expected)


def test_every_place_in_the_last_ogg_page_is_found(
    files: dict[tuple[str, str], Path], clip: Samples
) -> None:
    """libsndfile seeks to a wrong place there."""
    path = files["OGG", "VORBIS"]
    whole = decode(path)
    for start in range(len(clip) - 22_000, len(clip) - 900, 1_997):
        segment = decode(path, start_s=start / RATE, duration_s=0.02)
        expected = whole.samples[start : start + 882]
        np.testing.assert_allclose(segment.samples, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [("mp4", "aac"), ("webm", "libopus"), ("matroska", "aac")])
def test_a_container_with_an_index_is_not_read_from_its_beginning(
    files: dict[tuple[str, str], Path], kind: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_frames = 0
    next_frame = PyavReader._next_frame

    def counted(reader: PyavReader) -> None:
        nonlocal n_frames
        n_frames += 1
        next_frame(reader)

    monkeypatch.setattr(PyavReader, "_next_frame", counted)
    decode(files[kind], start_s=3.5, duration_s=0.1)
    assert 0 < n_frames < 60  # of 20 ms: the segment, the time before it, and to a key frame


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_windows_are_the_whole(
    files: dict[tuple[str, str], Path], kind: tuple[str, str]
) -> None:
    whole, window_s = decode(files[kind]), 1.00003
    rate = whole.sample_rate
    windows = list(decode_windows(files[kind], window_s))
    np.testing.assert_array_equal(np.concatenate([w.samples for w in windows]), whole.samples)
    for k, window in enumerate(windows):
        assert window.start_s == round(k * window_s * rate) / rate
        assert window.path == files[kind]
        if kind in EXACT:
            segment = decode(files[kind], start_s=k * window_s, duration_s=window_s)
            np.testing.assert_array_equal(window.samples, segment.samples)


def test_windows_of_a_part(files: dict[tuple[str, str], Path]) -> None:
    path = files["FLAC", "PCM_16"]
    windows = list(decode_windows(path, 0.5, start_s=2.0, duration_s=1.25))
    assert [window.start_s for window in windows] == [2.0, 2.5, 3.0]
    assert [window.duration_s for window in windows] == [0.5, 0.5, 0.25]
    joined = np.concatenate([window.samples for window in windows])
    np.testing.assert_array_equal(joined, decode(path, start_s=2, duration_s=1.25).samples)
    assert len(list(decode_windows(path, 0.5, duration_s=1.0))) == 2
    assert len(list(decode_windows(path, 9.0))) == 1


def test_a_recording_that_ends_with_a_window_has_no_empty_one(
    tmp_path: Path, clip: Samples
) -> None:
    path = write(tmp_path / "clip", clip[: 2 * RATE], "FLAC", "PCM_16")
    assert [window.duration_s for window in decode_windows(path, 1.0)] == [1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_segment_behind_the_end_is_past_end(
    files: dict[tuple[str, str], Path], kind: tuple[str, str]
) -> None:
    whole = decode(files[kind])
    for start_s in (whole.duration_s, whole.duration_s + 0.001, 9.0, 1e15):
        message = f"a segment from .* on is required, the recording ends at {whole.duration_s:g} s"
        assert_rejected(files[kind], "past_end", message, start_s=start_s, duration_s=1.0)
        assert_rejected(files[kind], "past_end", message, start_s=start_s)
    with pytest.raises(SampleError, match="the recording ends at"):
        next(decode_windows(files[kind], 1.0, start_s=9.0))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_what_lies_before_a_cut_is_good(
    tmp_path: Path, files: dict[tuple[str, str], Path], kind: tuple[str, str]
) -> None:
    whole = decode(files[kind])
    path = tmp_path / files[kind].name
    content = files[kind].read_bytes()
    path.write_bytes(content[: int(0.7 * len(content))])
    for start_s, duration_s in [(0.0, 1.0), (0.9, 1.0), (1.4, 0.5)]:
        segment = decode(path, start_s=start_s, duration_s=duration_s)
        expected = slice_of(whole, start_s, duration_s)
        np.testing.assert_allclose(segment.samples, expected, rtol=0, atol=KINDS[kind])
    windows, error = collect(decode_windows(path, 0.5))
    assert len(windows) >= 3
    if kind[0] in ("adts", "mpegts", "g722"):  # they say nothing of their length
        assert error is None
        return
    assert {window.duration_s for window in windows} == {0.5}
    assert error is not None
    assert error.reason == "truncated"
    assert_rejected(path, "truncated", "fetch it again", start_s=2.0, duration_s=2.0)
    assert_rejected(path, "truncated", "fetch it again", start_s=3.6, duration_s=0.1)
    assert_rejected(path, "truncated", "fetch it again", start_s=1.0)


def test_good_windows_come_before_the_broken_one(tmp_path: Path, clip: Samples) -> None:
    path = write(tmp_path / "clip.flac", clip, "FLAC", "PCM_16")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20] = bytes(20)
    path.write_bytes(content)
    windows, error = collect(decode_windows(path, 0.5))
    assert len(windows) >= 3
    assert {window.duration_s for window in windows} == {0.5}
    assert error is not None
    assert error.reason == "truncated"
    assert "broken data on the way" in str(error)


def test_g722_is_known_by_its_suffix_only(tmp_path: Path, clip: Samples) -> None:
    path = write(tmp_path / "call.g722", clip, "g722", "g722")
    decoded = decode(path)
    assert (decoded.sample_rate, decoded.decoder, decoded.format) == (16_000, "pyav", "G722")
    found = soxr.resample(clip[:, 0], RATE, 16_000)
    n_samples = min(len(found), len(decoded.samples))
    delay = 22  # of G.722's filters, in samples
    pairs = np.stack([found[: n_samples - delay], decoded.samples[delay:n_samples, 0]])
    assert np.corrcoef(pairs)[0, 1] > 0.95
    other = path.rename(tmp_path / "call.bin")
    with contextlib.suppress(SampleError):
        assert decode(other).format != "G722"
    flac = write(tmp_path / "flac.g722", clip, "FLAC", "PCM_16")
    assert decode(flac).format == "FLAC"


@pytest.mark.parametrize(
    "options",
    [
        *({"start_s": -1}, {"start_s": np.nan}, {"start_s": np.inf}, {"duration_s": 0}),
        *({"duration_s": -1}, {"duration_s": np.nan}, {"duration_s": 1e-9}),
    ],
)
def test_times_that_cannot_be_are_refused(
    files: dict[tuple[str, str], Path], options: dict[str, float]
) -> None:
    path = files["WAV", "PCM_16"]
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` must"):
        decode(path, **options)
    with pytest.raises(ValueError, match=f"`{name}` must"):
        next(decode_windows(path, 1.0, **options))


@pytest.mark.parametrize("window_s", [0, -1, np.nan, 1e-9])
def test_a_window_must_hold_a_sample(files: dict[tuple[str, str], Path], window_s: float) -> None:
    with pytest.raises(ValueError, match="`window_s` must"):
        next(decode_windows(files["WAV", "PCM_16"], window_s))


@pytest.mark.parametrize("kind", [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
@pytest.mark.parametrize("limit", [("MAX_DURATION_S", 4.0), ("MAX_VALUES", 8 * RATE)])
def test_what_is_too_long_is_cut_into_windows(
    files: dict[tuple[str, str], Path],
    kind: tuple[str, str],
    limit: tuple[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, *limit)
    monkeypatch.setattr(module, "BLOCK_VALUES", 100_000)
    message = "at most 4 s can be decoded at once, found more; cut it into windows"
    assert_rejected(files[kind], "too_long", message)
    assert_rejected(files[kind], "too_long", message, duration_s=4.05)
    assert decode(files[kind], duration_s=4.0).duration_s == 4.0
    assert decode(files[kind], start_s=1.0).start_s == 1.0
    assert len(list(decode_windows(files[kind], 1.0))) == 5


@pytest.mark.parametrize("n_channels", [65, 1_000])
def test_more_channels_than_can_be_are_refused(tmp_path: Path, n_channels: int) -> None:
    path = tmp_path / "clip.wav"
    sf.write(path, np.ones((9, n_channels), np.float32), RATE)
    assert_rejected(path, "undecodable", f"it has {n_channels:,} channels, at most 64 allowed")


def test_blocks_are_joined_in_order(
    files: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decode(files["WAV", "FLOAT"]).samples
    monkeypatch.setattr(module, "BLOCK_VALUES", 10_001)
    np.testing.assert_array_equal(decode(files["WAV", "FLOAT"]).samples, whole)


def test_a_reader_that_is_left_half_way_is_closed(files: dict[tuple[str, str], Path]) -> None:
    n_open = len(os.listdir("/proc/self/fd"))
    for path in files.values():
        windows = decode_windows(path, 0.5)
        next(windows)
        windows.close()
        with pytest.raises(SampleError):
            decode(path, start_s=99.0)
    assert len(os.listdir("/proc/self/fd")) == n_open


def test_nothing_is_read_of_a_file_that_is_refused(
    files: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(reader: AudioReader, out: Samples) -> int:
        raise AssertionError("read")

    monkeypatch.setattr(module.SoundfileReader, "fill", never)
    monkeypatch.setattr(module, "MAX_CHANNELS", 1)
    assert_rejected(files["WAV", "PCM_16"], "undecodable", "channels")


def test_whole_numbers_in_planes_are_scaled_once_per_window(tmp_path: Path) -> None:
    """Frames that straddle two windows."""
    ramp = np.linspace(-0.9, 0.9, 3 * RATE, dtype=np.float32)[:, None]
    path = write_pyav(tmp_path / "clip", np.tile(ramp, (1, 2)), RATE, "mp4", "alac")
    joined = np.concatenate([w.samples for w in decode_windows(path, 0.0333)])
    np.testing.assert_allclose(joined, np.tile(ramp, (1, 2)), atol=2.0**-15)
