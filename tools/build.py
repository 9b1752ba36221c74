"""``melstream build``: a corpus of audio files becomes a data set.

    scan the corpus -> plan (clip -> shard) -> one job per shard, anywhere -> assemble

Shards are written to their place in the data set, everything else of an unfinished build to
``.build/`` in it; the manifest is written last. An interrupted build goes on where it was, a
finished one is left alone. Several machines may each build a part: the one that finishes last
assembles.
"""

import contextlib
import fcntl
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..shards.errors import DatasetError
from ..shards.keys import make_key
from ..shards.manifest import CLAIM_NAME, MANIFEST_NAME, Manifest, read_manifest
from ..shards.storage import Storage
from .build_assemble import assemble, remove_leftovers
from .build_job import STAGING_NAME, DoneRecord, ShardJob, make_job, read_record
from .build_plan import Plan, changed_options
from .coverage import Coverage
from .progress import Report
from .text_tables import many

Executor = Callable[[Sequence[ShardJob]], Iterator[int]]
"""Builds every job and yields, now and then, how many clips are done."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of several machines that build together: part ``number`` of ``n_parts``.

    >>> Part.parse("3/8")
    Part(number=3, n_parts=8)
    """

    number: int
    n_parts: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read ``i/n``.

        Raises:
            ValueError: it is something else, or i is not in 1..n.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(
                f"`--part` must be i/n with i from 1 to n, such as 1/8; found {text!r}"
            )
        return cls(int(match[1]), int(match[2]))

    def has(self, shard: int) -> bool:
        """Say whether a shard belongs to this part."""
        return shard % self.n_parts == self.number - 1


WHOLE = Part(1, 1)


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Args:
        url: where the data set lies.
        manifest: of the data set; None where other parts are not done yet.
        coverage: of the corpus, where this run made the data set.
        n_shards_left: shards that other parts have to build.
        new: the done records of the shards that this run built.
        wall_s: seconds this run took.
    """

    url: str
    manifest: Manifest | None
    n_shards_left: int
    new: tuple[DoneRecord, ...]
    wall_s: float
    coverage: Coverage | None = None


def build(
    plan: Plan, storage: Storage, run: Executor, report: Report, part: Part = WHOLE
) -> BuildReport:
    """Build a data set, a part of one, or complete one.

    Args:
        plan: which clip goes where.
        storage: where the data set goes: new, empty, or holding this very build.
        run: builds the jobs, in some processes or on some cluster.
        report: called with the number of clips done.
        part: which shards to build.

    Raises:
        DatasetError: ``storage`` holds something else.
        MelstreamError: no clip became a sample, or a worker process was killed.
        OSError: the disk is full or not writable; what was finished is kept.
    """
    start = time.monotonic()
    if (manifest := find_built(plan, storage)) is not None:
        remove_leftovers(storage, manifest)
        return BuildReport(storage.url, manifest, 0, (), time.monotonic() - start)
    prefix = _claim(plan, storage)
    jobs = [make_job(plan, storage, prefix, shard) for shard in range(plan.n_shards)]
    with _locked_part(storage, part):
        done = done_shards(storage)
        todo = [job for job in jobs if job.number not in done and part.has(job.number)]
        n_skipped = sum(len(job.clips) for job in jobs if job.number in done)
        for n_clips in run(todo):
            report(n_skipped + n_clips, "clips")
        new = tuple(_records(todo))
    manifest, coverage = _assemble_last(plan, storage, jobs)
    n_left = 0 if manifest else plan.n_shards - len(done_shards(storage))
    return BuildReport(storage.url, manifest, n_left, new, time.monotonic() - start, coverage)


def find_built(plan: Plan, storage: Storage) -> Manifest | None:
    """Return the manifest of the finished data set of this plan; None where there is none.

    Raises:
        DatasetError: there is a data set of another plan.
    """
    if storage.size(MANIFEST_NAME) is None:
        return None
    found = read_manifest(storage)
    if found.build.plan_hash != plan.hash:
        changed = changed_options(plan, found)
        if changed:
            cause, remedy = "built with other options: now " + ", ".join(changed), ""
        else:
            cause = (
                "built of other files (by name and size), labels or splits, or by another version"
            )
            remedy = ", or try what was missing, rejected or is new with --retry-failed"
        raise DatasetError(
            f"{storage.url} holds another data set ({many(found.n_samples, 'sample')}), {cause}; "
            f"choose another --out, or remove it{remedy}"
        )
    return found


def _claim(plan: Plan, storage: Storage) -> str:
    """Mark the place as this build's.

    Returns:
        the first part of the shards' names, kept from the first run on.

    Raises:
        DatasetError: it holds something else.
    """
    if storage.size(CLAIM_NAME) is None:
        found = [n for n, _ in storage.list() if not n.startswith(f"{STAGING_NAME}/")]
        if found:
            raise DatasetError(
                f"{storage.url} must be new or empty, found {found[0]}; choose another --out"
            )
        claim = {"plan_hash": plan.hash, "prefix": make_key(storage.name)}
        storage.write(CLAIM_NAME, json.dumps(claim).encode())
    content: dict[str, Any] = json.loads(storage.read(CLAIM_NAME))
    if content["plan_hash"] != plan.hash:
        raise DatasetError(
            f"{storage.url} holds an unfinished build of other files, settings or of another "
            f"version; choose another --out, or remove {storage.url} to give it up"
        )
    return content["prefix"]


def done_shards(storage: Storage) -> set[int]:
    """Return the numbers of the shards that have a done record."""
    names = (name for name, _ in storage.list(f"{STAGING_NAME}/"))
    found = (re.fullmatch(rf"{re.escape(STAGING_NAME)}/part-(\d+)\.json", name) for name in names)
    return {int(match[1]) for match in found if match}


def _records(jobs: Sequence[ShardJob]) -> Iterator[DoneRecord]:
    """Read the done records, but for those that another part has assembled by now."""
    for job in jobs:
        with contextlib.suppress(FileNotFoundError):
            yield read_record(job)


def _assemble_last(
    plan: Plan, storage: Storage, jobs: Sequence[ShardJob]
) -> tuple[Manifest | None, Coverage | None]:
    """Assemble if every shard is finished and no other part has done it or is faster."""
    if done_shards(storage) != set(range(plan.n_shards)):
        return find_built(plan, storage), None
    with locked(storage, "assemble", waits=True):
        manifest = find_built(plan, storage)
        if manifest is not None:
            return manifest, None
        try:
            return assemble(plan, storage, jobs)
        except FileNotFoundError:  # an object store has no locks: another part was faster
            manifest = find_built(plan, storage)
            if manifest is None:
                raise
            return manifest, None


@contextlib.contextmanager
def locked(storage: Storage, name: str, *, waits: bool = False) -> Iterator[None]:
    """Hold a lock of a local data set; in an object store two builds write the same bytes.

    Raises:
        DatasetError: another process holds it.
    """
    if storage.folder is None:
        yield
        return
    staging = storage.folder / STAGING_NAME
    staging.mkdir(parents=True, exist_ok=True)
    with (staging / f"{name}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise DatasetError(
                f"another process is building in {storage.url}; let it finish"
            ) from error
        yield


@contextlib.contextmanager
def _locked_part(storage: Storage, part: Part) -> Iterator[None]:
    """Hold a part, while nobody builds parts of another number: their shards are the same.

    Raises:
        DatasetError: another process builds this part, or such a one.
    """
    with locked(storage, f"part-{part.number}-of-{part.n_parts}"):
        if storage.folder is not None:
            for path in sorted((storage.folder / STAGING_NAME).glob("part-*-of-*.lock")):
                if not path.stem.endswith(f"-of-{part.n_parts}"):
                    with locked(storage, path.stem):
                        pass
        yield
