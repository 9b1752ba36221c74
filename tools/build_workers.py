"""Run the jobs of a build over processes that never outlive it.

Workers are spawned, ignore Ctrl-C (it is the parent's to handle) and watch their parent:
when it is gone, killed without a chance to say so, they end at once. A worker whose decoder
crashes (a segmentation fault in a C library, say) or comes to no end costs the file it was
reading: the shard is built again without it, by a new worker.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from threadpoolctl import threadpool_limits

from ..shards.errors import MelstreamError
from .build_job import ShardJob
from .build_shard import build_shard

POLL_S = 0.2
STALL_S = 900.0  # without a sign of life from a worker: its decoder hangs
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
"""How a process dies of its own code; SIGKILL comes from outside, from want of memory too."""


def run_jobs(jobs: Sequence[ShardJob], n_jobs: int) -> Iterator[int]:
    """Build every job and yield, now and then, how many clips are done.

    Args:
        jobs: one per shard.
        n_jobs: processes; 0 = in this one.

    Raises:
        MelstreamError: a worker process was killed.
        OSError: the disk is full or not writable.
    """
    return _run_in_workers(jobs, min(n_jobs, len(jobs))) if n_jobs else run_here(jobs)


def run_here(jobs: Sequence[ShardJob]) -> Iterator[int]:
    """Build every job in this process; a crash of a decoder ends it."""
    n_done = 0
    for job in jobs:
        build_shard(job, lambda place: None)
        n_done += len(job.clips)
        yield n_done


def _run_in_workers(jobs: Sequence[ShardJob], n_jobs: int) -> Iterator[int]:
    queue = deque(jobs)
    workers = {worker.connection: worker for worker in (_Worker() for _ in range(n_jobs))}
    idle, n_done = list(workers), 0
    try:
        while queue or len(idle) < len(workers):
            while queue and idle:
                workers[idle.pop()].start(queue.popleft())
            for connection in wait(set(workers) - set(idle), timeout=POLL_S):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                try:
                    worker.finish()
                except EOFError:
                    queue.append(worker.job_without_crash())
                    del workers[connection]
                    worker = _Worker()
                    workers[worker.connection] = worker
                else:
                    n_done += len(worker.job.clips)
                idle.append(worker.connection)
            for connection in set(workers) - set(idle):
                workers[connection].kill_if_stalled()
            yield n_done + sum(max(0, workers[c].place) for c in set(workers) - set(idle))
    finally:
        for worker in workers.values():
            worker.end()


class _Worker:
    """A process that builds one shard after the other."""

    job: ShardJob

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._place = context.Value("q", -1, lock=False)  # of the clip it is at
        self._beat = context.Value("q", 0, lock=False)  # signs of life
        self._seen, self._seen_at = 0, time.monotonic()
        self._has_stalled = False
        self._process: SpawnProcess = context.Process(
            target=_work, args=(theirs, self._place, self._beat), daemon=True
        )
        self._process.start()
        theirs.close()  # so that its death is the end of the pipe

    @property
    def place(self) -> int:
        """Place in the job of the clip it is at; -1 before the first."""
        return self._place.value

    def start(self, job: ShardJob) -> None:
        self.job = job
        self._place.value = -1
        self._seen_at = time.monotonic()
        # A worker that died before it could listen is seen when its answer is awaited.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(job)

    def finish(self) -> None:
        """Take the answer.

        Raises:
            EOFError: the process died.
            Exception: what ended the job.
        """
        try:
            error = self.connection.recv()
        except ConnectionResetError as reset:
            raise EOFError from reset
        if error is not None:
            raise error

    def job_without_crash(self) -> ShardJob:
        """Return the job of a process that died, without the file it died of.

        Raises:
            MelstreamError: it did not die of its own code.
        """
        self._process.join()
        code = self._process.exitcode
        has_crashed = self._has_stalled or (code is not None and -code in CRASHES)
        if not has_crashed or self.place < 0:
            raise MelstreamError(
                f"a worker process was killed (exit code {code}), perhaps for want of memory; the "
                "same command goes on from the last finished shard, try it with fewer --jobs"
            )
        return dataclasses.replace(self.job, crashed=(*self.job.crashed, self.place))

    def kill_if_stalled(self) -> None:
        """End the process if its decoder hangs; it is seen as crashed then."""
        if self._beat.value != self._seen:
            self._seen, self._seen_at = self._beat.value, time.monotonic()
        if self.place >= 0 and time.monotonic() - self._seen_at > STALL_S:
            self._has_stalled = True
            self._process.kill()

    def end(self) -> None:
        """Stop the process; what it was writing has a temporary name."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _work(connection: Connection, place: Any, beat: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def at_clip(number: int) -> None:
        place.value = number
        beat.value += 1

    with threadpool_limits(1):  # one process per core: BLAS threads would only fight
        while True:
            job: ShardJob = connection.recv()
            try:
                build_shard(job, at_clip)
            except Exception as error:
                connection.send(error)
            else:
                connection.send(None)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
