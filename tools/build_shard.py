"""Build one shard: decode, resample, log-mel, write. The worker of ``melstream build``.

A finished shard leaves three files in the build's staging folder: the tar, its rows of the
index (``.npz``) and, last, its done record (``.json``). What has a done record is whole.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ..pipeline.logmel import LogMel
from ..pipeline.waveform import load_waveform
from ..shards.errors import SampleError
from ..shards.files import write_bytes
from ..shards.index import COLUMNS, Index
from ..shards.manifest import ShardEntry
from ..shards.spec import FeatureSpec
from ..shards.writer import Sample, SampleInfo, ShardWriter, write_shard
from .corpora.corpus import Clip

MAX_LENGTHS = 2.0  # of the duration in the metadata; downloads cut at key frames are a bit longer


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
    rejects: tuple[Reject, ...]
    duration_s: float = Field(description="audio written, in seconds")
    band_sum: tuple[float, ...] = Field(description="sum of the log-mel per band")
    band_sum_squares: tuple[float, ...] = Field(description="sum of its squares per band")
    n_frames: int


@dataclass(frozen=True, slots=True)
class ShardJob:
    """All a worker needs to know.

    Args:
        number: place of the shard in the plan.
        clips: what goes in, in order.
        label_names: of the corpus.
        features: how log-mels are computed.
        min_duration_s: shorter clips are rejected.
        staging: folder for the result.
    """

    number: int
    clips: tuple[Clip, ...]
    label_names: tuple[str, ...]
    features: FeatureSpec
    min_duration_s: float
    staging: Path

    @property
    def tar_path(self) -> Path:
        """Where the tar lies until the data set is assembled."""
        return self.staging / f"part-{self.number:06d}.tar"

    @property
    def index_path(self) -> Path:
        """The rows of the index."""
        return self.tar_path.with_suffix(".npz")

    @property
    def record_path(self) -> Path:
        """The done record, written last."""
        return self.tar_path.with_suffix(".json")


def build_shard(job: ShardJob, on_clip: Callable[[], None]) -> DoneRecord:
    """Turn the clips of one job into a shard.

    Args:
        job: what to build.
        on_clip: called after each clip, written or rejected.

    Returns:
        the done record, also on disk.

    Raises:
        OSError: the disk is full or not writable; nothing of the shard is left.
    """
    statistics = _Statistics(job.features.n_mels)
    rejects: list[Reject] = []
    logmel = LogMel(job.features)
    with write_shard(job.tar_path) as writer:
        for clip in job.clips:
            sample = _try_sample(clip, job, logmel)
            if isinstance(sample, Sample):
                writer.write(sample)
                statistics.add(sample)
            else:
                rejects.append(sample)
            on_clip()
    return _finish(job, writer, rejects, statistics)


def reject(clip: Clip, error: SampleError) -> Reject:
    """Describe a clip that did not become a sample."""
    # A path that is not UTF-8 stands in the message with surrogates, which JSON cannot hold.
    message = str(error).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Reject(key=clip.key, source=clip.source, reason=error.reason, message=message)


def read_index_part(job: ShardJob) -> Index:
    """Read the index rows a finished shard left."""
    with np.load(job.index_path, allow_pickle=False) as columns:
        return Index(dict(columns))


def _try_sample(clip: Clip, job: ShardJob, logmel: LogMel) -> Sample | Reject:
    """Make a sample, or say why not: no input, however odd, may end a build."""
    try:
        return _make_sample(clip, job, logmel)
    except SampleError as error:
        return reject(clip, error)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return reject(clip, SampleError(message, reason="failed"))


def _make_sample(clip: Clip, job: ShardJob, logmel: LogMel) -> Sample:
    assert clip.path is not None
    audio = load_waveform(clip.path, job.features, min_duration_s=job.min_duration_s)
    if clip.duration_s and audio.duration_s > MAX_LENGTHS * clip.duration_s:
        raise SampleError(
            f"{clip.path} must have about {clip.duration_s:g} s by the metadata, found "
            f"{audio.duration_s:.1f} s",
            reason="mis_sized",
        )
    info = SampleInfo(
        labels=tuple(job.label_names[i] for i in clip.labels),
        source=clip.source,
        start_s=clip.start_s,
        duration_s=audio.duration_s,
        sample_rate=audio.sample_rate_original,
        n_channels=audio.n_channels,
        peak=audio.peak,
        rms_dbfs=audio.rms_dbfs,
    )
    features = _store(logmel(audio.waveform), clip.path)
    return Sample(key=clip.key, logmel=features, label_ids=clip.labels, info=info)


def _store(logmel: npt.NDArray[np.float32], path: Path) -> npt.NDArray[np.float16]:
    """Round to the stored type; refuse what has no frame, or a value that does not fit."""
    if not len(logmel):
        raise SampleError(f"{path} is too short for one frame", reason="too_short")
    if not np.isfinite(logmel).all():
        raise SampleError(
            f"{path} must stay within the range of a waveform, its log-mel is not finite",
            reason="not_finite",
        )
    return logmel.astype(np.float16)


def _finish(
    job: ShardJob, writer: ShardWriter, rejects: list[Reject], statistics: "_Statistics"
) -> DoneRecord:
    is_empty = writer.n_samples == 0
    if is_empty:
        job.tar_path.unlink()
    else:
        buffer = io.BytesIO()
        columns = {name: writer.index.column(name) for name in COLUMNS}
        np.savez(buffer, allow_pickle=False, **columns)  # pyright: ignore[reportArgumentType]
        write_bytes(job.index_path, buffer.getvalue())
    record = DoneRecord(
        entry=None if is_empty else writer.entry,
        rejects=tuple(rejects),
        duration_s=statistics.duration_s,
        band_sum=tuple(statistics.band_sum.tolist()),
        band_sum_squares=tuple(statistics.band_sum_squares.tolist()),
        n_frames=statistics.n_frames,
    )
    write_bytes(job.record_path, record.model_dump_json().encode())
    return record


class _Statistics:
    """Sums over the stored (float16) values, in float64."""

    def __init__(self, n_mels: int) -> None:
        self.n_frames = 0
        self.duration_s = 0.0
        self.band_sum = np.zeros(n_mels)
        self.band_sum_squares = np.zeros(n_mels)

    def add(self, sample: Sample) -> None:
        values = sample.logmel.astype(np.float64)
        self.n_frames += len(values)
        self.duration_s += sample.info.duration_s
        self.band_sum += values.sum(0)
        self.band_sum_squares += np.square(values).sum(0)
