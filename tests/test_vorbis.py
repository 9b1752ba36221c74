"""Ogg Vorbis by FFmpeg has the samples that libsndfile gives, as many of them, at their place.

Recordings chained in an Ogg file, Vorbis or Opus, are all read.
"""

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


def write_chain(folder: Path, clip: Samples, subtype: str, n_samples: list[int]) -> list[bytes]:
    """Encode the clip's next samples again and again: the recordings of a chain."""
    ends = np.cumsum(n_samples)
    return [
        write_soundfile(folder / "part", part, 48_000, "OGG", subtype).read_bytes()
        for part in np.split(clip[: ends[-1]], ends[:-1])
    ]


@pytest.fixture(params=["VORBIS", "OPUS"])
def chain(request: pytest.FixtureRequest, tmp_path: Path, clip: Samples) -> list[bytes]:
    return write_chain(tmp_path, clip, request.param, [30_000, 48_000, 12_345])


def expected_samples(folder: Path, recordings: list[bytes]) -> Samples:
    """Decode each recording of a chain in a file of its own."""
    parts = []
    for recording in recordings:
        (folder / "alone").write_bytes(recording)
        parts.append(sf.read(folder / "alone", dtype="float32", always_2d=True)[0])
    return np.concatenate(parts)


def test_the_recordings_of_a_chain_follow_each_other(tmp_path: Path, chain: list[bytes]) -> None:
    path = tmp_path / "radio.ogg"
    path.write_bytes(b"".join(chain))
    expected = expected_samples(tmp_path, chain)
    assert len(expected) == 90_345
    decoded = decode(path)
    assert (decoded.decoder, decoded.format, decoded.sample_rate) == ("soundfile", "OGG", 48_000)
    np.testing.assert_array_equal(decoded.samples, expected)
    windows = [window.samples for window in decode_windows(path, 0.1)]
    np.testing.assert_array_equal(np.concatenate(windows), expected)


@pytest.mark.parametrize("start_s", [0.0, 0.5, 0.625, 1.0, 1.7, 1.85])
def test_a_segment_of_a_chain_is_found(tmp_path: Path, chain: list[bytes], start_s: float) -> None:
    path = tmp_path / "radio.ogg"
    path.write_bytes(b"".join(chain))
    first = round(start_s * 48_000)
    expected = expected_samples(tmp_path, chain)[first : first + 24_000]
    segment = decode(path, start_s=start_s, duration_s=0.5)
    np.testing.assert_allclose(segment.samples, expected, rtol=0, atol=ATOL)
    assert_rejected(path, "past_end", "the recording ends at 1.88", start_s=2.0)


def test_one_recording_may_stand_twice_in_a_chain(tmp_path: Path, chain: list[bytes]) -> None:
    path = tmp_path / "radio.ogg"
    path.write_bytes(chain[0] + chain[0])
    expected = expected_samples(tmp_path, [chain[0], chain[0]])
    np.testing.assert_array_equal(decode(path).samples, expected)


@pytest.mark.parametrize(("rate", "n_channels"), [(24_000, 2), (48_000, 1)])
def test_a_chain_that_changes_on_the_way_is_refused(
    tmp_path: Path, clip: Samples, chain: list[bytes], rate: int, n_channels: int
) -> None:
    samples = np.ascontiguousarray(clip[:24_000, :n_channels])
    path = write_soundfile(tmp_path / "radio.ogg", samples, rate, "OGG", "VORBIS")
    path.write_bytes(chain[0] + path.read_bytes())
    assert_rejected(path, "undecodable", r"number of channels change on the way \(chained Ogg\)")
    assert len(decode(path, duration_s=0.5).samples) == 24_000  # before the change


def test_what_is_no_audio_in_a_chain_is_refused(tmp_path: Path, chain: list[bytes]) -> None:
    path = tmp_path / "radio.ogg"
    codec = chain[1][28:35]  # what the first packet of a codec is known by
    unknown = chain[1].replace(codec, b"unknown", 1)
    path.write_bytes(chain[0] + unknown)
    why = f"chained Ogg, from byte {len(chain[0]):,} on: soundfile: "
    assert_rejected(path, "undecodable", why)
    path.write_bytes(unknown + chain[0])
    assert_rejected(path, "undecodable", "cannot decode: soundfile: ")


def test_a_chain_cut_short_or_damaged_is_truncated(tmp_path: Path, chain: list[bytes]) -> None:
    path = tmp_path / "radio.ogg"
    path.write_bytes(b"".join(chain)[:-100])
    assert_rejected(path, "truncated", r"declares \d+ bytes more")
    assert len(decode(path, duration_s=1.0).samples) == 48_000
    damaged = chain[0].rindex(b"OggS") - 500
    content = chain[0][:damaged] + bytes(200) + chain[0][damaged + 200 :]
    path.write_bytes(content + chain[1])
    assert_rejected(path, "truncated", r"0.625 s declared, 0.\d+ s decoded; fetch it again")


def assert_rejected(path: Path, reason: str, message: str, *, start_s: float = 0.0) -> None:
    with pytest.raises(SampleError, match=message) as error:
        decode(path, start_s=start_s)
    assert error.value.reason == reason
