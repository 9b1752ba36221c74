"""Export a data set as a lhotse ``CutSet`` with precomputed features.

lhotse cannot read inside our tars: of its storage types none opens a member of a plain tar, and
one of our own would need melstream wherever the cuts are read. So the log-mels are copied once,
into files that lhotse reads by itself (``numpy_files``, one ``.npy`` per sample; needs neither
lilcom nor h5py). They are float32 there, as lhotse's own features are: twice the bytes of the
shards' float16.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from ..shards.dataset import Dataset
from ..shards.writer import SampleInfo

if TYPE_CHECKING:
    from lhotse import MonoCut, SupervisionSegment

CUTS = "cuts.jsonl.gz"
SPEC = "features.json"
FEATURE_TYPE = "melstream-logmel"
"""What lhotse calls these features: not ``fbank``, for lhotse's own have other numbers."""


def export_cuts(
    dataset: Dataset, path: Path, report: Callable[[int], None] = lambda done: None
) -> Path:
    """Write a data set as cuts that lhotse loads without melstream.

    >>> export_cuts(open_dataset("shards/train"), Path("cuts"))  # doctest: +SKIP
    PosixPath('cuts/cuts.jsonl.gz')
    >>> cuts = lhotse.CutSet.from_file("cuts/cuts.jsonl.gz")  # doctest: +SKIP
    >>> cuts[0].load_features().shape  # doctest: +SKIP
    (1001, 64)

    ``path`` gets ``cuts.jsonl.gz``, written last, ``features/<shard>/<key>.npy`` and
    ``features.json``, the feature spec. A cut's id is the sample's key; it has no recording.
    Its duration is that of its frames, so that lhotse cuts none off: with centred frames 10 s
    are 1001 frames, 10.01 s. A strong label becomes a supervision with its times, any other
    label one that spans the cut; ``text`` is the class name, ``label_id`` the corpus's id.
    ``source``, ``start_s``, ``duration_s`` (of the audio) and ``split_name`` are custom fields.

    The manifest names the files by absolute path, so that it loads from any folder; after a
    move, export again. For millions of samples copy on into a few tars, which lhotse streams:
    ``cuts.to_shar(folder, fields={"features": "numpy"})``, into a folder that exists.

    Args:
        dataset: what to export.
        path: a folder; made where it does not exist.
        report: called after each sample with the number done.

    Returns:
        the manifest's path.

    Raises:
        ValueError: ``path`` holds cuts already.
        ShardError: a shard is missing or damaged; there is no manifest then, and the same call
            starts again.
    """
    manifest_path = path / CUTS
    if manifest_path.exists():
        raise ValueError(f"{path} must hold no {CUTS}; remove it, or choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    spec = dataset.manifest.features.model_dump_json(indent=1)
    (path / SPEC).write_text(spec + "\n")
    part = path / f"{CUTS}.part"
    with part.open("wb") as file:
        # No time and no name in the header: the same data give the same bytes.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            for done, cut in enumerate(_export_samples(dataset, path.resolve()), start=1):
                packed.write(json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n")
                report(done)
        file.flush()
        os.fsync(file.fileno())
    part.replace(manifest_path)
    return manifest_path


def _export_samples(dataset: Dataset, folder: Path) -> Iterator["MonoCut"]:
    """Write the features of each sample, and describe it."""
    label_ids = dict(
        zip(dataset.manifest.label_names, dataset.manifest.label_ids or (), strict=False)
    )
    for row in range(len(dataset)):
        shard = folder / "features" / Path(dataset.shard_of(row).name).stem
        shard.mkdir(parents=True, exist_ok=True)
        logmel = np.asarray(dataset.read_logmel(row), np.float32)
        np.save(shard / f"{dataset.key(row)}.npy", logmel, allow_pickle=False)
        yield _make_cut(dataset, row, logmel.shape, shard, label_ids)


def _make_cut(
    dataset: Dataset, row: int, shape: tuple[int, ...], shard: Path, label_ids: dict[str, str]
) -> "MonoCut":
    from lhotse import Features, MonoCut

    spec, key, info = dataset.manifest.features, dataset.key(row), _read_info(dataset, row)
    names = [dataset.manifest.label_names[label] for label in dataset.index.labels(row)]
    n_frames, n_mels = shape
    duration_s = spec.duration_s(n_frames)
    features = Features(
        type=FEATURE_TYPE,
        num_frames=n_frames,
        num_features=n_mels,
        frame_shift=1 / spec.frame_rate_hz,
        sampling_rate=spec.sample_rate,
        start=0.0,
        duration=duration_s,
        storage_type="numpy_files",
        storage_path=str(shard),
        storage_key=f"{key}.npy",
        recording_id=key,
        channels=0,
    )
    return MonoCut(
        id=key,
        start=0.0,
        duration=duration_s,
        channel=0,
        supervisions=list(
            _supervisions(key, info.labels if info else names, info, duration_s, label_ids)
        ),
        features=features,
        custom=_custom(dataset, row, info),
    )


def _read_info(dataset: Dataset, row: int) -> SampleInfo | None:
    """Read the json of a sample; None where there is none of melstream's, as in adopted tars."""
    if not dataset.index.json_size[row]:
        return None
    payload = dataset.read_member(row, "json")
    try:
        return SampleInfo.model_validate_json(payload)
    except ValidationError:
        return None


def _supervisions(
    key: str,
    names: Sequence[str],
    info: SampleInfo | None,
    duration_s: float,
    label_ids: dict[str, str],
) -> Iterator["SupervisionSegment"]:
    """Describe the strong labels, then the labels that have no times."""
    from lhotse import SupervisionSegment

    timed = [
        (start_s, min(end_s, duration_s), name)
        for start_s, end_s, name in (info.events if info else ())
        if start_s < min(end_s, duration_s)
    ]
    with_times = {name for _, _, name in timed}
    whole = [(0.0, duration_s, name) for name in names if name not in with_times]
    for number, (start_s, end_s, name) in enumerate([*timed, *whole]):
        yield SupervisionSegment(
            id=f"{key}-{number}",
            recording_id=key,
            start=start_s,
            duration=round(end_s - start_s, 6),
            channel=0,
            text=name,
            custom={"label_id": label_ids[name]} if name in label_ids else None,
        )


def _custom(dataset: Dataset, row: int, info: SampleInfo | None) -> dict[str, Any]:
    index, split = dataset.index, int(dataset.index.split[row])
    found = None if split < 0 else dataset.manifest.split_names[split]
    fields = {
        "source": info and info.source,
        "start_s": info.start_s if info else _known(index.start_s[row]),
        "duration_s": info.duration_s if info else _known(index.duration_s[row]),
        "split_name": info.split if info else found,  # `cut.split` is a method
    }
    return {name: value for name, value in fields.items() if value is not None}


def _known(figure: np.float32) -> float | None:
    return None if np.isnan(figure) else float(figure)
