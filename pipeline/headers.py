"""What an audio file says about itself, read from its own first and last bytes.

libsndfile quietly shortens a WAV, AIFF or Ogg file whose end is missing, as a broken
download leaves it. The declared sizes are still there to compare with:

    WAV, RF64, AIFF   size of the chunk that holds the samples
    Ogg               size of the last page
    MP3               size of the stream, in the Xing or Info header most encoders write
"""

from pathlib import Path
from typing import BinaryIO, Literal

MAX_OGG_PAGE_BYTES = 65_307  # RFC 3533, section 6
MAX_CHUNKS = 1000
PLACEHOLDER_BYTES = 0x7FFF_0000
"""Programs that write to a pipe declare about 2 or 4 GiB: sizes from here on say nothing."""

XING_SEARCH_BYTES = 64  # the header stands at most 36 bytes into the first MP3 frame
XING_HAS_FRAMES, XING_HAS_BYTES = 1, 2


def missing_bytes(path: Path) -> int:
    """Count the bytes that a file declares and does not have.

    Args:
        path: an existing file of any kind; its name does not matter.

    Returns:
        The number of missing bytes; 0 for a whole file, and for a file of a kind that
        declares no size.

    Raises:
        OSError: the file cannot be read.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        return max(0, _declared_end(file, size_bytes) - size_bytes)


def is_mpeg_audio(path: Path) -> bool:
    """Say whether the file starts as MP3 (or another MPEG audio layer, or ADTS AAC) does."""
    with path.open("rb") as file:
        file.seek(_id3_bytes(file))
        return _is_sync(file.read(2))


def _declared_end(file: BinaryIO, size_bytes: int) -> int:
    """Return where the file should end at the earliest, in bytes; 0 if it does not say."""
    match file.read(4), file.read(4), file.read(4):
        case (b"RIFF" | b"RF64", _, b"WAVE"):
            return _chunk_end(file, b"data", "little")
        case (b"RIFX", _, b"WAVE"):
            return _chunk_end(file, b"data", "big")
        case (b"FORM", _, b"AIFF" | b"AIFC"):
            return _chunk_end(file, b"SSND", "big")
        case (b"OggS", _, _):
            return _last_page_end(file, size_bytes)
        case _:
            return _xing_end(file)


def _chunk_end(file: BinaryIO, audio_id: bytes, order: Literal["little", "big"]) -> int:
    data_bytes_64 = 0
    for _ in range(MAX_CHUNKS):
        chunk_id, size = file.read(4), int.from_bytes(file.read(4), order)
        start = file.tell()
        # RF64 keeps the size that 32 bits cannot hold in a chunk of its own (EBU Tech 3306).
        if chunk_id == b"ds64":
            data_bytes_64 = int.from_bytes(file.read(16)[8:], order)
        if chunk_id == audio_id:
            is_declared = data_bytes_64 or size < PLACEHOLDER_BYTES
            return start + (data_bytes_64 or size) if is_declared else 0
        file.seek(start + size + size % 2)
    return 0


def _last_page_end(file: BinaryIO, size_bytes: int) -> int:
    tail_start = max(0, size_bytes - MAX_OGG_PAGE_BYTES)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return 0
    page = tail[at:]
    n_segments = page[26] if len(page) > 26 else 0
    return tail_start + at + 27 + n_segments + sum(page[27 : 27 + n_segments])


def _xing_end(file: BinaryIO) -> int:
    start = _id3_bytes(file)
    file.seek(start)
    frame = file.read(XING_SEARCH_BYTES)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if not _is_sync(frame) or at < 0:
        return 0
    flags = int.from_bytes(frame[at + 4 : at + 8], "big")
    if not flags & XING_HAS_BYTES:
        return 0
    size_at = at + (12 if flags & XING_HAS_FRAMES else 8)
    return start + int.from_bytes(frame[size_at : size_at + 4], "big")


def _id3_bytes(file: BinaryIO) -> int:
    """Return the size of the ID3v2 tags at the start of the file, 0 if there are none."""
    n_bytes = 0
    while True:
        file.seek(n_bytes)
        header = file.read(10)
        if header[:3] != b"ID3" or len(header) < 10:
            return n_bytes
        high, mid, low, lowest = header[6:]  # seven bits each
        n_bytes += 10 + (high << 21 | mid << 14 | low << 7 | lowest)


def _is_sync(frame: bytes) -> bool:
    """Say whether an MPEG audio frame starts here: eleven bits set."""
    return len(frame) > 1 and frame[0] == 0xFF and frame[1] >= 0xE0
