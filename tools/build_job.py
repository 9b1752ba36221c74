"""The contract between a build and its workers: what a job is, and what it leaves.

A finished shard is a tar in its place in the data set, and two files in the build's staging
folder: its rows of the index and its band sums (``.npz``) and, last, its done record
(``.json``). What has a done record is whole.
"""

import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..shards.errors import DatasetError, SampleError
from ..shards.index import COLUMNS, Index
from ..shards.manifest import ShardEntry
from ..shards.storage import Storage
from .band_sums import BandSums
from .build_plan import Plan, PlanSettings
from .corpora.corpus import Clip

STAGING_NAME = ".build"
SUMS = "sums_"  # what the names of band sums start with in a part, beside the columns


class Reject(BaseModel):
    """One line of ``rejects.jsonl``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    source: str
    reason: str
    message: str


class DoneRecord(BaseModel):
    """What a finished shard reports."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    entry: ShardEntry | None = Field(description="none where every clip was rejected")
    n_clips: int = Field(description="clips tried")
    rejects: tuple[Reject, ...]
    duration_s: float = Field(description="audio written, in seconds")
    seconds: dict[str, float] = Field(description="time spent, by stage, in seconds")


@dataclass(frozen=True, slots=True)
class ShardJob:
    """All a worker needs to know.

    Args:
        number: place of the shard in the plan.
        tar_name: name of the tar in the data set.
        root: the folder that the clips' paths start from.
        clips: what goes in, in order.
        label_names, split_names: of the corpus.
        settings: how clips become samples.
        storage: the data set.
        crashed: places of clips that made the decoder crash; they are not tried.
        written: keys of windows that the data set has already.
    """

    number: int
    tar_name: str
    root: Path
    clips: tuple[Clip, ...]
    label_names: tuple[str, ...]
    split_names: tuple[str, ...]
    settings: PlanSettings
    storage: Storage
    crashed: tuple[int, ...] = ()
    written: frozenset[str] = frozenset()

    @property
    def index_name(self) -> str:
        """The rows of the index, and the band sums."""
        return f"{STAGING_NAME}/part-{self.number:06d}.npz"

    @property
    def record_name(self) -> str:
        """The done record, written last."""
        return f"{STAGING_NAME}/part-{self.number:06d}.json"


def make_job(
    plan: Plan,
    storage: Storage,
    prefix: str,
    shard: int,
    *,
    first: int = 0,
    written: frozenset[str] = frozenset(),
) -> ShardJob:
    """Make the job of one shard of a plan.

    Args:
        plan: which clip goes where.
        storage: the data set.
        prefix: first part of the shards' names.
        shard: place in the plan.
        first: number of the plan's first shard in the data set.
        written: keys of windows that the data set has already.
    """
    return ShardJob(
        number=first + shard,
        tar_name=f"{prefix}-{first + shard:06d}.tar",
        root=plan.listing.root,
        clips=plan.clips(shard),
        label_names=plan.listing.label_names,
        split_names=plan.listing.splits,
        settings=plan.settings,
        storage=storage,
        written=written,
    )


def reject(
    clip: Clip, error: SampleError, *, root: Path | None = None, key: str | None = None
) -> Reject:
    """Describe a clip, or a window of one, that did not become a sample.

    The message names the file as ``source`` does: not where it lay on this machine.
    """
    message = str(error)
    if root is not None and clip.path is not None:
        message = message.replace(str(root / clip.path), clip.source)
    # A path that is not UTF-8 stands in the message with surrogates, which JSON cannot hold.
    message = message.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Reject(key=key or clip.key, source=clip.source, reason=error.reason, message=message)


def write_part(job: ShardJob, index: Index, sums: BandSums) -> None:
    """Leave the rows and the band sums of a shard that is whole."""
    buffer = io.BytesIO()
    arrays = {name: index.column(name) for name in COLUMNS}
    arrays |= {f"{SUMS}{name}": np.asarray(value) for name, value in asdict(sums).items()}
    np.savez(buffer, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    job.storage.write(job.index_name, buffer.getvalue())


def read_part(job: ShardJob) -> tuple[Index, BandSums]:
    """Read the rows and the band sums that a finished shard left."""
    with np.load(io.BytesIO(job.storage.read(job.index_name)), allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in COLUMNS}
        sums = {field.name: arrays[f"{SUMS}{field.name}"] for field in fields(BandSums)}
    n_frames = int(sums.pop("n_frames"))
    return Index(columns), BandSums(n_frames, **sums)


def read_record(job: ShardJob) -> DoneRecord:
    """Read the done record of a shard.

    Raises:
        DatasetError: it is not about this shard's clips.
    """
    record = DoneRecord.model_validate_json(job.storage.read(job.record_name))
    if record.n_clips != len(job.clips):
        raise DatasetError(
            f"{job.storage.url}/{job.record_name} must account for {len(job.clips)} clips, found "
            f"{record.n_clips}; remove it and run the same command again"
        )
    return record
