"""Which clip goes into which shard, decided before any audio is decoded.

The plan is a pure function of the listing and the settings: the same clips give the same
shards, whatever the number of processes and however often the build was interrupted.
Clips are stored in the order of a hash of their keys, so that every shard is a random
sample of the corpus: neighbours in a shard do not share a class or a source.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import soundfile
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from ..shards.manifest import BuildSettings
from ..shards.spec import FeatureSpec
from .corpora.corpus import Clip, Listing

MIN_SHARDS = 8  # small corpora are cut too, for parallel builds and shuffles …
MIN_SHARD_SAMPLES = 32  # … but not into crumbs
GUESSED_BYTES_PER_SECOND = 16_000  # of a file no header can be read from: 128 kbit/s


class PlanSettings(BaseModel):
    """What decides the bytes of a build, beside the audio."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str = Field(description="name of the corpus reader")
    features: FeatureSpec = Field(description="how log-mels are computed")
    min_duration_s: float = Field(
        default=0.025, ge=0, description="reject shorter clips, in seconds"
    )
    max_shard_samples: int = Field(default=2_000, ge=1, description="most clips in one shard")
    max_shard_bytes: int = Field(default=256 * 10**6, ge=1, description="most bytes in one shard")


@dataclass(frozen=True, slots=True)
class Plan:
    """Clips by shard, and those that have no file.

    Args:
        settings: what was asked for.
        listing: the corpus.
        shards: the clips of each shard, in stored order.
        missing: clips without a file.
        hash: of everything above and the program's version; files count by name and size.
    """

    settings: PlanSettings
    listing: Listing
    shards: tuple[tuple[Clip, ...], ...]
    missing: tuple[Clip, ...]
    hash: str

    @property
    def n_clips(self) -> int:
        """Clips that have a file."""
        return sum(len(clips) for clips in self.shards)

    @property
    def build_settings(self) -> BuildSettings:
        """What the manifest keeps of the plan."""
        return BuildSettings(
            corpus=self.settings.corpus,
            plan_hash=self.hash,
            min_duration_s=self.settings.min_duration_s,
            max_shard_samples=self.settings.max_shard_samples,
            max_shard_bytes=self.settings.max_shard_bytes,
        )


def make_plan(listing: Listing, settings: PlanSettings) -> Plan:
    """Assign every clip of a corpus to a shard.

    Args:
        listing: what the corpus reader found.
        settings: feature spec and limits.

    Raises:
        ValueError: no clip has a file.
    """
    present = [clip for clip in listing.clips if clip.path is not None]
    missing = tuple(clip for clip in listing.clips if clip.path is None)
    if not present:
        raise ValueError(
            f"no audio to build from: the corpus lists {len(missing)} clips and none of them has a "
            "file; check the folder"
        )
    present.sort(key=lambda clip: (xxhash.xxh3_64_intdigest(clip.key.encode()), clip.key))
    shards = _cut(present, settings)
    return Plan(
        settings=settings,
        listing=listing,
        shards=shards,
        missing=missing,
        hash=_hash(listing, settings, shards),
    )


def _cut(clips: list[Clip], settings: PlanSettings) -> tuple[tuple[Clip, ...], ...]:
    """Fill shards in order, each up to the limit of samples or of (estimated) bytes."""
    n_shards = max(
        -(-len(clips) // settings.max_shard_samples),
        min(MIN_SHARDS, len(clips) // MIN_SHARD_SAMPLES),
        1,
    )
    max_samples = -(-len(clips) // n_shards)
    shards: list[list[Clip]] = [[]]
    n_bytes = 0
    for clip in clips:
        size = _estimate_bytes(clip, settings.features)
        if shards[-1] and (
            len(shards[-1]) == max_samples or n_bytes + size > settings.max_shard_bytes
        ):
            shards.append([])
            n_bytes = 0
        shards[-1].append(clip)
        n_bytes += size
    return tuple(tuple(shard) for shard in shards)


def _estimate_bytes(clip: Clip, spec: FeatureSpec) -> int:
    """Guess the bytes of a sample; only the sizes of shards depend on it, never their content."""
    duration_s = _estimate_duration(clip) if clip.duration_s is None else clip.duration_s
    return int(duration_s * spec.frame_rate_hz * spec.n_mels * 2) + 2_048


def _estimate_duration(clip: Clip) -> float:
    assert clip.path is not None
    try:
        return soundfile.info(os.fsencode(clip.path)).duration  # pyright: ignore[reportArgumentType]
    except (soundfile.LibsndfileError, RuntimeError):
        return clip.path.stat().st_size / GUESSED_BYTES_PER_SECOND


def _hash(listing: Listing, settings: PlanSettings, shards: Sequence[Sequence[Clip]]) -> str:
    """Hash what decides the bytes: version, settings, clips, and the cut into shards."""
    digest = hashlib.sha256(version("melstream").encode())
    digest.update(settings.model_dump_json().encode())
    digest.update(json.dumps([len(clips) for clips in shards]).encode())
    digest.update(json.dumps([listing.label_names, listing.label_ids]).encode())
    for clip in listing.clips:
        row = [clip.key, clip.source, clip.labels, clip.start_s, clip.duration_s, _size(clip.path)]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def _size(path: Path | None) -> int | None:
    return None if path is None else path.stat().st_size
