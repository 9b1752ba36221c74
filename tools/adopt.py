"""``melstream index``: WebDataset tars of log-mels made elsewhere become a data set.

The tars stay as they are; index, card and manifest are written beside them. Every header is
read and every array checked, one shard at a time, before the manifest says that all is well.
What the tars do not tell stays unknown: quality figures are NaN, sample rate, channels and
audio hash 0, and a clip lasts as long as its frames. A ``json`` of melstream's own form
tells all of it, so that a lost index can be made again.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ..shards.errors import DatasetError, ShardError, listed
from ..shards.index import Index, concatenate
from ..shards.keys import MAX_KEY_BYTES, make_key
from ..shards.manifest import ADOPTED, MANIFEST_NAME, BuildSettings, Manifest, ShardEntry
from ..shards.rows import UNKNOWN, Row, Span, rows_index
from ..shards.spec import FeatureSpec
from ..shards.storage import Storage
from ..shards.tar_members import Member, read_tar, scan_members, split_name
from ..shards.writer import FLAC_FIELD, JSON_FIELD, SampleInfo, info_figures
from .adopt_sample import (
    LABEL_FIELD,
    Place,
    choose_logmel_field,
    read_json,
    read_labels,
    read_logmel,
    refuse_pickle,
)
from .band_sums import BandSums
from .finish import common_fields, finish, renumbered, repeated_keys
from .progress import Report

TAR_NAME = re.compile(r"[A-Za-z0-9_-]{1,190}\.tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
IGNORED_KIND = "no sample"  # members that no WebDataset reader makes a sample of


@dataclass(frozen=True, slots=True)
class AdoptSettings:
    """What the tars do not tell.

    Args:
        features: how the log-mels were computed and are stored.
        logmel_field: the member that is the log-mel, such as ``mel.npy``; None:
            ``logmel.npy``, or the only ``.npy``.
        label_field: the field of the ``json`` that names the classes; None: ``labels``,
            where there is one.
        makes_keys: names that are no keys, such as ``a/b``, are made keys.
    """

    features: FeatureSpec
    logmel_field: str | None = None
    label_field: str | None = None
    makes_keys: bool = False


@dataclass(frozen=True, slots=True)
class Adopted:
    """What was found in the tars.

    Args:
        url: where the data set lies.
        manifest: of it.
        logmel_field, label_field: where log-mels and labels were taken from.
        n_unlabelled: samples without a label.
    """

    url: str
    manifest: Manifest
    logmel_field: str
    label_field: str
    n_unlabelled: int


def adopt(storage: Storage, settings: AdoptSettings, report: Report) -> Adopted:
    """Write index, card and manifest for the tars of a folder.

    Args:
        storage: where the tars lie.
        settings: what they do not tell.
        report: called with the number of shards done.

    Raises:
        DatasetError: no tars there, or a data set already; two shards share a key.
        ShardError: a tar is cut or damaged, or a sample cannot be served as it is.
    """
    adopter = _Adopter(storage, settings)
    for done, name in enumerate(find_tars(storage), start=1):
        adopter.add(name)
        report(done, "shards")
    return adopter.finish()


def find_tars(storage: Storage) -> list[str]:
    """Return the names of the tars to adopt, sorted.

    Raises:
        DatasetError: none, one that cannot be adopted, or a data set already.
    """
    names = [name for name, _ in storage.list()]
    if MANIFEST_NAME in names:
        raise DatasetError(
            f"{storage.url} is a data set already; remove {storage.url}/{MANIFEST_NAME} to index "
            "its tars again"
        )
    here = [name for name in names if "/" not in name]
    tars = [name for name in here if name.endswith(".tar")]
    if packed := [name for name in here if name.endswith(COMPRESSED)]:
        raise DatasetError(
            f"tars must not be compressed, or no sample can be read by itself; found {packed[0]}: "
            "unpack it (`gunzip`, `unzstd` …), the log-mels in it hardly shrink"
        )
    if not tars:
        below = next((name for name in names if name.endswith(".tar")), None)
        hint = f"index the folder of {below} itself" if below else "name the folder that has them"
        raise DatasetError(f"{storage.url} must hold the tars to index, found none; {hint}")
    if odd := [name for name in tars if not TAR_NAME.fullmatch(name)]:
        raise DatasetError(
            f"a shard's name must be letters, digits, `_` and `-` before `.tar`, found {odd[0]!r}; "
            "rename it"
        )
    return tars


class _Adopter:
    """Collects what index and manifest will say, shard by shard."""

    def __init__(self, storage: Storage, settings: AdoptSettings) -> None:
        self._storage = storage
        self._settings = settings
        self._logmel_field = settings.logmel_field
        self._label_field = settings.label_field or LABEL_FIELD
        self._has_labels = False
        self._first_json: Any = None
        self._classes: dict[str, int] = {}  # numbers by first appearance, until all are known
        self._splits: dict[str, int] = {}
        self._n_ignored = 0
        self._entries: list[ShardEntry] = []
        self._indexes: list[Index] = []
        self._sums = BandSums.zero(settings.features.n_mels)

    def add(self, name: str) -> None:
        """Read one shard."""
        data = read_tar(self._storage, name)
        rows = []
        for place, members in self._samples(data, name):
            rows.append(self._row(place, members, data))
        if not rows:
            raise ShardError(f"{name} must hold a sample, found none; remove it", shard=name)
        self._indexes.append(rows_index(rows))
        self._entries.append(
            ShardEntry(
                name=name,
                size_bytes=len(data),
                n_samples=len(rows),
                sha256=hashlib.sha256(data.data).hexdigest(),
            )
        )

    def _samples(
        self, data: npt.NDArray[np.uint8], shard: str
    ) -> Iterator[tuple[Place, dict[str, Member]]]:
        """Group members by name as WebDataset does: neighbours with the same key are a sample."""
        seen: set[str] = set()
        current, fields, place = None, dict[str, Member](), None
        for member in scan_members(data, shard):
            cut = split_name(member.name)
            if cut is None or (member.name.startswith("__") and member.name.endswith("__")):
                self._n_ignored += 1
                continue
            if cut[0] != current:
                if place is not None:
                    yield place, fields
                current, fields = cut[0], {}
                place = Place(shard, self._key(shard, current))
                if place.key in seen:
                    raise place.error("a key must be unique, found it twice in this shard; rename")
                seen.add(place.key)
            assert place is not None
            refuse_pickle(place, cut[1])
            if cut[1] in fields:
                raise place.error(f"a field must be unique, found `{cut[1]}` twice; make it again")
            fields[cut[1]] = member
        if place is not None:
            yield place, fields

    def _key(self, shard: str, name: str) -> str:
        key = make_key(name)
        if key != name and not self._settings.makes_keys:
            raise ShardError(
                f"{shard}: a key must be 1 to {MAX_KEY_BYTES} characters of [A-Za-z0-9_-], found "
                f"{name!r}; rename the members, or add `--make-keys`, which makes it {key!r} in "
                "the index",
                shard=shard,
                key=name,
            )
        return key

    def _row(self, place: Place, members: dict[str, Member], data: npt.NDArray[np.uint8]) -> Row:
        def payload(field: str) -> npt.NDArray[np.uint8]:
            start = members[field].offset
            return data[start : start + members[field].size]

        def span(field: str) -> Span:
            found = members[field]
            return Span(found.offset, found.size, xxhash.xxh3_64_intdigest(payload(field).data))

        logmel_field = self._logmel_field = choose_logmel_field(place, members, self._logmel_field)
        logmel = read_logmel(place, logmel_field, payload(logmel_field), self._settings.features)
        content, info = None, None
        spans = {"logmel": span(logmel_field)}
        if JSON_FIELD in members:
            content, info = read_json(place, payload(JSON_FIELD))
            spans["json"] = span(JSON_FIELD)
        if info is not None and FLAC_FIELD in members:  # by melstream, so at the spec's rate
            spans["flac"] = span(FLAC_FIELD)
        self._sums += BandSums.of(logmel, self._settings.features)
        return Row(
            key=place.key,
            n_frames=len(logmel),
            label_ids=self._label_ids(place, content),
            split=_number(self._splits, info.split) if info and info.split else -1,
            figures=self._figures(info, len(logmel)),
            spans=spans,
        )

    def _label_ids(self, place: Place, content: Any) -> tuple[int, ...]:
        if self._first_json is None:
            self._first_json = content
        labels = read_labels(place, content, self._label_field)
        self._has_labels |= labels is not None
        return tuple(_number(self._classes, name) for name in labels or ())

    def _figures(self, info: SampleInfo | None, n_frames: int) -> dict[str, float | int]:
        if info is not None:
            return info_figures(info)
        return UNKNOWN | {"duration_s": self._settings.features.duration_s(n_frames)}

    def finish(self) -> Adopted:
        """Write the tables; the manifest last."""
        self._require_label_field()
        index = concatenate(self._indexes)
        self._require_unique(index)
        label_names, labels = _sorted_numbers(self._classes)
        split_names, splits = _sorted_numbers(self._splits)
        index = renumbered(index, labels=labels, splits=splits.astype(np.int16))
        assert self._logmel_field is not None
        has_json = bool((index.json_size > 0).all())
        fields = {
            **common_fields(self._settings.features, self._entries),
            "has_audio": bool((index.flac_size > 0).all()),
            "label_names": label_names,
            "label_ids": None,
            "split_names": split_names,
            "n_rejects": {},
            "n_ignored": {IGNORED_KIND: self._n_ignored} if self._n_ignored else {},
            "build": self._build_settings(),
        }
        manifest = finish(
            self._storage,
            index,
            self._sums,
            fields,
            origin="The tars were made elsewhere.",
            fields=[*([JSON_FIELD] if has_json else []), self._logmel_field],
        )
        n_unlabelled = int(np.sum(np.diff(index.label_indptr) == 0))
        where = self._logmel_field, self._label_field
        return Adopted(self._storage.url, manifest, *where, n_unlabelled)

    def _require_label_field(self) -> None:
        if self._settings.label_field is None or self._has_labels:
            return
        fields = ", ".join(self._first_json) if isinstance(self._first_json, dict) else "no json"
        raise DatasetError(
            f"`--label-field` must be a field of the json members, found {self._label_field!r} in "
            f"none; the first sample has {fields}"
        )

    def _require_unique(self, index: Index) -> None:
        if repeated := repeated_keys(index.sample_keys()):
            rows = np.flatnonzero(index.sample_keys() == repeated[0].encode())
            shards = [self._entries[index.shard[row]].name for row in rows[:2]]
            named = listed(repeated)
            raise DatasetError(
                f"keys must be unique, found {len(repeated):,} more than once: {named}; the first "
                f"is in {' and '.join(shards)}: rename its members in one of them"
            )

    def _build_settings(self) -> BuildSettings:
        settings = self._settings
        names = [self._logmel_field, self._label_field, settings.makes_keys]
        content = [settings.features.hash, names, [entry.sha256 for entry in self._entries]]
        return BuildSettings(
            corpus=ADOPTED,
            plan_hash=hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
            min_duration_s=0.0,
            max_shard_samples=max(entry.n_samples for entry in self._entries),
            max_shard_bytes=max(entry.size_bytes for entry in self._entries),
        )


def _number(numbers: dict[str, int], name: str) -> int:
    return numbers.setdefault(name, len(numbers))


def _sorted_numbers(numbers: dict[str, int]) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """Return the names in order, and for each number the place of its name there."""
    names = tuple(sorted(numbers))
    places = np.zeros(len(names), np.int32)
    for place, name in enumerate(names):
        places[numbers[name]] = place
    return names, places
