"""Encoded audio to log-mels on the fly, by the code and the rules of ``melstream build``.

    stage = AudioLogMels(PRESETS["kaldi128"])                # any features
    clips = stage(tar_audio("s3://bucket/others"))           # or kept_audio(dataset, rows)
    while batch := list(itertools.islice(clips, 64)):        # .key, .logmel, .info
        logmel, n_frames = pad_logmels([clip.logmel for clip in batch])
        x = torch.from_numpy(logmel).to(device)              # (64, longest, n_mels)
    stage.counts                                             # what was refused, and why

What a data set kept can be served by any order, also by length; none of it is refused:

    steps = [order.rows(step, rank=rank, world_size=world_size) for step in range(first, last)]
    clips = AudioLogMels(dataset.manifest.features)(kept_audio(dataset, np.hstack(steps).tolist()))
    for rows in steps:
        batch = list(itertools.islice(clips, len(rows)))

Decoding, resampling and log-mel run in threads, for they hardly hold the GIL; the order of the
clips stays. What cannot be a sample is left out and counted, and too many of them end the run.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ..shards.audio_suffixes import AUDIO_SUFFIXES
from ..shards.errors import DatasetError, SampleError
from ..shards.spec import FeatureSpec
from .logmel import LogMel
from .parallel_map import parallel_map
from .raw_audio import RawAudio
from .waveform import load_waveform

LogMels = npt.NDArray[np.float32]

SETTLED = 100  # clips tried, before which a share of them says little

_log = logging.getLogger(__name__)


class AudioConfig(BaseModel):
    """How clips are decoded, and which are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_duration_s: float | None = Field(
        default=None, ge=0, description="shorter clips are refused, in seconds; none = one window"
    )
    max_rejects: float = Field(
        default=0.01, ge=0, le=1, description="share of clips that may be refused"
    )
    n_threads: int = Field(default=4, ge=1, description="threads that decode")


@dataclass(frozen=True, slots=True, eq=False)
class AudioSample:
    """A clip and its log-mel.

    Args:
        key: of the sample.
        shard: the tar it stood in.
        logmel: float32, shape (n_frames, n_mels), at least one frame, finite.
        info: content of the ``json`` member; None where there is none.
        row: of the data set's index, -1 where there is no index.
    """

    key: str
    shard: str
    logmel: LogMels
    info: Any
    row: int


@dataclass(slots=True)
class AudioCounts:
    """What became of the clips.

    Args:
        n_samples: that were served.
        n_rejects: that were not, by reason; see ``shards.REASONS``.
        last_reject: message of the last of them.
    """

    n_samples: int = 0
    n_rejects: Counter[str] = field(default_factory=Counter)
    last_reject: str = ""

    @property
    def n_tried(self) -> int:
        """Clips that came in."""
        return self.n_samples + self.n_rejects.total()


class AudioLogMels:
    """A stage from ``RawAudio`` to ``AudioSample``.

    Memory: ``n_threads`` clips decoded, each an hour at most, and as many log-mels that wait for
    their turn.

    Args:
        spec: the features.
        config: threads and refusals.

    Attributes:
        counts: over all iterations.
    """

    def __init__(self, spec: FeatureSpec, config: AudioConfig | None = None) -> None:
        self.config = config or AudioConfig()
        self.counts = AudioCounts()
        self._logmel = LogMel(spec)

    def __call__(self, clips: Iterable[RawAudio]) -> Iterator[AudioSample]:
        """Decode clips.

        Yields:
            those that can be samples, in the order of ``clips``.

        Raises:
            DatasetError: more than ``max_rejects`` of the clips cannot, at the end, or of 100
                and more on the way.
        """
        n_threads = self.config.n_threads
        with tempfile.TemporaryDirectory(prefix="melstream-") as folder:
            convert = partial(self._convert, Path(folder))
            for clip in parallel_map(
                convert, enumerate(clips), n_threads=n_threads, n_ahead=2 * n_threads
            ):
                if isinstance(clip, AudioSample):
                    self.counts.n_samples += 1
                    yield clip
                else:
                    self._count(clip)
                    self._require_few(SETTLED)
        self._require_few(1)

    def _convert(self, folder: Path, numbered: tuple[int, RawAudio]) -> AudioSample | SampleError:
        number, clip = numbered
        try:
            logmel = self._convert_file(folder, number, clip)
        except SampleError as error:
            return error
        except Exception as error:  # no clip, however odd, ends a run; too many of them do
            message = f"{clip.shard}, key {clip.key}: {type(error).__name__}: {error}"
            return SampleError(message, reason="failed", key=clip.key)
        return AudioSample(clip.key, clip.shard, logmel, clip.info, clip.row)

    def _convert_file(self, folder: Path, number: int, clip: RawAudio) -> LogMels:
        """Decode by way of a file: both decoders read those without holding the GIL."""
        where = f"{clip.shard}, key {clip.key}"
        if not clip.suffix:
            raise SampleError(
                f"{where}: an audio member is required, found none", reason="missing", key=clip.key
            )
        suffix = clip.suffix if clip.suffix in AUDIO_SUFFIXES else "audio"
        path = folder / f"{number}.{suffix}"
        path.write_bytes(clip.payload)
        try:
            audio = load_waveform(
                path, self._logmel.spec, min_duration_s=self.config.min_duration_s
            )
        except SampleError as error:
            message = str(error).replace(str(path), where)
            raise SampleError(message, reason=error.reason, key=clip.key) from None
        finally:
            path.unlink()
        logmel = self._logmel(audio.waveform)
        if not len(logmel):
            raise SampleError(f"{where}: too short for one frame", reason="too_short", key=clip.key)
        if not np.isfinite(logmel).all():
            raise SampleError(
                f"{where}: the log-mel is not finite", reason="not_finite", key=clip.key
            )
        return logmel

    def _count(self, error: SampleError) -> None:
        self.counts.n_rejects[error.reason] += 1
        self.counts.last_reject = str(error)
        _log.warning("clip left out (%s): %s", error.reason, error)

    def _require_few(self, n_least: int) -> None:
        counts, allowed = self.counts, self.config.max_rejects
        n_rejects = counts.n_rejects.total()
        if counts.n_tried < n_least or n_rejects <= allowed * counts.n_tried:
            return
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.n_rejects.most_common())
        raise DatasetError(
            f"{n_rejects} of {counts.n_tried} clips ({n_rejects / counts.n_tried:.1%}) cannot be "
            f"samples, more than the allowed {allowed:.1%}: {reasons}; last: {counts.last_reject}; "
            "mend them, or raise `max_rejects`"
        )


def pad_logmels(logmels: Sequence[LogMels]) -> tuple[LogMels, npt.NDArray[np.int64]]:
    """Make a batch of log-mels of any length.

    Returns:
        logmel: float32, shape (B, longest, n_mels), zero past the end of each.
        n_frames: int64, shape (B,).

    >>> logmel, n_frames = pad_logmels([np.ones((3, 2), np.float32), np.ones((1, 2), np.float32)])
    >>> logmel[:, :, 0].tolist(), n_frames.tolist()
    ([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], [3, 1])
    """
    n_frames = np.array([len(logmel) for logmel in logmels], np.int64)
    padded = np.zeros((len(logmels), int(n_frames.max()), logmels[0].shape[1]), np.float32)
    for place, logmel in zip(padded, logmels, strict=True):
        place[: len(logmel)] = logmel
    return padded, n_frames
