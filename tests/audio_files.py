"""Audio files of many kinds, written at test time from arrays."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile as sf
from av.container import OutputContainer

Samples = npt.NDArray[np.float32]

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
PICTURE_RATE = 25


def write_soundfile(path: Path, samples: Samples, rate: int, kind: str, subtype: str) -> Path:
    """Write (n_samples, n_channels) with libsndfile; the name's extension plays no part."""
    sf.write(path, samples, rate, format=kind, subtype=subtype)
    return path


def write_pyav(
    path: Path,
    samples: Samples,
    rate: int,
    kind: str,
    codec: str,
    *,
    is_film: bool = False,
    movflags: str = "faststart",
    **codec_options: str,
) -> Path:
    """Write (n_samples, n_channels) with FFmpeg; an MP4 gets its index first, as for the web.

    A film has black pictures beside the sound, and lasts as long.
    """
    layout = LAYOUTS[samples.shape[1]]
    options = {"movflags": movflags} if kind in ("mp4", "mov") else {}
    with av.open(str(path), "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options=codec_options)
        if is_film:
            _add_pictures(container, len(samples) * PICTURE_RATE // rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(
            stream.format, layout, rate, frame_size=stream.codec_context.frame_size or 1024
        )
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    return path


def _add_pictures(container: OutputContainer, n_pictures: int) -> None:
    stream = container.add_stream("mpeg4", rate=PICTURE_RATE)
    stream.width = stream.height = 32
    for number in range(n_pictures):
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        frame.pts, frame.time_base = number, Fraction(1, PICTURE_RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def shift_pyav(source: Path, path: Path, kind: str, start_s: float) -> Path:
    """Copy a recording whose sound is to start later; nothing is encoded again."""
    with av.open(str(source)) as old, av.open(str(path), "w", format=kind) as new:
        stream = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(old.streams.audio[0]):
            if packet.pts is not None:
                packet.pts += int(start_s / packet.time_base)
                packet.dts = packet.pts
                packet.stream = stream
                new.mux(packet)
    return path
