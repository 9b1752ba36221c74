"""``melstream embed``: what a model makes of the clips of a data set, or of audio files."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ..model.checkpoint import is_checkpoint
from ..model.inference import AudioModel, Card, assemble, load
from ..pipeline.loader import Loader, LoaderConfig
from ..pipeline.order import EvaluationOrder
from ..pipeline.parallel_map import n_cores, parallel_map
from ..pipeline.waveform import Waveform, load_waveform
from ..shards.dataset import Dataset, open_dataset
from ..shards.errors import DatasetError, SampleError
from ..shards.manifest import MANIFEST_NAME
from ..shards.spec import FeatureSpec
from .corpora.files import find_audio, printable
from .embeddings import ClipEmbedding, Columns, new_embeddings
from .evaluate import warn_of_cut_clips
from .model_folder import read_model, weights_digest
from .progress import progress

BATCH_SIZE = 32
GROUP_S = 600.0  # of audio that is decoded before the model hears it, in seconds, about


@dataclass(slots=True)
class EmbedReport:
    """What became of the clips.

    Args:
        n_clips: how many were embedded.
        rejects: those that could not be decoded, one message each.
    """

    n_clips: int = 0
    rejects: list[str] = field(default_factory=list)


def embed(
    model_folder: Path,
    places: Sequence[str],
    out: Path,
    *,
    layer: int | None = None,
    has_frames: bool = False,
    device: torch.device,
    console: Console,
) -> EmbedReport:
    """Embed a data set, or audio files, and write a Zarr group; see ``embeddings``.

    Args:
        model_folder: run, model or checkpoint folder; of a tagger the scores are written, too.
        places: one data set, or audio files and folders of them.
        out: where the group goes.
        layer: conformer block to embed with, counted from 1; None: the last.
        has_frames: keep each latent step, not only each clip's mean.
        device: where to compute.
        console: where progress is shown.

    Raises:
        ValueError: both kinds of places, or a layer that the encoder lacks.
        DatasetError: something stands at ``out``, or not one clip could be embedded.
        CheckpointError: no model there.
    """
    if out.exists():
        raise DatasetError(f"{out} is there already; remove it, or choose another --out")
    model = _model(model_folder, device, layer)
    source = _open_source(places, FeatureSpec(**model.features.model_dump()))
    report = EmbedReport()
    columns = Columns(model.encoder.config.dim, model.label_names, source.label_names, has_frames)
    with (
        new_embeddings(out, columns, _attributes(model, source)) as writer,
        progress("embedding", len(source), console) as tell,
    ):
        for clip in source.clips(model, report):
            writer.add(clip)
            report.n_clips += 1
            tell(report.n_clips + len(report.rejects), "clips")
        if not report.n_clips:
            raise DatasetError(
                f"none of {len(source)} files could be embedded; the first: {report.rejects[0]}"
            )
    return report


@dataclass(frozen=True, slots=True)
class _DatasetSource:
    """The clips of a data set, with their labels."""

    dataset: Dataset

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.dataset.manifest.label_names

    def __len__(self) -> int:
        return len(self.dataset)

    def attributes(self) -> dict[str, Any]:
        return {"dataset": self.dataset.url, "fingerprint": self.dataset.manifest.fingerprint}

    def clips(self, model: AudioModel, report: EmbedReport) -> Iterator[ClipEmbedding]:
        # Where padding is seen, a clip's embedding would depend on those beside it.
        batch_size = BATCH_SIZE if model.encoder.config.hides_padding else 1
        order = EvaluationOrder(np.arange(len(self.dataset)), batch_size)
        config = LoaderConfig(stride=model.encoder.config.stride)
        loader = Loader(self.dataset, order, config, pins=model.device.type == "cuda")
        for batch in loader.batches(0, order.steps_per_epoch):
            moved = batch.to(model.device)
            encoded = model.encode(moved.logmel, moved.n_frames)
            scores = None if encoded.scores is None else encoded.scores.cpu().numpy()
            labels = None if batch.labels is None else batch.labels.numpy().astype(bool)
            for i, frames in enumerate(encoded.frames()):
                if batch.rows[i] >= 0:  # the last batch is filled up
                    yield ClipEmbedding(
                        batch.keys[i],
                        frames.numpy(),
                        None if scores is None else scores[i],
                        None if labels is None else labels[i],
                    )


@dataclass(frozen=True, slots=True)
class _FileSource:
    """Audio files by the name they are shown with; no path: a link that leads nowhere."""

    files: Sequence[tuple[str, Path | None]]
    spec: FeatureSpec
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def attributes(self) -> dict[str, Any]:
        return {}

    def clips(self, model: AudioModel, report: EmbedReport) -> Iterator[ClipEmbedding]:
        n_threads = n_cores()
        loaded = parallel_map(
            partial(_load, spec=self.spec), self.files, n_threads=n_threads, n_ahead=4 * n_threads
        )
        max_samples = round(GROUP_S * self.spec.sample_rate)
        for group in _grouped(loaded, report, max_samples=max_samples):
            names, waveforms = zip(*group, strict=True)
            found = model.embed(waveforms, self.spec.sample_rate, batch_size=BATCH_SIZE)
            scores = None if found.tags is None else found.tags.scores.numpy()
            for i, name in enumerate(names):
                yield ClipEmbedding(
                    name, found.frames[i].numpy(), None if scores is None else scores[i], None
                )


def _load(file: tuple[str, Path | None], spec: FeatureSpec) -> tuple[str, Waveform | SampleError]:
    """Decode a file, or say why that cannot be."""
    name, path = file
    try:
        return name, load_waveform(Path(name) if path is None else path, spec).waveform
    except SampleError as error:
        return name, error


def _grouped(
    loaded: Iterable[tuple[str, Waveform | SampleError]], report: EmbedReport, *, max_samples: int
) -> Iterator[list[tuple[str, Waveform]]]:
    """Gather what could be decoded into groups of about so many samples."""
    group: list[tuple[str, Waveform]] = []
    for name, waveform in loaded:
        if isinstance(waveform, SampleError):
            report.rejects.append(printable(str(waveform)))
            continue
        group.append((name, waveform))
        if sum(len(each) for _, each in group) >= max_samples:
            yield group
            group = []
    if group:
        yield group


def _model(folder: Path, device: torch.device, layer: int | None) -> AudioModel:
    """Load a finished model, or what is in a checkpoint."""
    if not is_checkpoint(folder):
        return load(folder, device=device, layer=layer)
    state, card = read_model(folder)
    needed = Card.model_validate(card.model_dump(mode="json"))
    return assemble(state, needed, device=device, layer=layer)


def _open_source(places: Sequence[str], spec: FeatureSpec) -> _DatasetSource | _FileSource:
    datasets = [place for place in places if _is_dataset(place)]
    if not datasets:
        return _FileSource([file for place in places for file in _files(place)], spec)
    if len(places) > 1:
        raise ValueError(
            f"the sources must be one data set, or audio files and folders of them, found "
            f"{datasets[0]} among {len(places)}; call once for each data set"
        )
    dataset = open_dataset(datasets[0])
    spec.require_same(dataset.manifest.features, dataset.url)
    warn_of_cut_clips(dataset)
    return _DatasetSource(dataset)


def _is_dataset(place: str) -> bool:
    return "://" in place or (Path(place) / MANIFEST_NAME).is_file()


def _files(place: str) -> Iterator[tuple[str, Path | None]]:
    root = Path(place)
    if root.is_file():
        yield printable(place), root
        return
    for source, path in find_audio(root):
        yield printable(f"{root}/") + source, None if path is None else root / path


def _attributes(model: AudioModel, source: _DatasetSource | _FileSource) -> dict[str, Any]:
    return {
        "made_by": f"melstream {version('melstream')}",
        "encoder": weights_digest(model.encoder),
        "layer": model.encoder.config.n_layers,
        "frame_rate_hz": model.frame_rate_hz,
        **source.attributes(),
    }
