"""Audio files of many kinds, written at test time from arrays."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile as sf

Samples = npt.NDArray[np.float32]

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def write_soundfile(path: Path, samples: Samples, rate: int, kind: str, subtype: str) -> Path:
    """Write (n_samples, n_channels) with libsndfile; the name's extension plays no part."""
    sf.write(path, samples, rate, format=kind, subtype=subtype)
    return path


def write_pyav(
    path: Path, samples: Samples, rate: int, kind: str, codec: str, **codec_options: str
) -> Path:
    """Write (n_samples, n_channels) with FFmpeg; an MP4 gets its index first, as for the web."""
    layout = LAYOUTS[samples.shape[1]]
    options = {"movflags": "faststart"} if kind in ("mp4", "mov") else {}
    with av.open(str(path), "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options=codec_options)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(
            stream.format, layout, rate, frame_size=stream.codec_context.frame_size or 1024
        )
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    return path
