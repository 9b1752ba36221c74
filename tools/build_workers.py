"""Run the jobs of a build over processes that never outlive it.

Workers are spawned, ignore Ctrl-C (it is the parent's to handle) and watch their parent:
when it is gone, killed without a chance to say so, they end at once.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_sentinel
from typing import Any

from threadpoolctl import threadpool_limits

from ..shards.errors import MelstreamError
from .build_shard import ShardJob, build_shard

POLL_S = 0.2


def run_jobs(jobs: Sequence[ShardJob], n_jobs: int) -> Iterator[int]:
    """Build every job and yield, now and then, how many clips are done.

    Args:
        jobs: one per shard.
        n_jobs: processes; with one, or one job, everything happens in this process.

    Raises:
        MelstreamError: a worker process died.
        OSError: the disk is full or not writable.
    """
    n_jobs = min(n_jobs, len(jobs))
    return _run_here(jobs) if n_jobs <= 1 else _run_in_workers(jobs, n_jobs)


def _run_here(jobs: Sequence[ShardJob]) -> Iterator[int]:
    n_done = 0
    for job in jobs:
        build_shard(job, lambda: None)
        n_done += len(job.clips)
        yield n_done


def _run_in_workers(jobs: Sequence[ShardJob], n_jobs: int) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(n_jobs, context, initializer=_start_worker, initargs=(counter,))
    try:
        pending: set[Future[None]] = {pool.submit(_work, job) for job in jobs}
        while pending:
            done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            yield counter.value
    except BrokenProcessPool as error:
        raise MelstreamError(
            "a worker process died, perhaps for want of memory; the same command goes on from the "
            "last finished shard, try it with fewer --jobs"
        ) from error
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.kill()  # what it was writing has a temporary name
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_counter: Any = None  # clips done, shared by the worker processes; set once when one starts


def _start_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threadpool_limits(1)  # one process per core: BLAS threads would only fight


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_sentinel([parent.sentinel])
    os._exit(1)


def _work(job: ShardJob) -> None:
    build_shard(job, _count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1
