"""Audio file to samples: soundfile first, then PyAV.

soundfile (libsndfile) reads WAV, FLAC, AIFF, Ogg Vorbis, Opus and others; PyAV, whose
wheels carry FFmpeg, reads what it cannot: m4a, mp4, webm, aac. A file's name is never
trusted, and neither is the length in its header: what counts is what comes out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import av.container
import numpy as np
import numpy.typing as npt
import soundfile as sf
from av.error import FFmpegError

from ..shards.errors import SampleError
from .headers import is_mpeg_audio, missing_bytes

Samples = npt.NDArray[np.float32]

CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,"
    "ogg,tta,w64,wav,wv"
)
"""What FFmpeg may open. Playlists (concat, hls) are left out: they open other files."""

LOSSY_FORMATS = {"OGG", "MP3"}
LOSSY_TOLERANCE_S = 0.25
"""How much of what a lossy file declares may be missing, in seconds.

Encoder delay and padding (up to 0.1 s for AAC and MP3) and rounded durations make the
declared length of a whole file differ from the decoded one. One of the 9,035 Ogg files in
Debian's games gives 0.13 s less than its last page says.
"""

BLOCK_VALUES = 2**22  # 16 MiB of float32: memory follows what is decoded, not what is declared
UNDECLARED = 2**62  # libsndfile's frame count is about 2**63 where a FLAC leaves it open


MIN_SAMPLE_RATE = 1_000
"""Lowest rate taken for real, in Hz: a header that says 1 Hz would have the resampler make
thousands of samples of each one."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a decoder made of a file.

    Args:
        samples: float32, shape (n_samples, n_channels), at least one sample, finite. Full
            scale is [-1, 1]; a float file may exceed it.
        sample_rate: Hz.
        decoder: the library that did it.
        format: the container, such as ``WAV``, ``FLAC``, ``MP3``, ``MOV``, ``MATROSKA``.
    """

    samples: Samples
    sample_rate: int
    decoder: Literal["soundfile", "pyav"]
    format: str


class _CannotOpenError(Exception):
    """This decoder cannot open the file; another may."""


def decode(path: Path) -> Decoded:
    """Decode all of an audio file, or say why it cannot be a sample.

    A file is truncated if it ends before its own structure says (see ``headers``), if its
    data are broken, or if fewer samples come out than it declares: FLAC, WAV and AIFF
    exactly, Ogg, MP4 and Matroska within ``LOSSY_TOLERANCE_S``. Where nothing is declared that
    can be relied on (AU, CAF, W64, ADTS, MPEG-TS, live WebM, MP3 without a Xing header), what
    decodes is the whole, unless more than the tolerance of it does not decode.

    Args:
        path: a local file. Its extension plays no part.

    Returns:
        The samples, their rate and who decoded them.

    Raises:
        SampleError: with the reason ``missing`` (no such file), ``empty`` (0 bytes, or no
            audio in them), ``undecodable`` (the message holds each decoder's own),
            ``truncated`` or ``not_finite`` (NaN or infinity).
    """
    _require_bytes(path)
    try:
        decoded = _decode(path)
    except OSError as error:
        raise _undecodable(path, str(error)) from error
    _require_samples(path, decoded)
    return decoded


def _require_bytes(path: Path) -> None:
    if not path.is_file():
        raise SampleError(f"{path}: an audio file is required, found none", reason="missing")
    if not path.stat().st_size:
        raise SampleError(f"{path}: audio is required, found 0 bytes", reason="empty")


def _require_samples(path: Path, decoded: Decoded) -> None:
    if not len(decoded.samples):
        raise SampleError(f"{path}: audio is required, found 0 samples", reason="empty")
    if decoded.sample_rate < MIN_SAMPLE_RATE:
        why = f"its sample rate is {decoded.sample_rate} Hz, at least {MIN_SAMPLE_RATE:,} required"
        raise _undecodable(path, why)
    if not np.isfinite([decoded.samples.min(), decoded.samples.max()]).all():
        raise SampleError(f"{path}: finite samples required, found NaN or inf", reason="not_finite")


def _decode(path: Path) -> Decoded:
    """Let the decoders try in turn; the first that can open the file has the last word."""
    if n_bytes := missing_bytes(path):
        raise SampleError(
            f"{path}: declares {n_bytes:,} bytes more than it has; fetch it again",
            reason="truncated",
        )
    failures: list[str] = []
    for decoder in _decoders(path):
        try:
            return decoder(path)
        except _CannotOpenError as error:
            failures.append(str(error))
    raise _undecodable(path, "; ".join(failures))


def _decoders(path: Path) -> tuple[Callable[[Path], Decoded], ...]:
    # libsndfile's MP3 library writes warnings to stderr and cannot be silenced. FFmpeg gives
    # the same samples; measured: 2026-11-22, 60 s of stereo, within 5e-6, 97 ms against 37.
    return (_by_pyav,) if is_mpeg_audio(path) else (_by_soundfile, _by_pyav)


def _undecodable(path: Path, why: str) -> SampleError:
    return SampleError(f"{path}: audio is required, cannot decode: {why}", reason="undecodable")


def _truncated(path: Path, found_s: float, declared_s: float) -> SampleError:
    message = f"{path}: {declared_s:.3f} s declared, {found_s:.3f} s decoded; fetch it again"
    return SampleError(message, reason="truncated")


def _by_soundfile(path: Path) -> Decoded:
    """Decode with libsndfile, by file descriptor: given a name it would trust the extension."""
    with path.open("rb", buffering=0) as file:
        try:
            sound = sf.SoundFile(file.fileno(), closefd=False)
        except sf.LibsndfileError as error:
            raise _CannotOpenError(f"soundfile: {error.error_string}") from error
        with sound:
            if sound.frames >= UNDECLARED:
                raise _CannotOpenError("soundfile: cannot read a FLAC that declares no length")
            samples = _read_all(path, sound)
            tolerance_s = LOSSY_TOLERANCE_S if sound.format in LOSSY_FORMATS else 0.0
            if len(samples) < sound.frames - tolerance_s * sound.samplerate:
                rate = sound.samplerate
                raise _truncated(path, len(samples) / rate, sound.frames / rate)
            return Decoded(samples, sound.samplerate, "soundfile", sound.format)


def _read_all(path: Path, sound: sf.SoundFile) -> Samples:
    """Read block by block: a header may declare any number of samples."""
    block_samples = max(1, BLOCK_VALUES // sound.channels)
    blocks: list[Samples] = []
    try:
        while not blocks or len(blocks[-1]) == block_samples:
            block = sound.read(block_samples, dtype="float32", always_2d=True)
            blocks.append(np.asarray(block, np.float32))
    except sf.LibsndfileError as error:
        raise SampleError(
            f"{path}: {sound.frames / sound.samplerate:.3f} s declared, found broken data on the "
            f"way ({error.error_string}); fetch it again",
            reason="truncated",
        ) from error
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _by_pyav(path: Path) -> Decoded:
    """Decode the first audio stream of a container with FFmpeg."""
    options = {"format_whitelist": CONTAINERS}
    try:
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
            return _decode_container(path, container)
    except FFmpegError as error:
        raise _CannotOpenError(f"PyAV: {error.strerror}") from error


def _decode_container(path: Path, container: av.container.InputContainer) -> Decoded:
    if not container.streams.audio:
        raise SampleError(f"{path}: audio is required, found no audio stream", reason="empty")
    stream = container.streams.audio[0]
    blocks: list[Samples] = []
    rates: set[int] = set()
    errors: list[FFmpegError] = []
    for packet in container.demux(stream):
        try:
            for frame in stream.decode(packet):
                blocks.append(_to_float32(frame))
                rates.add(frame.sample_rate)
        except FFmpegError as error:  # as players do: skip the packet; the loss is counted
            errors.append(error)
    if not blocks:
        raise errors[0] if errors else SampleError(f"{path}: found 0 samples", reason="empty")
    if len(rates) > 1 or len({block.shape[1] for block in blocks}) > 1:
        raise _undecodable(path, "PyAV: sample rate or number of channels change on the way")
    samples, sample_rate = np.concatenate(blocks), rates.pop()
    found_s = len(samples) / sample_rate
    lost_s = found_s * len(errors) / len(blocks)
    declared_s = max(_declared_s(container, stream), found_s + lost_s)
    if declared_s - found_s > LOSSY_TOLERANCE_S:
        raise _truncated(path, found_s, declared_s)
    return Decoded(samples, sample_rate, "pyav", container.format.name.split(",")[0].upper())


def _declared_s(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """Return the duration that a header declares; 0 where FFmpeg can only guess it."""
    if "mp4" in container.format.name and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska declares its longest stream, and a video may outlast its sound.
    if "matroska" in container.format.name and container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return 0.0


def _to_float32(frame: av.AudioFrame) -> Samples:
    """Return a frame's samples, float32 in [-1, 1], shape (n_samples, n_channels)."""
    array = frame.to_ndarray()
    n_channels = frame.layout.nb_channels
    samples = array.T if frame.format.is_planar else array.reshape(-1, n_channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32)
