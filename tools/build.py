"""``melstream build``: a corpus of audio files becomes a data set.

    scan the corpus -> plan (clip -> shard) -> one job per shard, over processes -> assemble

Everything until the last step happens in ``<out>/.build``; the manifest is written last.
An interrupted build goes on where it was, a finished one is left alone.
"""

import contextlib
import fcntl
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..shards.errors import DatasetError, MelstreamError, SampleError
from ..shards.files import TEMPORARY_SUFFIX, sync_folder, write_bytes
from ..shards.index import concatenate, hash_index, write_index
from ..shards.keys import make_key
from ..shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest, write_manifest
from .build_plan import Plan
from .build_shard import DoneRecord, Reject, ShardJob, read_index_part, reject
from .build_workers import run_jobs
from .progress import Report

STAGING_NAME = ".build"
REJECTS_NAME = "rejects.jsonl"


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
        DatasetError: ``out`` holds something else.
        MelstreamError: no clip became a sample, or a worker process died.
        OSError: the disk is full or not writable; what was finished is kept.
    """
    start = time.monotonic()
    staging = out / STAGING_NAME
    if is_built(plan, out):
        shutil.rmtree(staging, ignore_errors=True)
        return _report(out, read_manifest(out), (), start)
    with _claimed(plan, out) as prefix:
        jobs = _make_jobs(plan, staging)
        todo = [job for job in jobs if not job.record_path.exists()]
        n_done = plan.n_clips - sum(len(job.clips) for job in todo)
        for n_clips in run_jobs(todo, n_jobs):
            report(n_done + n_clips, "clips")
        records = [_read_record(job) for job in jobs]
        manifest = _assemble(plan, jobs, records, out, prefix)
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


@contextlib.contextmanager
def _claimed(plan: Plan, out: Path) -> Iterator[str]:
    """Hold ``out`` for this build alone.

    Yields:
        the first part of the shards' names, kept from the first run on.

    Raises:
        DatasetError: ``out`` holds something else, or another process builds there.
    """
    claim = out / STAGING_NAME / "plan.json"
    out.mkdir(parents=True, exist_ok=True)
    if not claim.exists():
        found = [path.name for path in out.iterdir() if path != claim.parent]
        if found:
            raise DatasetError(
                f"{out} must be new or empty, found {found[0]}; choose another --out"
            )
        claim.parent.mkdir(exist_ok=True)
        prefix = make_key(out.resolve().name)
        write_bytes(claim, json.dumps({"plan_hash": plan.hash, "prefix": prefix}).encode())
    with claim.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(f"another process is building in {out}; let it finish") from error
        content = json.loads(file.read())
        if content["plan_hash"] != plan.hash:
            raise DatasetError(
                f"{out} holds an unfinished build of other files, settings or of another version; "
                f"choose another --out, or remove {claim.parent} to give it up"
            )
        for leftover in out.glob(f"*{TEMPORARY_SUFFIX}"):
            if leftover.is_file():  # what a killed run was writing
                leftover.unlink()
        yield content["prefix"]


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


def _read_record(job: ShardJob) -> DoneRecord:
    record = DoneRecord.model_validate_json(job.record_path.read_bytes())
    n_found = len(record.rejects) + (record.entry.n_samples if record.entry else 0)
    if n_found != len(job.clips):
        raise DatasetError(
            f"{job.record_path} must account for {len(job.clips)} clips, found {n_found}; remove "
            "it and run the same command again"
        )
    return record


def _assemble(
    plan: Plan, jobs: Sequence[ShardJob], records: Sequence[DoneRecord], out: Path, prefix: str
) -> Manifest:
    """Give the shards their names and write index, rejects and, last, the manifest."""
    filled = [(job, r.entry) for job, r in zip(jobs, records, strict=True) if r.entry is not None]
    rejects = _all_rejects(plan, records)
    if not filled:
        shutil.rmtree(out / STAGING_NAME)
        reasons = ", ".join(f"{n} {reason}" for reason, n in _count_reasons(rejects).items())
        examples = "".join(f"\n  {r.source}: {r.message}" for r in rejects[:3])
        raise MelstreamError(
            f"not one of {plan.n_clips} clips became a sample ({reasons}), such as{examples}"
        )
    entries = [
        _publish(job, entry, out / f"{prefix}-{n:06d}.tar") for n, (job, entry) in enumerate(filled)
    ]
    sync_folder(out)
    index = concatenate([read_index_part(job) for job, _ in filled])
    write_index(out, index)
    write_bytes(out / REJECTS_NAME, "".join(r.model_dump_json() + "\n" for r in rejects).encode())
    manifest = _make_manifest(plan, entries, records, rejects, hash_index(index))
    write_manifest(out, manifest)
    return manifest


def _publish(job: ShardJob, entry: ShardEntry, path: Path) -> ShardEntry:
    """Move a shard to its final name; done already where an assembly was interrupted."""
    if job.tar_path.exists():
        job.tar_path.replace(path)
    if not path.exists() or path.stat().st_size != entry.size_bytes:
        raise DatasetError(
            f"{path} was finished and is gone or altered; remove {job.record_path} and run the "
            "same command again to build it anew"
        )
    return entry.model_copy(update={"name": path.name})


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
    index_hash: str,
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
        index_hash=index_hash,
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
