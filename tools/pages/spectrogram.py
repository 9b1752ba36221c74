"""Spectrograms as small PNG files, and the places of Hz and seconds beside them."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from plotly.colors import sample_colorscale, unlabel_rgb

from ...pipeline.mel import hz_to_mel

MAX_COLUMNS = 320  # a longer clip has several frames in a column
N_COLOURS = 64  # the eye sees no more, and the file is a third smaller than with 256
PALETTE_NAME = "Magma"  # even to the eye, and for the colour-blind
TICKS_HZ = (125, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000)
MIN_TICK_DISTANCE = 0.13  # of the height, so that two do not touch


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
    image.putpalette(_palette())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def data_uri(payload: bytes, kind: str) -> str:
    """Return bytes as an address that holds them.

    >>> data_uri(b"abc", "image/png")
    'data:image/png;base64,YWJj'
    """
    return f"data:{kind};base64,{base64.b64encode(payload).decode()}"


def hz_ticks(fmin: float, fmax: float, mel_scale: str) -> list[tuple[str, float]]:
    """Return labels of a spectrogram's frequency axis, with their height from 0 to 100.

    >>> hz_ticks(20, 8000, "htk")[-1]
    ('8k', 100.0)
    """
    low, high = hz_to_mel([fmin, fmax], mel_scale=mel_scale)
    ticks: list[tuple[str, float]] = []
    for hz in reversed(TICKS_HZ):
        height = float((hz_to_mel(hz, mel_scale=mel_scale) - low) / (high - low))
        is_free = not ticks or ticks[0][1] / 100 - height >= MIN_TICK_DISTANCE
        if 0.03 <= height <= 1 and is_free:
            text = f"{hz // 1_000}k" if hz >= 1_000 else f"{hz}"
            ticks.insert(0, (text, round(100 * height, 1)))
    return ticks


def _palette() -> list[int]:
    shares = np.linspace(0, 1, N_COLOURS).tolist()
    colours = sample_colorscale(PALETTE_NAME, shares)
    return [round(part) for colour in colours for part in unlabel_rgb(colour)]
