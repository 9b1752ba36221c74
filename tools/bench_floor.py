"""What no build can do without: decoding and resampling, and nothing else.

Light on purpose: a worker process that imports this loads libsndfile and soxr only.
"""

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import soundfile
import soxr


def floor_seconds(
    paths: Sequence[Path], *, window_s: float, sample_rate: int, n_jobs: int
) -> float:
    """Time decoding with libsndfile and resampling with soxr HQ, over as many processes.

    Args:
        paths: files that libsndfile reads.
        window_s: so much at a time, in seconds.
        sample_rate: wanted, in Hz.
        n_jobs: processes.

    Returns:
        seconds, the start of the processes included.
    """
    start = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_jobs, mp_context=spawn) as pool:
        jobs = [pool.submit(read_and_resample, path, window_s, sample_rate) for path in paths]
        for job in jobs:
            job.result()
    return time.perf_counter() - start


def read_and_resample(path: Path, window_s: float, sample_rate: int) -> int:
    """Decode a file window by window, mix each to mono and resample it; return the samples."""
    n_samples = 0
    with soundfile.SoundFile(path) as sound:
        size = max(1, round(window_s * sound.samplerate))
        while len(block := sound.read(size, dtype="float32", always_2d=True)):
            mono = sum(block.T[1:], start=block[:, 0]) / block.shape[1]
            n_samples += len(soxr.resample(mono, sound.samplerate, sample_rate, quality="HQ"))
    return n_samples
