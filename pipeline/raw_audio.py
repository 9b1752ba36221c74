"""Audio as it stands in shards, still encoded: of our own data sets, and of anybody's tars.

    kept_audio(dataset)          what ``melstream build --keep-audio`` kept
    tar_audio("s3://bucket/x")   WebDatasets of FLAC, WAV, MP3 … made elsewhere, no index

Both give ``RawAudio``; ``audio_logmels`` decodes it. Tars are read with every header checked:
one that is cut or damaged is an error, where webdataset's reader just ends early.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..shards.audio_suffixes import AUDIO_SUFFIXES
from ..shards.dataset import Dataset
from ..shards.errors import DatasetError, ShardError
from ..shards.storage import Storage, open_storage
from ..shards.tar_members import Member, read_tar, scan_members, split_name
from ..shards.writer import FLAC_FIELD
from .member_reader import read_samples

MAX_JSON_BYTES = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class RawAudio:
    """One clip, not decoded yet.

    Args:
        shard: the tar it stands in.
        key: of the sample, as the tar has it.
        suffix: of the audio member, such as ``flac``; "" where the sample has none.
        payload: the bytes of the audio file.
        info: content of the ``json`` member; None where there is none.
        row: of the data set's index, -1 where there is no index.
    """

    shard: str
    key: str
    suffix: str
    payload: bytes | memoryview
    info: Any
    row: int = -1


def kept_audio(dataset: Dataset, rows: Iterable[int] | None = None) -> Iterator[RawAudio]:
    """Read the waveforms that a data set kept, checked against its index.

    Args:
        dataset: the open data set, built with ``--keep-audio``.
        rows: of its index, such as those of an order's steps; by default, all.

    Yields:
        the clips, in the order of ``rows``.

    Raises:
        DatasetError: it kept none.
        ShardError: a shard is missing, short or altered.
    """
    if not dataset.manifest.has_audio:
        raise DatasetError(
            f"{dataset.url} must have been built with `--keep-audio`, it holds no waveforms; build "
            "it again so, or use its log-mels"
        )
    return _kept(dataset, range(len(dataset)) if rows is None else rows)


def tar_audio(
    place: str | Path | Storage,
    names: Sequence[str] | None = None,
    *,
    audio_field: str | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[RawAudio]:
    """Read the clips of WebDataset tars that have no index, tar by tar.

    A tar in an object store is held in memory whole, one at a time.

    Args:
        place: the folder or URL of the tars.
        names: of the tars (default: all ``.tar`` there, sorted); a web server lists none.
        audio_field: the field that is the audio, such as ``audio.wav``; by default, the only
            one that ends in one of ``AUDIO_SUFFIXES``.
        rank, world_size: take each ``world_size``-th tar, from number ``rank`` on.

    Yields:
        a clip for each sample; where it has no audio, one with an empty suffix.

    Raises:
        DatasetError: there are no tars.
        ShardError: a tar is missing, cut or damaged, or a sample has two audio members.
    """
    storage = place if isinstance(place, Storage) else open_storage(place)
    names = _find_tars(storage) if names is None else names
    return _tars(storage, names[rank::world_size], audio_field)


def _kept(dataset: Dataset, rows: Iterable[int]) -> Iterator[RawAudio]:
    for row, payloads in read_samples(dataset, rows, members=("json", "flac")):
        shard, key = dataset.shard_of(row).name, dataset.key(row)
        info = _parse(payloads["json"], shard, key) if "json" in payloads else None
        yield RawAudio(shard, key, FLAC_FIELD, payloads["flac"], info, row)


def _find_tars(storage: Storage) -> list[str]:
    names = [name for name, _ in storage.list() if name.endswith(".tar")]
    if not names:
        raise DatasetError(f"{storage.url} must hold tars, found none; name the folder of the tars")
    return sorted(names)


def _tars(storage: Storage, names: Sequence[str], audio_field: str | None) -> Iterator[RawAudio]:
    for name in names:
        try:
            data = read_tar(storage, name)
        except FileNotFoundError:
            raise ShardError(f"{storage.url_of(name)} is missing", shard=name) from None
        for key, fields in _group(data, name):
            yield _clip(data, name, key, fields, audio_field)


def _group(data: npt.NDArray[np.uint8], shard: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """Group members by key as WebDataset does: neighbours with the same key are a sample."""
    current, fields = None, dict[str, Member]()
    for member in scan_members(data, shard):
        cut = split_name(member.name)
        if cut is None:
            continue
        key, field = cut
        if key != current:
            if current is not None:
                yield current, fields
            current, fields = key, {}
        if field in fields:
            raise ShardError(
                f"{shard}: a field must be unique in its sample, found `{field}` twice in {key}; "
                "make the tar again",
                shard=shard,
                key=key,
            )
        fields[field] = member
    if current is not None:
        yield current, fields


def _clip(
    data: npt.NDArray[np.uint8],
    shard: str,
    key: str,
    fields: dict[str, Member],
    audio_field: str | None,
) -> RawAudio:
    def payload(field: str) -> memoryview:
        return data[fields[field].offset : fields[field].offset + fields[field].size].data

    info = None
    if "json" in fields:
        if fields["json"].size > MAX_JSON_BYTES:
            raise ShardError(
                f"{shard}: the json of {key} must have at most {MAX_JSON_BYTES} bytes, found "
                f"{fields['json'].size}",
                shard=shard,
                key=key,
            )
        info = _parse(payload("json").tobytes(), shard, key)
    field = _choose(shard, key, fields, audio_field)
    if field is None:
        return RawAudio(shard, key, "", b"", info)
    return RawAudio(shard, key, _suffix(field), payload(field), info)


def _choose(shard: str, key: str, fields: dict[str, Member], audio_field: str | None) -> str | None:
    if audio_field is not None:
        return audio_field if audio_field in fields else None
    found = [field for field in fields if _suffix(field) in AUDIO_SUFFIXES]
    if len(found) > 1:
        raise ShardError(
            f"{shard}: a sample must have one audio member, found {', '.join(found)} in {key}; "
            f'say which: audio_field="{found[0]}"',
            shard=shard,
            key=key,
        )
    return found[0] if found else None


def _suffix(field: str) -> str:
    return field.rpartition(".")[2].lower()


def _parse(payload: bytes, shard: str, key: str) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ShardError(
            f"{shard}: the json of {key} must be JSON, found something else ({error}); make the "
            "tar again",
            shard=shard,
            key=key,
        ) from error
