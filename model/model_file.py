"""The folder of a finished model.

    any-name/
      model.safetensors         weights
      model.json                its card, sha256 of the weights

It is whole if it exists (``atomic_folder``), and checked before it is read (``checked_files``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .atomic_folder import atomic_folder
from .checked_files import (
    WEIGHTS,
    check_sums,
    read_document,
    read_weights,
    write_document,
    write_weights,
)

_CARD = "model.json"


class _ModelFile(BaseModel):
    """What stands in ``model.json`` beside the format version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card: dict[str, Any] = Field(description="what a user of the weights must know")
    sha256: dict[str, str] = Field(description="sum of each other file, by name, in hex")


@dataclass(frozen=True, eq=False)
class SavedModel:
    """What ``load_model_file`` gives back, on the CPU."""

    path: Path
    model_state: dict[str, Tensor]
    card: dict[str, Any]
    """The dict that was saved with it, as JSON gives it back."""


def save_model(folder: Path, model_state: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
    """Write the folder of a finished model, whole or not at all; an older one is replaced.

    Args:
        folder: where; its parent is made if need be.
        model_state: weights by name, on any device.
        card: what a user of the weights must know, as JSON can hold it. ``load`` needs ``kind``
            ("encoder" or "tagger"), the fields of ``encoder`` and ``features``, and of a tagger
            those of ``tagger`` and the ``label_names``.

    Returns:
        ``folder``.

    Raises:
        ValueError: something else than a saved model stands there.
        TypeError: the card holds a value that JSON cannot hold.
    """
    if folder.exists() and not is_model(folder) and any(folder.iterdir()):
        raise ValueError(
            f"`folder` must be new, empty or a saved model, found other files in {folder}; "
            "give another name"
        )
    with atomic_folder(folder) as writing:
        write_weights(writing / WEIGHTS, model_state)
        write_document(writing, _CARD, {"card": dict(card)})
    return folder


def is_model(folder: Path) -> bool:
    """Say whether a folder is, or was meant to be, a finished model."""
    return (folder / _CARD).is_file()


def load_model_file(folder: Path) -> SavedModel:
    """Read the folder of a finished model, after checking the weights against their sum.

    Args:
        folder: as ``save_model`` wrote it.

    Returns:
        The weights, on the CPU, and the card.

    Raises:
        CheckpointError: it is missing, damaged, or of another format version.
    """
    remedy = "copy the model again"
    document = read_document(folder, _CARD, _ModelFile, remedy=remedy)
    check_sums(folder, document.sha256, WEIGHTS, remedy=remedy)
    return SavedModel(folder, read_weights(folder / WEIGHTS, remedy=remedy), document.card)
