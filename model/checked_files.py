"""The files of checkpoints and models, checked against their sums before they are read.

A folder has one JSON document, written last, with the sha256 of each other file. Weights are
safetensors; nothing here is unpickled.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"

_MAX_JSON_BYTES = 64 * 2**20  # more than any card or config; bounds what is parsed

_Document = TypeVar("_Document", bound=BaseModel)


class CheckpointError(OSError):
    """A checkpoint or model folder cannot be read; the message says why and what to do.

    An ``OSError``, since it is about files: who reports those reports it too.

    Args:
        reason: what was required of which file, and what was found.
        remedy: what to do.
        path: the folder.
    """

    def __init__(self, reason: str, remedy: str, path: Path) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy, self.path = reason, remedy, path

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, Path]]:
        """Pickle by its parts: what one process of a run finds, all of them raise."""
        return type(self), (self.reason, self.remedy, self.path)


class DamagedCheckpointError(CheckpointError):
    """Files are missing, short or altered: an earlier checkpoint of the run may still be whole."""


def write_weights(file: Path, model_state: Mapping[str, Tensor]) -> None:
    """Write weights by name, from any device, as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model_state.items()}
    save_file(tensors, file)


def write_document(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Write the JSON of a folder, with the sums of all files that are there by now.

    All get its rights: safetensors lets nobody but the owner read what it writes.

    Raises:
        TypeError: ``content`` holds a value that JSON cannot hold.
    """
    sums = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    document = {"format_version": FORMAT_VERSION, **content, "sha256": sums}
    (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    mode = (folder / name).stat().st_mode
    for file in folder.iterdir():
        if file.stat().st_mode != mode:
            file.chmod(mode)


def read_document(path: Path, name: str, kind: type[_Document], *, remedy: str) -> _Document:
    """Read the JSON of a folder.

    Args:
        path: the folder.
        name: of the file.
        kind: what stands in it beside the format version.
        remedy: what an error says is to be done.

    Raises:
        DamagedCheckpointError: it is missing, or not such a document.
        CheckpointError: it is of another format version.
    """
    file = path / name
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it must have at most {_MAX_JSON_BYTES} bytes")
        content = json.loads(file.read_bytes())
        version = content.pop("format_version", None) if isinstance(content, dict) else None
        if version == FORMAT_VERSION:
            return kind.model_validate(content)
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"cannot read {file}: {error}", remedy, path) from error
    raise CheckpointError(
        f"cannot read {file}: its format version must be {FORMAT_VERSION}, found {version!r}",
        f"if it is newer, read it with the melstream that wrote it; {remedy}",
        path,
    )


def check_sums(path: Path, sums: Mapping[str, str], *names: str, remedy: str) -> None:
    """Compare files of a folder with the sums that its JSON has for them.

    Raises:
        DamagedCheckpointError: one is missing, short or altered.
    """
    for name in names:
        file = path / name
        found = _sha256(file) if file.is_file() else "no such file"
        if found != sums.get(name):
            raise DamagedCheckpointError(
                f"{file} must have the sha256 {sums.get(name)}, found {found}: it is damaged or "
                "altered",
                remedy,
                path,
            )


def read_weights(file: Path, *, remedy: str) -> dict[str, Tensor]:
    """Read weights by name, on the CPU.

    Raises:
        CheckpointError: it is no file of safetensors.
    """
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"cannot read {file}: {error}", remedy, file.parent) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
