"""Every kind of file decodes to its samples, and every broken one says what is wrong."""

import contextlib
import os
import wave
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf
from audio_files import shift_pyav, write_pyav, write_soundfile

from melstream.pipeline.audio_reader import LOSSY_TOLERANCE_S
from melstream.pipeline.decode import decode, decode_windows
from melstream.pipeline.pyav_reader import PyavReader
from melstream.shards.errors import SampleError

Samples = npt.NDArray[np.float32]

RATE = 44_100
MIN_CORRELATION = 0.95  # of a lossy round trip; one that is out by a frame has about 0

LOSSLESS = {  # kind, subtype: largest rounding error of a 16-bit clip whose right channel is halved
    ("WAV", "PCM_U8"): 2.0**-7,
    ("WAV", "PCM_16"): 2.0**-16,
    ("WAV", "PCM_24"): 2.0**-24,
    ("WAV", "PCM_32"): 2.0**-24,  # float32 has 24 bits
    ("WAV", "FLOAT"): 0,
    ("WAV", "DOUBLE"): 0,
    ("WAVEX", "PCM_16"): 2.0**-16,
    ("RF64", "PCM_16"): 2.0**-16,
    ("W64", "PCM_16"): 2.0**-16,
    ("FLAC", "PCM_16"): 2.0**-16,
    ("FLAC", "PCM_24"): 2.0**-24,
    ("AIFF", "PCM_16"): 2.0**-16,
    ("AIFF", "FLOAT"): 0,
    ("AU", "PCM_16"): 2.0**-16,
    ("CAF", "PCM_16"): 2.0**-16,
}
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
CONTAINERS = [("mp4", "aac"), ("webm", "libopus"), ("matroska", "aac"), ("mpegts", "aac")]
DECLARED = [  # those whose loss can be seen
    *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("RF64", "PCM_16"), ("AIFF", "PCM_16")),
    *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
    *(("mp4", "aac"), ("mp4", "alac"), ("webm", "libopus"), ("matroska", "aac")),
]


@pytest.fixture(scope="module")
def clip(recordings: Path) -> Samples:
    """1.2 s of a recording that ships, in stereo: the second channel is the first, quieter."""
    path = recordings / "train" / "tabla" / "tabla_tun3.flac"
    samples, rate = sf.read(path, frames=int(1.2 * RATE), dtype="float32", always_2d=True)
    assert rate == RATE
    return np.stack([samples[:, 0], -0.5 * samples[:, 0]], axis=1)


def write(path: Path, samples: Samples, kind: str, codec: str, rate: int = RATE) -> Path:
    rate = 48_000 if "opus" in codec.lower() else rate
    writer = write_soundfile if kind.isupper() else write_pyav
    return writer(path, samples, rate, kind, codec)


def correlation(ours: Samples, theirs: Samples, delay: int = 0) -> float:
    ours = ours[delay:]
    n_samples = min(len(ours), len(theirs))
    a, b = ours[:n_samples, 0], theirs[:n_samples, 0]
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def assert_rejected(path: Path, reason: str, message: str = ".") -> None:
    with pytest.raises(SampleError, match=message) as error:
        decode(path)
    assert error.value.reason == reason
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("kind", "subtype"), LOSSLESS)
def test_a_lossless_file_gives_its_samples(
    tmp_path: Path, clip: Samples, kind: str, subtype: str
) -> None:
    decoded = decode(write(tmp_path / "clip.bin", clip, kind, subtype))
    assert decoded.samples.dtype == np.float32
    assert (decoded.decoder, decoded.sample_rate) == ("soundfile", RATE)
    assert decoded.format == kind
    np.testing.assert_allclose(decoded.samples, clip, atol=LOSSLESS[kind, subtype])


@pytest.mark.parametrize(("kind", "codec"), [*LOSSY, *CONTAINERS])
def test_a_lossy_file_gives_nearly_its_samples(
    tmp_path: Path, clip: Samples, kind: str, codec: str
) -> None:
    decoded = decode(write(tmp_path / "clip.bin", clip, kind, codec))
    assert decoded.decoder == ("soundfile" if kind == "OGG" else "pyav")
    assert decoded.samples.dtype == np.float32
    assert decoded.samples.shape[1] == 2
    assert abs(len(decoded.samples) - len(clip)) <= 2048  # AAC is padded to whole frames
    # A transport stream cannot say how long AAC's encoder takes to start.
    delay = 1024 if kind == "mpegts" else 0
    assert correlation(decoded.samples, clip, delay) > MIN_CORRELATION


@pytest.mark.parametrize("n_channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_any_rate_and_number_of_channels(
    tmp_path: Path, clip: Samples, rate: int, n_channels: int
) -> None:
    samples = np.tile(clip[:5_000], (1, 3))[:, :n_channels]
    for kind in ("WAV", "FLAC"):
        decoded = decode(write(tmp_path / "clip", samples, kind, "PCM_16", rate))
        assert decoded.sample_rate == rate
        np.testing.assert_allclose(decoded.samples, samples, atol=2.0**-16)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("n_channels", [1, 2])
def test_pyav_scales_each_sample_format_as_soundfile_does(
    tmp_path: Path, clip: Samples, subtype: str, n_channels: int
) -> None:
    path = write(tmp_path / "clip.wav", clip[:, :n_channels], "WAV", subtype)
    found = np.empty_like(clip[:, :n_channels])
    with contextlib.closing(PyavReader(path)) as reader:
        assert reader.fill(found) == len(clip)
    np.testing.assert_array_equal(found, decode(path).samples)


def test_pyav_turns_planes_of_integers_into_columns(tmp_path: Path, clip: Samples) -> None:
    decoded = decode(write(tmp_path / "clip.m4a", clip, "mp4", "alac"))
    assert (decoded.decoder, decoded.format) == ("pyav", "MOV")
    np.testing.assert_allclose(decoded.samples, clip, atol=2.0**-16)


@pytest.mark.parametrize("name", ["clip.wav", "clip.raw", "clip.vox", "clip.mp3", "-clip", "a:b"])
def test_the_name_plays_no_part(tmp_path: Path, clip: Samples, name: str) -> None:
    decoded = decode(write(tmp_path / name, clip, "FLAC", "PCM_16"))
    assert (decoded.format, decoded.decoder) == ("FLAC", "soundfile")
    decoded = decode(write(tmp_path / name, clip, "webm", "libopus"))
    assert (decoded.format, decoded.decoder) == ("MATROSKA", "pyav")


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    assert_rejected(tmp_path / "none.wav", "missing", "found none")
    assert_rejected(tmp_path, "missing", "found none")


def test_no_audio_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.touch()
    assert_rejected(path, "empty", "found 0 bytes")
    write(path, np.zeros((0, 2), np.float32), "WAV", "PCM_16")
    assert_rejected(path, "empty", "found 0 samples")


def test_a_film_without_sound_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert_rejected(path, "empty", "no audio stream")


@pytest.mark.parametrize("name", ["clip.wav", "clip.mp3", "clip.raw", "clip.vox", "clip.m4a"])
@pytest.mark.parametrize("content", [b"not audio at all\n" * 99, bytes(4_000), b"\xff\xfb" * 999])
def test_what_no_decoder_knows_is_undecodable(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert_rejected(path, "undecodable", "PyAV: Invalid")


def test_the_message_holds_both_decoders_reasons(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_text("not audio")
    assert_rejected(path, "undecodable", "soundfile: Format not recognised.*; PyAV: Invalid data")


def test_a_playlist_opens_no_other_file(tmp_path: Path, clip: Samples) -> None:
    write(tmp_path / "secret.flac", clip, "FLAC", "PCM_16")
    path = tmp_path / "clip.wav"
    path.write_text("ffconcat version 1.0\nfile secret.flac\n")
    assert_rejected(path, "undecodable")


@pytest.mark.parametrize(("kind", "codec"), DECLARED)
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_a_file_cut_short_is_truncated(
    tmp_path: Path, clip: Samples, kind: str, codec: str, share: float
) -> None:
    path = write(tmp_path / "clip.bin", clip, kind, codec)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert_rejected(path, "truncated", "fetch it again")


@pytest.mark.parametrize("n_cut", [1, 20, 700, 2_000, 9_000])
def test_an_mp4_cut_at_its_index_is_truncated(tmp_path: Path, clip: Samples, n_cut: int) -> None:
    path = write(tmp_path / "clip.m4a", clip, "ipod", "aac")  # no faststart: the index comes last
    path.write_bytes(path.read_bytes()[:-n_cut])
    assert_rejected(path, "truncated", "bytes more than it has; fetch it again")


@pytest.mark.parametrize(("kind", "codec"), [("matroska", "libopus"), ("avi", "aac")])
@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_a_film_cut_short_is_truncated(
    tmp_path: Path, clip: Samples, kind: str, codec: str, share: float
) -> None:
    path = write_pyav(tmp_path / "film", clip, 48_000, kind, codec, is_film=True)
    whole = path.read_bytes()
    assert len(decode(path).samples) >= len(clip)
    path.write_bytes(whole[: int(len(whole) * share)])
    assert_rejected(path, "truncated", "bytes more than it has; fetch it again")


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_an_mp4_in_fragments_cut_short_is_truncated(
    tmp_path: Path, clip: Samples, share: float
) -> None:
    movflags = "frag_keyframe+empty_moov"
    path = write_pyav(tmp_path / "a", clip, RATE, "mp4", "aac", movflags=movflags, is_film=True)
    whole = path.read_bytes()
    assert len(decode(path).samples) >= len(clip)
    path.write_bytes(whole[: int(len(whole) * share)])
    assert_rejected(path, "truncated", "bytes more than it has; fetch it again")


def test_a_webm_of_open_size_is_held_to_its_duration(tmp_path: Path, clip: Samples) -> None:
    early = write(tmp_path / "early", clip, "webm", "libopus")
    path = shift_pyav(early, tmp_path / "late", "webm", start_s=2.0)
    content = path.read_bytes()
    at = content.index(b"\x18\x53\x80\x67") + 4  # the size of the segment
    content = content[:at] + b"\x01" + b"\xff" * 7 + content[at + 8 :]
    path.write_bytes(content)
    assert len(decode(path).samples) == len(clip)
    path.write_bytes(content[: len(content) // 2])
    assert_rejected(path, "truncated", r"1\.\d+ s declared, 0\.\d+ s decoded; fetch it again")


@pytest.mark.parametrize("start_s", [0.4, 2.0])
def test_a_webm_that_starts_late_is_whole(tmp_path: Path, clip: Samples, start_s: float) -> None:
    early = write(tmp_path / "early", clip, "webm", "libopus")
    late = shift_pyav(early, tmp_path / "late", "webm", start_s)
    np.testing.assert_array_equal(decode(late).samples, decode(early).samples)


@pytest.mark.parametrize(
    "tail", [b"\0", b"TAG" + b"t" * 125, b"APETAGEX" + bytes(24), b"junk" * 999], ids=len
)
def test_what_follows_a_flac_plays_no_part(tmp_path: Path, clip: Samples, tail: bytes) -> None:
    path = write(tmp_path / "clip.flac", clip, "FLAC", "PCM_16")
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    np.testing.assert_allclose(decode(path).samples, clip, atol=2.0**-16)
    windows = [window.samples for window in decode_windows(path, 0.5)]
    np.testing.assert_allclose(np.concatenate(windows), clip, atol=2.0**-16)
    last = decode(path, start_s=1.0, duration_s=9.0)
    np.testing.assert_allclose(last.samples, clip[RATE:], atol=2.0**-16)
    for n_cut in (1, 20, 5_000):
        path.write_bytes(whole[:-n_cut] + tail)
        assert_rejected(path, "truncated", "fetch it again")


def test_broken_data_in_a_flac_are_seen(tmp_path: Path, clip: Samples) -> None:
    path = write(tmp_path / "clip.flac", clip, "FLAC", "PCM_16")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20] = bytes(20)
    path.write_bytes(content)
    assert_rejected(path, "truncated", "1.200 s declared, found broken data")


def test_a_lost_packet_is_tolerated_and_many_are_not(tmp_path: Path, clip: Samples) -> None:
    path = write(tmp_path / "clip.aac", clip, "adts", "aac")
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(8) + whole[middle + 8 :])
    assert len(decode(path).samples) > len(clip) - LOSSY_TOLERANCE_S * RATE

    content = np.frombuffer(whole, np.uint8).copy()
    content[np.arange(1_000, len(content) - 9, 300)[:, None] + np.arange(9)] = 0
    path.write_bytes(content.tobytes())
    assert_rejected(path, "truncated")


def test_a_flac_that_declares_no_length_decodes(tmp_path: Path, clip: Samples) -> None:
    path = write(tmp_path / "clip.flac", clip, "FLAC", "PCM_16")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO: the 36 bits of the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    decoded = decode(path)
    assert decoded.decoder == "pyav"
    np.testing.assert_allclose(decoded.samples, clip, atol=2.0**-16)


@pytest.mark.parametrize("size", [0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_wav_written_to_a_pipe_decodes(tmp_path: Path, clip: Samples, size: int) -> None:
    path = write(tmp_path / "clip.wav", clip, "WAV", "PCM_16")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    np.testing.assert_allclose(decode(path).samples, clip, atol=2.0**-16)


@pytest.mark.parametrize("size", [0, 8, 36])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_wav_whose_recorder_stopped_decodes(
    tmp_path: Path, clip: Samples, size: int, subtype: str
) -> None:
    path = write(tmp_path / "clip.wav", clip, "WAV", subtype)
    whole = path.read_bytes()
    at = whole.index(b"data") + 4
    path.write_bytes(
        whole[:4] + size.to_bytes(4, "little") + whole[8:at] + bytes(4) + whole[at + 4 :]
    )
    decoded = decode(path)
    assert decoded.decoder == "pyav"
    np.testing.assert_allclose(decoded.samples, clip, atol=2.0**-16)


def test_memory_follows_the_data_not_the_header(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((64, 2, RATE, 0, "NONE", ""))
        file.writeframes(bytes(128 * 10))
    assert decode(path).samples.shape == (10, 64)


def test_a_rate_that_cannot_be_is_refused(tmp_path: Path, clip: Samples) -> None:
    path = write(tmp_path / "clip.wav", clip, "WAV", "PCM_16", rate=1)
    assert_rejected(path, "undecodable", "its sample rate is 1 Hz, at least 1,000 required")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_is_refused(tmp_path: Path, clip: Samples, bad: float) -> None:
    samples = clip.copy()
    samples[1_000, 1] = bad
    path = write(tmp_path / "clip.wav", samples, "WAV", "FLOAT")
    assert_rejected(path, "not_finite", "found NaN or inf")


def test_samples_beyond_full_scale_are_kept(tmp_path: Path, clip: Samples) -> None:
    path = write(tmp_path / "clip.wav", 8 * clip, "WAV", "FLOAT")
    np.testing.assert_array_equal(decode(path).samples, 8 * clip)


def test_a_rate_that_changes_on_the_way_is_refused(tmp_path: Path, clip: Samples) -> None:
    first = write(tmp_path / "a.aac", clip, "adts", "aac", 44_100).read_bytes()
    path = write(tmp_path / "b.aac", clip, "adts", "aac", 48_000)
    path.write_bytes(first + path.read_bytes())
    assert_rejected(path, "undecodable", "sample rate or number of channels change")


def test_tags_in_any_encoding_do_no_harm(tmp_path: Path, clip: Samples) -> None:
    path = write(tmp_path / "clip.mp3", clip, "MP3", "MPEG_LAYER_III")
    title = b"TIT2\x00\x00\x00\x05\x00\x00\x03caf\xe9"  # Latin-1 that says it is UTF-8
    path.write_bytes(
        b"ID3\x04\x00\x00\x00\x00\x00" + bytes([len(title)]) + title + path.read_bytes()
    )
    assert len(decode(path).samples) == len(clip)


def test_the_decoders_print_nothing_and_close_the_file(
    tmp_path: Path, clip: Samples, capfd: pytest.CaptureFixture[str]
) -> None:
    n_open = len(os.listdir("/proc/self/fd"))
    for kind, codec in [*LOSSY, *CONTAINERS, ("FLAC", "PCM_16"), ("adts", "aac")]:
        whole = write(tmp_path / "clip", clip, kind, codec).read_bytes()
        capfd.readouterr()  # encoders may print
        middle = len(whole) // 2
        for content in (
            whole,
            whole[:middle],
            whole[:middle] + bytes(99) + whole[middle + 99 :],
            whole + b"junk" * 999,
            whole + whole,
            whole[300:],
        ):
            path = tmp_path / "clip.mp3"
            path.write_bytes(content)
            with contextlib.suppress(SampleError):
                decode(path)
    assert capfd.readouterr() == ("", "")
    assert len(os.listdir("/proc/self/fd")) == n_open
