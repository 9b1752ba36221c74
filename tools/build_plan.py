"""Which clip goes into which shard, decided before any audio is decoded.

The plan is a pure function of the listing and the settings: the same clips give the same
shards, whatever the number of processes and however often the build was interrupted.
Clips are stored in the order of a hash of their keys, so that every shard is a random
sample of the corpus: neighbours in a shard do not share a class or a source. No file is
opened: its name and size are enough.
"""

import hashlib
import itertools
import math
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Self

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..shards.manifest import BuildSettings, Manifest
from ..shards.spec import FeatureSpec
from .corpora.corpus import Clip, Listing

MIN_SHARDS = 16  # small corpora are cut too, for parallel builds and shuffles …
MIN_SHARD_SAMPLES = 32  # … but not into crumbs
MEMBER_BYTES = 2_048  # of a sample beside its log-mel: headers, padding, json
FLAC_BYTES_PER_SAMPLE = 1.2  # of a kept waveform: 16 bits, mostly halved
MAX_SPLITS = 32_767  # the index counts them in 16 bits
STAT_CHUNK = 1_000  # clips: a call of a thread takes over a kilobyte while it waits
STAT_THREADS = 16  # sizes of files are asked for at once: a network disk takes its time

GUESSED_BYTES_PER_SECOND = {"wav": 96_000, "aif": 96_000, "aiff": 96_000, "flac": 60_000}
OTHER_BYTES_PER_SECOND = 16_000  # 128 kbit/s


_OPTIONS = {
    "corpus": "corpus",
    "min_duration_s": "--min-seconds",
    "window_s": "--window-seconds",
    "keep_audio": "--keep-audio",
    "splits": "--split",
    "limit": "--limit",
    "max_shard_samples": "--shard-samples",
    "max_shard_bytes": "--shard-mb, in bytes",
}
"""Fields of ``BuildSettings``, and the options that set them."""


class PlanSettings(BaseModel):
    """What decides the bytes of a build, beside the audio."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    corpus: str = Field(description="name of the corpus reader")
    features: FeatureSpec = Field(description="how log-mels are computed and stored")
    min_duration_s: float = Field(
        default=0.025, ge=0, description="reject shorter clips, in seconds"
    )
    window_s: float | None = Field(
        default=None, gt=0, description="cut recordings into windows of so many seconds"
    )
    keep_audio: bool = Field(default=False, description="keep the waveforms, as FLAC")
    splits: tuple[str, ...] = Field(default=(), description="take these splits only; none = all")
    limit: int | None = Field(
        default=None, ge=1, description="try at most so many clips, a random sample, and no others"
    )
    max_shard_samples: int = Field(default=2_000, ge=1, description="most clips in one shard")
    max_shard_bytes: int = Field(
        default=256 * 10**6, ge=1, description="most bytes in one shard, by a guess from file sizes"
    )
    corpus_options: dict[str, str | bool] | None = Field(
        default=None,
        exclude=True,  # from the plan's hash: the clips, which they decide, are in it
        description="options of the corpus reader, but for files and defaults; none: unknown",
    )

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.window_s is not None and self.min_duration_s > self.window_s:
            raise ValueError(
                f"`--min-seconds` must be at most --window-seconds ({self.window_s:g}), found "
                f"{self.min_duration_s:g}: every window would be rejected"
            )
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Clips by shard, and those that have no file.

    Args:
        settings: what was asked for.
        listing: the corpus, of the splits asked for.
        order: places in ``listing.clips`` in stored order, int64, shape (n_clips,).
        bounds: shard s holds ``order[bounds[s]:bounds[s + 1]]``.
        n_bytes: guess of the bytes of all shards.
        hash: of everything above and the program's version; files count by name and size.
    """

    settings: PlanSettings
    listing: Listing
    order: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    n_bytes: int
    hash: str

    @property
    def n_clips(self) -> int:
        """Clips that have a file and will be tried."""
        return len(self.order)

    @property
    def n_shards(self) -> int:
        """Shards planned; some may stay empty, where every clip is rejected."""
        return len(self.bounds) - 1

    def clips(self, shard: int) -> tuple[Clip, ...]:
        """Return the clips of one shard, in stored order."""
        places = self.order[self.bounds[shard] : self.bounds[shard + 1]]
        return tuple(self.listing.clips[place] for place in places)

    @property
    def missing(self) -> tuple[Clip, ...]:
        """Clips that the corpus lists and that have no file."""
        return tuple(clip for clip in self.listing.clips if clip.path is None)

    @property
    def build_settings(self) -> BuildSettings:
        """What the manifest keeps of the plan."""
        names = set(BuildSettings.model_fields) & set(PlanSettings.model_fields)
        kept = {name: getattr(self.settings, name) for name in names}
        return BuildSettings(plan_hash=self.hash, **kept)


def changed_options(plan: Plan, built: Manifest) -> list[str]:
    """Name the options in which a plan differs from the build of a data set, with both values."""
    wanted = plan.build_settings.model_dump() | {"keep_audio": plan.settings.keep_audio}
    found = built.build.model_dump() | {"keep_audio": built.has_audio}
    changed = [
        f"{option} {wanted[name]} (was {found[name]})"
        for name, option in _OPTIONS.items()
        if wanted[name] != found[name]
    ]
    features, others = plan.settings.features.model_dump(), built.features.model_dump()
    changed += [
        f"--features with {name} {features[name]} (was {others[name]})"
        for name in features
        if features[name] != others[name]
    ]
    return changed + _changed_corpus_options(plan.settings.corpus_options, built.build)


def _changed_corpus_options(
    wanted: dict[str, str | bool] | None, built: BuildSettings
) -> list[str]:
    """Name the corpus's own options that differ; older versions did not keep them."""
    found = built.corpus_options
    if wanted is None or found is None:
        return []
    return [
        f"--{name} {wanted.get(name, 'not given')} (was {found.get(name, 'not given')})"
        for name in sorted(wanted | found)
        if wanted.get(name) != found.get(name)
    ]


def make_plan(listing: Listing, settings: PlanSettings) -> Plan:
    """Assign every clip of a corpus to a shard.

    Args:
        listing: what the corpus reader found.
        settings: feature spec and limits.

    Raises:
        ValueError: no clip has a file, the corpus lacks a split that was asked for, or has
            more splits than there can be.
    """
    if len(listing.splits) > MAX_SPLITS:
        raise ValueError(
            f"a corpus must have at most {MAX_SPLITS:,} splits, found {len(listing.splits):,}; is "
            "the column of splits the right one?"
        )
    listing = listing.only(settings.splits)
    sizes = _file_sizes(listing)
    if settings.limit is not None:
        kept = _random_clips(listing.clips, sizes, settings.limit)
        listing = replace(listing, clips=tuple(listing.clips[place] for place in kept))
        sizes = sizes[kept]
    order = _stored_order(listing.clips, sizes)
    if not len(order):
        raise ValueError(
            f"no audio to build from: the corpus lists {len(listing.clips)} clips and none of "
            "them has a file; check the folder"
        )
    estimates = _estimates(listing.clips, sizes, order, settings)
    bounds = _cut(estimates, settings)
    return Plan(
        settings=settings,
        listing=listing,
        order=order,
        bounds=bounds,
        n_bytes=sum(estimates[1]),
        hash=_hash(listing, settings, sizes, order, bounds),
    )


def _file_sizes(listing: Listing) -> npt.NDArray[np.int64]:
    """Return the bytes of each clip's file, -1 where there is none."""

    root, n_clips = os.fspath(listing.root), len(listing.clips)

    def sizes(first: int) -> list[int]:
        paths = (clip.path for clip in listing.clips[first : first + STAT_CHUNK])
        return [-1 if p is None else os.stat(os.path.join(root, p)).st_size for p in paths]

    with ThreadPoolExecutor(STAT_THREADS) as pool:
        chunks = pool.map(sizes, range(0, n_clips, STAT_CHUNK))
        return np.fromiter(itertools.chain.from_iterable(chunks), np.int64, n_clips)


def _random_clips(
    clips: Sequence[Clip], sizes: npt.NDArray[np.int64], limit: int
) -> npt.NDArray[np.int64]:
    """Choose some of the clips that have a file, by a hash of their keys; their places, sorted."""
    hashes = (xxhash.xxh3_64_intdigest(clip.key.encode()) for clip in clips)
    order = np.argsort(np.fromiter(hashes, np.uint64, len(clips)), kind="stable")
    return np.sort(order[sizes[order] >= 0][:limit])


def _stored_order(clips: Sequence[Clip], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Order the clips that have a file by a hash; the segments of one file stay together."""
    names = (clip.key if clip.offset_s is None else clip.path or clip.key for clip in clips)
    hashes = (xxhash.xxh3_64_intdigest(os.fsencode(name)) for name in names)
    offsets = (clip.offset_s or 0.0 for clip in clips)
    order = np.lexsort(
        (
            np.fromiter(offsets, np.float64, len(clips)),
            np.fromiter(hashes, np.uint64, len(clips)),
        )
    )
    return order[sizes[order] >= 0]


def _estimates(
    clips: Sequence[Clip],
    sizes: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    settings: PlanSettings,
) -> tuple[array, array]:
    """Guess samples and bytes of each clip, in stored order: 16 bytes a clip, not 120."""
    samples, n_bytes = array("q"), array("q")
    for place in order:
        estimate = _estimate(clips[place], int(sizes[place]), settings)
        samples.append(estimate[0])
        n_bytes.append(estimate[1])
    return samples, n_bytes


def _estimate(clip: Clip, n_bytes: int, settings: PlanSettings) -> tuple[int, int]:
    """Guess samples and bytes of a clip; only the cut depends on it, never what is stored."""
    duration_s = clip.duration_s
    if duration_s is None:
        assert clip.path is not None
        suffix = os.path.splitext(clip.path)[1][1:].lower()
        duration_s = n_bytes / GUESSED_BYTES_PER_SECOND.get(suffix, OTHER_BYTES_PER_SECOND)
    spec = settings.features
    n_samples = (
        1 if settings.window_s is None else max(1, math.ceil(duration_s / settings.window_s))
    )
    per_second = spec.frame_rate_hz * spec.frame_bytes
    if settings.keep_audio:
        per_second += FLAC_BYTES_PER_SAMPLE * spec.sample_rate
    return n_samples, int(duration_s * per_second) + n_samples * MEMBER_BYTES


def _cut(estimates: tuple[array, array], settings: PlanSettings) -> npt.NDArray[np.int64]:
    """Cut the clips, in order, into shards of equal samples or of about equal bytes.

    Bytes count where they decide how many shards there are, so that each takes about as long
    to build as the others.
    """
    n_samples, n_bytes = map(sum, estimates)
    n_by_samples = -(-n_samples // settings.max_shard_samples)
    n_shards = max(
        n_by_samples,
        -(-n_bytes // settings.max_shard_bytes),
        min(MIN_SHARDS, len(estimates[0]) // MIN_SHARD_SAMPLES),
    )
    axis, whole = (1, n_bytes) if n_shards > n_by_samples else (0, n_samples)
    bounds, samples, size, total = [0], 0, 0, 0
    for place, estimate in enumerate(zip(*estimates, strict=True)):
        is_full = (
            samples + estimate[0] > settings.max_shard_samples
            or size + estimate[1] > settings.max_shard_bytes
            or total * n_shards >= whole * len(bounds)
        )
        if samples and is_full:
            bounds.append(place)
            samples = size = 0
        samples, size, total = samples + estimate[0], size + estimate[1], total + estimate[axis]
    return np.array([*bounds, len(estimates[0])], np.int64)


def _hash(
    listing: Listing,
    settings: PlanSettings,
    sizes: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    bounds: npt.NDArray[np.int64],
) -> str:
    """Hash what decides the bytes: version, settings, clips, their order and the cut."""
    digest = hashlib.sha256(version("melstream").encode())
    digest.update(settings.model_dump_json().encode())
    digest.update(repr((listing.label_names, listing.label_ids, listing.splits)).encode())
    for clip in listing.clips:
        row = (clip.key, clip.source, clip.labels, clip.start_s, clip.duration_s)
        digest.update(repr((*row, clip.offset_s, clip.split, clip.events)).encode())
    for column in (sizes, order, bounds):
        digest.update(np.ascontiguousarray(column, np.int64).tobytes())
    return digest.hexdigest()[:16]
