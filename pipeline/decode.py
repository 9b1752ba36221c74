"""Audio file to samples: all of them, a segment, or window after window.

soundfile (libsndfile) reads WAV, FLAC, AIFF, Opus and others; PyAV, whose wheels carry FFmpeg,
reads what it cannot: m4a, mp4, webm, aac, and MP3; Ogg Vorbis takes both. A file's name is
never trusted (but for raw G.722, which has no other mark), and neither is the length in its
header: what counts is what comes out.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

import numpy as np

from ..shards.errors import SampleError
from .audio_reader import AudioReader, CannotOpenError, Samples, truncated, undecodable
from .headers import chain_starts, is_mpeg_audio, is_unfinished_wav, missing_bytes
from .pyav_reader import RAW_FORMATS, PyavReader
from .soundfile_reader import ChainReader, SoundfileReader
from .vorbis_reader import VorbisReader

BLOCK_VALUES = 2**22  # 16 MiB of float32: memory follows what is decoded, not what is declared

MAX_DURATION_S = 3_600.0
"""Longest recording or segment decoded at once, in seconds; ``decode_windows`` has no limit."""

MAX_VALUES = 2**29
"""Most samples times channels decoded at once: 2 GiB, an hour of stereo at up to 74 kHz."""

MAX_CHANNELS = 64

MIN_SAMPLE_RATE = 1_000
"""Lowest rate taken for real, in Hz: a header that says 1 Hz would have the resampler make
thousands of samples of each one."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a decoder made of a file, or of a segment of it.

    Args:
        samples: float32, C-contiguous, shape (n_samples, n_channels), at least one sample,
            finite. Full scale is [-1, 1]; a float file may exceed it.
        sample_rate: Hz.
        decoder: the library that did it.
        format: the container, such as ``WAV``, ``FLAC``, ``MP3``, ``MOV``, ``MATROSKA``.
        path: the file.
        start_s: where the first sample stands in the recording, in seconds.
    """

    samples: Samples
    sample_rate: int
    decoder: Literal["soundfile", "pyav"]
    format: str
    path: Path
    start_s: float = 0.0

    @property
    def duration_s(self) -> float:
        """Samples over rate, in seconds."""
        return len(self.samples) / self.sample_rate


def decode(path: Path, *, start_s: float = 0.0, duration_s: float | None = None) -> Decoded:
    """Decode an audio file or a segment of it, or say why it cannot be a sample.

    A segment is the samples from ``round(start_s * rate)`` up to
    ``round((start_s + duration_s) * rate)`` of the whole: bit by bit where the codec is
    lossless, and where a lossy one has forgotten its past within ``PREROLL_S``, as Opus and MP3
    have; Vorbis within 1e-6, for only its whole is read by FFmpeg (see ``VorbisReader``); AAC
    draws the noise that stands for what it left out anew (within 0.1 of the signal's RMS). It
    may end with the recording, shorter than asked for. A place in an MP4 or Matroska file is
    what its time stamps say.

    A file is truncated if it ends before its own structure says (see ``headers``), if its
    data are broken, or if fewer samples come out than it declares: FLAC, WAV and AIFF
    exactly, Ogg, MP4 and Matroska without pictures within ``LOSSY_TOLERANCE_S``. Where nothing
    is declared that can be relied on (ADTS, MPEG-TS, FLV, live WebM, MP3 without a Xing header,
    WAV whose recorder stopped before it wrote a size), what decodes is the whole, unless more
    than the tolerance of it does not decode. A segment that is complete is good, whatever
    happened to the file behind it.

    Recordings chained in an Ogg file, as a radio stream saved as it came has them, follow each
    other; they must have one rate and number of channels. What stands behind the last sample
    that a FLAC declares, such as a tag, is no audio.

    Args:
        path: a local file. Its extension plays no part.
        start_s: start of the segment, in seconds from the start of the recording.
        duration_s: duration of the segment, in seconds; by default, up to the end.

    Returns:
        The samples, their rate and who decoded them.

    Raises:
        SampleError: with the reason ``missing`` (no such file), ``empty`` (0 bytes, or no
            audio in them), ``undecodable`` (the message holds each decoder's own),
            ``truncated``, ``not_finite`` (NaN or infinity), ``past_end`` (the segment starts
            where the recording has ended), ``too_long`` (more than ``MAX_DURATION_S`` or
            ``MAX_VALUES`` come out).
        ValueError: ``start_s`` is negative or not finite, or ``duration_s`` is not positive.
    """
    _require_times(start_s, duration_s=duration_s)
    with _open(path) as (reader, n_missing_bytes):
        if duration_s is None:  # its end is required: no need to decode to see that it lacks
            _require_bytes(path, n_missing_bytes)
        first, end = _bounds(reader.sample_rate, start_s, duration_s)
        reader.seek(first)
        samples = _read(reader, None if end is None else end - first)
        if end is None or len(samples) < end - first:
            _require_end(reader, n_missing_bytes)
        decoded = _decoded(reader, samples, first)
    if not np.isfinite([samples.min(), samples.max()]).all():
        raise SampleError(f"{path}: finite samples required, found NaN or inf", reason="not_finite")
    return decoded


def decode_windows(
    path: Path, window_s: float, *, start_s: float = 0.0, duration_s: float | None = None
) -> Iterator[Decoded]:
    """Decode a long recording window after window; one window at a time is in memory.

    Window k is the samples from ``round(k * window_s * rate)`` up to
    ``round((k + 1) * window_s * rate)``, counted from the first; the last may be shorter. Each
    is what ``decode`` gives for ``start_s + k * window_s`` and ``window_s``, a lossy codec
    apart, which is decoded without a break.

    Args:
        path: a local file, opened once.
        window_s: duration of a window, in seconds.
        start_s: start of the first, in seconds.
        duration_s: duration of all windows together, in seconds; by default, up to the end.

    Yields:
        the windows in order, at least one.

    Raises:
        SampleError: as ``decode``, but for ``not_finite``, which concerns one window and is left
            to ``prepare``; a file that is broken or cut short gives its whole windows first.
        ValueError: as ``decode``, or ``window_s`` is less than a sample.
    """
    _require_times(start_s, duration_s=duration_s, window_s=window_s)
    return _windows(path, window_s, start_s, duration_s)


def _windows(
    path: Path, window_s: float, start_s: float, duration_s: float | None
) -> Iterator[Decoded]:
    with _open(path) as (reader, n_missing_bytes):
        rate = reader.sample_rate
        if window_s * rate < 1:
            raise ValueError(f"`window_s` must hold a sample at {rate} Hz, found {window_s}")
        first, end = _bounds(rate, start_s, duration_s)
        reader.seek(first)
        for k in itertools.count():
            window_first = first + round(k * window_s * rate)
            window_end = first + round((k + 1) * window_s * rate)
            window_end = window_end if end is None else min(window_end, end)
            if k and window_first >= window_end:
                return
            samples = _read(reader, window_end - window_first)
            is_last = len(samples) < window_end - window_first
            if is_last:
                _require_end(reader, n_missing_bytes)
            if len(samples) or not k:
                yield _decoded(reader, samples, window_first)
            if is_last:
                return


@contextmanager
def _open(path: Path) -> Iterator[tuple[AudioReader, int]]:
    """Open with the first decoder that can, and count the bytes that the file lacks."""
    if not path.is_file():
        raise SampleError(f"{path}: an audio file is required, found none", reason="missing")
    try:
        with path.open("rb", buffering=0) as file:
            if not path.stat().st_size:
                raise SampleError(f"{path}: audio is required, found 0 bytes", reason="empty")
            n_missing_bytes = missing_bytes(file)
            with closing(_open_reader(path, file, n_missing_bytes)) as reader:
                _require_possible(reader)
                yield reader, n_missing_bytes
    except OSError as error:
        raise undecodable(path, str(error)) from error


def _open_reader(path: Path, file: FileIO, n_missing_bytes: int) -> AudioReader:
    failures: list[str] = []
    for opener in _openers(path, file):
        try:
            return opener()
        except CannotOpenError as error:
            failures.append(str(error))
        except SampleError:  # no audio is found where its index is cut off
            _require_bytes(path, n_missing_bytes)
            raise
    _require_bytes(path, n_missing_bytes)
    raise undecodable(path, "; ".join(failures))


def _openers(path: Path, file: FileIO) -> list[Callable[[], AudioReader]]:
    starts = chain_starts(file)
    if len(starts) > 1:  # FFmpeg stops without a word where the rate changes
        return [lambda: ChainReader(path, file, starts)]
    openers: list[Callable[[], AudioReader]] = [lambda: PyavReader(path)]
    # libsndfile's MP3 library writes warnings to stderr and cannot be silenced, and it finds no
    # samples in a WAV that declares none.
    if not is_mpeg_audio(file) and not is_unfinished_wav(file):
        openers.insert(0, lambda: _open_soundfile(path, file))
    if raw_format := RAW_FORMATS.get(path.suffix.lower()):
        openers.append(lambda: PyavReader(path, raw_format))
    return openers


def _open_soundfile(path: Path, file: FileIO) -> AudioReader:
    sound = SoundfileReader(path, file)
    return VorbisReader(sound) if VorbisReader.can_read(sound) else sound


def _read(reader: AudioReader, n_wanted: int | None) -> Samples:
    """Read block by block: a header, or a caller, may ask for any number of samples."""
    limit = min(int(MAX_DURATION_S * reader.sample_rate), MAX_VALUES // reader.n_channels)
    n_most = limit + 1 if n_wanted is None else min(n_wanted, limit + 1)
    block_samples = BLOCK_VALUES // reader.n_channels
    blocks: list[Samples] = []
    n_read = 0
    while n_read < n_most:
        wanted = min(block_samples, n_most - n_read)
        block = np.empty((wanted, reader.n_channels), np.float32)
        n_block = reader.fill(block)
        blocks.append(block[:n_block])
        n_read += n_block
        if n_block < wanted:
            break
    if n_read > limit:
        raise SampleError(
            f"{reader.path}: at most {limit / reader.sample_rate:,.0f} s can be decoded at once, "
            "found more; cut it into windows (--window-seconds; in Python "
            "`decode_windows`)",
            reason="too_long",
        )
    return _join(blocks)


def _join(blocks: list[Samples]) -> Samples:
    """Concatenate, letting go of each block on the way: no second copy in memory."""
    if len(blocks) == 1:
        return blocks[0]
    joined = np.empty((sum(map(len, blocks)), blocks[0].shape[1]), np.float32)
    end = len(joined)
    while blocks:
        block = blocks.pop()
        joined[end - len(block) : end] = block
        end -= len(block)
    return joined


def _decoded(reader: AudioReader, samples: Samples, first: int) -> Decoded:
    path, rate = reader.path, reader.sample_rate
    if not len(samples):
        if not first:
            raise SampleError(f"{path}: audio is required, found 0 samples", reason="empty")
        raise SampleError(
            f"{path}: a segment from {first / rate:g} s on is required, the recording ends at "
            f"{reader.position / rate:g} s",
            reason="past_end",
        )
    return Decoded(samples, rate, reader.decoder, reader.format, path, first / rate)


def _require_possible(reader: AudioReader) -> None:
    if reader.sample_rate < MIN_SAMPLE_RATE:
        why = f"its sample rate is {reader.sample_rate} Hz, at least {MIN_SAMPLE_RATE:,} required"
        raise undecodable(reader.path, why)
    if reader.n_channels > MAX_CHANNELS:
        why = f"it has {reader.n_channels:,} channels, at most {MAX_CHANNELS} allowed"
        raise undecodable(reader.path, why)


def _require_end(reader: AudioReader, n_missing_bytes: int) -> None:
    """Insist that the recording has ended, and was not cut short."""
    _require_bytes(reader.path, n_missing_bytes)
    reader.require_whole()


def _require_bytes(path: Path, n_missing_bytes: int) -> None:
    if n_missing_bytes:
        raise truncated(path, f"declares {n_missing_bytes:,} bytes more than it has")


def _require_times(
    start_s: float, *, duration_s: float | None, window_s: float | None = None
) -> None:
    if not 0 <= start_s < math.inf:
        raise ValueError(f"`start_s` must be 0 or more seconds, found {start_s}")
    for name, value in (("duration_s", duration_s), ("window_s", window_s)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be more than 0 seconds, found {value}")


def _bounds(rate: int, start_s: float, duration_s: float | None) -> tuple[int, int | None]:
    """Return the first sample of a segment and the one past its last, None for the end."""
    first = round(start_s * rate)
    if duration_s is None:
        return first, None
    end = round((start_s + duration_s) * rate)
    if end <= first:
        raise ValueError(f"`duration_s` must hold a sample at {rate} Hz, found {duration_s}")
    return first, end
