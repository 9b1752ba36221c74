"""Our loader beside the others: a program that answers as ``peer_loaders`` does.

python -m melstream.tools.loader_contender masks FOLDER --cores 0
"""

import argparse
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from ..pipeline.loader import Loader, LoaderConfig
from ..pipeline.masks import MaskConfig
from ..pipeline.order import OrderConfig, TrainingOrder
from ..shards.dataset import Dataset, open_dataset
from .peer_loaders import answer, pin, take_stdout

KINDS = {
    "masks": "melstream, masks drawn",
    "plain": "melstream, no masks",
    "copies": "plain copies",
}


def loader_epoch(dataset: Dataset, batch_size: int, mask: MaskConfig | None) -> Callable[[], int]:
    """Return what runs the next epoch of our loader, shuffled and cropped as in training."""
    order = TrainingOrder(
        dataset.index, dataset.manifest.fingerprint, OrderConfig(global_batch_size=batch_size)
    )
    config = LoaderConfig(crop_frames=int(dataset.index.n_frames.min()), mask=mask)
    loader, epochs = Loader(dataset, order, config), count()

    def run() -> int:
        first_step = next(epochs) * order.steps_per_epoch
        batches = loader.batches(first_step, first_step + order.steps_per_epoch)
        return sum(len(batch.rows) for batch in batches)

    return run


def copies_epoch(dataset: Dataset, batch_size: int) -> Callable[[], int]:
    """Return what copies every clip once, in the order of training, into one batch."""
    index, manifest = dataset.index, dataset.manifest
    order = TrainingOrder(index, manifest.fingerprint, OrderConfig(global_batch_size=batch_size))
    rows = np.concatenate([order.rows(step) for step in range(order.steps_per_epoch)])
    n_bytes = int(index.n_frames.min()) * manifest.features.frame_bytes
    ends = (index.logmel_offset + index.logmel_size)[rows].tolist()
    shards = [dataset.shard_bytes(shard) for shard in range(len(manifest.shards))]
    clips = [shards[s][e - n_bytes : e] for s, e in zip(index.shard[rows], ends, strict=True)]
    batch = np.empty((batch_size, n_bytes), np.uint8)

    def run() -> int:
        for number, clip in enumerate(clips):
            batch[number % batch_size] = clip
        return len(clips)

    return run


def main() -> None:
    """Be one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cores", default="0")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    out = take_stdout()
    pin(options.cores)
    dataset = open_dataset(options.folder)
    if options.kind == "copies":
        epoch = copies_epoch(dataset, options.batch_size)
    else:
        mask = MaskConfig() if options.kind == "masks" else None
        epoch = loader_epoch(dataset, options.batch_size, mask)
    answer(out, epoch)


if __name__ == "__main__":
    main()
