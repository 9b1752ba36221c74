"""A program for tests: processes that share a cache folder while some of them are killed.

    python -I cache_worker.py <url> <folder> <local>

Prints how many processes were killed. Each process that ends has compared every array of
every epoch with the local copy of the data set.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from melstream.pipeline.shard_cache import CacheConfig
from melstream.pipeline.shard_source import Lease, ShardSource
from melstream.shards.dataset import open_dataset

N_PROCESSES, N_KILLS, N_EPOCHS, BATCH = 4, 12, 4, 2
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


def read_epochs(url: str, folder: str, local: str, seed: int, report: Connection) -> None:
    """Read all rows in random order, several times; report each step before it is read."""
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
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.permutation(len(expected)) for _ in range(N_EPOCHS)])
    steps = np.array_split(rows, len(rows) // BATCH)
    with ShardSource(open_dataset(url), config) as source:
        source.read_ahead(steps)
        for step in steps:
            report.send_bytes(b".")
            with source.acquire(step) as lease:
                for row, found in zip(step, arrays_of(lease), strict=True):
                    assert found == expected.read_stored(int(row)).tobytes(), row


def main(url: str, folder: str, local: str) -> None:
    """Run the processes; kill the first one again and again, after one step more each time."""
    # Nothing here has used the object store yet, so there are no threads to fork.
    context = multiprocessing.get_context("fork")

    def start(seed: int) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=read_epochs, args=(url, folder, local, seed, sender))
        process.start()
        sender.close()
        return process, receiver

    others = [start(seed) for seed in range(1, N_PROCESSES)]
    for n_steps in range(1, N_KILLS + 1):
        process, reports = start(0)
        for _ in range(n_steps):
            reports.recv_bytes()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    for process, _ in [*others, start(0)]:
        process.join(HANG_S)
        assert process.exitcode == 0, process.exitcode
    sys.stdout.write(f"{N_KILLS}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
