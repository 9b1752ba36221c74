"""Two hundred broken audio files, the same each time, as the internet might serve them."""

import gzip
import io
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import soundfile as sf
from audio_files import Samples, write_pyav, write_soundfile

N_FILES = 200
N_CUT, N_FLIPPED, N_HEADERS = 8, 10, 3  # files of each kind
BOMB_BYTES = 2**26
BOMB_S, BOMB_RATE = 7_200, 8_000

KINDS = {  # suffix: container and codec
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".m4a": ("mp4", "aac"),
    ".webm": ("webm", "libopus"),
    ".aiff": ("AIFF", "PCM_24"),
}
TEXTS = {
    "text.wav": "not audio at all\n" * 99,
    "page.mp3": "<!doctype html><title>404 Not Found</title>" * 9,
    "playlist.mp3": "ffconcat version 1.0\nfile whole.flac\n",
    "playlist.wav": "#EXTM3U\n#EXTINF:1,\nwhole.flac\n",
    "playlist.m4a": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///dev/zero\n#EXT-X-ENDLIST\n",
    "session.sdp": "v=0\nm=audio 5004 RTP/AVP 0\nc=IN IP4 127.0.0.1\n",
}


def write_broken_files(folder: Path) -> list[Path]:
    """Write ``N_FILES`` files that are broken, or not what they are called.

    Cut short, with bits flipped, with damaged headers, under the wrong name; text, random
    bytes and playlists; archives and a FLAC that are small on disk and huge unpacked;
    headers that declare what cannot be. All of it follows from a fixed seed.

    Args:
        folder: an empty folder; it also gets ``whole.flac``, for a playlist to point at.

    Returns:
        the broken files, sorted.
    """
    rng = np.random.default_rng(20261122)
    whole = _write_whole(folder)
    (folder / "whole.flac").write_bytes(whole[".flac"])
    paths = [
        _write(folder / name, content)
        for makers in (_damaged(whole, rng), _misnamed(whole), _impossible(whole), _bombs(folder))
        for name, content in makers
    ]
    n_noise = N_FILES - len(paths)
    for number in range(n_noise):
        name = f"noise-{number:02d}{list(KINDS)[number % len(KINDS)]}"
        paths.append(_write(folder / name, rng.bytes(int(rng.integers(1, 50_000)))))
    return sorted(paths)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _write_whole(folder: Path) -> dict[str, bytes]:
    """Encode a second of one shipped recording per kind."""
    recordings = sorted(
        Path(str(resources.files("melstream.tools"))).glob("recordings/train/*/*.flac")
    )
    whole = {}
    for number, (suffix, (kind, codec)) in enumerate(KINDS.items()):
        path = recordings[number * len(recordings) // len(KINDS)]
        samples, rate = sf.read(path, frames=48_000, dtype="float32", always_2d=True)
        rate = 48_000 if "opus" in codec.lower() else rate
        writer = write_soundfile if kind.isupper() else write_pyav
        scratch = writer(folder / "scratch", _stereo(samples), rate, kind, codec)
        whole[suffix] = scratch.read_bytes()
        scratch.unlink()
    return whole


def _stereo(samples: Samples) -> Samples:
    return np.stack([samples[:, 0], -0.5 * samples[:, 0]], axis=1)


def _damaged(whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    for suffix, content in whole.items():
        for number in range(N_CUT):
            yield f"cut-{number}{suffix}", content[: int(rng.integers(1, len(content)))]
        for number in range(N_FLIPPED):
            yield f"flipped-{number}{suffix}", _flip(content, rng, 4 ** (number % 5))
        for number in range(N_HEADERS):
            yield f"header-{number}{suffix}", _flip(content[:64], rng, 8) + content[64:]


def _flip(content: bytes, rng: np.random.Generator, n_bits: int) -> bytes:
    array = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(len(array), size=n_bits)
    np.bitwise_xor.at(array, places, np.uint8(1) << rng.integers(8, size=n_bits).astype(np.uint8))
    return array.tobytes()


def _misnamed(whole: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    suffixes = list(whole)
    for suffix, wrong in zip(suffixes, suffixes[1:] + suffixes[:1], strict=True):
        yield f"misnamed-{suffix[1:]}{wrong}", whole[suffix]


def _impossible(whole: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Headers that declare what cannot be, and what is not audio at all."""
    wav, flac = whole[".wav"], whole[".flac"]
    data = wav.index(b"data") + 4
    yield "declares-2-31-samples.wav", _put(wav, data, (2**31 - 2**17).to_bytes(4, "little"))
    yield "declares-2-36-samples.flac", _put(flac, 22, b"\xff" * 4)
    yield "zero-hz.wav", _put(wav, 24, bytes(4))
    yield "one-hz.wav", _put(wav, 24, b"\x01\0\0\0")
    yield "zero-hz.flac", _put(flac, 18, bytes(2))
    yield "zero-channels.wav", _put(wav, 22, bytes(2))
    yield "many-channels.wav", _put(wav, 22, b"\xff\xff")
    yield "zero-bits.wav", _put(wav, 34, bytes(2))
    yield "nothing.wav", b""
    yield "zeros.mp3", bytes(4_000)
    yield "syncs.mp3", b"\xff\xfb" * 2_000
    for name, text in TEXTS.items():
        yield name, text.encode()


def _put(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def _bombs(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a few kB that unpack to 64 MiB, or to hours of silence."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.wav", bytes(BOMB_BYTES))
    yield "zip-bomb.wav", buffer.getvalue()
    yield "zip-bomb.mp3", buffer.getvalue()
    yield "gzip-bomb.wav", gzip.compress(bytes(BOMB_BYTES), mtime=0)
    scratch = folder / "scratch"
    with sf.SoundFile(scratch, "w", BOMB_RATE, 1, "PCM_16", format="FLAC") as sound:
        for _ in range(BOMB_S // 60):
            sound.write(np.zeros(60 * BOMB_RATE, np.int16))
    bomb = scratch.read_bytes()
    scratch.unlink()
    yield "silence-bomb.flac", bomb
    yield "silence-bomb.wav", bomb
