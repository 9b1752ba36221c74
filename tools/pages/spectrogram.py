"""Spectrograms as small PNG files, and the places of Hz and seconds beside them."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...shards.spec import FeatureSpec
from ..spectrogram import TICKS_HZ, band_of, palette_colours

MAX_COLUMNS = 320  # a longer clip has several frames in a column
N_COLOURS = 64  # the eye sees no more, and the file is a third smaller than with 256
MIN_TICK_DISTANCE = 0.13  # of the height, so that two do not touch
MIN_TICK_HEIGHT = 0.03  # of the height, above the axis of seconds


def spectrogram_png(logmel: npt.NDArray[np.float32], *, low: float, high: float) -> bytes:
    """Draw a log-mel, time from left to right, low bands at the bottom.

    Args:
        logmel: shape (n_frames, n_mels), at least one frame.
        low, high: values that get the darkest and the brightest colour.

    Returns:
        a PNG file of at most ``MAX_COLUMNS`` by n_mels pixels.
    """
    n_frames = len(logmel)
    starts = np.unique(np.linspace(0, n_frames, min(n_frames, MAX_COLUMNS), False, dtype=np.int64))
    n_joined = np.diff(np.append(starts, n_frames))[:, None]
    columns = np.add.reduceat(logmel, starts, axis=0) / n_joined
    shares = np.clip((columns - low) / max(high - low, 1e-6), 0, 1)
    codes = np.rint(shares * (N_COLOURS - 1)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(codes.T[::-1]))
    image.putpalette(palette_colours(np.linspace(0, 1, N_COLOURS)).ravel().tolist())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def data_uri(payload: bytes, kind: str) -> str:
    """Return bytes as an address that holds them.

    >>> data_uri(b"abc", "image/png")
    'data:image/png;base64,YWJj'
    """
    return f"data:{kind};base64,{base64.b64encode(payload).decode()}"


def hz_ticks(spec: FeatureSpec) -> list[tuple[str, float]]:
    """Return labels of a spectrogram's frequency axis, with their height from 0 to 100.

    >>> hz_ticks(FeatureSpec())[-1]
    ('8k', 100.0)
    """
    ticks: list[tuple[str, float]] = []
    for hz in reversed(TICKS_HZ):
        height = (band_of(hz, spec) + 0.5) / spec.n_mels
        is_free = not ticks or ticks[0][1] / 100 - height >= MIN_TICK_DISTANCE
        if spec.fmin <= hz <= spec.fmax and height >= MIN_TICK_HEIGHT and is_free:
            text = f"{hz // 1_000}k" if hz >= 1_000 else f"{hz}"
            ticks.insert(0, (text, round(100 * height, 1)))
    return ticks
