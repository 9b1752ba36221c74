"""``melstream build``: a corpus of audio files becomes a data set.

    scan the corpus -> plan (clip -> shard) -> one job per shard, over processes -> assemble

Everything until the last step happens in ``<out>/.build``; the manifest is written last.
An interrupted build goes on where it was, a finished one is left alone.
"""

import json
import multiprocessing
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ..shards.errors import DatasetError, SampleError
from ..shards.files import sync_folder, write_bytes
from ..shards.index import concatenate, write_index
from ..shards.keys import make_key
from ..shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest, write_manifest
from .build_plan import Plan
from .build_shard import DoneRecord, Reject, ShardJob, build_shard, read_index_part, reject
from .progress import Report

STAGING_NAME = ".build"
REJECTS_NAME = "rejects.jsonl"
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Args:
        out: the data set.
        n_samples: samples in it.
        n_rejects: inputs that are not in it, by reason.
        n_ignored: audio files that belong to no input, by kind.
        duration_s: audio in it, in seconds.
        n_shards: shards in it.
        n_new_shards: shards this run wrote, with ``new_duration_s`` seconds of audio.
        wall_s: seconds this run took.
    """

    out: Path
    n_samples: int
    n_rejects: dict[str, int]
    n_ignored: dict[str, int]
    duration_s: float
    n_shards: int
    n_new_shards: int
    new_duration_s: float
    wall_s: float

    @property
    def reject_share(self) -> float:
        """Share of the files found that did not become samples."""
        n_bad = sum(n for reason, n in self.n_rejects.items() if reason != "missing")
        return n_bad / (n_bad + self.n_samples)


def build(plan: Plan, out: Path, *, n_jobs: int, report: Report) -> BuildReport:
    """Build a data set, or complete one.

    Args:
        plan: which clip goes where.
        out: folder of the data set; new, empty, or holding this very build.
        n_jobs: processes.
        report: called with the number of clips done.

    Raises:
        DatasetError: ``out`` holds something else, or no clip became a sample.
        OSError: the disk is full or not writable; what was finished is kept.
    """
    start = time.monotonic()
    staging = out / STAGING_NAME
    if is_built(plan, out):
        shutil.rmtree(staging, ignore_errors=True)
        return _report(out, read_manifest(out), (), start)
    _claim(plan, out)
    jobs = _make_jobs(plan, staging)
    todo = [job for job in jobs if not job.record_path.exists()]
    n_done = plan.n_clips - sum(len(job.clips) for job in todo)
    for n_clips in _run(todo, n_jobs):
        report(n_done + n_clips, "clips")
    records = [DoneRecord.model_validate_json(job.record_path.read_bytes()) for job in jobs]
    manifest = _assemble(plan, jobs, records, out)
    shutil.rmtree(staging)
    return _report(out, manifest, [records[job.number] for job in todo], start)


def is_built(plan: Plan, out: Path) -> bool:
    """Say whether ``out`` holds the finished data set of this plan.

    Raises:
        DatasetError: it holds a data set of another plan.
    """
    if not (out / MANIFEST_NAME).exists():
        return False
    found = read_manifest(out)
    if found.build.plan_hash != plan.hash:
        raise DatasetError(
            f"{out} holds another data set ({found.n_samples} samples, corpus "
            f"{found.build.corpus!r}, features {found.feature_hash}), built from other files or "
            f"settings than these ({plan.n_clips} clips, corpus {plan.settings.corpus!r}, "
            f"features {plan.settings.features.hash}); choose another --out, or remove it"
        )
    return True


def _claim(plan: Plan, out: Path) -> None:
    """Mark ``out`` as being built by this plan."""
    claim = out / STAGING_NAME / "plan.json"
    out.mkdir(parents=True, exist_ok=True)
    if claim.exists():
        if json.loads(claim.read_bytes())["plan_hash"] != plan.hash:
            raise DatasetError(
                f"{out} holds an unfinished build of other files or settings; choose another "
                f"--out, or remove {claim.parent} to give it up"
            )
    elif any(out.iterdir()):
        raise DatasetError(
            f"{out} must be new or empty, found {next(out.iterdir()).name}; choose another --out"
        )
    else:
        claim.parent.mkdir()
        write_bytes(claim, json.dumps({"plan_hash": plan.hash}).encode())


def _make_jobs(plan: Plan, staging: Path) -> list[ShardJob]:
    return [
        ShardJob(
            number=number,
            clips=clips,
            label_names=plan.listing.label_names,
            features=plan.settings.features,
            min_duration_s=plan.settings.min_duration_s,
            staging=staging,
        )
        for number, clips in enumerate(plan.shards)
    ]


def _run(jobs: Sequence[ShardJob], n_jobs: int) -> Iterator[int]:
    """Run the jobs and yield, now and then, how many clips are done."""
    if min(n_jobs, len(jobs)) <= 1:
        yield from _run_here(jobs)
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(
        min(n_jobs, len(jobs)), context, initializer=_start_worker, initargs=(counter,)
    ) as pool:
        pending: set[Future[None]] = {pool.submit(_work, job) for job in jobs}
        try:
            while pending:
                done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                yield counter.value
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _run_here(jobs: Sequence[ShardJob]) -> Iterator[int]:
    n_done = 0
    for job in jobs:
        build_shard(job, lambda: None)
        n_done += len(job.clips)
        yield n_done


_counter: Any = None  # clips done, shared by the worker processes; set once when one starts


def _start_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    threadpool_limits(1)  # one process per core: BLAS threads would only fight


def _work(job: ShardJob) -> None:
    build_shard(job, _count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1


def _assemble(
    plan: Plan, jobs: Sequence[ShardJob], records: Sequence[DoneRecord], out: Path
) -> Manifest:
    """Give the shards their names and write index, rejects and, last, the manifest."""
    filled = [(job, r.entry) for job, r in zip(jobs, records, strict=True) if r.entry is not None]
    rejects = _all_rejects(plan, records)
    if not filled:
        reasons = ", ".join(f"{n} {reason}" for reason, n in _count_reasons(rejects).items())
        shutil.rmtree(out / STAGING_NAME)
        raise DatasetError(f"not one of {plan.n_clips} clips became a sample ({reasons})")
    entries = [_publish(job, entry, out, n) for n, (job, entry) in enumerate(filled)]
    sync_folder(out)
    write_index(out, concatenate([read_index_part(job) for job, _ in filled]))
    write_bytes(out / REJECTS_NAME, "".join(r.model_dump_json() + "\n" for r in rejects).encode())
    manifest = _make_manifest(plan, entries, records, rejects)
    write_manifest(out, manifest)
    return manifest


def _publish(job: ShardJob, entry: ShardEntry, out: Path, number: int) -> ShardEntry:
    """Move a shard to its final name; done already where an assembly was interrupted."""
    name = f"{make_key(out.resolve().name)}-{number:06d}.tar"
    if job.tar_path.exists():
        job.tar_path.replace(out / name)
    return entry.model_copy(update={"name": name})


def _all_rejects(plan: Plan, records: Sequence[DoneRecord]) -> list[Reject]:
    missing = SampleError("the metadata lists this clip, but no file was found", reason="missing")
    rejects = [reject(clip, missing) for clip in plan.missing]
    rejects += [found for record in records for found in record.rejects]
    return sorted(rejects, key=lambda found: found.key)


def _count_reasons(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(sorted(Counter(found.reason for found in rejects).items()))


def _make_manifest(
    plan: Plan,
    entries: Sequence[ShardEntry],
    records: Sequence[DoneRecord],
    rejects: Sequence[Reject],
) -> Manifest:
    n_frames = sum(record.n_frames for record in records)
    mean = np.sum([record.band_sum for record in records], axis=0) / n_frames
    squares = np.sum([record.band_sum_squares for record in records], axis=0) / n_frames
    std = np.sqrt(np.maximum(squares - mean**2, 0))
    return Manifest(
        features=plan.settings.features,
        feature_hash=plan.settings.features.hash,
        label_names=plan.listing.label_names,
        label_ids=plan.listing.label_ids,
        shards=tuple(entries),
        n_samples=sum(entry.n_samples for entry in entries),
        duration_s=sum(record.duration_s for record in records),
        n_rejects=_count_reasons(rejects),
        n_ignored=plan.listing.n_ignored,
        band_mean=tuple(mean.tolist()),
        band_std=tuple(std.tolist()),
        build=plan.build_settings,
    )


def _report(out: Path, manifest: Manifest, new: Sequence[DoneRecord], start: float) -> BuildReport:
    return BuildReport(
        out=out,
        n_samples=manifest.n_samples,
        n_rejects=manifest.n_rejects,
        n_ignored=manifest.n_ignored,
        duration_s=manifest.duration_s,
        n_shards=len(manifest.shards),
        n_new_shards=len(new),
        new_duration_s=sum(record.duration_s for record in new),
        wall_s=time.monotonic() - start,
    )
