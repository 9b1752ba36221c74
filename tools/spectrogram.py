"""A log-mel as a picture: in the terminal, or as a PNG with axes in seconds and Hz."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.style import Style
from rich.text import Text

from ..shards.files import write_bytes
from ..shards.mel import hz_to_mel, mel_edges_hz
from ..shards.spec import FeatureSpec

Logmel = npt.NDArray[np.float32]

DYNAMIC_RANGE_DB = 80.0  # below the loudest value all is black
DB = 10 / np.log(10)  # per neper of power
LABEL_WIDTH = 6  # of `8,000 ` beside the picture
TICKS_HZ = (125, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000)
PALETTE = np.array(  # matplotlib's magma at 0, 1/8 … 1, whose lightness grows evenly
    [
        (0, 0, 4),
        (28, 16, 68),
        (79, 18, 123),
        (129, 37, 129),
        (181, 54, 122),
        (229, 80, 100),
        (251, 135, 97),
        (254, 194, 135),
        (252, 253, 191),
    ]
)


def terminal_spectrogram(logmel: Logmel, spec: FeatureSpec, *, width: int, height: int) -> Text:
    """Draw a log-mel with half blocks: two bands in a character.

    Args:
        logmel: float32, shape (n_frames, n_mels).
        spec: what it was made with.
        width: of the whole picture, in characters.
        height: of the spectrogram, in lines; the time axis takes two more.

    Returns:
        lines of text; low frequencies at the bottom.
    """
    n_columns = max(1, min(width - LABEL_WIDTH, len(logmel)))
    n_rows = min(2 * height, spec.n_mels) // 2 * 2
    pixels = _colours(_resized(logmel, n_columns, n_rows))
    labels = _hz_labels(spec, n_rows // 2)
    text = Text()
    for line in range(n_rows // 2 - 1, -1, -1):
        text.append(labels.get(line, "").rjust(LABEL_WIDTH - 1) + " ", "dim")
        for upper, lower in zip(pixels[:, 2 * line + 1], pixels[:, 2 * line], strict=True):
            text.append("▀", Style(color=_hex(upper), bgcolor=_hex(lower)))
        text.append("\n")
    axis = _time_axis(spec.duration_s(len(logmel)), n_columns)
    for name, line in zip(("Hz", "s"), axis, strict=True):
        text.append(f"{name.rjust(LABEL_WIDTH - 1)} {line}\n", "dim")
    text.rstrip()
    return text


def write_png(path: Path, logmel: Logmel, spec: FeatureSpec, *, title: str) -> None:
    """Write a log-mel as a PNG with axes.

    Args:
        path: the file; it is replaced, its folder must exist.
        logmel: float32, shape (n_frames, n_mels).
        spec: what it was made with.
        title: above the picture.
    """
    from matplotlib.figure import Figure  # half a second to import

    duration_s = spec.duration_s(len(logmel))
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        DB * logmel.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=DB * float(logmel.max()) - DYNAMIC_RANGE_DB,
        extent=(0, duration_s, -0.5, spec.n_mels - 0.5),
    )
    ticks = [hz for hz in TICKS_HZ if spec.fmin <= hz <= spec.fmax]
    axes.set_yticks([band_of(hz, spec) for hz in ticks], [f"{hz:,}" for hz in ticks])
    axes.set(xlabel="time (s)", ylabel="frequency (Hz, mel scale)", ylim=(-0.5, spec.n_mels - 0.5))
    axes.set_title(title, parse_math=False)
    figure.colorbar(image, label="power (dB)")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_bytes(path, picture.getvalue())


def palette_colours(levels: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Return a colour for each level from 0, dark, to 1, bright; shape (..., 3), 0 to 255."""
    place = np.clip(levels, 0, 1) * (len(PALETTE) - 1)
    stops = np.arange(len(PALETTE))
    channels = [np.interp(place, stops, PALETTE[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.int64)


def band_of(hz: float, spec: FeatureSpec) -> float:
    """Return the place of a frequency on the axis of bands; a band's centre is a whole number.

    The axis ends half a band outside the outer centres, and what lies beyond is put there.
    """
    centres = mel_edges_hz(spec)[1:-1]
    first, last = hz_to_mel(centres[[0, -1]], mel_scale=spec.mel_scale)
    mel = float(hz_to_mel(hz, mel_scale=spec.mel_scale))
    place = float((mel - first) / (last - first) * (spec.n_mels - 1))
    return min(max(place, -0.5), spec.n_mels - 0.5)


def _resized(logmel: Logmel, n_columns: int, n_rows: int) -> Logmel:
    """Take the loudest of the frames, and the mean of the bands, that share a pixel."""
    columns = [part.max(axis=0) for part in np.array_split(logmel, n_columns)]
    rows = [part.mean(axis=0) for part in np.array_split(np.stack(columns, axis=1), n_rows)]
    return np.stack(rows, axis=1)


def _colours(values: Logmel) -> npt.NDArray[np.int64]:
    """Return a colour for each value, shape (..., 3), 0 to 255."""
    return palette_colours(1 + DB * (values - values.max()) / DYNAMIC_RANGE_DB)


def _hex(colour: npt.NDArray[np.int64]) -> str:
    red, green, blue = colour.tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def _hz_labels(spec: FeatureSpec, n_lines: int) -> dict[int, str]:
    """Return the frequency to write beside a line, by line from the bottom."""
    labels = {}
    for hz in TICKS_HZ:
        if spec.fmin <= hz <= spec.fmax:
            line = round((band_of(hz, spec) + 0.5) / spec.n_mels * n_lines - 0.5)
            labels[min(line, n_lines - 1)] = f"{hz:,}"
    return labels


def _time_axis(duration_s: float, n_columns: int) -> tuple[str, str]:
    """Draw the axis below: marks at round numbers of seconds, and the seconds under them."""
    steps = (s * 10.0**p for p in range(-2, 5) for s in (1, 2, 5))
    step_s = next((step for step in steps if step / duration_s * n_columns >= 8), duration_s)
    marks, numbers = ["─"] * n_columns, ""
    for i in range(int(duration_s / step_s) + 1):
        column = min(round(i * step_s / duration_s * n_columns), n_columns - 1)
        marks[column] = "┬"
        number = f"{i * step_s:g}"
        if column + len(number) <= n_columns:
            numbers = numbers.ljust(column) + number
    return "".join(marks), numbers
