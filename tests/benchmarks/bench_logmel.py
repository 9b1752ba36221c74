"""Time log-mels of one clip on one thread: ours beside torchaudio's and lhotse's.

    python tests/benchmarks/bench_logmel.py

Each round runs every contender once, so that all meet the same load; the table gives the
fastest and the median round, and the ratio of medians to ours with the same kind of features.
Peers that are not installed are left out.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torchaudio

from melstream.pipeline.logmel import LogMel
from melstream.shards.spec import KALDI_FLOOR, PRESETS, FeatureSpec

CLIP_S = 10
N_ROUNDS = 300

HANN = PRESETS["conformer64"]
KALDI = FeatureSpec.model_validate({**PRESETS["kaldi128"].model_dump(), "n_mels": 64})

Contender = Callable[[], object]


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
    contenders: dict[str, Contender] = {
        "melstream kaldi, 64 bands": lambda: ours(waveform),
        "torchaudio kaldi.fbank": lambda: torchaudio.compliance.kaldi.fbank(
            tensor, num_mel_bins=64
        ),
    }
    if importlib.util.find_spec("lhotse"):
        from lhotse import Fbank, FbankConfig

        config = FbankConfig(
            num_mel_bins=64, high_freq=0, snip_edges=True, energy_floor=KALDI_FLOOR
        )
        fbank = Fbank(config)
        contenders["lhotse Fbank"] = lambda: fbank.extract(waveform, KALDI.sample_rate)
    return contenders


def measure(contenders: dict[str, Contender]) -> dict[str, list[float]]:
    """Return each contender's times, in milliseconds, sorted."""
    times_ms: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for _ in range(N_ROUNDS):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            times_ms[name].append(1e3 * (time.perf_counter() - start))
    return {name: sorted(values) for name, values in times_ms.items()}


def table() -> str:
    """Measure everything and return the table."""
    rng = np.random.default_rng(0)
    waveform = rng.uniform(-0.5, 0.5, CLIP_S * HANN.sample_rate).astype(np.float32)
    lines = [
        f"log-mel of {CLIP_S} s at {HANN.sample_rate} Hz, 64 bands, one thread, ms",
        f"{'':28}{'fastest':>9}{'median':>9}{'x ours':>9}",
    ]
    for contenders in (hann_contenders(waveform), kaldi_contenders(waveform)):
        measured = measure(contenders)
        ours_ms = statistics.median(next(iter(measured.values())))
        for name, times_ms in measured.items():
            median_ms = statistics.median(times_ms)
            lines.append(f"{name:28}{times_ms[0]:9.2f}{median_ms:9.2f}{median_ms / ours_ms:9.1f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(table())
