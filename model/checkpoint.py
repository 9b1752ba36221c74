"""Checkpoints of a run, and the folder of a finished model.

    step-000200/                a checkpoint
      model.safetensors         weights
      optimizer.pt              optimiser and random state: tensors in plain containers
      checkpoint.json           step, the trainer's own dict, sha256 of the other two

    any-name/                   a finished model
      model.safetensors
      model.json                its card, sha256 of the weights

Folders are whole if they exist (``atomic_folder``), their files are checked against
their sums before anything is read from them, and nothing is unpickled: weights are
safetensors, and ``torch.load`` reads ``optimizer.pt`` with ``weights_only=True``.
"""

import hashlib
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .atomic_folder import atomic_folder, clear_leftovers, remove_folder

FORMAT_VERSION = 1

_WEIGHTS, _OPTIMIZER = "model.safetensors", "optimizer.pt"
_CHECKPOINT, _CARD = "checkpoint.json", "model.json"
_MAX_JSON_BYTES = 64 * 2**20  # more than any card or config; bounds what is parsed
# Exact types: a NumPy number is a float too, but would be pickled as a class.
_PLAIN = {int, float, bool, str, NoneType, dict, OrderedDict, list, tuple}


class _CheckpointFile(BaseModel):
    """What stands in ``checkpoint.json`` beside the format version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=0, description="optimiser steps done")
    meta: dict[str, Any] = Field(description="the trainer's own dict")
    sha256: dict[str, str] = Field(description="sum of each other file, by name, in hex")


class _ModelFile(BaseModel):
    """What stands in ``model.json`` beside the format version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card: dict[str, Any] = Field(description="what a user of the weights must know")
    sha256: dict[str, str] = Field(description="sum of each other file, by name, in hex")


_Document = TypeVar("_Document", _CheckpointFile, _ModelFile)


class CheckpointError(OSError):
    """A checkpoint or model folder cannot be read; the message says why and what to do.

    An ``OSError``, since it is about files: who reports those reports it too.

    Args:
        message: file, reason, remedy.
        path: the folder.
    """

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What ``load_checkpoint`` gives back, on the CPU."""

    path: Path
    step: int
    """Optimiser steps done."""
    model_state: dict[str, Tensor]
    optimizer_state: dict[str, Any]
    """As torch's optimisers give and take it: hence ``Any``."""
    rng_state: dict[str, Tensor]
    meta: dict[str, Any]
    """The trainer's own dict, as JSON gives it back: tuples became lists."""


@dataclass(frozen=True, eq=False)
class SavedModel:
    """What ``load_model_file`` gives back, on the CPU."""

    path: Path
    model_state: dict[str, Tensor]
    card: dict[str, Any]
    """The dict that was saved with it, as JSON gives it back."""


def save_checkpoint(
    root: Path,
    step: int,
    *,
    model_state: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Any],
    rng_state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
) -> Path:
    """Write a checkpoint; it stands under its name only when it is on the disk whole.

    What earlier crashes left in ``root`` is removed. One process may save at a time.

    Args:
        root: the run's folder of checkpoints; made if need be.
        step: optimiser steps done, 0 or more; a checkpoint of the same step is replaced.
        model_state: weights by name, on any device.
        optimizer_state: tensors, numbers, strings, None, in dicts, lists and tuples.
        rng_state: states of random generators by name.
        meta: whatever else the run needs to resume, as JSON can hold it.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: a negative step.
        TypeError: a value that could not be read back without unpickling, or that
            JSON cannot hold.
    """
    if step < 0:
        raise ValueError(f"`step` must be 0 or more, found {step}")
    state = {"optimizer": dict(optimizer_state), "rng": dict(rng_state)}
    _check_plain(state, "state")
    root.mkdir(parents=True, exist_ok=True)
    clear_leftovers(root)
    path = root / f"step-{step:06d}"
    with atomic_folder(path) as folder:
        _write_weights(folder, model_state)
        torch.save(state, folder / _OPTIMIZER)
        _write_json(folder, _CHECKPOINT, {"step": step, "meta": dict(meta)})
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint back, after checking each file against its sum.

    Args:
        path: the checkpoint's folder.

    Returns:
        The checkpoint, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, of another format version, or holds
            something that would have to be unpickled; the message names the file and
            the latest earlier checkpoint.
    """
    remedy = _earlier_checkpoint(path)
    document = _read_json(path, _CHECKPOINT, _CheckpointFile, remedy=remedy)
    _check_sums(path, document.sha256, _WEIGHTS, _OPTIMIZER, remedy=remedy)
    state = _read_state(path, remedy=remedy)
    return Checkpoint(
        path=path,
        step=document.step,
        model_state=_read_weights(path, remedy=remedy),
        optimizer_state=state["optimizer"],
        rng_state=state["rng"],
        meta=document.meta,
    )


def latest_checkpoint(root: Path) -> Path | None:
    """Find the checkpoint with the most steps; None where there is none, or no ``root``."""
    return max(_steps(root).items(), default=(0, None))[1]


def prune_checkpoints(root: Path, keep_last: int, keep: Collection[Path] = ()) -> None:
    """Remove all but the latest checkpoints.

    Args:
        root: the run's folder of checkpoints.
        keep_last: how many to keep, 1 or more.
        keep: checkpoints that stay whatever their age, such as the best one.

    Raises:
        ValueError: ``keep_last`` below 1.
    """
    if keep_last < 1:
        raise ValueError(f"`keep_last` must be 1 or more, found {keep_last}")
    kept = {path.resolve() for path in keep}
    by_age = [path for _, path in sorted(_steps(root).items())]
    for path in by_age[:-keep_last]:
        if path.resolve() not in kept:
            remove_folder(path)


def save_model(folder: Path, model_state: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
    """Write the folder of a finished model, whole or not at all; an older one is replaced.

    Args:
        folder: where; its parent is made if need be.
        model_state: weights by name, on any device.
        card: what a user of the weights must know (configs, feature spec, label
            names ...), as JSON can hold it.

    Returns:
        ``folder``.

    Raises:
        ValueError: something else than a saved model stands there.
        TypeError: the card holds a value that JSON cannot hold.
    """
    if folder.exists() and not (folder / _CARD).is_file() and any(folder.iterdir()):
        raise ValueError(
            f"`folder` must be new, empty or a saved model, found other files in {folder}; "
            "give another name"
        )
    with atomic_folder(folder) as writing:
        _write_weights(writing, model_state)
        _write_json(writing, _CARD, {"card": dict(card)})
    return folder


def load_model_file(folder: Path) -> SavedModel:
    """Read the folder of a finished model, after checking the weights against their sum.

    Args:
        folder: as ``save_model`` wrote it.

    Returns:
        The weights, on the CPU, and the card.

    Raises:
        CheckpointError: it is missing, damaged, or of another format version.
    """
    remedy = "copy or export the model again"
    document = _read_json(folder, _CARD, _ModelFile, remedy=remedy)
    _check_sums(folder, document.sha256, _WEIGHTS, remedy=remedy)
    return SavedModel(folder, _read_weights(folder, remedy=remedy), document.card)


def _steps(root: Path) -> dict[int, Path]:
    if not root.is_dir():
        return {}
    names = ((re.fullmatch(r"step-(\d{6,})", path.name), path) for path in root.iterdir())
    return {int(name[1]): path for name, path in names if name and path.is_dir()}


def _earlier_checkpoint(path: Path) -> str:
    name = re.fullmatch(r"step-(\d+)", path.name)
    steps = _steps(path.parent)
    earlier = [step for step in steps if name is None or step < int(name[1])]
    if not earlier:
        return f"no earlier checkpoint is in {path.parent}: start the run again"
    return f"resume from {steps[max(earlier)]}, the latest one before it"


def _write_weights(folder: Path, model_state: Mapping[str, Tensor]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model_state.items()}
    save_file(tensors, folder / _WEIGHTS)


def _write_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    sums = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    document = {"format_version": FORMAT_VERSION, **content, "sha256": sums}
    (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path, name: str, kind: type[_Document], *, remedy: str) -> _Document:
    file = path / name
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it must have at most {_MAX_JSON_BYTES} bytes")
        content = json.loads(file.read_bytes())
        version = content.pop("format_version", None) if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"its format version must be {FORMAT_VERSION}, found {version!r}; if it is newer, "
                "read it with the melstream that wrote it"
            )
        return kind.model_validate(content)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; {remedy}", path=path) from error


def _check_sums(path: Path, sums: Mapping[str, str], *names: str, remedy: str) -> None:
    for name in names:
        file = path / name
        found = _sha256(file) if file.is_file() else "no such file"
        if found != sums.get(name):
            raise CheckpointError(
                f"{file} must have the sha256 {sums.get(name)}, found {found}: it is damaged or "
                f"altered; {remedy}",
                path=path,
            )


def _read_weights(path: Path, *, remedy: str) -> dict[str, Tensor]:
    file = path / _WEIGHTS
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"cannot read {file}: {error}; {remedy}", path=path) from error


def _read_state(path: Path, *, remedy: str) -> dict[str, Any]:
    file = path / _OPTIMIZER
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {name: state[name] for name in ("optimizer", "rng")}
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{file} must hold `optimizer` and `rng`, tensors in plain containers, and was "
            f"refused; {remedy}",
            path=path,
        ) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_plain(value: object, place: str) -> None:
    if not isinstance(value, Tensor) and type(value) not in _PLAIN:
        raise TypeError(
            f"{place} must be a tensor, number, string, None or a plain container of them, "
            f"found {type(value).__name__}: a checkpoint is never unpickled"
        )
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f"a key of {place}")
            _check_plain(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{place}[{index}]")
