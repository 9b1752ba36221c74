"""Raw audio in, answer out: a trained model that takes files and waveforms.

    model = melstream.model.load("runs/finetune/model")
    for name, score in model.tag("dog.wav").top(3)[0]:
        print(name, score)

The folder's card says how log-mels are made, so nothing else has to be known. Sounds of
any number and length go in at once; long ones are cut into windows.

Legend: B sounds, D model width, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from .checked_files import CheckpointError
from .encoder import AudioEncoder, EncoderConfig
from .logmel import FeatureConfig, TorchLogMel
from .model_file import load_model_file
from .sounds import Sound, Waveform, read_sounds
from .tagger import Tagger, TaggerConfig


@dataclass(frozen=True, slots=True, eq=False)
class Tags:
    """What a tagger hears in B sounds.

    Args:
        scores: float32, shape (B, C), in [0, 1]; each row sums to 1 where classes exclude
            each other. Of a sound of several windows, their mean, weighted by length.
        label_names: of the C classes.
    """

    scores: Float32[Tensor, "B C"]
    label_names: tuple[str, ...]

    def top(self, n: int = 5) -> list[list[tuple[str, float]]]:
        """List, per sound, the n classes of the highest scores with these."""
        best = self.scores.topk(min(n, len(self.label_names)), dim=1)
        return [
            [(self.label_names[i], score) for i, score in zip(row, values, strict=True)]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """What an encoder makes of B sounds.

    Args:
        clips: float32, shape (B, D): the mean of each sound's frames.
        frames: per sound float32, shape (n_steps, D): one per latent step, in order of time.
        frame_rate_hz: latent steps per second.
        tags: what the tagger on top hears in them; None where there is none.
    """

    clips: Float32[Tensor, "B D"]
    frames: tuple[Float32[Tensor, "n_steps D"], ...]
    frame_rate_hz: float
    tags: Tags | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What a model makes of the log-mels of B windows.

    Args:
        context: float32, shape (B, S, D).
        padding_mask: bool, shape (B, S); True = padding.
        scores: float32, shape (B, C), of a tagger; else None.
    """

    context: Float32[Tensor, "B S D"]
    padding_mask: Bool[Tensor, "B S"]
    scores: Float32[Tensor, "B C"] | None

    def frames(self) -> list[Float32[Tensor, "n_steps D"]]:
        """Return the valid steps of each window, on the CPU."""
        pairs = zip(self.context.cpu(), self.padding_mask.cpu(), strict=True)
        return [context[~padding] for context, padding in pairs]


class _Tally:
    """Means of the scores of each sound's windows, weighted by length."""

    def __init__(self, n_sounds: int, label_names: tuple[str, ...]) -> None:
        self._label_names = label_names
        self._scores = torch.zeros(n_sounds, len(label_names))
        self._weights = torch.zeros(n_sounds, 1)

    def add(self, rows: list[int], n_frames: Tensor, scores: Tensor | None) -> None:
        if scores is None:
            return
        weight = n_frames.cpu().float()[:, None]
        self._scores.index_add_(0, torch.tensor(rows), weight * scores.cpu())
        self._weights.index_add_(0, torch.tensor(rows), weight)

    def tags(self) -> Tags:
        return Tags(self._scores / self._weights, self._label_names)


def load(
    folder: str | Path, *, device: str | torch.device = "cpu", layer: int | None = None
) -> "AudioModel":
    """Load a trained model with everything it needs to take audio.

    Args:
        folder: a model folder of ``melstream pretrain`` or ``finetune``, or a run folder that
            holds one.
        device: where it computes.
        layer: embed with what this conformer block gives, counted from 1; those above it, and a
            tagger on top, are left out. None: the last one.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: no model there, or it is damaged, or of another version.
        ValueError: the encoder has no such layer.
    """
    path = Path(folder)
    places = [place for place in (path / "model", path) if (place / "model.json").is_file()]
    if not places:
        raise CheckpointError(
            f"{path} must be the folder of a model, or of a run that is finished, found no "
            "model.json there",
            "train one with 'melstream pretrain' or 'finetune', or go on with a run by --resume",
            path,
        )
    saved = load_model_file(places[0])
    try:
        card = Card.model_validate(saved.card)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, found["loc"])) for found in error.errors())
        raise CheckpointError(
            f"{saved.path / 'model.json'} has no model card that can be read: missing or wrong are "
            f"{wrong}",
            "write it as `save_model` says, or copy the model again",
            saved.path,
        ) from error
    return assemble(saved.model_state, card, device=device, layer=layer)


def assemble(
    state: Mapping[str, Tensor],
    card: "Card",
    *,
    device: str | torch.device = "cpu",
    layer: int | None = None,
) -> "AudioModel":
    """Make a model of its weights.

    Args:
        state: weights by name, of the encoder or of the tagger.
        card: what they belong to.
        device, layer: as in ``load``.

    Raises:
        ValueError: the encoder has no such layer.
    """
    encoder = AudioEncoder(card.encoder)
    tagger = None
    if card.tagger is not None:
        tagger = Tagger(encoder, card.tagger, len(card.label_names))
    (encoder if tagger is None else tagger).load_state_dict(state)
    if layer is not None:
        encoder.cut_above(layer)
        return AudioModel(encoder, None, card.features, (), device=device)
    return AudioModel(encoder, tagger, card.features, card.label_names, device=device)


class AudioModel:
    """An encoder, and perhaps a tagger on it, that take audio as it comes.

    Args:
        encoder: the encoder.
        tagger: a tagger that holds this encoder, or None.
        features: the log-mels that both know.
        label_names: of the tagger's classes.
        device: where to compute.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        tagger: Tagger | None,
        features: FeatureConfig,
        label_names: Sequence[str],
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device).eval()
        self.tagger = None if tagger is None else tagger.to(self.device).eval()
        self.features = features
        self.label_names = tuple(label_names)
        self._logmel = TorchLogMel(features).to(self.device)

    def __repr__(self) -> str:
        """Say what it is, with its sizes."""
        config, n_classes = self.encoder.config, len(self.label_names)
        kind = "encoder" if self.tagger is None else f"tagger of {n_classes} classes"
        return (
            f"<AudioModel: {kind}, {config.n_layers} blocks, {config.dim} wide, "
            f"{self.features.sample_rate} Hz, on {self.device}>"
        )

    @property
    def frame_rate_hz(self) -> float:
        """Latent steps per second."""
        step_samples = self.features.hop_length * self.encoder.config.stride
        return self.features.sample_rate / step_samples

    def embed(
        self,
        sounds: Sound | Sequence[Sound],
        sample_rate: int | None = None,
        *,
        window_s: float = 30.0,
        batch_size: int = 16,
    ) -> Embeddings:
        """Embed sounds.

        Args:
            sounds: one, or a sequence of them: paths of files that libsndfile reads, or
                waveforms. Channels are averaged, and the rate is changed where need be.
            sample_rate: of the waveforms, in Hz; files bring their own.
            window_s: longer sounds are cut into windows of this length, in seconds, each
                of which is encoded by itself.
            batch_size: windows computed at a time.

        Returns:
            The embeddings, on the CPU, in the order of the sounds.

        Raises:
            ValueError: no sound, an unreadable file, a waveform without a rate, of another
                shape, not finite, or shorter than a frame's window.
        """
        waveforms = read_sounds(sounds, sample_rate, self.features)
        parts: list[list[Tensor]] = [[] for _ in waveforms]
        tally = _Tally(len(waveforms), self.label_names)
        for rows, logmel, n_frames in self._batches(waveforms, window_s, batch_size):
            encoded = self.encode(logmel, n_frames)
            for row, frames in zip(rows, encoded.frames(), strict=True):
                parts[row].append(frames)
            tally.add(rows, n_frames, encoded.scores)
        frames = tuple(torch.cat(found) for found in parts)
        clips = torch.stack([f.mean(dim=0) for f in frames])
        tags = None if self.tagger is None else tally.tags()
        return Embeddings(clips, frames, self.frame_rate_hz, tags)

    def tag(
        self,
        sounds: Sound | Sequence[Sound],
        sample_rate: int | None = None,
        *,
        window_s: float = 30.0,
        batch_size: int = 16,
    ) -> Tags:
        """Say what is heard in sounds; the arguments and errors are those of ``embed``.

        Raises:
            ValueError: also if the model is an encoder without a tagger.
        """
        if self.tagger is None:
            raise ValueError(
                "the model must be a tagger, found an encoder; train one with 'melstream finetune'"
            )
        waveforms = read_sounds(sounds, sample_rate, self.features)
        tally = _Tally(len(waveforms), self.label_names)
        for rows, logmel, n_frames in self._batches(waveforms, window_s, batch_size):
            tally.add(rows, n_frames, self.encode(logmel, n_frames).scores)
        return tally.tags()

    @torch.inference_mode()
    def encode(self, logmel: Float[Tensor, "B T n_mels"], n_frames: Int[Tensor, " B"]) -> Encoded:
        """Take log-mels that are there already, such as those of a data set.

        Args:
            logmel: float16 or float32, shape (B, T, n_mels), made as ``features`` says.
            n_frames: integer, shape (B,): valid frames of each.

        Returns:
            What the model makes of them, on its device.
        """
        context, padding_mask = self.encoder(logmel.to(self.device), n_frames.to(self.device))
        assert padding_mask is not None
        scores = None
        if self.tagger is not None:
            scores = self.tagger.scores(self.tagger.head(context, padding_mask))
        return Encoded(context.float(), padding_mask, scores)

    def _batches(
        self, waveforms: list[Waveform], window_s: float, batch_size: int
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield rows (whose windows), log-mels and valid frames; a sound's windows in order."""
        step = self.features.hop_length * self.encoder.config.stride
        size = round(window_s * self.features.sample_rate / step) * step
        if size < max(step, self.features.win_length):
            raise ValueError(f"`window_s` must be longer than a latent step, found {window_s}")
        windows = [
            (row, waveform[start : start + size])
            for row, waveform in enumerate(waveforms)
            for start in range(0, len(waveform), size)
            if start == 0 or len(waveform) - start >= max(step, self.features.win_length)
        ]
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be 1 or more, found {batch_size}")
        if not self.encoder.config.hides_padding:
            batch_size = 1  # or a window's embedding would depend on those beside it
        for first in range(0, len(windows), batch_size):
            rows, cuts = zip(*windows[first : first + batch_size], strict=True)
            yield list(rows), *self._features(cuts)

    @torch.inference_mode()
    def _features(self, waveforms: Sequence[Waveform]) -> tuple[Tensor, Tensor]:
        """Compute the log-mels of a batch, at least one latent step long."""
        features = self.features
        shortest = features.win_length + features.hop_length * self.encoder.config.stride
        batch = np.zeros((len(waveforms), max(shortest, *map(len, waveforms))), np.float32)
        for row, waveform in zip(batch, waveforms, strict=True):
            row[: len(waveform)] = waveform
        n_frames = torch.tensor([features.n_frames(len(waveform)) for waveform in waveforms])
        return self._logmel(torch.from_numpy(batch).to(self.device)), n_frames.to(self.device)


class Card(BaseModel):
    """What inference needs of a model's card."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["encoder", "tagger"]
    encoder: EncoderConfig
    features: FeatureConfig
    tagger: TaggerConfig | None = None
    label_names: tuple[str, ...] = ()
