"""Build one shard: decode, resample, log-mel, write. The worker of ``melstream build``.

What a job is, and what a finished one leaves, stands in ``build_job``.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..pipeline.decode import Decoded, decode, decode_windows
from ..pipeline.logmel import LogMel
from ..pipeline.quality import bandwidth_hz
from ..pipeline.waveform import LoadedWaveform, prepare
from ..shards.errors import SampleError
from ..shards.keys import stem_of_window, window_key, window_stem
from ..shards.writer import Sample, SampleInfo, write_shard
from .band_sums import BandSums
from .build_job import DoneRecord, Reject, ShardJob, reject, write_part
from .build_plan import PlanSettings
from .corpora.corpus import Clip
from .stage_clock import StageClock

MIN_TAIL = 0.1  # of a window: a shorter rest of a recording is left out
MAX_LENGTHS = 2.0  # of the duration in the metadata; downloads cut at key frames are a bit longer
PROBE_S = 0.01  # a few samples, at any rate that decodes


def build_shard(job: ShardJob, on_clip: Callable[[int], None]) -> DoneRecord:
    """Turn the clips of one job into a shard.

    Args:
        job: what to build.
        on_clip: called with the place of each clip, before it is tried and as it goes on.

    Returns:
        the done record, also in the storage.

    Raises:
        OSError: the disk is full or not writable; nothing of the shard is left.
    """
    clock, rejects = StageClock(), list[Reject]()
    maker = _SampleMaker(job, clock)
    features = job.settings.features
    sums, duration_s = BandSums.zero(features.n_mels), 0.0
    job.storage.clean(job.tar_name)
    writer = None
    with contextlib.suppress(_NothingWrittenError), write_shard(job.storage, job.tar_name) as tar:
        for place, clip in enumerate(job.clips):
            on_clip(place)
            for sample in maker.make(clip, has_crashed=place in job.crashed):
                on_clip(place)
                if isinstance(sample, Sample):
                    with clock("write and hash"):
                        tar.write(sample)
                    with clock("statistics"):
                        sums += BandSums.of(sample.logmel, features)
                    duration_s += sample.info.duration_s
                else:
                    rejects.append(sample)
        if not tar.n_samples:
            raise _NothingWrittenError
        writer = tar
    if writer is not None:
        write_part(job, writer.index, sums)
    record = DoneRecord(
        entry=None if writer is None else writer.entry,
        n_clips=len(job.clips),
        rejects=tuple(rejects),
        duration_s=duration_s,
        seconds=clock.seconds,
    )
    job.storage.write(job.record_name, record.model_dump_json().encode())
    return record


class _NothingWrittenError(Exception):
    """A shard without a sample takes no name."""


class _SampleMaker:
    """Make the samples of a clip, or say why not: no input, however odd, may end a build."""

    def __init__(self, job: ShardJob, clock: StageClock) -> None:
        self._job = job
        self._clock = clock
        self._logmel = LogMel(job.settings.features)
        self._written_stems = set(map(stem_of_window, job.written))

    def make(self, clip: Clip, *, has_crashed: bool) -> Iterator[Sample | Reject]:
        """Make one sample of a clip, or one per window; rejects stand for what did not become one.

        A clip of which nothing is left is one reject, under its own key. Windows that the data
        set has already are passed over.
        """
        rejects: list[Reject] = []
        is_kept, end_s = window_stem(clip.key) in self._written_stems, clip.offset_s or 0.0
        if has_crashed:
            error = SampleError("the decoder's process died on this file", reason="crashed")
            yield reject(clip, error, key=self._key(clip, end_s) if is_kept else None)
            return
        audio = self._decoded(clip)
        while True:
            key = self._key(clip, end_s)  # of the window to come
            try:
                decoded = next(audio, None)
                if decoded is None:
                    break
                end_s = decoded.start_s + decoded.duration_s
                key = self._key(clip, decoded.start_s)
                if key in self._job.written:
                    continue
                self._require_no_tail(clip, decoded)
                sample = self._sample(clip, key, decoded)
            except Exception as error:
                found = _as_sample_error(error)
                rejects.append(reject(clip, found, root=self._job.root, key=key))
            else:
                is_kept = True
                yield sample
        if rejects and not is_kept:
            rejects = [rejects[0].model_copy(update={"key": clip.key})]
        yield from rejects

    def _decoded(self, clip: Clip) -> Iterator[Decoded]:
        """Decode the clip, whole or window by window; a generator ends after its first error."""
        assert clip.path is not None
        path = self._job.root / clip.path
        window_s = self._job.settings.window_s
        segment: dict[str, Any] = {}
        if clip.offset_s is not None:
            segment = {"start_s": clip.offset_s, "duration_s": clip.duration_s}
        if window_s is not None:
            with self._clock("decode"):
                _require_end(clip, path)
            yield from self._clock.iterate("decode", decode_windows(path, window_s, **segment))
            return
        with self._clock("decode"):
            decoded = decode(path, **segment)
        if decoded.duration_s > _longest_s(clip):
            raise _mis_sized(clip, f"{decoded.duration_s:.1f} s")
        yield decoded

    def _key(self, clip: Clip, start_s: float) -> str:
        if self._job.settings.window_s is None:
            return clip.key
        return window_key(clip.key, round(1_000 * (start_s - (clip.offset_s or 0.0))))

    def _require_no_tail(self, clip: Clip, decoded: Decoded) -> None:
        window_s = self._job.settings.window_s
        is_first = decoded.start_s <= (clip.offset_s or 0.0)
        if window_s and not is_first and decoded.duration_s < MIN_TAIL * window_s:
            raise SampleError(
                f"{clip.source}: {decoded.duration_s:.2f} s are left after its last window",
                reason="tail",
            )

    def _sample(self, clip: Clip, key: str, decoded: Decoded) -> Sample:
        settings = self._job.settings
        with self._clock("resample"):
            audio = prepare(decoded, settings.features, min_duration_s=settings.min_duration_s)
        waveform, flac = audio.waveform, None
        if settings.keep_audio:
            with self._clock("encode audio"):
                waveform, flac = _keep(clip, audio.waveform, settings.features.sample_rate)
        with self._clock("features"):
            logmel = self._logmel(waveform)
            _require_logmel(clip, logmel)
            stored = _store(logmel, settings)
            info = self._info(clip, decoded, audio, logmel)
        return Sample(key, stored, clip.labels, info, clip.split, flac)

    def _info(
        self,
        clip: Clip,
        decoded: Decoded,
        audio: LoadedWaveform,
        logmel: npt.NDArray[np.float32],
    ) -> SampleInfo:
        job = self._job
        offset_s = decoded.start_s - (clip.offset_s or 0.0)  # of a window in its clip
        is_window = job.settings.window_s is not None
        return SampleInfo(
            labels=tuple(job.label_names[i] for i in clip.labels),
            source=clip.source,
            start_s=(clip.start_s or 0.0) + offset_s if is_window else clip.start_s,
            duration_s=audio.duration_s,
            sample_rate=audio.sample_rate_original,
            n_channels=audio.n_channels,
            peak=audio.peak,
            rms_dbfs=audio.rms_dbfs,
            clipped_share=audio.clipped_share,
            silence_share=audio.silence_share,
            dc_offset=audio.dc_offset,
            bandwidth_hz=bandwidth_hz(logmel, job.settings.features),
            audio_hash=f"{audio.audio_hash:016x}",
            split=job.split_names[clip.split] if clip.split >= 0 else None,
            events=_events_within(clip, job.label_names, offset_s, audio.duration_s),
        )


def _longest_s(clip: Clip) -> float:
    """Say how long the file of a clip may be to be the clip, in seconds."""
    if clip.offset_s is not None or not clip.duration_s:
        return math.inf
    return MAX_LENGTHS * clip.duration_s


def _require_end(clip: Clip, path: Path) -> None:
    """Refuse a file that goes on where its clip must have ended, before a window is made of it."""
    longest_s = _longest_s(clip)
    if longest_s == math.inf:
        return
    try:
        decode(path, start_s=longest_s, duration_s=PROBE_S)
    except SampleError as error:
        if error.reason != "not_finite":  # it has ended, or its windows will say why not
            return
    raise _mis_sized(clip, f"over {longest_s:g} s")


def _mis_sized(clip: Clip, found: str) -> SampleError:
    return SampleError(
        f"{clip.source} must have about {clip.duration_s:g} s by the metadata, found {found}; if "
        "the file is the whole recording and not the clip, cut it (audioset, vggsound: "
        "--whole-videos; csv: --start-column)",
        reason="mis_sized",
    )


def _events_within(
    clip: Clip, label_names: tuple[str, ...], offset_s: float, duration_s: float
) -> tuple[tuple[float, float, str], ...]:
    """Return the strong labels between two points of a clip, timed from the first."""
    cut = (
        (max(start - offset_s, 0.0), min(end - offset_s, duration_s), label_names[label])
        for start, end, label in clip.events
    )
    # An event without duration is kept where it lies; one that another window holds is not.
    return tuple(
        (start, end, name)
        for (start, end, name), whole in zip(cut, clip.events, strict=True)
        if start < end or (whole[0] == whole[1] and start == end < duration_s)
    )


def _as_sample_error(error: Exception) -> SampleError:
    if isinstance(error, SampleError):
        return error
    return SampleError(f"{type(error).__name__}: {error}", reason="failed")


def _require_logmel(clip: Clip, logmel: npt.NDArray[np.float32]) -> None:
    if not len(logmel):
        raise SampleError(f"{clip.source} is too short for one frame", reason="too_short")
    if not np.isfinite(logmel).all():
        raise SampleError(
            f"{clip.source} must stay within the range of a waveform, its log-mel is not finite",
            reason="not_finite",
        )


def _store(
    logmel: npt.NDArray[np.float32], settings: PlanSettings
) -> npt.NDArray[np.float16] | npt.NDArray[np.uint8]:
    code = settings.features.code
    return logmel.astype(np.float16) if code is None else code.encode(logmel)


def _keep(
    clip: Clip, waveform: npt.NDArray[np.float32], sample_rate: int
) -> tuple[npt.NDArray[np.float32], bytes]:
    """Encode a waveform; also return what the 16 bits hold of it, which features are made of."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="FLAC", subtype="PCM_16")
    flac = buffer.getvalue()
    kept, _ = soundfile.read(io.BytesIO(flac), dtype="float32")
    if not kept.any():
        raise SampleError(f"{clip.source} is too quiet to be kept in 16 bits", reason="silent")
    return np.asarray(kept, np.float32), flac
