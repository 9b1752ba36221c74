"""``melstream build --retry-failed``: try again what a finished data set lacks.

Clips that were missing or rejected and have a file now go into further shards. The tars that
are there stay as they are, and until index and manifest are replaced at the end the data set
can be read as it was. Interrupted, it goes on with the same command.
"""

import dataclasses
import time

from ..shards.errors import DatasetError
from ..shards.index import INDEX_NAME, read_index
from ..shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from ..shards.storage import Storage, open_storage
from .build import BuildReport, Executor, done_shards, locked
from .build_assemble import REJECTS_NAME, Base, assemble
from .build_job import STAGING_NAME, Reject, make_job, read_record
from .build_plan import Plan, make_plan
from .progress import Report

OLD_NAME = f"{STAGING_NAME}/old"  # the tables as they were, while new ones are written
RETRY_NAME = f"{STAGING_NAME}/retry"  # says which retry the finished shards belong to


def retry_failed(plan: Plan, storage: Storage, run: Executor, report: Report) -> BuildReport:
    """Add what was missing or rejected, and can be had now, to a finished data set.

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
    old = _old_tables(storage)
    manifest = read_manifest(old)
    _require_same(plan, manifest, storage.url)
    rejects = [Reject.model_validate_json(line) for line in old.read(REJECTS_NAME).splitlines()]
    retry = _plan_retry(plan, rejects)
    if retry is None:
        return BuildReport(storage.url, manifest, 0, (), time.monotonic() - start)
    with locked(storage, "retry"):
        _claim(retry, storage, manifest)
        prefix = manifest.shards[0].name.rpartition("-")[0]
        jobs = [
            make_job(retry, storage, prefix, shard, first=len(manifest.shards))
            for shard in range(retry.n_shards)
        ]
        done = done_shards(storage)
        for n_clips in run([job for job in jobs if job.number not in done]):
            report(n_clips, "clips")
        new = tuple(read_record(job) for job in jobs)
        old = _move_tables(storage)
        tried = {clip.key for clip in retry.listing.clips}
        kept = tuple(reject for reject in rejects if reject.key not in tried)
        index = read_index(old, n_samples=manifest.n_samples)
        manifest, coverage = assemble(plan, storage, jobs, Base(manifest, index, kept))
    return BuildReport(storage.url, manifest, 0, new, time.monotonic() - start, coverage)


def _old_tables(storage: Storage) -> Storage:
    """Return where manifest, rejects and index of the finished data set are."""
    moved = open_storage(f"{storage.url}/{OLD_NAME}")
    is_whole = storage.size(MANIFEST_NAME) is not None
    return storage if is_whole or moved.size(MANIFEST_NAME) is None else moved


def _move_tables(storage: Storage) -> Storage:
    """Put the old tables aside, the manifest first; some may have been moved before."""
    old = open_storage(f"{storage.url}/{OLD_NAME}")
    for name, probe in (
        (MANIFEST_NAME, MANIFEST_NAME),
        (REJECTS_NAME, REJECTS_NAME),
        (INDEX_NAME, f"{INDEX_NAME}/zarr.json"),
    ):
        if old.size(probe) is None:
            storage.move(name, f"{OLD_NAME}/{name}")
    return old


def _require_same(plan: Plan, manifest: Manifest, url: str) -> None:
    """Check that the data set was built from this corpus with these settings."""
    wanted = plan.build_settings.model_dump(exclude={"plan_hash"})
    found = manifest.build.model_dump(exclude={"plan_hash"})
    differing = [name for name in wanted if wanted[name] != found[name]]
    if plan.settings.features != manifest.features:
        differing.append("features")
    if (plan.listing.label_names, plan.listing.splits) != (
        manifest.label_names,
        manifest.split_names,
    ):
        differing.append("classes or splits")
    if differing:
        raise DatasetError(
            f"--retry-failed must have the settings that {url} was built with, found other "
            f"{', '.join(differing)}; repeat the options of the first build"
        )


def _plan_retry(plan: Plan, rejects: list[Reject]) -> Plan | None:
    """Plan the clips that are not in the data set and have a file; None where there are none."""
    lacking = {reject.key for reject in rejects}
    clips = tuple(c for c in plan.listing.clips if c.key in lacking and c.path is not None)
    if not clips:
        return None
    return make_plan(dataclasses.replace(plan.listing, clips=clips), plan.settings)


def _claim(retry: Plan, storage: Storage, manifest: Manifest) -> None:
    """Drop the shards of an interrupted retry whose files have changed since."""
    claim = f"{retry.hash} {manifest.fingerprint}".encode()
    if storage.size(RETRY_NAME) is None or storage.read(RETRY_NAME) != claim:
        for name, _ in storage.list(f"{STAGING_NAME}/"):
            if not name.startswith(f"{OLD_NAME}/") and not name.endswith(".lock"):
                storage.delete(name)
        storage.write(RETRY_NAME, claim)
