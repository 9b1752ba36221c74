"""Single samples of a data set: which to show, what is known of one, and is it so."""

import io
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ..shards.dataset import Dataset
from ..shards.errors import ShardError
from ..shards.keys import make_key
from ..shards.manifest import ADOPTED
from ..shards.rows import FIGURES
from ..shards.writer import SampleInfo
from .corpora.names import stem_of
from .inspection import Clip, SampleCheck


def pick_rows(dataset: Dataset, n: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Draw samples so that each class has about as many.

    A sample counts for the rarest of its labels; those without a label are a class of their
    own. The classes take turns until enough are drawn.

    Args:
        dataset: of which.
        n: how many; all where there are fewer.
        seed: the same gives the same rows.

    Returns:
        rows of the index, ascending, int64.
    """
    index, n_classes = dataset.index, len(dataset.manifest.label_names)
    counts = np.append(np.bincount(index.label_ids, minlength=n_classes), 0)
    owner = np.repeat(np.arange(len(index)), np.diff(index.label_indptr))
    rarest_first = np.argsort(-counts[index.label_ids], kind="stable")
    group = np.full(len(index), n_classes)
    group[owner[rarest_first]] = index.label_ids[rarest_first]  # the last one, the rarest, stays
    shuffled = np.random.default_rng(seed).permutation(len(index))
    by_group = shuffled[np.argsort(group[shuffled], kind="stable")]
    sizes = np.bincount(group, minlength=n_classes + 1)
    turn = np.arange(len(index)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(by_group[np.argsort(turn, kind="stable")[:n]])


def find_row(dataset: Dataset, key: str) -> int:
    """Return the row of a key.

    Raises:
        ValueError: the data set has no such key.
    """
    keys = dataset.index.sample_keys()
    found = np.flatnonzero(keys == key.encode("utf-8", "backslashreplace"))
    if not len(found):
        names = [name.decode("ascii") for name in keys.tolist()]
        known = ", ".join((_similar(names, key) or names)[:3])
        raise ValueError(f"`KEY` must be a key of {dataset.url} such as {known}, found {key!r}")
    return int(found[0])


def _similar(keys: Sequence[str], typed: str) -> list[str]:
    """Return the keys that hold what was typed, or what becomes of it as a key.

    >>> _similar(["Snare-1", "old_kick", "kick_drum-0123456789abcdef"], "Kick")
    ['kick_drum-0123456789abcdef', 'old_kick']
    >>> _similar(["old_kick", "kick_drum-0123456789abcdef"], "kick drum.wav")
    ['kick_drum-0123456789abcdef']
    """
    made = [make_key(name) for name in (typed, stem_of(typed))]
    readable = [key.rpartition("-")[0] or key for key in made if key != typed]  # without the hash
    wanted = tuple(part.lower() for part in (typed, *made, *readable))
    found = [key for key in keys if any(part in key.lower() for part in wanted)]
    return sorted(found, key=lambda key: (key not in made, not key.lower().startswith(wanted)))


def describe_clip(dataset: Dataset, row: int) -> Clip:
    """Say what manifest and index know of one sample."""
    manifest, index = dataset.manifest, dataset.index
    split, audio_hash = int(index.split[row]), int(index.audio_hash[row])
    floats = [name for name in FIGURES if index.column(name).dtype.kind == "f"]
    figures = {name: _known(float(index.column(name)[row])) for name in floats}
    return Clip(
        key=dataset.key(row),
        row=row,
        shard=dataset.shard_of(row).name,
        logmel_offset=int(index.logmel_offset[row]),
        logmel_size=int(index.logmel_size[row]),
        labels=tuple(manifest.label_names[i] for i in index.labels(row)),
        split=manifest.split_names[split] if split >= 0 else None,
        n_frames=int(index.n_frames[row]),
        sample_rate=int(index.sample_rate[row]) or None,
        n_channels=int(index.n_channels[row]) or None,
        audio_hash=f"{audio_hash:016x}" if audio_hash else None,
        n_same_audio=int((index.audio_hash == audio_hash).sum()) - 1 if audio_hash else 0,
        **figures,
    )


def read_own_info(dataset: Dataset, row: int) -> SampleInfo | None:
    """Read the ``json`` of a sample; None where there is none of melstream's own form.

    Raises:
        ShardError: the shard is missing, short or altered.
    """
    if not dataset.index.json_size[row]:
        return None
    try:
        return SampleInfo.model_validate_json(dataset.read_member(row, "json"))
    except ValidationError:
        return None


def check_samples(dataset: Dataset, n: int, *, seed: int = 0) -> SampleCheck:
    """Read some samples and compare them with their rows of the index.

    Args:
        dataset: an open data set.
        n: how many, drawn by ``pick_rows``.
        seed: of the draw.
    """
    rows = pick_rows(dataset, n, seed=seed)
    problems = [problem for row in rows for problem in _problems(dataset, int(row))]
    return SampleCheck(keys=tuple(dataset.key(int(row)) for row in rows), problems=tuple(problems))


def _problems(dataset: Dataset, row: int) -> Iterator[str]:
    """Yield what is wrong with one sample; hashes and sizes are compared where it is read."""
    key, index = dataset.key(row), dataset.index
    try:
        payload = dataset.read_member(row, "logmel")
        logmel = dataset.read_logmel(row, check=False)
        for member in ("json", "flac"):
            if index.column(f"{member}_size")[row] > 0:
                dataset.read_member(row, member)
    except ShardError as error:
        yield str(error)
        return
    if not np.isfinite(logmel).all():
        yield f"{key}: its log-mel must be finite, found NaN or infinity"
    shape = np.load(io.BytesIO(payload), allow_pickle=False).shape
    if shape != logmel.shape:
        yield f"{key}: its log-mel must have shape {logmel.shape} by the index, found {shape}"
    yield from _info_problems(dataset, row)


def _info_problems(dataset: Dataset, row: int) -> Iterator[str]:
    """Yield what the ``json`` member of melstream's own says otherwise than the index."""
    info, key, index = read_own_info(dataset, row), dataset.key(row), dataset.index
    if info is None:
        return
    labels = {dataset.manifest.label_names[i] for i in index.labels(row)}
    is_adopted = ADOPTED in dataset.manifest.build.corpus  # its labels may be of another field
    if labels != set(info.labels) and not is_adopted:
        yield f"{key}: its labels must be {labels} by the index, found {info.labels} in its json"
    for name in FIGURES:
        told, known = getattr(info, name), index.column(name)[row]
        is_same = (
            int(told, 16) == known
            if name == "audio_hash"
            else np.isclose(math.nan if told is None else told, known, rtol=1e-6, equal_nan=True)
        )
        if not is_same:
            yield f"{key}: `{name}` must be {known} by the index, found {told} in its json"


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
