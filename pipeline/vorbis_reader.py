"""Read Ogg Vorbis: libsndfile opens it and knows its length, FFmpeg decodes it.

FFmpeg gives the same samples, to the last bits of float32, in less time, but keeps what
the encoder added before the first and behind the last one. Where a recording is not read
from its beginning, libsndfile does it all: it finds the place.
"""

from ..shards.errors import SampleError
from .audio_reader import AudioReader, CannotOpenError, Samples
from .pyav_reader import PyavReader
from .soundfile_reader import SoundfileReader

MAX_CHANNELS = 2
"""More than these Vorbis orders in its own way, and FFmpeg as WAV does."""

MIN_BYTES = 2**17
"""Smallest file for which opening it twice pays.

It has several pages too: of a single one, FFmpeg takes the wrong end for padding.
measured: 2026-11-22, AMD EPYC, libsndfile and then both: 1.3 and 3.5 ms for a second of mono at
11 kHz; 26 and 20 ms for 10 s of stereo at 44.1 kHz.
"""


class VorbisReader(AudioReader):
    """A recording opened with libsndfile, whose samples FFmpeg may give.

    Args:
        sound: freshly opened; it is closed with this.
    """

    def __init__(self, sound: SoundfileReader) -> None:
        self.path, self.format, self.decoder = sound.path, sound.format, sound.decoder
        self.sample_rate, self.n_channels = sound.sample_rate, sound.n_channels
        self.declared_samples, self.tolerance_s = sound.declared_samples, sound.tolerance_s
        self.position = 0
        self._sound = sound
        self._reader: AudioReader = sound

    @staticmethod
    def can_read(sound: SoundfileReader) -> bool:
        """Say whether FFmpeg would give the same, and sooner."""
        is_vorbis = (sound.format, sound.subtype) == ("OGG", "VORBIS")
        is_large = sound.path.stat().st_size >= MIN_BYTES
        return is_vorbis and is_large and sound.n_channels <= MAX_CHANNELS

    def fill(self, out: Samples) -> int:
        """Read on, into ``out``; see ``AudioReader``."""
        n_read = self._reader.fill(out[: self.declared_samples - self.position])
        self.position += n_read
        return n_read

    def seek(self, sample: int) -> None:
        """Go on to ``sample``; see ``AudioReader``."""
        if sample:
            self._sound.seek(sample)
            self.position = self._sound.position
        else:
            self._reader = self._open_ffmpeg() or self._sound
            self.decoder = self._reader.decoder

    def close(self) -> None:
        """Let go of both libraries' parts; the file is the caller's."""
        self._reader.close()
        self._sound.close()

    def _open_ffmpeg(self) -> PyavReader | None:
        """Open it with FFmpeg, at its first sample; None where that sees something else."""
        try:
            reader = PyavReader(self.path)
        except (CannotOpenError, SampleError):
            return None
        if (reader.sample_rate, reader.n_channels) != (self.sample_rate, self.n_channels):
            reader.close()
            return None
        reader.seek(reader.n_padding)
        return reader
