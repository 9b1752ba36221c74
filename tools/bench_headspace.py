"""Headspace: how much faster a trainer would be if its batches came from nowhere.

The same steps are taken with batches from the loader and with one batch again and again.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat

import torch

from ..model.encoder import PRESETS, AudioEncoder, EncoderConfig
from ..model.objectives import build_objective
from ..model.optim import OptimConfig, build_optimizer, parameter_groups
from ..model.pretraining import PretrainingModel
from ..pipeline.batch import Batch, on_device
from ..pipeline.loader import Loader

N_ROUNDS = 3
MIN_STEPS = 4
OPTIM = OptimConfig()


@dataclass(frozen=True, slots=True)
class Headspace:
    """What was measured; medians of the rounds.

    Args:
        preset: the encoder that was trained.
        device: where.
        step_s: of a step with batches from the loader, in seconds.
        cached_step_s: of a step with one batch that is on the device already.
        wait_share: part of the first in which the trainer waits for a batch.
    """

    preset: str
    device: str
    step_s: float
    cached_step_s: float
    wait_share: float

    @property
    def gain(self) -> float:
        """How many times as fast an infinitely fast loader would let the trainer be."""
        return self.step_s / self.cached_step_s


def measure_headspace(
    loader: Loader, n_mels: int, *, preset: str, device: torch.device, seconds: float
) -> Headspace:
    """Train a fresh encoder for some steps, with real batches and with a cached one, in turns.

    Args:
        loader: gives batches with masks.
        n_mels: mel bands of a frame.
        preset: one of the encoder's.
        device: where to train; bfloat16 on a GPU, float32 elsewhere.
        seconds: how long each turn takes at least.
    """
    config = PRESETS[preset].model_copy(update={"n_mels": n_mels})
    step = train_step(config, device)
    cached = loader.batch(0).to(device)
    take_steps(step, repeat(cached), device, seconds=0.0)  # compiles
    real_s, cached_s, waits = [], [], []
    for number in range(N_ROUNDS):
        with closing(loader.batches(number * 2**20, (number + 1) * 2**20)) as batches:
            moved = on_device(batches, device)
            next(moved)  # the first one takes longer, once in a run
            taken_s, wait_share = take_steps(step, moved, device, seconds=seconds)
        real_s.append(taken_s)
        waits.append(wait_share)
        cached_s.append(take_steps(step, repeat(cached), device, seconds=seconds)[0])
    return Headspace(
        preset=preset,
        device=str(device),
        step_s=statistics.median(real_s),
        cached_step_s=statistics.median(cached_s),
        wait_share=statistics.median(waits),
    )


def train_step(config: EncoderConfig, device: torch.device) -> Callable[[Batch], None]:
    """Return one update of a fresh encoder by the contrastive objective."""
    torch.manual_seed(0)
    objective = build_objective("wav2vec2", {}, config)
    model = PretrainingModel(AudioEncoder(config), objective).to(device).train()
    groups = parameter_groups(model, OPTIM.lr, OPTIM.weight_decay)
    optimizer = build_optimizer(groups, OPTIM)

    def step(batch: Batch) -> None:
        assert batch.mask is not None
        assert batch.distractors is not None
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            figures = model(batch.logmel, batch.n_frames_if_padded, batch.mask, batch.distractors)
        figures["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def take_steps(
    step: Callable[[Batch], None],
    batches: Iterator[Batch],
    device: torch.device,
    *,
    seconds: float,
) -> tuple[float, float]:
    """Take steps for some time, ``MIN_STEPS`` at least.

    Returns:
        seconds per step, and the share of them in which the next batch was waited for.
    """
    n_steps, waited_s = 0, 0.0
    start = now = time.perf_counter()
    while now - start < seconds or n_steps < MIN_STEPS:
        batch = next(batches)
        waited_s += time.perf_counter() - now
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        n_steps += 1
        now = time.perf_counter()
    return (now - start) / n_steps, waited_s / (now - start)
