"""``melstream build --retry-failed``: add what a finished data set lacks and can be had now.

Clips that are not in the index and have a file, whether they were missing, rejected or new, go
into further shards. Tars and index that are there stay as they are; a further index and, last,
the manifest take their place at once: the data set can be read as it was until then, and after a
kill the same command goes on.
"""

import dataclasses
import time
from collections.abc import Iterator

from ..shards.dataset import Dataset, open_dataset
from ..shards.errors import DatasetError
from ..shards.keys import stem_of_window, window_stem
from ..shards.manifest import Manifest
from ..shards.storage import Storage
from .build import BuildReport, Executor, done_shards, locked
from .build_assemble import REJECTS_NAME, Base, assemble, remove_leftovers
from .build_job import STAGING_NAME, Reject, make_job, read_record
from .build_plan import Plan, changed_options, make_plan
from .progress import Report

RETRY_NAME = f"{STAGING_NAME}/retry"  # says which retry the finished shards belong to


def retry_failed(plan: Plan, storage: Storage, run: Executor, report: Report) -> BuildReport:
    """Add what a finished data set lacks.

    Args:
        plan: of the whole corpus, as it is now.
        storage: the data set.
        run: builds the jobs.
        report: called with the number of clips done.

    Raises:
        DatasetError: no finished data set there, or one of another corpus or other settings.
        OSError: the disk is full or not writable; the data set is as it was.
    """
    start = time.monotonic()
    dataset = open_dataset(storage)
    old = dataset.manifest
    _require_same(plan, dataset)
    written = _written_stems(dataset)
    retry = _plan_retry(plan, written)
    if retry is None:
        remove_leftovers(storage, old)
        return BuildReport(storage.url, old, 0, (), time.monotonic() - start)
    with locked(storage, "retry"):
        _claim(retry, storage, old)
        prefix = old.shards[0].name.rpartition("-")[0]
        jobs = [
            make_job(retry, storage, prefix, shard, first=len(old.shards))
            for shard in range(retry.n_shards)
        ]
        done = done_shards(storage)
        for n_clips in run([job for job in jobs if job.number not in done]):
            report(n_clips, "clips")
        new = tuple(read_record(job) for job in jobs)
        tried = {clip.key for clip in retry.listing.clips}
        base = Base(dataset, tuple(_kept_rejects(storage, tried)))
        manifest, coverage = assemble(_with_written(plan, written), storage, jobs, base)
    return BuildReport(storage.url, manifest, 0, new, time.monotonic() - start, coverage)


def _require_same(plan: Plan, dataset: Dataset) -> None:
    """Check that the data set was built from this corpus with these settings."""
    manifest, listing = dataset.manifest, plan.listing
    changed = changed_options(plan, manifest)
    if listing.label_names != manifest.label_names:
        changed.append("other classes")
    if listing.splits != manifest.split_names:
        changed.append("other splits of the corpus")
    if changed:
        raise DatasetError(
            f"--retry-failed must have the options that {dataset.url} was built with, found "
            f"{', '.join(changed)}; repeat the options of the first build"
        )
    if plan.settings.limit is not None:
        raise DatasetError(f"{dataset.url} was built with --limit, to try things out; build anew")


def _written_stems(dataset: Dataset) -> set[str]:
    """Return what the keys of the clips in the data set start with: the keys, where not windows."""
    keys = (key.decode("ascii") for key in dataset.index.sample_keys().tolist())
    return set(keys if dataset.manifest.build.window_s is None else map(stem_of_window, keys))


def _is_written(key: str, plan: Plan, written: set[str]) -> bool:
    return (key if plan.settings.window_s is None else window_stem(key)) in written


def _plan_retry(plan: Plan, written: set[str]) -> Plan | None:
    """Plan the clips that are not in the data set and have a file; None where there are none."""
    clips = tuple(
        clip
        for clip in plan.listing.clips
        if clip.path is not None and not _is_written(clip.key, plan, written)
    )
    if not clips:
        return None
    return make_plan(dataclasses.replace(plan.listing, clips=clips), plan.settings)


def _with_written(plan: Plan, written: set[str]) -> Plan:
    """Count clips of the data set as found, also where their file is gone by now."""
    clips = tuple(
        dataclasses.replace(clip, path=clip.source)
        if clip.path is None and _is_written(clip.key, plan, written)
        else clip
        for clip in plan.listing.clips
    )
    return dataclasses.replace(plan, listing=dataclasses.replace(plan.listing, clips=clips))


def _kept_rejects(storage: Storage, tried: set[str]) -> Iterator[Reject]:
    """Read the rejects that are not tried again; what is missing follows from the listing."""
    for line in storage.read(REJECTS_NAME).splitlines():
        found = Reject.model_validate_json(line)
        if found.reason != "missing" and found.key not in tried:
            yield found


def _claim(retry: Plan, storage: Storage, old: Manifest) -> None:
    """Drop the shards of an interrupted retry whose files have changed since."""
    claim = f"{retry.hash} {old.fingerprint}".encode()
    if storage.size(RETRY_NAME) is None or storage.read(RETRY_NAME) != claim:
        remove_leftovers(storage, old)
        storage.write(RETRY_NAME, claim)
