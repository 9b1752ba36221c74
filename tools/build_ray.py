"""Build shards on a Ray cluster: one task per shard, each safe to run again.

The data set must lie where every node can write it: an object store or a shared disk, as must
the audio files. A task whose node dies is run again on another, by Ray; the shard that it was
writing has a temporary name, or is not visible.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from ..shards.errors import MelstreamError
from ..shards.storage import LocalStorage
from .build_job import ShardJob
from .build_workers import run_jobs

MAX_RETRIES = 5  # of a task whose node or process died
POLL_S = 0.5


def run_on_ray(jobs: Sequence[ShardJob]) -> Iterator[int]:
    """Build every job on the cluster and yield, now and then, how many clips are done.

    Joins the cluster that ``RAY_ADDRESS`` names or that runs on this machine.

    Raises:
        MelstreamError: Ray is not installed, no cluster answers, or a task was given up.
        OSError: the disk is full or not writable.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise MelstreamError("`--executor ray` needs Ray: pip install 'melstream[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError as error:
            raise MelstreamError(
                "found no Ray cluster; start one with 'ray start --head', or set RAY_ADDRESS"
            ) from error
    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_build)
    pending = {task.remote(_anywhere(job)): len(job.clips) for job in jobs}
    n_done = 0
    while pending:
        finished, _ = ray.wait(list(pending), timeout=POLL_S)
        for reference in finished:
            try:
                ray.get(reference)
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                raise MelstreamError(
                    f"Ray gave a shard up ({type(error).__name__}); the same command goes on from "
                    "the last finished shard"
                ) from error
            n_done += pending.pop(reference)
        yield n_done


def _anywhere(job: ShardJob) -> ShardJob:
    """Make the paths of a job absolute: a task runs in a folder of its own."""
    storage = job.storage
    if storage.folder is not None:
        storage = LocalStorage(storage.folder.absolute())
    return dataclasses.replace(job, root=job.root.absolute(), storage=storage)


def _build(job: ShardJob) -> None:
    """Build one shard, in a process of its own: a decoder that crashes costs only its file."""
    for _ in run_jobs([job], 1):
        pass
