"""The folder of a training run: what lies where, and whose it is.

config.json        the resolved recipe, the data set's fingerprint, the command's inputs
lock               held by the process that trains here
checkpoints/       step-000200/ …
tensorboard/       scalars
metrics.jsonl      the same scalars, one line per entry
model/             the final model
report.html        curves and figures, once the run is complete
evaluation-valid.json, other evaluation*.json
                   results per class of the final model: on the validation set or the fold that
                   was held out, and what `melstream evaluate RUN --out RUN/evaluation.json` found
"""

import errno
import fcntl
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..shards.errors import DatasetError
from ..shards.files import write_bytes

CONFIG_NAME = "config.json"
LOCK_NAME = "lock"
CHECKPOINTS_NAME = "checkpoints"
TENSORBOARD_NAME = "tensorboard"
METRICS_NAME = "metrics.jsonl"
MODEL_NAME = "model"
REPORT_NAME = "report.html"
EVALUATIONS_GLOB = "evaluation*.json"
VALIDATION_NAME = "evaluation-valid.json"

LOOK_S = 0.2  # longer than ``is_claimed`` holds the lock

HEADLINE = {"multi_label": "mAP", "single_label": "accuracy"}
"""The figure on held-out data by which the best step is chosen, by the tagger's task."""

FREE_TO_CHANGE = (
    "log_every",
    "validate_every",
    "checkpoint_every",
    "keep_last",
    "max_skipped_steps",
    "wandb_project",
    "accumulate",
    "checkpoints_activations",
    "health",
    "cache",
    "timeout_s",
)
"""Fields of a run's configuration that may differ when it is resumed: they change no batch and
no aim.

(``accumulate`` and ``checkpoints_activations`` follow the GPUs at hand; they alter what
dropout and hidden steps draw, the rounding of sums, and the quantizer's diversity, which is
that of a part.)
"""


def claim_run(folder: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Make a new run folder, or make sure that an old one is the same run.

    Args:
        folder: where the run's files go.
        config: everything that decides the run's weights.
        resume: go on with the run that is there.

    Raises:
        DatasetError: the folder holds another run, or any run without ``resume``.
    """
    path = folder / CONFIG_NAME
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"{folder} must be a folder, found a file; choose another --out")
    if path.exists() and not resume:
        raise DatasetError(
            f"{folder} holds a run already; add --resume to go on, or choose another --out"
        )
    if path.exists():
        changed = differences(_read_config(path), config)
        if changed:
            raise DatasetError(
                f"{folder} holds another run, it cannot be resumed with these settings "
                f"({'; '.join(changed)}); use its own, or choose another --out"
            )
    elif folder.exists() and any(not p.name.startswith(CONFIG_NAME) for p in folder.iterdir()):
        raise DatasetError(f"{folder} must be new or empty, found {next(folder.iterdir()).name}")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(config, indent=1) + "\n").encode())


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a run's folder; the kernel ends it with the process.

    Raises:
        DatasetError: another one does.
    """
    with (folder / LOCK_NAME).open("ab") as file:  # NFS locks only what is open for writing
        _lock(file, folder)
        yield


def is_claimed(folder: Path) -> bool:
    """Say whether a process trains in a run's folder now, as far as its file system knows."""
    try:
        with (folder / LOCK_NAME).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no lock, none to open for writing, or none of this kind
        return False
    return False


def _lock(file: BinaryIO, folder: Path) -> None:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # perhaps by one that looked whether somebody trains here
            time.sleep(LOOK_S)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DatasetError(
            f"another process trains in {folder}; let it end, or choose another --out"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise  # those are of file systems without locks: there the user has to see to it


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DatasetError(
            f"{path} is damaged ({error}): whose run this is can't be told; choose another --out"
        ) from error


def require_shared(folder: Path, rank: int) -> None:
    """Refuse a run folder that this process does not share with the main one, which made it.

    Raises:
        DatasetError: it is on another machine's disk.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise not_shared(f"{path}, which the main process has just written", rank)


def not_shared(what: str, rank: int) -> DatasetError:
    """Return the error of a process that cannot see a file of its run."""
    return DatasetError(
        f"process {rank} on {platform.node()} cannot read {what}; --out must be a folder "
        "that all machines share"
    )


def differences(saved: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """List where the saved configuration of a run and the one of now differ, with both values."""
    return _differences(saved, json.loads(json.dumps(config)))


def _differences(saved: Any, now: Any, path: str = "") -> list[str]:
    """List where two nested configurations differ, with both values."""
    if isinstance(saved, dict) and isinstance(now, dict):
        names = [name for name in sorted(saved.keys() | now.keys()) if name not in FREE_TO_CHANGE]
        found = [_differences(saved.get(n), now.get(n), f"{path}.{n}".lstrip(".")) for n in names]
        return [difference for part in found for difference in part]
    return [] if saved == now else [f"`{path}`: saved {saved!r}, now {now!r}"]
