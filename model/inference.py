"""Raw audio in, answer out: a trained model that takes files and waveforms.

    model = melstream.model.load("runs/finetune/model")
    for name, score in model.tag("dog.wav").top(3)[0]:
        print(name, score)

The folder's card says how log-mels are made, so nothing else has to be known. Sounds of
any number and length go in at once; long ones are cut into windows.

Legend: B sounds, D model width, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from .checked_files import CheckpointError
from .encoder import AudioEncoder, EncoderConfig
from .logmel import FeatureConfig, TorchLogMel
from .model_file import load_model_file
from .tagger import Tagger, TaggerConfig

Waveform: TypeAlias = npt.NDArray[np.float32]
Sound: TypeAlias = str | Path | npt.NDArray[np.floating] | Tensor
"""A file, or a waveform in [-1, 1], shape (n_samples,) or (1 or 2 channels, n_samples)."""

_MAX_CHANNELS = 2  # of a waveform; more are a batch, or the axes are swapped
_MAX_PEAK = 32.0  # louder than any overdriven waveform, and quieter than 16-bit samples


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """What an encoder makes of B sounds.

    Args:
        clips: float32, shape (B, D): the mean of each sound's frames.
        frames: per sound float32, shape (n_steps, D): one per latent step, in order of time.
        frame_rate_hz: latent steps per second.
    """

    clips: Float32[Tensor, "B D"]
    frames: tuple[Float32[Tensor, "n_steps D"], ...]
    frame_rate_hz: float


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


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> "AudioModel":
    """Load a trained model with everything it needs to take audio.

    Args:
        folder: a model folder of ``melstream pretrain`` or ``finetune``, or a run folder that
            holds one.
        device: where it computes.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: no model there, or it is damaged, or of another version.
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
        card = _Card.model_validate(saved.card)
    except ValidationError as error:
        raise CheckpointError(
            f"{saved.path / 'model.json'} is not a model card: {error}",
            "copy the model again",
            saved.path,
        ) from error
    encoder = AudioEncoder(card.encoder)
    tagger = None
    if card.tagger is not None:
        tagger = Tagger(encoder, card.tagger, len(card.label_names))
    (encoder if tagger is None else tagger).load_state_dict(saved.model_state)
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
        waveforms = self._waveforms(sounds, sample_rate)
        parts: list[list[Tensor]] = [[] for _ in waveforms]
        for rows, logmel, n_frames in self._batches(waveforms, window_s, batch_size):
            context, padding_mask = self._encode(logmel, n_frames)
            for row, frames, padding in zip(rows, context.cpu(), padding_mask.cpu(), strict=True):
                parts[row].append(frames[~padding])
        frames = tuple(torch.cat(found) for found in parts)
        step_samples = self.features.hop_length * self.encoder.config.stride
        rate_hz = self.features.sample_rate / step_samples
        return Embeddings(torch.stack([f.mean(dim=0) for f in frames]), frames, rate_hz)

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
        waveforms = self._waveforms(sounds, sample_rate)
        scores = torch.zeros(len(waveforms), len(self.label_names))
        weights = torch.zeros(len(waveforms), 1)
        for rows, logmel, n_frames in self._batches(waveforms, window_s, batch_size):
            found = self._score(logmel, n_frames).cpu()
            weight = n_frames.cpu().float()[:, None]
            scores.index_add_(0, torch.tensor(rows), weight * found)
            weights.index_add_(0, torch.tensor(rows), weight)
        return Tags(scores / weights, self.label_names)

    @torch.inference_mode()
    def _encode(self, logmel: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor]:
        context, padding_mask = self.encoder(logmel, n_frames)
        assert padding_mask is not None
        return context.float(), padding_mask

    @torch.inference_mode()
    def _score(self, logmel: Tensor, n_frames: Tensor) -> Tensor:
        assert self.tagger is not None
        return self.tagger.scores(self.tagger(logmel, n_frames))

    def _waveforms(
        self, sounds: Sound | Sequence[Sound], sample_rate: int | None
    ) -> list[Waveform]:
        """Read, mix and resample."""
        is_one = isinstance(sounds, str | Path | np.ndarray | Tensor)
        given: Sequence[Sound] = [sounds] if is_one else sounds  # type: ignore[assignment]
        if not given:
            raise ValueError("`sounds` must hold at least one file or waveform, found none")
        return [self._waveform(sound, sample_rate, number) for number, sound in enumerate(given)]

    def _waveform(self, sound: Sound, sample_rate: int | None, number: int) -> Waveform:
        features = self.features
        if isinstance(sound, str | Path):
            where, (samples, rate) = str(sound), _read(sound)
        else:
            where, samples, rate = f"sound {number}", _as_array(sound, number), sample_rate
        if rate is None:
            raise ValueError("`sample_rate` of the waveforms is required, in Hz, found none")
        if rate <= 0:
            raise ValueError(f"`sample_rate` must be above 0 Hz, found {rate}")
        if not np.isfinite(samples).all():
            raise ValueError(f"{where}: finite samples required, found NaN or inf")
        if (peak := np.abs(samples).max(initial=0.0)) > _MAX_PEAK:
            raise ValueError(
                f"{where}: samples in [-1, 1] required, found a peak of {peak:g}; divide 16-bit "
                "samples by 32768"
            )
        mono = samples.mean(axis=0, dtype=np.float32) if samples.ndim == 2 else samples
        if rate != features.sample_rate:
            mono = soxr.resample(
                mono, rate, features.sample_rate, quality=features.resampler_quality
            )
        if len(mono) < features.win_length:
            raise ValueError(
                f"{where}: at least {features.win_length} samples at {features.sample_rate} Hz "
                f"(one window) are required, found {len(mono)}"
            )
        return mono

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


class _Card(BaseModel):
    """What inference needs of a model's card."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["encoder", "tagger"]
    encoder: EncoderConfig
    features: FeatureConfig
    tagger: TaggerConfig | None = None
    label_names: tuple[str, ...] = ()


def _read(path: str | Path) -> tuple[Waveform, int]:
    """Decode a file: float32, shape (n_channels, n_samples), and its rate in Hz."""
    if not Path(path).is_file():
        raise ValueError(f"{path} must be a file, found none there")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(
            f"{path} must be a file that libsndfile reads (WAV, FLAC, OGG, MP3, AIFF ...), found: "
            f"{str(error).rstrip('.')}; turn it into one (ffmpeg -i {path} sound.wav), or give its "
            "waveform and sample_rate"
        ) from error
    return np.asarray(samples.T, np.float32), rate


def _as_array(sound: npt.NDArray[np.floating] | Tensor, number: int) -> Waveform:
    if not isinstance(sound, np.ndarray | Tensor):
        raise TypeError(
            f"sound {number} must be a path, an array or a tensor, found {type(sound).__name__}"
        )
    if isinstance(sound, Tensor):
        is_half = sound.dtype in (torch.bfloat16, torch.float16)  # NumPy has no bfloat16
        values = (sound.float() if is_half else sound).detach().cpu().numpy()
    else:
        values = sound
    is_mono, is_known = values.ndim == 1, values.ndim == 2 and values.shape[0] <= _MAX_CHANNELS
    found = f"found {values.dtype} of shape {values.shape}"
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"sound {number} must be floating, in [-1, 1], {found}; divide 16-bit samples by 32768"
        )
    if not (is_mono or is_known):
        raise ValueError(
            f"sound {number} must have shape (n_samples,) or (n_channels <= {_MAX_CHANNELS}, "
            f"n_samples), {found}; transpose what soundfile gives, average more channels, and give "
            "a batch as a list"
        )
    return values.astype(np.float32)
