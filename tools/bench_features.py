"""``melstream bench features``: log-mels on one thread, beside torchaudio's and lhotse's.

Each round runs every contender once, so that all meet the same load.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchaudio
from lhotse import Fbank, FbankConfig
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from ..pipeline.logmel import LogMel
from ..shards.spec import KALDI_FLOOR, PRESETS, FeatureSpec

CLIP_S = 10

HANN = PRESETS["conformer64"]
KALDI = FeatureSpec.model_validate({**PRESETS["kaldi128"].model_dump(), "n_mels": 64})

Contender = Callable[[], object]


@dataclass(frozen=True, slots=True)
class FeatureTimes:
    """What one contender took.

    Args:
        name: of the contender.
        fastest_ms, median_ms: of all rounds, in milliseconds.
        x_ours: its median over that of ours with the same kind of features.
    """

    name: str
    fastest_ms: float
    median_ms: float
    x_ours: float

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def bench_features(n_rounds: int) -> list[FeatureTimes]:
    """Time every contender, on one thread; ours comes first of each kind of features."""
    rng = np.random.default_rng(0)
    waveform = rng.uniform(-0.5, 0.5, CLIP_S * HANN.sample_rate).astype(np.float32)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            kinds = (hann_contenders(waveform), kaldi_contenders(waveform))
            return [found for kind in kinds for found in _compare(kind, n_rounds)]
    finally:
        torch.set_num_threads(n_threads)


def print_times(found: list[FeatureTimes], console: Console) -> None:
    """Print the table."""
    title = f"log-mel of {CLIP_S} s at {HANN.sample_rate} Hz, 64 bands, one thread, ms"
    console.print(title, highlight=False)
    table = Table(box=None, pad_edge=False)
    for head in ("", "fastest", "median", "x ours"):
        table.add_column(head, justify="right" if head else "left")
    for times in found:
        figures = f"{times.fastest_ms:.2f}", f"{times.median_ms:.2f}", f"{times.x_ours:.1f}"
        table.add_row(times.name, *figures)
    console.print(table)


def hann_contenders(waveform: npt.NDArray[np.float32]) -> dict[str, Contender]:
    """Return what makes log-mels like ``conformer64``'s; ours first."""
    ours = LogMel(HANN)
    theirs = torchaudio.transforms.MelSpectrogram(
        HANN.sample_rate, HANN.n_fft, HANN.win_length, HANN.hop_length,
        f_min=HANN.fmin, f_max=HANN.fmax, n_mels=HANN.n_mels, pad_mode="constant",
    )  # fmt: skip
    tensor = torch.from_numpy(waveform)
    return {
        "melstream conformer64": lambda: ours(waveform),
        "torchaudio MelSpectrogram": lambda: theirs(tensor).clamp_min(HANN.log_floor).log(),
    }


def kaldi_contenders(waveform: npt.NDArray[np.float32]) -> dict[str, Contender]:
    """Return what makes log-mels like ``kaldi128``'s, with 64 bands; ours first."""
    ours = LogMel(KALDI)
    tensor = torch.from_numpy(waveform)[None]
    config = FbankConfig(num_mel_bins=64, high_freq=0, snip_edges=True, energy_floor=KALDI_FLOOR)
    fbank = Fbank(config)
    return {
        "melstream kaldi, 64 bands": lambda: ours(waveform),
        "torchaudio kaldi.fbank": lambda: torchaudio.compliance.kaldi.fbank(
            tensor, num_mel_bins=64
        ),
        "lhotse Fbank": lambda: fbank.extract(waveform, KALDI.sample_rate),
    }


def _compare(contenders: dict[str, Contender], n_rounds: int) -> list[FeatureTimes]:
    times_ms: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()  # compiles
    for _ in range(n_rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            times_ms[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times_ms.items()}
    ours_ms = next(iter(medians.values()))
    return [
        FeatureTimes(name, min(times_ms[name]), median_ms, median_ms / ours_ms)
        for name, median_ms in medians.items()
    ]
