"""``dataset.json``, the manifest: what a data set is, written last.

A folder with a manifest holds a whole data set; a folder without one does not.
The manifest is untrusted input: it is validated field by field, and shard names
cannot point out of the folder.
"""

import hashlib
import json
from importlib.metadata import version
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from .affine import AffineCode
from .errors import DatasetError
from .spec import FeatureSpec
from .storage import Storage

FORMAT_VERSION = 1
MANIFEST_NAME = "dataset.json"
ADOPTED = "index"  # stands as the corpus of tars that ``melstream index`` found ready made
CLAIM_NAME = ".build/plan.json"  # says which build an unfinished data set is
RETRY_NAME = ".build/retry"  # says that shards are being added to a finished one, and which
MAX_MANIFEST_BYTES = 256 * 2**20  # a million shards need about 150 MB

ShardName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.tar$", max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ShardEntry(BaseModel):
    """One row of the shard table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ShardName = Field(description="file name inside the data set")
    size_bytes: int = Field(ge=1, description="size of the tar, in bytes")
    n_samples: int = Field(ge=1, description="samples in the tar")
    sha256: Sha256 = Field(description="hash of the whole tar")


class BuildSettings(BaseModel):
    """What a build was asked for; the same settings over the same files give the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str = Field(description="name of the corpus reader, or `index` for adopted tars")
    plan_hash: str = Field(description="hash of clips, their order and these settings")
    min_duration_s: float = Field(description="clips shorter than this were rejected, in seconds")
    window_s: float | None = Field(
        default=None, description="recordings were cut into windows of so many seconds"
    )
    splits: tuple[str, ...] = Field(default=(), description="splits asked for; none = all")
    limit: int | None = Field(default=None, description="most clips asked for")
    max_shard_samples: int = Field(description="most clips planned for one shard")
    max_shard_bytes: int = Field(description="most bytes planned for one shard")
    corpus_options: dict[str, str | bool] | None = Field(
        default=None,
        description="options of the corpus reader, but for files and defaults; none: unknown",
    )

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave unknown options out, as older versions did, so that their bytes are the same."""
        content = dump(self)
        if self.corpus_options is None:
            content.pop("corpus_options", None)
        return content


class Manifest(BaseModel):
    """What a data set holds, without opening a shard."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = FORMAT_VERSION
    melstream_version: str = Field(default_factory=lambda: version("melstream"))
    features: FeatureSpec = Field(description="how the log-mels were computed")
    feature_hash: str = Field(description="hash of `features`")
    code: AffineCode | None = Field(
        default=None, description="what stored `uint8` codes stand for; none for float16"
    )
    has_audio: bool = Field(
        default=False, description="each sample has a third member, the waveform as FLAC"
    )
    label_names: tuple[str, ...] = Field(description="names of the classes, in the order of ids")
    label_ids: tuple[str, ...] | None = Field(description="AudioSet mids of the classes, if any")
    split_names: tuple[str, ...] = Field(
        default=(), description="the corpus's own splits or folds, in the order of the index"
    )
    shards: tuple[ShardEntry, ...] = Field(min_length=1)
    n_samples: int = Field(ge=1, description="samples in all shards")
    duration_s: float = Field(ge=0, description="audio in all samples, in seconds")
    n_rejects: dict[str, int] = Field(description="inputs that are not in the set, by reason")
    n_ignored: dict[str, int] = Field(
        default_factory=dict, description="audio files that belong to no input, by kind"
    )
    band_mean: tuple[float, ...] = Field(description="mean log-mel per band over the set")
    band_std: tuple[float, ...] = Field(description="standard deviation per band over the set")
    ids_hash: str = Field(description="hash of the sorted keys, to compare who has which clips")
    index_name: str = Field(
        default="index.zarr",
        pattern=r"^index(-[0-9]{1,9})?\.zarr$",
        description="name of the index; a set that was added to has a further one",
    )
    index_hash: str = Field(description="hash of all columns of the index; see `hash_index`")
    index_files_hash: str = Field(description="hash of the files of the index; see `hash_files`")
    made_of: tuple[str, ...] = Field(
        default=(),
        description="fingerprints of the data sets whose samples were copied, and of what they "
        "were made of",
    )
    build: BuildSettings

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what a set of no others does not need, as older versions did."""
        content = dump(self)
        if not self.made_of:
            content.pop("made_of", None)
        return content

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.feature_hash != self.features.hash:
            raise ValueError(
                f"`feature_hash` must be the hash of `features` ({self.features.hash}), "
                f"found {self.feature_hash}: the file was edited by hand"
            )
        if self.code != self.features.code:
            raise ValueError(
                f"`code` must be the one of `features` ({self.features.code}), found {self.code}"
            )
        total = sum(shard.n_samples for shard in self.shards)
        if total != self.n_samples:
            raise ValueError(
                f"`n_samples` must be the sum over shards ({total}), found {self.n_samples}"
            )
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("`shards` names one shard twice")
        for name in ("band_mean", "band_std"):
            if len(getattr(self, name)) != self.features.n_mels:
                raise ValueError(f"`{name}` must have `n_mels` ({self.features.n_mels}) values")
        return self

    @property
    def lineage(self) -> tuple[str, ...]:
        """Fingerprints of this data set and of those it was made of."""
        return (self.fingerprint, *self.made_of)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the content does: features, labels, shards, index."""
        content = {
            "features": self.feature_hash,
            "labels": self.label_names,
            "shards": [(shard.name, shard.sha256) for shard in self.shards],
            "index": self.index_hash,
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Write ``dataset.json``: the same manifest gives the same bytes."""
    storage.write(MANIFEST_NAME, manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return ``dataset.json`` as it is written: the manifest, and a checksum over the rest."""
    content = manifest.model_dump(mode="json")
    return (json.dumps({**content, "checksum": _checksum(content)}, indent=1) + "\n").encode()


def read_manifest(storage: Storage) -> Manifest:
    """Read and validate ``dataset.json``.

    Args:
        storage: where the data set lies.

    Raises:
        DatasetError: there is none, or it is not a manifest of this format version.
    """
    place = f"{storage.url}/{MANIFEST_NAME}"
    size_bytes = storage.size(MANIFEST_NAME)
    if size_bytes is None:
        raise DatasetError(
            f"no data set at {storage.url}: `{MANIFEST_NAME}` is missing "
            f"({_what_is_there(storage)}); build one with 'melstream build'"
        )
    if size_bytes > MAX_MANIFEST_BYTES:
        raise DatasetError(f"{place} must be under {MAX_MANIFEST_BYTES} bytes, found {size_bytes}")
    content, checksum = _read_json(place, storage.read(MANIFEST_NAME))
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        found = "; ".join(f"`{_dotted(e['loc'])}`: {e['msg']}" for e in error.errors()[:3])
        raise DatasetError(
            f"{place} is not a manifest of format version {FORMAT_VERSION}: {found}"
        ) from error
    except UnicodeEncodeError as error:  # half a pair of surrogates
        raise DatasetError(f"{place} must be text, found: {error}; copy it again") from error
    if checksum != _checksum(content):
        raise DatasetError(
            f"{place} was altered after it was written (its checksum differs); copy it again, or "
            "build the data set again"
        )
    return manifest


def _read_json(place: str, text: bytes) -> tuple[Any, Any]:
    """Return the content, and the checksum that stands in it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place} must be JSON, found: {error}; copy it again") from error
    return content, content.pop("checksum", None) if isinstance(content, dict) else None


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _what_is_there(storage: Storage) -> str:
    if storage.folder is not None and not storage.folder.exists():
        return "the folder does not exist"
    if storage.size(CLAIM_NAME) is not None:
        return "an unfinished build lies there: run the same 'melstream build' again to complete it"
    return "no finished build lies there"


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "file"
