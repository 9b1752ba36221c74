"""What is missing at the end of a file is seen, wherever it was cut."""

from pathlib import Path

import numpy as np
import pytest
from audio_files import write_soundfile

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
}
ID3 = b"ID3\x04\x00\x00\x00\x00\x01\x02" + bytes(130)  # sizes count seven bits a byte


def missing_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return headers.missing_bytes(file)


def is_mpeg_audio(path: Path) -> bool:
    with path.open("rb") as file:
        return headers.is_mpeg_audio(file)


def write(path: Path, kind: str) -> bytes:
    write_soundfile(path, NOISE, 16_000, *KINDS[kind])
    return path.read_bytes()


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


def test_mpeg_audio_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    for kind in KINDS:
        whole = write(path, kind)
        assert is_mpeg_audio(path) == (kind == "mp3")
        path.write_bytes(ID3 + whole)
        assert is_mpeg_audio(path) == (kind == "mp3")
