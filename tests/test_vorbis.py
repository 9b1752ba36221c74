"""Ogg Vorbis by FFmpeg has the samples that libsndfile gives, as many of them, at their place."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from audio_files import Samples, write_soundfile

from melstream.pipeline import vorbis_reader
from melstream.pipeline.decode import decode, decode_windows
from melstream.pipeline.pyav_reader import PyavReader
from melstream.shards.errors import SampleError

ATOL = 1e-6  # two decoders in float32


@pytest.fixture(autouse=True)
def _short_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vorbis_reader, "MIN_BYTES", 0)


@pytest.fixture(scope="module")
def clip(recordings: Path) -> Samples:
    paths = sorted((recordings / "train").glob("*/*.flac"))
    parts = [sf.read(path, dtype="float32", always_2d=True)[0][:, 0] for path in paths[::9]]
    mono = np.concatenate(parts)
    return np.stack([mono, -0.5 * mono[::-1]], axis=1)


@pytest.mark.parametrize("rate", [8_000, 44_100])
@pytest.mark.parametrize("n_channels", [1, 2])
@pytest.mark.parametrize("n_samples", [30_001, 50_000])
def test_the_samples_are_those_of_libsndfile(
    tmp_path: Path, clip: Samples, rate: int, n_channels: int, n_samples: int
) -> None:
    samples = np.ascontiguousarray(clip[:n_samples, :n_channels])
    path = write_soundfile(tmp_path / "clip", samples, rate, "OGG", "VORBIS")
    expected, _ = sf.read(path, dtype="float32", always_2d=True)
    decoded = decode(path)
    assert (decoded.decoder, decoded.format) == ("pyav", "OGG")
    np.testing.assert_allclose(decoded.samples, expected, rtol=0, atol=ATOL)
    windows = [window.samples for window in decode_windows(path, 0.1)]
    np.testing.assert_array_equal(np.concatenate(windows), decoded.samples)


def test_more_channels_and_segments_are_left_to_libsndfile(tmp_path: Path, clip: Samples) -> None:
    path = write_soundfile(tmp_path / "clip", clip[:44_100], 44_100, "OGG", "VORBIS")
    assert decode(path, start_s=0.5).decoder == "soundfile"
    samples = np.tile(clip[:9_000], (1, 3))
    path = write_soundfile(tmp_path / "six", samples, 44_100, "OGG", "VORBIS")
    assert decode(path).decoder == "soundfile"


def test_what_ffmpeg_refuses_is_left_to_libsndfile(
    tmp_path: Path, clip: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(reader: PyavReader) -> None:
        raise SampleError("no", reason="empty")

    path = write_soundfile(tmp_path / "clip", clip[:9_000], 44_100, "OGG", "VORBIS")
    monkeypatch.setattr(PyavReader, "_open", refuse)
    decoded = decode(path)
    assert (decoded.decoder, len(decoded.samples)) == ("soundfile", 9_000)


def test_a_file_cut_short_is_truncated(tmp_path: Path, clip: Samples) -> None:
    path = write_soundfile(tmp_path / "clip", clip[:60_000], 44_100, "OGG", "VORBIS")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SampleError, match="fetch it again"):
        decode(path)
    windows = decode_windows(path, 0.1)
    assert next(windows).decoder == "pyav"
    with pytest.raises(SampleError, match="fetch it again"):
        list(windows)
