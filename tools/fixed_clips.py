"""Clips of one length, copied from a data set: what loaders are compared over."""

from dataclasses import replace

import numpy as np

from ..shards.dataset import Dataset, open_dataset
from ..shards.index import concatenate
from ..shards.rows import row_of
from ..shards.storage import Storage
from ..shards.writer import npy_bytes, write_shard
from .band_sums import BandSums
from .finish import common_fields, finish, new_place

N_SHARDS = 4  # so that loaders that read shards side by side can


def copy_clips(dataset: Dataset, storage: Storage, *, n_frames: int, max_clips: int) -> Dataset:
    """Copy the beginnings of the first clips that are long enough.

    Args:
        dataset: what to copy from.
        storage: where to; new or empty.
        n_frames: of every copy.
        max_clips: copied at most.

    Raises:
        ValueError: no clip is long enough.
        ShardError: a shard that is read is missing, short or altered.
    """
    rows = np.flatnonzero(dataset.index.n_frames >= n_frames)[:max_clips]
    if not len(rows):
        raise ValueError(f"no clip has {n_frames} frames; lower --crop-seconds")
    sums, writers = BandSums.zero(dataset.manifest.features.n_mels), []
    with new_place(storage):
        for number, part in enumerate(np.array_split(rows, min(N_SHARDS, len(rows)))):
            with write_shard(storage, f"clips-{number:06d}.tar") as writer:
                for row in part.tolist():
                    logmel = dataset.read_stored(row)[:n_frames]
                    payloads = {
                        "logmel": npy_bytes(logmel),
                        "json": dataset.read_member(row, "json") or b"{}",
                    }
                    writer.append(replace(row_of(dataset.index, row), n_frames=n_frames), payloads)
                    sums += BandSums.of(logmel, dataset.manifest.features)
            writers.append(writer)
        old = dataset.manifest
        manifest = {
            **common_fields(old.features, [writer.entry for writer in writers]),
            "label_names": old.label_names,
            "label_ids": old.label_ids,
            "split_names": old.split_names,
            "n_rejects": {},
            "build": old.build.model_copy(update={"corpus": f"clips of {old.build.corpus}"}),
        }
        finish(storage, concatenate([writer.index for writer in writers]), sums, manifest)
    return open_dataset(storage.url)
