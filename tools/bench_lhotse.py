"""The peer of a build: lhotse's ``compute_and_store_features``, as its documentation shows it."""

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def lhotse_seconds(
    paths: Sequence[Path],
    folder: Path,
    *,
    window_s: float,
    sample_rate: int,
    n_mels: int,
    n_jobs: int,
) -> float:
    """Time the log-mels of the same windows, stored as lhotse stores them by default.

    Args:
        paths: files that lhotse reads.
        folder: an empty place for its archives.
        window_s: duration of a window, in seconds.
        sample_rate: wanted, in Hz.
        n_mels: bands.
        n_jobs: processes.

    Returns:
        seconds from manifest to archives: neither imports nor the making of the manifest.
    """
    import torch
    from lhotse import (
        CutSet,
        Fbank,
        FbankConfig,
        LilcomChunkyWriter,
        NumpyFilesWriter,
        Recording,
    )

    recordings = [Recording.from_file(path, recording_id=str(n)) for n, path in enumerate(paths)]
    has_lilcom = importlib.util.find_spec("lilcom") is not None  # its default, not a requirement
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so its documentation: processes do the work
    try:
        start = time.perf_counter()
        windows = CutSet.from_cuts(r.to_cut() for r in recordings).cut_into_windows(window_s)
        resampled: Any = windows.resample(sample_rate)  # lhotse's types know no iteration
        mono = (  # the first channel: to mix two, lhotse decodes the file twice
            cut.to_mono()[0] if cut.num_channels > 1 else cut for cut in resampled
        )
        CutSet.from_cuts(mono).compute_and_store_features(
            extractor=Fbank(FbankConfig(sampling_rate=sample_rate, num_mel_bins=n_mels)),
            storage_path=folder / "features",
            storage_type=LilcomChunkyWriter if has_lilcom else NumpyFilesWriter,
            num_jobs=n_jobs,
        )
        return time.perf_counter() - start
    finally:
        torch.set_num_threads(n_threads)
