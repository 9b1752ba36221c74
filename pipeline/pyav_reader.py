"""Read with PyAV, whose wheels carry FFmpeg: m4a, mp4, webm, AAC, MP3 and what else it knows.

FFmpeg gives frames of a few hundred samples. Its own queue joins them before numpy sees any:
a copy for each frame takes as long as decoding it.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.fifo import AudioFifo
from av.error import FFmpegError

from ..shards.errors import SampleError
from .audio_reader import (
    LOSSY_TOLERANCE_S,
    AudioReader,
    CannotOpenError,
    Samples,
    truncated,
    undecodable,
)

CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,"
    "ogg,tta,w64,wav,wv"
)
"""What FFmpeg may open. Playlists (concat, hls) are left out: they open other files."""

RAW_FORMATS = {".g722": "g722"}
"""Formats without any header, by the file's suffix: FFmpeg takes any bytes for them."""

BLOCK_SAMPLES = 8_192
"""Samples copied at a time.

measured: 2026-11-22, AMD EPYC, 10 s of Vorbis in stereo, 10.2 ms to decode: 13.6 ms in all with
8,192 samples, 16.4 with 2,048, 14.0 with 441,000, and 24 with a copy for each frame.
"""

DTYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}

PREROLL_S = 0.5
"""How far before a segment decoding starts, where seeking is possible, in seconds.

A frame of a lossy codec needs what comes before it: two frames of AAC (46 ms), 80 ms of Opus.
"""

EQUAL_FRAME_CODECS = {"aac", "mp3", "mp3float", "opus", "libopus"}
"""Codecs whose frames are of one size: a time rounded to milliseconds still tells which."""


class PyavReader(AudioReader):
    """The first audio stream of a container, opened with FFmpeg.

    Args:
        path: the file.
        raw_format: one of ``RAW_FORMATS``: do not look at the bytes, it is this.

    Raises:
        CannotOpenError: FFmpeg does not know the format, or not one packet decodes.
        SampleError: ``empty``, the container has no audio stream.
    """

    decoder = "pyav"
    tolerance_s = LOSSY_TOLERANCE_S

    def __init__(self, path: Path, raw_format: str | None = None) -> None:
        self.path = path
        self._raw_format = raw_format
        self._open()

    def _open(self) -> None:
        whitelist = {"format_whitelist": self._raw_format or CONTAINERS}
        try:
            self._container = av.open(
                f"file:{self.path}",
                format=self._raw_format,
                options=whitelist,
                metadata_errors="replace",
            )
        except FFmpegError as error:
            raise CannotOpenError(f"PyAV: {error.strerror}") from error
        try:
            self._start()
        except BaseException:
            self._container.close()
            raise

    def _start(self) -> None:
        """Decode the first frame: only frames tell the rate, headers may give half of it."""
        if not self._container.streams.audio:
            raise SampleError(
                f"{self.path}: audio is required, found no audio stream", reason="empty"
            )
        self._stream = self._container.streams.audio[0]
        if not self._stream.codec_context:
            raise CannotOpenError("PyAV: no decoder for what is in it")
        # Threads take longer to start than a clip to decode.
        self._stream.codec_context.thread_type = "NONE"
        self._errors: list[str] = []
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None and self._errors:
            raise CannotOpenError(f"PyAV: {self._errors[0]}")
        if first is None:
            raise SampleError(f"{self.path}: audio is required, found 0 samples", reason="empty")
        self._kind = _kind(first)
        self.sample_rate, self.n_channels, self._sample_format = self._kind
        self.format = self._container.format.name.split(",")[0].upper()
        self.position = 0
        self._first_time, self._frame_samples = _time(first), first.samples
        self.declared_samples = int(self._declared_s() * self.sample_rate)
        self._queue = AudioFifo()
        self._put(first)

    def fill(self, out: Samples) -> int:
        """Read on, into ``out``; see ``AudioReader``."""
        n_read = 0
        while n_read < len(out):
            n_wanted = min(BLOCK_SAMPLES, len(out) - n_read)
            while self._queue.samples < n_wanted and self._frame is not None:
                self._next_frame()
            block = self._queue.read(n_wanted, partial=True)
            if block is None:
                break
            _copy(block, self._sample_format, out[n_read : n_read + block.samples])
            n_read += block.samples
        _scale(out[:n_read], self._sample_format)
        self.position += n_read
        return n_read

    def seek(self, sample: int) -> None:
        """Go on to ``sample``; see ``AudioReader``.

        MP4 and Matroska have an index; anything else is decoded from its beginning.
        """
        start = sample - int(PREROLL_S * self.sample_rate)
        has_index = self._container.format.name.startswith(("mov", "matroska"))
        if start > 0 and has_index and not self._jump(start):
            self.close()
            self._open()
        while self._frame is not None and self.position + self._queue.samples <= sample:
            self._drop(self._queue.samples)
            self._next_frame()
        self._drop(min(sample - self.position, self._queue.samples))

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    @property
    def n_padding(self) -> int:
        """Samples before time 0, that an encoder added: Ogg Vorbis keeps them."""
        return max(0, round(-(self._first_time or 0) * self.sample_rate))

    def _decode(self) -> Iterator[av.AudioFrame]:
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = self._stream.decode(packet)
                except FFmpegError as error:  # as players do: skip the packet; the loss counts
                    self._errors.append(str(error.strerror))
                    continue
                yield from (frame for frame in frames if frame.samples)
        except FFmpegError as error:
            self._errors.append(str(error.strerror))

    def _next_frame(self) -> None:
        """Put the next frame into the queue; ``_frame`` is it, or None at the end."""
        self._frame = next(self._frames, None)
        if self._errors:
            self._require_few_losses()
        if self._frame is None:
            return
        if _kind(self._frame) != self._kind:
            why = "sample rate or number of channels change on the way"
            raise undecodable(self.path, f"PyAV: {why}")
        self._frame_samples = max(self._frame_samples, self._frame.samples)
        self._put(self._frame)

    def _require_few_losses(self) -> None:
        lost_s = len(self._errors) * self._frame_samples / self.sample_rate
        if lost_s > self.tolerance_s:
            why = f"{lost_s:.3f} s found that do not decode ({self._errors[-1]})"
            raise truncated(self.path, why)

    def _put(self, frame: av.AudioFrame) -> None:
        self._frame, self._pts = frame, frame.pts
        frame.pts = None  # the queue refuses a gap
        self._queue.write(frame)

    def _drop(self, n_samples: int) -> None:
        if n_samples > 0:
            self._queue.read(n_samples)
            self.position += n_samples

    def _jump(self, sample: int) -> bool:
        """Seek to a frame at or before ``sample``; say whether its exact place is known."""
        time_base = self._stream.time_base
        if self._first_time is None or not time_base:
            return False
        time = self._first_time + Fraction(sample, self.sample_rate)
        try:
            self._container.seek(int(time / time_base), stream=self._stream)
        except (FFmpegError, OverflowError):
            return False
        first_samples = self._frame_samples
        self._frames, self._queue = self._decode(), AudioFifo()
        self._next_frame()
        position = self._place(first_samples, time_base)
        if position is None or position > sample:
            return False
        self.position = position
        return True

    def _place(self, first_samples: int, time_base: Fraction) -> int | None:
        """Return the place of the current frame by its time, None if that is not exact."""
        frame, first_time = self._frame, self._first_time
        if frame is None or self._pts is None or frame.time_base is None or first_time is None:
            return None
        found = (self._pts * frame.time_base - first_time) * self.sample_rate
        tick = time_base * self.sample_rate
        if tick <= 1:
            return round(found)
        if self._stream.codec_context.name not in EQUAL_FRAME_CODECS:
            return None
        n_frames = round((found - first_samples) / frame.samples)
        place = first_samples + n_frames * frame.samples
        return place if abs(place - found) <= tick else None

    def _declared_s(self) -> float:
        """Return the duration that a header declares; 0 where FFmpeg can only guess it."""
        container, stream = self._container, self._stream
        if "mp4" in container.format.name and stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        # Matroska declares where its longest stream ends: a video may outlast its sound, which
        # need not start at 0 either.
        is_alone = len(container.streams) == 1
        if "matroska" in container.format.name and container.duration and is_alone:
            return container.duration / av.time_base - float(self._first_time or 0)
        return 0.0


def _kind(frame: av.AudioFrame) -> tuple[int, int, str]:
    """Return what must stay the same from frame to frame."""
    return frame.sample_rate, frame.layout.nb_channels, frame.format.name


def _time(frame: av.AudioFrame) -> Fraction | None:
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base


def _copy(frame: av.AudioFrame, sample_format: str, out: Samples) -> None:
    """Copy the samples of a frame into ``out``, in the unit they have."""
    dtype = DTYPES[sample_format.rstrip("p")]
    if sample_format.endswith("p"):
        for channel, plane in enumerate(frame.planes):
            out[:, channel] = np.frombuffer(memoryview(plane), dtype, len(out))
    else:
        values = np.frombuffer(memoryview(frame.planes[0]), dtype, out.size)
        out[:] = values.reshape(out.shape)


def _scale(samples: Samples, sample_format: str) -> None:
    """Bring whole numbers into [-1, 1], in place."""
    dtype = np.dtype(DTYPES[sample_format.rstrip("p")])
    if dtype.kind == "u":
        samples -= np.float32(128)
    if dtype.kind in "iu":
        samples *= np.float32(2.0 ** (1 - 8 * dtype.itemsize))
