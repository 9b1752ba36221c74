"""A program for tests: processes that share a cache folder while some of them are killed.

    python -I cache_worker.py <url> <folder> <local>

Prints how many processes were killed. Each process that ends has compared every array of
every epoch with the local copy of the data set.
"""

import ctypes
import multiprocessing
import signal
import sys
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np

from melstream.pipeline.shard_cache import CacheConfig
from melstream.pipeline.shard_source import Lease, ShardSource
from melstream.shards.dataset import open_dataset

N_PROCESSES, N_KILLS, N_EPOCHS, BATCH = 4, 12, 2, 2
PIECE_BYTES = 20_000  # and up to the size of a sample more
MEMORY_BYTES = 80_000  # leased by each process at most
MAX_BYTES = N_PROCESSES * MEMORY_BYTES  # under the size of the data set: there is much to remove
HANG_S = 60.0


def arrays_of(lease: Lease) -> list[bytes]:
    """Copy the arrays of a lease from where its addresses say they are."""
    return [
        ctypes.string_at(int(address), int(n_bytes)) if address else b""
        for address, n_bytes in zip(lease.addresses, lease.n_bytes, strict=True)
    ]


def read_epochs(
    url: str,
    folder: str,
    local: str,
    *,
    seed: int,
    goes_on: ctypes.c_bool,
    report: Connection | None = None,
) -> None:
    """Read all rows in random order, several times and for as long as the others are to go on.

    Args:
        url, local: a data set, and where its copy lies.
        folder: of the cache.
        seed: of the order.
        goes_on: in memory that the processes share.
        report: gets a byte before each step.
    """
    expected = open_dataset(local)
    config = CacheConfig(
        folder=Path(folder),
        max_bytes=MAX_BYTES,
        min_free_bytes=0,
        memory_bytes=MEMORY_BYTES,
        read_ahead_bytes=MEMORY_BYTES // 4,
        piece_bytes=PIECE_BYTES,
        n_parallel=2,
    )
    rng, n_epochs = np.random.default_rng(seed), 0
    with ShardSource(open_dataset(url), config) as source:
        while n_epochs < N_EPOCHS or goes_on.value:
            steps = np.array_split(rng.permutation(len(expected)), len(expected) // BATCH)
            source.read_ahead(steps)
            for step in steps:
                if report is not None:
                    report.send_bytes(b".")
                with source.acquire(step) as lease:
                    for row, found in zip(step, arrays_of(lease), strict=True):
                        assert found == expected.read_stored(int(row)).tobytes(), row
            n_epochs += 1


def main(url: str, folder: str, local: str) -> None:
    """Run the processes; kill one again and again, after one step more each time.

    The others read until the last one is killed; then one more starts, and all have to end.
    """
    # Nothing here has used the object store yet, so there are no threads to fork.
    context = multiprocessing.get_context("fork")
    goes_on = context.RawValue(ctypes.c_bool, True)  # has no lock that a killed process can hold

    def start(seed: int, report: Connection | None = None) -> ForkProcess:
        options = {"seed": seed, "goes_on": goes_on, "report": report}
        process = context.Process(target=read_epochs, args=(url, folder, local), kwargs=options)
        process.start()
        return process

    others = [start(seed) for seed in range(1, N_PROCESSES)]
    for n_steps in range(1, N_KILLS + 1):
        receiver, sender = context.Pipe(duplex=False)
        victim = start(0, sender)
        sender.close()
        for _ in range(n_steps):
            receiver.recv_bytes()
        assert all(process.is_alive() for process in others)
        victim.kill()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
    goes_on.value = False
    for process in [*others, start(0)]:
        process.join(HANG_S)
        assert process.exitcode == 0, process.exitcode
    sys.stdout.write(f"{N_KILLS}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
