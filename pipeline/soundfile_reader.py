"""Read with soundfile (libsndfile): WAV, FLAC, AIFF, Ogg Vorbis, Opus and more, seeking exactly."""

from io import SEEK_CUR, SEEK_END, SEEK_SET, FileIO
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, cast

import soundfile as sf

from .audio_reader import (
    LOSSY_TOLERANCE_S,
    AudioReader,
    CannotOpenError,
    Samples,
    truncated,
    undecodable,
)

UNDECLARED = 2**62  # libsndfile's frame count is about 2**63 where a FLAC leaves it open

MAX_OGG_PAGE_SAMPLES = 255 * 5_760
"""Most audio in an Ogg page: 255 packets of at most 4,096 samples (Vorbis) or 120 ms (Opus).

libsndfile seeks to a wrong place in the last page of a Vorbis file, whose end is trimmed.
measured: 2026-11-22, libsndfile 1.2.2: wrong samples in seven of eight files of 2 to 20 s.
"""


class SoundfileReader(AudioReader):
    """A recording opened with libsndfile.

    Args:
        path: for messages.
        file: the open file, which stays open; given a name, libsndfile would trust its
            extension.

    Raises:
        CannotOpenError: libsndfile does not know the format, or should not read it.
    """

    decoder = "soundfile"

    def __init__(self, path: Path, file: "FileIO | _Part") -> None:
        self.path = path
        self._file = file
        self._sound = _open(file)
        self.format, self.subtype = self._sound.format, self._sound.subtype
        self.sample_rate = self._sound.samplerate
        self.n_channels = self._sound.channels
        self.declared_samples = self._sound.frames
        self.tolerance_s = LOSSY_TOLERANCE_S if self.format == "OGG" else 0.0
        self.position = 0

    def fill(self, out: Samples) -> int:
        """Read on, into ``out``; see ``AudioReader``."""
        # Behind the last sample of a FLAC libsndfile would take a tag for a broken frame.
        n_left = self.declared_samples - self.position
        try:
            n_read = len(self._sound.read(out=out[:n_left]))
        except sf.LibsndfileError as error:
            declared_s = self.declared_samples / self.sample_rate
            why = f"found broken data on the way ({error.error_string})"
            raise truncated(self.path, f"{declared_s:.3f} s declared, {why}") from error
        self.position += n_read
        return n_read

    def seek(self, sample: int) -> None:
        """Go on to ``sample``; see ``AudioReader``."""
        target = min(sample, self.declared_samples)
        last = self.declared_samples - MAX_OGG_PAGE_SAMPLES if self.format == "OGG" else target
        if (exact := min(target, last)) > 0:
            try:
                self.position = self._sound.seek(exact)
            except sf.LibsndfileError:  # a FLAC without its end cannot always be searched
                self._sound.close()
                self._sound = _open(self._file)
        self.skip_to(target)

    def close(self) -> None:
        """Let go of libsndfile's part; the file is the caller's."""
        self._sound.close()


class ChainReader(AudioReader):
    """The recordings chained in an Ogg file, one after the other: libsndfile sees only the first.

    Args:
        path: for messages.
        file: the open file, which stays open.
        starts: where each begins, in bytes; at least one.

    Raises:
        CannotOpenError: libsndfile cannot open the first.
    """

    decoder = "soundfile"
    declared_samples = 0  # each is held to its own length

    def __init__(self, path: Path, file: FileIO, starts: list[int]) -> None:
        self.path = path
        self._file = file
        self._bounds = pairwise([*starts, file.seek(0, SEEK_END)])
        self._sound = SoundfileReader(path, _Part(file, *next(self._bounds)))
        self.format, self.tolerance_s = self._sound.format, self._sound.tolerance_s
        self.sample_rate, self.n_channels = self._sound.sample_rate, self._sound.n_channels
        self.position = 0

    def fill(self, out: Samples) -> int:
        """Read on, into ``out``; see ``AudioReader``."""
        n_read = self._sound.fill(out)
        while n_read < len(out):
            self._sound.require_whole()
            if not self._open_next():
                break
            n_read += self._sound.fill(out[n_read:])
        self.position += n_read
        return n_read

    def seek(self, sample: int) -> None:
        """Go on to ``sample``; see ``AudioReader``."""
        while sample - self.position >= (n_samples := self._sound.declared_samples):
            if not self._open_next():
                break
            self.position += n_samples
        self._sound.seek(sample - self.position)
        self.position += self._sound.position

    def close(self) -> None:
        """Let go of libsndfile's part; the file is the caller's."""
        self._sound.close()

    def _open_next(self) -> bool:
        """Go to the start of the next recording; False if there is none."""
        bounds = next(self._bounds, None)
        if bounds is None:
            return False
        self._sound.close()
        try:
            self._sound = SoundfileReader(self.path, _Part(self._file, *bounds))
        except CannotOpenError as error:
            why = f"chained Ogg, from byte {bounds[0]:,} on: {error}"
            raise undecodable(self.path, why) from error
        found = self._sound.sample_rate, self._sound.n_channels
        if found != (self.sample_rate, self.n_channels):
            why = "soundfile: sample rate or number of channels change on the way (chained Ogg)"
            raise undecodable(self.path, why)
        return True


class _Part:
    """The bytes from ``start`` up to ``end`` of a file, as a file that libsndfile can read."""

    def __init__(self, file: FileIO, start: int, end: int) -> None:
        self._file, self._start, self._size, self._at = file, start, end - start, 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        self._at = offset + {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self._size}[whence]
        return self._at

    def read(self, n_bytes: int) -> bytes:
        self._file.seek(self._start + self._at)
        content = self._file.read(max(0, min(n_bytes, self._size - self._at)))
        self._at += len(content)
        return content


def _open(file: FileIO | _Part) -> sf.SoundFile:
    file.seek(0)
    # Of a file in Python, soundfile calls the three methods that a part has.
    source = file.fileno() if isinstance(file, FileIO) else cast(BinaryIO, file)
    try:
        sound = sf.SoundFile(source, closefd=False)
    except sf.LibsndfileError as error:
        raise CannotOpenError(f"soundfile: {error.error_string}") from error
    # libsndfile's MP3 library writes warnings to stderr and cannot be silenced.
    is_mpeg = sound.subtype.startswith("MPEG")
    if is_mpeg or sound.frames >= UNDECLARED:
        sound.close()
        why = "writes to stderr" if is_mpeg else "cannot read a FLAC that declares no length"
        raise CannotOpenError(f"soundfile: {why}")
    return sound
