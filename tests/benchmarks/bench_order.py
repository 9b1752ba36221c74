"""Simulate the order of two million samples on 1,024 ranks, and time it.

    python tests/benchmarks/bench_order.py

For each kind of order: time and memory to open it, time per global batch over an epoch, and,
rank by rank over an epoch, that steps are equal, that each sample is served as often as it
has to be, and how many bytes a rank fetches beside its share. A rank fetches blocks of 1 MiB
of the shards, each block once; its share is the bytes of the samples it serves.
"""

import argparse
import resource
import time
import tracemalloc

import numpy as np
import numpy.typing as npt
from rich.console import Console

from melstream.pipeline.length_order import LengthConfig, LengthOrder, padded_share
from melstream.pipeline.mixture import MixtureOrder
from melstream.pipeline.order import Order, OrderConfig, TrainingOrder
from melstream.pipeline.weights import (
    WeightConfig,
    epoch_counts,
    expected_counts,
    sample_weights,
)
from melstream.shards.index import Index

FRAME_BYTES = 128  # of 64 bands in float16
CLIP_BYTES = 1_000 * FRAME_BYTES  # 10 s
SHARD_SAMPLES = 2_000
BLOCK_BYTES = 2**20
N_CLASSES = 527
MS = 1e3


def make_index(n_samples: int) -> Index:
    """Return the columns that an order reads; two labels a clip, class counts as 1 / rank."""
    rng = np.random.default_rng(0)
    size = rng.integers(CLIP_BYTES // 2, CLIP_BYTES, n_samples)
    shard = (np.arange(n_samples) // SHARD_SAMPLES).astype(np.int32)
    end = np.cumsum(size)
    first = np.searchsorted(shard, np.arange(shard[-1] + 1))
    offset = end - size - (end - size)[first][shard]
    share = 1 / np.arange(1, N_CLASSES + 1)
    labels = rng.choice(N_CLASSES, 2 * n_samples, p=share / share.sum())
    return Index(
        {
            "shard": shard,
            "n_frames": (size // FRAME_BYTES).astype(np.int32),
            "logmel_offset": offset,
            "logmel_size": size,
            "json_size": np.zeros(n_samples, np.int64),
            "label_indptr": np.arange(0, 2 * n_samples + 1, 2),
            "label_ids": labels.astype(np.int32),
        }
    )


def open_order(index: Index, kind: str, config: OrderConfig) -> Order:
    """Return one of the orders that are compared."""
    if kind == "plain":
        return TrainingOrder(index, "f", config)
    if kind == "weighted":
        weighted = config.model_copy(update={"weights": WeightConfig(max_repeats=20)})
        return TrainingOrder(index, "f", weighted)
    if kind == "by length":
        return LengthOrder(index, "f", by_length(config))
    part = TrainingOrder(index, "f", config)
    return MixtureOrder([part, TrainingOrder(index, "g", config)], [0.7, 0.3])


def by_length(config: OrderConfig) -> LengthConfig:
    """Return an order by length of as many streams, whose steps hold about as many samples."""
    return LengthConfig(
        global_batch_frames=config.global_batch_size * CLIP_BYTES // FRAME_BYTES,
        n_lanes=min(config.n_streams, config.global_batch_size // 8),
        n_streams=config.n_streams,
        shuffle_bytes=config.shuffle_bytes,
    )


def time_batches(index: Index, kind: str, config: OrderConfig) -> str:
    """Open an order and draw every global batch of one epoch."""
    open_order(index, kind, config).rows(0)  # compiles
    tracemalloc.start()
    open_order(index, kind, config)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    start = time.perf_counter()
    order = open_order(index, kind, config)
    opened = time.perf_counter()
    order.rows(0)
    drawn = time.perf_counter()
    for step in range(1, order.steps_per_epoch):
        order.rows(step)
    end = time.perf_counter()
    return (
        f"open {MS * (opened - start):5.0f} ms, {kept / 1e6:4.0f} MB kept, {peak / 1e6:4.0f} MB "
        f"peak; first batch {MS * (drawn - opened):4.0f} ms; "
        f"{MS * (end - opened) / order.steps_per_epoch:6.3f} ms/batch over an epoch"
    )


def simulate_ranks(
    index: Index, order: Order, n_ranks: int, *, every: int
) -> tuple[str, npt.NDArray[np.int64]]:
    """Walk ranks through an epoch; also return how often each row was served."""
    n_served = np.zeros(len(index), np.int64)
    ratios, steps, start = [], set(), time.perf_counter()
    for rank in range(0, n_ranks, every):
        place = {"rank": rank, "world_size": n_ranks}
        batches = [order.rows(step, **place) for step in range(order.steps_per_epoch)]
        sources = [order.sources(step, **place) for step in range(order.steps_per_epoch)]
        steps.add(tuple(len(batch) for batch in batches))
        rows, source = np.concatenate(batches), np.concatenate(sources)
        n_served += np.bincount(rows, minlength=len(index))
        fetched = sum(fetched_bytes(index, rows[source == s]) for s in np.unique(source))
        ratios.append(fetched / index.logmel_size[rows].sum())
    assert len(steps) == 1, "ranks differ in steps, or in the samples of a step"
    in_step = steps.pop()
    n_steps, n_samples = len(in_step), sum(in_step)
    report = (
        f"{len(ratios)} of {n_ranks} ranks x {n_steps} steps, {n_samples} samples each; "
        f"bytes fetched / share: mean {np.mean(ratios):.3f}, most {np.max(ratios):.3f}; "
        f"{time.perf_counter() - start:.1f} s"
    )
    return report, n_served


def fetched_bytes(index: Index, rows: npt.NDArray[np.int64]) -> int:
    """Return the bytes of the distinct blocks that hold some rows."""
    rows = np.unique(rows)
    first = index.logmel_offset[rows] // BLOCK_BYTES
    last = (index.logmel_offset[rows] + index.logmel_size[rows] - 1) // BLOCK_BYTES
    shard = index.shard[rows].astype(np.int64) << 32
    blocks = [(shard + first)] + [
        (shard + first + n)[first + n <= last] for n in range(1, int((last - first).max()) + 1)
    ]
    return len(np.unique(np.concatenate(blocks))) * BLOCK_BYTES


def wanted_counts(index: Index, kind: str, seed: int) -> npt.NDArray[np.int64]:
    """Return how often each row has to be served in the first epoch, but for the tail."""
    if kind in ("plain", "by length"):
        return np.ones(len(index), np.int64)
    expected = expected_counts(sample_weights(index, WeightConfig()), max_repeats=20)
    return epoch_counts(expected, seed=seed, epoch=0)


def main() -> None:
    """Print one block per kind of order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2_000_000)
    parser.add_argument("--ranks", type=int, default=1_024)
    args = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    index = make_index(args.samples)
    one_node = OrderConfig(global_batch_size=512, n_streams=64)
    many = OrderConfig(global_batch_size=8 * args.ranks, n_streams=args.ranks, shuffle_bytes=2**32)
    for kind in ("plain", "weighted", "mixture", "by length"):
        console.print(f"{kind}\n  batch 512: {time_batches(index, kind, one_node)}")
        console.print(f"  batch {many.global_batch_size}: {time_batches(index, kind, many)}")
        every = 16 if kind == "mixture" else 1
        order = open_order(index, kind, many)
        report, n_served = simulate_ranks(index, order, args.ranks, every=every)
        console.print(f"  {report}")
        if kind != "mixture":
            more = n_served - wanted_counts(index, kind, many.seed)
            console.print(
                f"  {n_served.sum()} served, of the epoch's {(n_served - more).sum()}: "
                f"{-more[more < 0].sum()} left out at the tail, {more[more > 0].sum()} repeated"
            )
        if kind in ("plain", "by length"):
            for config in (one_node, many):
                share = padded_share(open_order(index, kind, config), index.n_frames)
                console.print(f"  padded, batch {config.global_batch_size}: {share:.1%}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    console.print(f"peak of the process: {peak / 1e3:.0f} MB, index and simulation included")


if __name__ == "__main__":
    main()
