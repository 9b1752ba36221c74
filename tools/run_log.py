"""What a run writes down: scalars for TensorBoard, ``metrics.jsonl``, Weights & Biases.

Figures stay on the device until they are logged, then one small copy brings them all.
"""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ..shards.files import write_bytes
from .distributed import World
from .health import Entry
from .run_folder import METRICS_NAME, TENSORBOARD_NAME


@dataclass(slots=True)
class Window:
    """Figures of the steps since the last log entry."""

    steps: list[dict[str, Tensor]] = field(default_factory=list)
    n_samples: int = 0
    waited_s: float = 0.0
    total_s: float = 0.0

    def add(
        self, figures: dict[str, Tensor], n_samples: int, *, waited_s: float, total_s: float
    ) -> None:
        """Take in one step: its scalars, samples, and seconds waited for data and in all."""
        self.steps.append(figures)
        self.n_samples += n_samples
        self.waited_s += waited_s
        self.total_s += total_s

    def figures(self, world: World) -> dict[str, float]:
        """Average over steps and processes; steps that were skipped do not count.

        A figure without any step that counts is left out.
        """
        start = time.perf_counter()
        names, table, counts = self._table()
        means = dict(zip(names, world.mean(table.sum(0) / counts.sum()).tolist(), strict=True))
        del means["is_skipped"]
        total_s = self.total_s + time.perf_counter() - start  # the device may have been behind
        return {name: value for name, value in means.items() if math.isfinite(value)} | {
            "samples_per_s": self.n_samples * world.size / total_s,
            "data_wait_share": self.waited_s / total_s,
        }

    def state(self, world: World) -> dict[str, Any]:
        """Return the scalars of each step, means over the processes, for a checkpoint."""
        if not self.steps:
            return {}
        names, table, counts = self._table()
        table[:, names.index("is_skipped")] = (~counts[:, 0]).float()
        return {"names": names, "steps": world.mean(table).tolist()}

    @classmethod
    def of_state(cls, state: dict[str, Any], device: torch.device) -> Self:
        """Make a window whose steps are those of ``state``; seconds and samples start at none."""
        rows = torch.tensor(state.get("steps", []), dtype=torch.float32, device=device)
        return cls([dict(zip(state["names"], row, strict=True)) for row in rows])

    def _table(self) -> tuple[list[str], Float32[Tensor, "steps names"], Bool[Tensor, "steps 1"]]:
        """Return all scalars, zeros in steps that were skipped, and which were not."""
        names = sorted(self.steps[0])
        table = torch.stack(
            [torch.stack([step[name].float() for name in names]) for step in self.steps]
        )
        counts = table[:, [names.index("is_skipped")]] == 0
        return names, torch.where(counts, table, 0.0), counts


class Sink(Protocol):
    """A place for scalars."""

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Take the figures of a step."""
        ...

    def close(self) -> None:
        """Write out what is buffered."""
        ...


class RunLog:
    """All sinks of a run, cut back to the step a run resumes at.

    Args:
        folder: of the run.
        step: updates done; entries past it are those of a run that went on and died.
        world: this process; only the main one writes.
        wandb_project: see ``wandb_log``; empty for none.
        config: of the run, for Weights & Biases.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        *,
        world: World,
        wandb_project: str = "",
        config: dict[str, Any] | None = None,
    ) -> None:
        self._folder = folder
        self.last: dict[str, float] = {}
        self.entries: list[Entry] = []
        self._sinks: list[Sink] = []
        if not world.is_main:
            return
        lines = JsonLines(folder / METRICS_NAME, step)
        self.entries.extend(entry for entry in lines.kept if "grad_norm" in entry)
        self._sinks = [TensorBoard(folder / TENSORBOARD_NAME, step), lines]
        if wandb_project:
            from .wandb_log import WandbLog

            self._sinks.append(WandbLog(wandb_project, folder, config or {}))

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Write the figures of a step everywhere."""
        self.last |= figures
        if "grad_norm" in figures:
            self.entries.append({"step": step, **figures})
        try:
            for sink in self._sinks:
                sink.write(step, figures)
        except OSError as error:
            raise OSError(
                f"cannot write the log of {self._folder}: {error}; mend that, and --resume goes on "
                "from the last checkpoint"
            ) from error

    def close(self) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            sink.close()


class TensorBoard:
    """Scalars under ``train/`` and ``valid/``."""

    def __init__(self, folder: Path, step: int) -> None:
        self._board = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Take the figures of a step."""
        for name, value in figures.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._board.close()


class JsonLines:
    """``metrics.jsonl``: one line per entry.

    Args:
        path: the file; made if need be.
        step: lines past it are cut off.
    """

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        entries = [(line, _parse(line)) for line in lines]
        kept = [(line, entry) for line, entry in entries if entry and entry["step"] <= step]
        self.kept = [entry for _, entry in kept]
        write_bytes(path, b"".join(line.rstrip(b"\n") + b"\n" for line, _ in kept))
        self._file = path.open("a")

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Take the figures of a step."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _parse(line: bytes) -> Entry | None:
    try:
        return json.loads(line)
    except ValueError:  # torn by a crash, or not text: the run writes it again
        return None
