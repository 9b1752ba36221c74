"""``melstream build --retry-failed``: add what a finished data set lacks and can be had now.

Clips that are not in the index and have a file, whether they were missing, rejected or new, go
into further shards, as do windows that a recording lacks because its file was broken. Tars and
index that are there stay as they are; a further index and, last, the manifest take their place at
once: the data set can be read as it was until then, and after a kill the same command goes on.
"""

import dataclasses
import time

from ..shards.dataset import Dataset, open_dataset
from ..shards.errors import DatasetError
from ..shards.keys import stem_of_window
from ..shards.manifest import RETRY_NAME, Manifest
from ..shards.storage import Storage
from .build import BuildReport, Executor, done_shards, locked
from .build_assemble import Base, assemble, publish, remove_leftovers
from .build_job import Reject, ShardJob, make_job, read_record
from .build_plan import Plan, changed_options, make_plan
from .build_written import Written
from .progress import Report


def retry_failed(plan: Plan, storage: Storage, run: Executor, report: Report) -> BuildReport:
    """Add what a finished data set lacks.

    Args:
        plan: of the whole corpus, as it is now.
        storage: the data set.
        run: builds the jobs.
        report: called with the number of clips done.

    Raises:
        DatasetError: no finished data set there, or one of another corpus, other settings or
            other labels.
        OSError: the disk is full or not writable; the data set is as it was.
    """
    start = time.monotonic()
    dataset = open_dataset(storage)
    old = dataset.manifest
    publish(storage, old)
    _require_same(plan, dataset)
    written = Written.of(dataset)
    listing = written.with_known_keys(plan.listing)
    written.require_same_labels(listing)
    plan = dataclasses.replace(plan, listing=listing)
    retry = _plan_retry(plan, written)
    if retry is None:
        remove_leftovers(storage, old)
        return BuildReport(storage.url, old, 0, (), time.monotonic() - start)
    with locked(storage, "retry"):
        _claim(retry, storage, old)
        jobs = _make_jobs(retry, written)
        done = done_shards(storage)
        for n_clips in run([job for job in jobs if job.number not in done]):
            report(n_clips, "clips")
        new = tuple(read_record(job) for job in jobs)
        base = Base(dataset, _kept_rejects(plan, retry, written))
        listing = written.whole_listing(plan.listing, base.rejects)
        whole = dataclasses.replace(plan, listing=listing)
        manifest, coverage = assemble(whole, storage, jobs, base)
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


def _plan_retry(plan: Plan, written: Written) -> Plan | None:
    """Plan what has a file and is not, or not whole, in the data set; None where there is none."""
    broken = written.broken_stems()
    clips = tuple(
        clip
        for clip in plan.listing.clips
        if clip.path is not None and (not written.has(clip) or written.stem(clip) in broken)
    )
    if not clips:
        return None
    return make_plan(dataclasses.replace(plan.listing, clips=clips), plan.settings)


def _make_jobs(retry: Plan, written: Written) -> list[ShardJob]:
    old, storage = written.dataset.manifest, written.dataset.storage
    prefix = old.shards[0].name.rpartition("-")[0]
    windows = written.windows(set(map(written.stem, retry.listing.clips)))
    return [
        make_job(retry, storage, prefix, shard, first=len(old.shards), written=windows)
        for shard in range(retry.n_shards)
    ]


def _kept_rejects(plan: Plan, retry: Plan, written: Written) -> tuple[Reject, ...]:
    """Return the rejects of clips that are not tried again, nor listed as missing now."""
    replaced = {clip.key for clip in plan.listing.clips if not written.has(clip)}
    tried = set(map(written.stem, retry.listing.clips))
    return tuple(
        found
        for found in written.rejects
        if found.key not in replaced
        and not (written.is_window(found) and stem_of_window(found.key) in tried)
    )


def _claim(retry: Plan, storage: Storage, old: Manifest) -> None:
    """Drop the shards of an interrupted retry whose files have changed since."""
    claim = f"{retry.hash} {old.fingerprint}".encode()
    if storage.size(RETRY_NAME) is None or storage.read(RETRY_NAME) != claim:
        remove_leftovers(storage, old)
        storage.write(RETRY_NAME, claim)
