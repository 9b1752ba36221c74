"""A model on disk: weights, and the card that says how to build and feed it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from ..model.checkpoint import is_checkpoint, latest_checkpoint, load_checkpoint
from ..model.encoder import AudioEncoder, EncoderConfig
from ..model.model_file import is_model, load_model_file, save_model
from ..model.tagger import Tagger, TaggerConfig
from ..shards.errors import DatasetError
from ..shards.manifest import Manifest
from ..shards.spec import FeatureSpec
from .run_folder import CHECKPOINTS_NAME, MODEL_NAME

ENCODER = "encoder."  # starts the names of its weights in a run, and in a tagger


class ModelCard(BaseModel):
    """``model.json``: what the weights beside it belong to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["encoder", "tagger"]
    encoder: EncoderConfig
    features: FeatureSpec = Field(description="the log-mels the model was trained on")
    crop_s: float = Field(description="length of the training crops, in seconds")
    tagger: TaggerConfig | None = None
    label_names: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = Field(description="fingerprints of the training sets, in order")
    splits: tuple[str, ...] = Field(
        default=(),
        description='those of the last training set that were learnt from, "" for clips of no '
        "split; none = all of it",
    )
    made_of: tuple[str, ...] = Field(
        default=(), description="fingerprints of what the last training set was copied from"
    )
    steps: int = Field(description="updates that the weights have had in the last training")


def write_model(folder: Path, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write the final model of a run."""
    save_model(folder, state, card.model_dump(mode="json"))


def weights_digest(module: nn.Module) -> str:
    """Return a short sum of all weights of a module."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_model(path: Path) -> tuple[Mapping[str, Tensor], ModelCard]:
    """Read weights and card from the folder of a run, a model or a checkpoint.

    Raises:
        DatasetError: there is no model.
    """
    folder = path / MODEL_NAME if (path / MODEL_NAME).is_dir() else path
    if (path / CHECKPOINTS_NAME).is_dir() and folder == path:
        last = latest_checkpoint(path / CHECKPOINTS_NAME)
        instead = "" if last is None else f", or give its last checkpoint: {last}"
        raise DatasetError(f"the run in {path} is not finished; go on with it by --resume{instead}")
    if not (is_checkpoint(folder) or is_model(folder)):
        raise DatasetError(f"no model at {path}; {_instead(path)}")
    if is_checkpoint(folder):
        checkpoint = load_checkpoint(folder)
        if "card" not in checkpoint.meta:
            raise DatasetError(f"{folder} is an older version's and does not say what model it is")
        card = _card(checkpoint.meta["card"], folder)
        return model_part(checkpoint.weights, card), card
    saved = load_model_file(folder)
    return saved.model_state, _card(saved.card, folder)


def _instead(path: Path) -> str:
    """Say what to give where there is no model: of folds, one of them."""
    folds = sorted(run.parent for run in path.glob(f"*/{MODEL_NAME}") if is_model(run))
    if folds:
        return f"it holds several runs, give one, such as {folds[0]}"
    return (
        "give a run of 'melstream pretrain' or 'finetune', a checkpoint of one, or a model's folder"
    )


def load_encoder(
    path: Path, changes: Mapping[str, Any] = MappingProxyType({})
) -> tuple[AudioEncoder, ModelCard]:
    """Load a trained encoder from the folder of a run, a model or a checkpoint.

    Args:
        path: the folder; of a tagger its encoder is taken.
        changes: fields of ``EncoderConfig`` that hold no weight, such as ``dropout``.

    Raises:
        DatasetError: there is no model.
    """
    state, card = read_model(path)
    encoder = AudioEncoder(card.encoder.model_copy(update=dict(changes)))
    encoder.load_state_dict(state if card.kind == "encoder" else _below(ENCODER, state))
    return encoder, card


def load_tagger(path: Path) -> tuple[Tagger, ModelCard]:
    """Load a fine-tuned tagger from the folder of a run, a model or a checkpoint.

    Raises:
        DatasetError: there is no model, or it is not a tagger.
    """
    state, card = read_model(path)
    if card.kind != "tagger" or card.tagger is None:
        raise DatasetError(
            f"{path} must hold a tagger, found an {card.kind}; give a run of 'melstream finetune'"
        )
    tagger = Tagger(AudioEncoder(card.encoder), card.tagger, len(card.label_names))
    tagger.load_state_dict(state)
    return tagger, card


def require_features(card: ModelCard, manifest: Manifest, where: str) -> None:
    """Refuse a data set whose log-mels are not those the model knows."""
    card.features.require_same(manifest.features, where)


def _card(content: dict[str, Any], folder: Path) -> ModelCard:
    try:
        return ModelCard.model_validate(content)
    except ValidationError as error:
        raise DatasetError(f"{folder} has no model card that can be read: {error}") from error


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def model_part(state: Mapping[str, Tensor], card: ModelCard) -> Mapping[str, Tensor]:
    """Return the weights of the model among those of its run.

    Of pre-training these are the encoder's, and the mask embedding of its objective.
    """
    if card.kind == "tagger":
        return state
    part = _below(ENCODER, state)
    if (learnt := state.get("objective.mask_embedding")) is not None:
        part["mask_embedding"] = learnt
    return part
