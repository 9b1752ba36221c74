"""Scalars for Weights & Biases, an extra: ``pip install 'melstream[wandb]'``.

Only a run whose recipe names a project comes here. Without a key, or where the service cannot
be reached, the run is recorded in its own folder, and ``wandb sync`` uploads it later.
"""

import importlib.util
import os
import secrets
from pathlib import Path
from typing import Any

from ..shards.files import write_bytes

RUN_ID_NAME = "wandb-run-id"
INIT_TIMEOUT_S = 30.0


def require_wandb(project: str) -> None:
    """Refuse a recipe that asks for Weights & Biases where it is not installed.

    Raises:
        ValueError: it is not.
    """
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"`train.wandb_project` is {project!r} and wandb is not installed; "
            "pip install 'melstream[wandb]', or --set train.wandb_project=''"
        )


class WandbLog:
    """A run of Weights & Biases; a resumed run goes on in it.

    Args:
        project: where it belongs.
        folder: of the run; its name is the run's.
        config: recipe and data.
    """

    def __init__(self, project: str, folder: Path, config: dict[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        options: dict[str, Any] = {
            "project": project,
            "name": folder.name,
            "id": _run_id(folder / RUN_ID_NAME),
            "resume": "allow",
            "dir": str(folder),
            "config": config,
            "settings": wandb.Settings(init_timeout=INIT_TIMEOUT_S),
        }
        try:
            self._run = wandb.init(**options, mode=_mode(wandb))
        except wandb.errors.CommError:  # the service is out of reach: a run must not wait for it
            self._run = wandb.init(**options, mode="offline")

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Take the figures of a step."""
        self._run.log(figures, step=step)

    def close(self) -> None:
        """Hand over what is buffered."""
        self._run.finish()


def _mode(wandb: Any) -> str:
    """Return the mode that the user chose, or one that never asks for a key."""
    chosen = os.environ.get("WANDB_MODE")
    return chosen or ("online" if wandb.api.api_key else "offline")


def _run_id(path: Path) -> str:
    """Return the id of a run folder, drawn once."""
    if not path.exists():
        write_bytes(path, secrets.token_hex(4).encode())
    return path.read_text()
