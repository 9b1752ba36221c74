"""Read with soundfile (libsndfile): WAV, FLAC, AIFF, Ogg Vorbis, Opus and more, seeking exactly."""

from io import FileIO
from pathlib import Path

import soundfile as sf

from .audio_reader import LOSSY_TOLERANCE_S, AudioReader, CannotOpenError, Samples, truncated

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

    def __init__(self, path: Path, file: FileIO) -> None:
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
        try:
            n_read = len(self._sound.read(out=out))
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


def _open(file: FileIO) -> sf.SoundFile:
    file.seek(0)
    try:
        sound = sf.SoundFile(file.fileno(), closefd=False)
    except sf.LibsndfileError as error:
        raise CannotOpenError(f"soundfile: {error.error_string}") from error
    # libsndfile's MP3 library writes warnings to stderr and cannot be silenced.
    is_mpeg = sound.subtype.startswith("MPEG")
    if is_mpeg or sound.frames >= UNDECLARED:
        sound.close()
        why = "writes to stderr" if is_mpeg else "cannot read a FLAC that declares no length"
        raise CannotOpenError(f"soundfile: {why}")
    return sound
