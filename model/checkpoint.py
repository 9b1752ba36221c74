"""Checkpoints of a run.

    step-000200/
      model.safetensors         weights
      average.safetensors       their moving average, where the run keeps one
      optimizer.pt              optimiser state: tensors in plain containers
      checkpoint.json           step, the trainer's own dict, sha256 of the other files

Folders are whole if they exist (``atomic_folder``), their files are checked against
their sums before anything is read from them (``checked_files``), and nothing is unpickled:
weights are safetensors, and ``torch.load`` reads ``optimizer.pt`` with ``weights_only=True``.
There is no random state in it: what training draws depends on the step alone.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from torch import Tensor

from .atomic_folder import atomic_folder, clear_leftovers, remove_folder
from .checked_files import (
    WEIGHTS,
    CheckpointError,
    check_sums,
    read_document,
    read_weights,
    write_document,
    write_weights,
)

_AVERAGE, _OPTIMIZER, _CHECKPOINT = "average.safetensors", "optimizer.pt", "checkpoint.json"
# Exact types: a NumPy number is a float too, but would be pickled as a class.
_PLAIN = {int, float, bool, str, NoneType, dict, OrderedDict, list, tuple}


class _CheckpointFile(BaseModel):
    """What stands in ``checkpoint.json`` beside the format version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=0, description="optimiser steps done")
    meta: dict[str, Any] = Field(description="the trainer's own dict")
    sha256: dict[str, str] = Field(description="sum of each other file, by name, in hex")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What ``load_checkpoint`` gives back, on the CPU."""

    path: Path
    step: int
    """Optimiser steps done."""
    model_state: dict[str, Tensor]
    optimizer_state: dict[str, Any]
    """As torch's optimisers give and take it: hence ``Any``."""
    average_state: dict[str, Tensor] | None
    """The moving average of the weights; None where the run keeps none."""
    meta: dict[str, Any]
    """The trainer's own dict, as JSON gives it back: tuples became lists."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that a model would get: the moving average's where there is one."""
        return self.model_state if self.average_state is None else self.average_state


def save_checkpoint(
    root: Path,
    step: int,
    *,
    model_state: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Any],
    meta: Mapping[str, Any],
    average_state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint; it stands under its name only when it is on the disk whole.

    What earlier crashes left in ``root`` is removed. One process may save at a time.

    Args:
        root: the run's folder of checkpoints; made if need be.
        step: optimiser steps done, 0 or more; a checkpoint of the same step is replaced.
        model_state: weights by name, on any device.
        optimizer_state: tensors, numbers, strings, None, in dicts, lists and tuples.
        meta: whatever else the run needs to resume, as JSON can hold it.
        average_state: the moving average of the weights by name; None: there is none.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: a negative step.
        TypeError: a value that could not be read back without unpickling, or that
            JSON cannot hold.
        CheckpointError: it cannot be written, the disk is full for example; what stood
            in ``root`` before still does.
    """
    if step < 0:
        raise ValueError(f"`step` must be 0 or more, found {step}")
    state = {"optimizer": dict(optimizer_state)}
    _check_plain(state, "state")
    path = root / f"step-{step:06d}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        clear_leftovers(root)
        with atomic_folder(path) as folder:
            write_weights(folder / WEIGHTS, model_state)
            if average_state is not None:
                write_weights(folder / _AVERAGE, average_state)
            torch.save(state, folder / _OPTIMIZER)
            write_document(folder, _CHECKPOINT, {"step": step, "meta": dict(meta)})
    # torch and safetensors report a full disk by errors of their own
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}", _kept(root), path) from error
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint back, after checking each file against its sum.

    Args:
        path: the checkpoint's folder.

    Returns:
        The checkpoint, on the CPU.

    Raises:
        DamagedCheckpointError: a file is missing, short or altered.
        CheckpointError: it is of another format version, or holds something that would
            have to be unpickled. Either message names the file and the latest earlier
            checkpoint.
    """
    remedy = _earlier_checkpoint(path)
    document = read_document(path, _CHECKPOINT, _CheckpointFile, remedy=remedy)
    has_average = _AVERAGE in document.sha256
    names = (WEIGHTS, _OPTIMIZER, *([_AVERAGE] if has_average else []))
    check_sums(path, document.sha256, *names, remedy=remedy)
    return Checkpoint(
        path=path,
        step=document.step,
        model_state=read_weights(path / WEIGHTS, remedy=remedy),
        optimizer_state=_read_optimizer(path, remedy=remedy),
        average_state=read_weights(path / _AVERAGE, remedy=remedy) if has_average else None,
        meta=document.meta,
    )


def is_checkpoint(folder: Path) -> bool:
    """Say whether a folder is, or was meant to be, a checkpoint."""
    return (folder / _CHECKPOINT).is_file()


def latest_checkpoint(root: Path) -> Path | None:
    """Find the checkpoint with the most steps; None where there is none, or no ``root``."""
    return max(_steps(root).items(), default=(0, None))[1]


def set_aside(path: Path) -> Path:
    """Rename a checkpoint so that it is neither found nor pruned any more.

    Returns:
        Its new place, ``refused-step-…`` beside the others; an older one there is replaced.
    """
    aside = path.with_name(f"refused-{path.name}")
    if aside.exists():
        remove_folder(aside)
    return path.rename(aside)


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
    before = f"the one before it is {steps[max(earlier)]}"
    return f"{before}; to go on from there: rm -r {path}" if path.exists() else before


def _kept(root: Path) -> str:
    latest = latest_checkpoint(root)
    kept = "there is none before it" if latest is None else f"{latest} is whole"
    return f"{kept}; make room and go on with --resume"


def _read_optimizer(path: Path, *, remedy: str) -> dict[str, Any]:
    file = path / _OPTIMIZER
    try:
        return torch.load(file, map_location="cpu", weights_only=True)["optimizer"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{file} must hold `optimizer`, tensors in plain containers, and was refused",
            remedy,
            path,
        ) from error


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
