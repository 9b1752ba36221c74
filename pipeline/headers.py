"""What an audio file says about itself, read from its own bytes.

libsndfile quietly shortens a WAV, AIFF or Ogg file whose end is missing, as a broken
download leaves it, and FFmpeg a film. The declared sizes are still there to compare with:

    WAV, RF64, AIFF   size of the chunk that holds the samples
    AU, CAF, W64      the same
    Ogg               size of the last page
    MP4, MOV          size of the boxes that hold the samples and their index
    Matroska, WebM    size of the segment, which holds all of it
    AVI               size of the lists that hold the samples
    MP3               size of the stream, in the Xing or Info header most encoders write
"""

from io import SEEK_CUR, SEEK_END
from typing import BinaryIO, Literal

OGG_HEADER_BYTES = 27  # without the sizes of its segments; RFC 3533, section 6
MAX_OGG_HEADER_BYTES = OGG_HEADER_BYTES + 255
MAX_OGG_PAGE_BYTES = MAX_OGG_HEADER_BYTES + 255 * 255
MAX_CHUNKS = 1000
MAX_BOXES = 100_000  # an MP4 in fragments of a second has two for each
PLACEHOLDER_BYTES = 0x7FFF_0000
"""Programs that write to a pipe declare about 2 or 4 GiB: sizes from here on say nothing."""

W64_HEADER_BYTES = 40

BOXES = {b"moov", b"moof", b"mdat"}
SEGMENT_ID = b"\x18\x53\x80\x67"

FIRST_PAGE = 2  # flag of an Ogg page

XING_SEARCH_BYTES = 64  # the header stands at most 36 bytes into the first MP3 frame
XING_HAS_FRAMES, XING_HAS_BYTES = 1, 2


def missing_bytes(file: BinaryIO) -> int:
    """Count the bytes that a file declares and does not have.

    Args:
        file: an open file of any kind.

    Returns:
        The number of missing bytes; 0 for a whole file, and for a file of a kind that
        declares no size.

    Raises:
        OSError: the file cannot be read.
    """
    size_bytes = file.seek(0, SEEK_END)
    return max(0, _declared_end(file, size_bytes) - size_bytes)


def chain_starts(file: BinaryIO) -> list[int]:
    """Find the recordings that are chained in an Ogg file, up to the first damaged page.

    A radio stream saved as it came has one for each title (RFC 3533, section 4).

    Args:
        file: an open file of any kind.

    Returns:
        Where each begins, in bytes: ``[0]`` for an ordinary Ogg file, ``[]`` for other kinds.

    Raises:
        OSError: the file cannot be read.
    """
    starts: list[int] = []
    at, was_first = 0, False
    while True:
        file.seek(at)
        header = file.read(MAX_OGG_HEADER_BYTES)
        if header[:4] != b"OggS" or len(header) < OGG_HEADER_BYTES:
            return starts
        is_first = bool(header[5] & FIRST_PAGE)
        if is_first and not was_first:  # sound and picture begin together
            starts.append(at)
        at, was_first = at + _page_bytes(header), is_first


def is_mpeg_audio(file: BinaryIO) -> bool:
    """Say whether the file starts as MP3 (or another MPEG audio layer, or ADTS AAC) does."""
    file.seek(_id3_bytes(file))
    return _is_sync(file.read(2))


def is_unfinished_wav(file: BinaryIO) -> bool:
    """Say whether a WAV goes on where it says that it ends, before its first sample.

    Its sizes are written last: a recorder that was stopped short of that left them as they were
    before the first.
    """
    size_bytes = file.seek(0, SEEK_END)
    file.seek(0)
    if file.read(4) != b"RIFF":
        return False
    declared_end = file.tell() + 4 + int.from_bytes(file.read(4), "little")
    if file.read(4) != b"WAVE":
        return False
    samples_end = _chunk_end(file, b"data", "little")
    samples_start = file.tell()
    return declared_end <= samples_start == samples_end < size_bytes


def _declared_end(file: BinaryIO, size_bytes: int) -> int:
    """Return where the file should end at the earliest, in bytes; 0 if it does not say."""
    file.seek(0)
    match file.read(4), file.read(4), file.read(4):
        case (b"RIFF" | b"RF64", _, b"WAVE"):
            return _chunk_end(file, b"data", "little")
        case (b"RIFX", _, b"WAVE"):
            return _chunk_end(file, b"data", "big")
        case (b"FORM", _, b"AIFF" | b"AIFC"):
            return _chunk_end(file, b"SSND", "big")
        case (b"RIFF", _, b"AVI "):
            return _avi_end(file)
        case (b"OggS", _, _):
            return _last_page_end(file, size_bytes)
        case (b".snd", start, size):
            return _au_end(int.from_bytes(start, "big"), int.from_bytes(size, "big"))
        case (b"caff", _, _):
            return _caf_end(file)
        case (b"riff", b"\x2e\x91\xcf\x11", _):  # the start of a GUID
            return _w64_end(file)
        case (_, b"ftyp", _):
            return _mp4_end(file, size_bytes)
        case (b"\x1a\x45\xdf\xa3", _, _):  # the ID of an EBML header
            return _segment_end(file)
        case _:
            return _xing_end(file)


def _au_end(start: int, size: int) -> int:
    return start + size if size < PLACEHOLDER_BYTES else 0


def _caf_end(file: BinaryIO) -> int:
    file.seek(8)
    for _ in range(MAX_CHUNKS):
        chunk_id, size = file.read(4), int.from_bytes(file.read(8), "big", signed=True)
        if chunk_id == b"data":
            return file.tell() + size  # -1: up to the end of the file
        if size < 0 or not chunk_id:
            break
        file.seek(size, SEEK_CUR)
    return 0


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


def _w64_end(file: BinaryIO) -> int:
    file.seek(W64_HEADER_BYTES)
    for _ in range(MAX_CHUNKS):
        start = file.tell()
        chunk_id, size = file.read(16)[:4], int.from_bytes(file.read(8), "little")
        if chunk_id == b"data":
            return start + size
        if size < 24 or size >= PLACEHOLDER_BYTES:  # a size counts its own header
            break
        file.seek(start + -(-size // 8) * 8)
    return 0


def _last_page_end(file: BinaryIO, size_bytes: int) -> int:
    tail_start = max(0, size_bytes - MAX_OGG_PAGE_BYTES)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return 0
    return tail_start + at + _page_bytes(tail[at:])


def _page_bytes(page: bytes) -> int:
    n_segments = page[26] if len(page) > 26 else 0
    end = OGG_HEADER_BYTES + n_segments
    return end + sum(page[OGG_HEADER_BYTES:end])


def _mp4_end(file: BinaryIO, size_bytes: int) -> int:
    start = end = 0
    for _ in range(MAX_BOXES):
        if start >= size_bytes:
            break
        file.seek(start)
        size, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        if size == 1:  # it needs 64 bits
            size = int.from_bytes(file.read(8), "big")
        if size < 8:  # 0: up to the end of the file
            break
        start += size
        if kind in BOXES:  # any other may be a tag of another format
            end = start
    return end


def _avi_end(file: BinaryIO) -> int:
    start = end = 0
    for _ in range(MAX_CHUNKS):
        file.seek(start)
        chunk_id, size = file.read(4), int.from_bytes(file.read(4), "little")
        if chunk_id == b"RIFF":  # a large file has several
            start += 12
            continue
        if not chunk_id or size >= PLACEHOLDER_BYTES:
            break
        if file.read(4) == b"movi":
            end = start + 8 + size
        start += 8 + size + size % 2
    return end


def _segment_end(file: BinaryIO) -> int:
    file.seek(4)
    file.seek(_element_bytes(file), SEEK_CUR)
    if file.read(4) != SEGMENT_ID:
        return 0
    return _element_bytes(file) + file.tell()


def _element_bytes(file: BinaryIO) -> int:
    """Read the size of an EBML element, 0 where it is left open (RFC 8794, section 6.2)."""
    first = file.read(1)
    n_more = 8 - int.from_bytes(first, "big").bit_length()
    unknown = 2 ** (7 * (n_more + 1)) - 1
    size = int.from_bytes(first + file.read(n_more), "big") & unknown
    return 0 if size == unknown else size


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
