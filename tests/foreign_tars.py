"""WebDataset tars of log-mels as other tools write them."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from conftest import SPEC

from melstream.shards.spec import FeatureSpec
from melstream.shards.storage import open_storage
from melstream.tools.adopt import Adopted, AdoptSettings, adopt

Members = Iterable[tuple[str, bytes]]


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def logmel(number: int, n_frames: int = 20, dtype: str = "float16") -> np.ndarray:
    values = np.random.default_rng(number).normal(-5, 2, (n_frames, SPEC.n_mels))
    return values.astype(dtype)


def write_tar(path: Path, members: Members, tar_format: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, payload in members:
            header = tarfile.TarInfo(name)
            header.size = len(payload)
            tar.addfile(header, io.BytesIO(payload))
    return path


def clips(numbers: Iterable[int], field: str = "mel.npy") -> list[tuple[str, bytes]]:
    """Samples as another tool may write them: odd json first, audio beside the log-mel."""
    members = []
    for n in numbers:
        key = f"clip{n}"
        content = {"cls": ["dog", "cat"] if n % 2 else "dog", "id": n}
        members.append((f"{key}.json", json.dumps(content).encode()))
        members.append((f"{key}.mp3", b"\xff" * (100 + n)))
        members.append((f"{key}.{field}", npy(logmel(n, 20 + n))))
    return members


def index_tars(folder: Path, features: FeatureSpec = SPEC, **settings: Any) -> Adopted:
    """Adopt the tars of a folder."""
    return adopt(open_storage(folder), AdoptSettings(features, **settings), lambda done, note: None)
