"""What is missing at the end of a file is seen, wherever it was cut; chains in Ogg are found."""

import struct
from pathlib import Path

import numpy as np
import pytest
from audio_files import write_pyav, write_soundfile

from melstream.pipeline import headers

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (4_000, 1)).astype(np.float32)
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "float wav": ("WAV", "FLOAT"),
    "big-endian wav": ("WAV", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_24"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "mp4": ("mp4", "aac"),
    "mp4 with its index last": ("ipod", "aac"),
    "webm": ("webm", "libopus"),
    "matroska": ("matroska", "aac"),
}
ID3 = b"ID3\x04\x00\x00\x00\x00\x01\x02" + bytes(130)  # sizes count seven bits a byte


def missing_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return headers.missing_bytes(file)


def is_mpeg_audio(path: Path) -> bool:
    with path.open("rb") as file:
        return headers.is_mpeg_audio(file)


def is_unfinished_wav(path: Path) -> bool:
    with path.open("rb") as file:
        return headers.is_unfinished_wav(file)


def write(path: Path, kind: str) -> bytes:
    container, codec = KINDS[kind]
    writer = write_soundfile if container.isupper() else write_pyav
    return writer(path, NOISE, 16_000, container, codec).read_bytes()


def chain_starts(path: Path, content: bytes) -> list[int]:
    path.write_bytes(content)
    with path.open("rb") as file:
        return headers.chain_starts(file)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_cut", [1, 2, 100])
def test_the_cut_bytes_are_counted(tmp_path: Path, kind: str, n_cut: int) -> None:
    path = tmp_path / "clip"
    whole = write(path, kind)
    assert missing_bytes(path) == 0
    path.write_bytes(whole[:-n_cut])
    assert missing_bytes(path) == n_cut


def test_an_id3_tag_and_a_tail_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    whole = write(path, "mp3")
    path.write_bytes(ID3 + ID3 + whole + b"TAG" + bytes(125))
    assert missing_bytes(path) == 0
    path.write_bytes(ID3 + whole[:-7])
    assert missing_bytes(path) == 7


def test_an_ogg_cut_inside_a_page_header_lacks_bytes(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    whole = write(path, "vorbis")
    last_page = whole.rfind(b"OggS")
    for n_kept in (4, 20, 26, 27, 28):
        path.write_bytes(whole[: last_page + n_kept])
        assert missing_bytes(path) > 0, n_kept


@pytest.mark.parametrize("kind", ["mp4", "mp4 with its index last", "webm", "matroska"])
@pytest.mark.parametrize("tail", [b"\0", bytes(999), b"TAG" + b"t" * 125, b"APETAGEX" + bytes(24)])
def test_what_follows_a_container_does_not_count(tmp_path: Path, kind: str, tail: bytes) -> None:
    path = tmp_path / "clip"
    path.write_bytes(write(path, kind) + tail)
    assert missing_bytes(path) == 0


@pytest.mark.parametrize("is_film", [False, True])
def test_the_samples_of_an_avi_are_counted_not_their_index(tmp_path: Path, is_film: bool) -> None:
    path = tmp_path / "clip"
    whole = write_pyav(path, NOISE, 16_000, "avi", "aac", is_film=is_film).read_bytes()
    samples_end = whole.rindex(b"idx1")
    assert samples_end < len(whole)
    for n_cut in (0, 1, 100):
        path.write_bytes(whole[: samples_end - n_cut])
        assert missing_bytes(path) == n_cut


def test_an_avi_over_a_gigabyte_goes_on_in_another_riff(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    first = write_pyav(path, NOISE, 16_000, "avi", "aac").read_bytes()
    samples = b"LIST" + struct.pack("<I", 104) + b"movi" + bytes(100)
    whole = first + b"RIFF" + struct.pack("<I", 4 + len(samples)) + b"AVIX" + samples
    for n_cut in (0, 1, 100):
        path.write_bytes(whole[: len(whole) - n_cut])
        assert missing_bytes(path) == n_cut


@pytest.mark.parametrize(
    ("header", "n_missing"),
    [
        (struct.pack(">I4s", 108, b"mdat"), 7),
        (struct.pack(">I4sQ", 1, b"mdat", 116), 7),
        (struct.pack(">I4s", 0, b"mdat"), 0),  # up to the end of the file
        (struct.pack(">I4s", 108, b"free"), 0),
        (struct.pack(">I4sQ", 1, b"mdat", 2**64 - 1), 2**64 - 1 - 16 - 93),
    ],
)
def test_a_box_may_declare_its_size_in_several_ways(
    tmp_path: Path, header: bytes, n_missing: int
) -> None:
    path = tmp_path / "clip"
    kind = struct.pack(">I4s4s4x", 16, b"ftyp", b"isom")
    path.write_bytes(kind + header + bytes(93))
    assert missing_bytes(path) == n_missing


def test_a_segment_of_open_size_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    whole = write(path, "webm")
    at = whole.index(b"\x18\x53\x80\x67") + 4
    path.write_bytes(whole[:at] + b"\x01" + b"\xff" * 7 + whole[at + 8 : -100])
    assert missing_bytes(path) == 0


def test_the_recordings_of_a_chain_are_found(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    first, second = write(path, "vorbis"), write(path, "opus")
    assert chain_starts(path, first) == [0]
    assert chain_starts(path, first + b"junk" * 99) == [0]
    assert chain_starts(path, first + first) == [0, len(first)]
    assert chain_starts(path, first + second + first) == [0, len(first), len(first + second)]
    assert chain_starts(path, first[:26]) == []  # not a whole page header
    assert chain_starts(path, first[:40]) == [0]
    assert chain_starts(path, write(path, "wav")) == []


def test_two_streams_side_by_side_are_no_chain(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    first, second = write(path, "vorbis"), write(path, "opus")
    n_first, n_second = first.index(b"OggS", 4), second.index(b"OggS", 4)
    pages = [first[:n_first], second[:n_second], first[n_first:], second[n_second:]]
    assert chain_starts(path, b"".join(pages)) == [0]


@pytest.mark.parametrize("size", [0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_a_size_that_is_a_placeholder_says_nothing(tmp_path: Path, size: int) -> None:
    path = tmp_path / "clip"
    whole = write(path, "wav")
    at = whole.index(b"data") + 4
    path.write_bytes(whole[:at] + size.to_bytes(4, "little") + whole[at + 4 :])
    assert missing_bytes(path) == 0


@pytest.mark.parametrize("content", [b"", b"R", b"RIFF", b"RIFF\0\0\0\0WAVE", b"ID3", b"\xff\xfb"])
def test_a_stub_says_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip"
    path.write_bytes(content)
    assert missing_bytes(path) == 0


def test_an_unfinished_wav_is_known_by_its_sizes(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    for kind in KINDS:
        write(path, kind)
        assert not is_unfinished_wav(path)
    header = b"RIFF%sWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8_000, 16_000, 2, 16) + b"data"
    unfinished = header % bytes(4) + bytes(4) + bytes(100)
    path.write_bytes(unfinished)
    assert is_unfinished_wav(path)
    path.write_bytes(unfinished[:-100])  # without a sample
    assert not is_unfinished_wav(path)
    empty_with_a_list = header % struct.pack("<I", 136) + bytes(4) + b"LIST" + bytes(96)
    path.write_bytes(empty_with_a_list)
    assert not is_unfinished_wav(path)
    path.write_bytes(header % struct.pack("<I", 36) + struct.pack("<I", 100) + bytes(200))
    assert not is_unfinished_wav(path)


def test_mpeg_audio_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    for kind in KINDS:
        whole = write(path, kind)
        assert is_mpeg_audio(path) == (kind == "mp3")
        path.write_bytes(ID3 + whole)
        assert is_mpeg_audio(path) == (kind == "mp3")
