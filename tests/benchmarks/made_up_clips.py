"""A data set of clips of 10 s, made up: what the benchmarks of the loader read."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.index import concatenate
from melstream.shards.manifest import BuildSettings
from melstream.shards.spec import PRESETS
from melstream.shards.storage import Storage
from melstream.shards.writer import Sample, SampleInfo, ShardWriter, write_shard
from melstream.tools.band_sums import BandSums
from melstream.tools.finish import common_fields, finish, new_place

SPEC = PRESETS["conformer64"]
CLIP_FRAMES = 1_000  # 10 s; 128,000 bytes of 64 bands in float16
SHARD_SAMPLES = 2_000
N_CLASSES = 527


def write_clips(storage: Storage, n_clips: int, shard_samples: int = SHARD_SAMPLES) -> Dataset:
    """Write noise that looks like log-mels; the same clips each time."""
    bounds = [*range(0, n_clips, shard_samples), n_clips]
    noise = np.random.default_rng(0).normal(-8, 3, (CLIP_FRAMES, SPEC.n_mels)).astype(np.float16)
    writers = []
    with new_place(storage):
        for number, (first, end) in enumerate(pairwise(bounds)):
            with write_shard(storage, f"train-{number:06d}.tar") as writer:
                for clip in range(first, end):
                    writer.write(_sample(clip, np.roll(noise, 13 * clip, axis=0)))
            writers.append(writer)
        _finish(storage, writers, noise)
    return open_dataset(storage.url)


def _finish(storage: Storage, writers: Sequence[ShardWriter], noise: np.ndarray) -> None:
    build = BuildSettings(
        corpus="made-up clips",
        plan_hash="0" * 16,
        min_duration_s=0.0,
        max_shard_samples=SHARD_SAMPLES,
        max_shard_bytes=2**28,
    )
    manifest = {
        **common_fields(SPEC, [writer.entry for writer in writers]),
        "label_names": tuple(f"class {number:03d}" for number in range(N_CLASSES)),
        "label_ids": None,
        "n_rejects": {},
        "build": build,
    }
    index = concatenate([writer.index for writer in writers])
    finish(storage, index, BandSums.of(noise, SPEC), manifest)


def _sample(number: int, logmel: np.ndarray) -> Sample:
    labels = (number % (N_CLASSES - 1), N_CLASSES - 1)
    info = SampleInfo(
        labels=tuple(f"class {label:03d}" for label in labels),
        source=f"somewhere/{number}.flac",
        start_s=None,
        duration_s=CLIP_FRAMES / SPEC.frame_rate_hz,
        sample_rate=44_100,
        n_channels=1,
        peak=0.5,
        rms_dbfs=-20.0,
        clipped_share=0.0,
        silence_share=0.0,
        dc_offset=0.0,
        bandwidth_hz=8_000.0,
        audio_hash=f"{number:016x}",
    )
    return Sample(key=f"clip-{number:07d}", logmel=logmel, label_ids=labels, info=info)
