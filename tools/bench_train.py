"""``melstream bench train``: what a training step costs, beside named peers in the same run.

A step is one of ``melstream pretrain``, by the same code: forward, loss, backward, clipping,
AdamW. Its operations are counted by ``torch.utils.flop_counter``: matrix products and
attention, forward and backward, without what activation checkpointing computes again, and
without the depthwise convolutions: they are under 1 % of it, but the counter takes their
gradients for those of full ones.
The peak they are held against is the best of several square matrix products in the same
type on the same device, and the data sheet's of GPUs that are known here.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from ..model.encoder import AudioEncoder, EncoderConfig
from ..model.objectives import build_objective
from ..model.optim import OptimConfig
from ..model.pretraining import PretrainingModel
from ..pipeline.batch import Batch, on_device
from ..pipeline.loader import Loader, LoaderConfig
from ..pipeline.masks import MaskConfig, count_masked
from ..pipeline.order import OrderConfig, TrainingOrder
from ..shards.dataset import open_dataset
from .bench_memory import current_bytes, peak_bytes, reset_peak
from .distributed import World
from .pretrain import pretraining_learner, pretraining_losses
from .recipe import TrainConfig
from .train_step import Updater
from .utilisation import peak_flops as data_sheet_flops

WARMUP_STEPS = 2


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What a measured step is made of.

    Args:
        encoder: sizes; ``n_mels`` must be the data's.
        device: where to compute.
        precision: bfloat16 is autocast, with a float32 softmax and loss.
        n_steps: measured steps.
        n_latent_steps: latent steps per sample.
        compiles: put the model through ``torch.compile``.
        data: a data set to read batches from; None: one synthetic batch, again and again.
    """

    encoder: EncoderConfig
    device: torch.device
    precision: Literal["float32", "bfloat16"]
    n_steps: int
    n_latent_steps: int
    compiles: bool = False
    data: str | Path | None = None

    def autocast(self) -> Any:
        """Return the context a forward pass runs in."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a training step of one batch size costs.

    Args:
        batch_size: samples per step.
        step_s: seconds, median of all measured steps, waiting for data included.
        samples_per_s: of that median.
        flops_per_s: counted operations over that median.
        peak_share: of the FLOP/s of this device's best matrix product.
        data_sheet_share: of the data sheet's, or None where it is not known.
        peak_bytes: most memory used at once: of the device's allocator on a GPU; on a CPU
            of the whole process, beyond what it held before any model was made.
        growth_bytes: memory in use at the end less that after the first quarter.
        data_wait_share: share of the time spent waiting for batches.
    """

    batch_size: int
    step_s: float
    samples_per_s: float
    flops_per_s: float
    peak_share: float
    data_sheet_share: float | None
    peak_bytes: int
    growth_bytes: int
    data_wait_share: float

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def bench_train(settings: TrainSettings, batch_sizes: list[int]) -> list[StepCost]:
    """Measure training steps, one batch size after the other."""
    before = current_bytes(settings.device)
    per_sample, peak_flops = flops_per_sample(settings), matmul_flops(settings)
    costs = []
    for size in batch_sizes:
        gc.collect()
        cost = _measure(settings, size, flops=size * per_sample, peak_flops=peak_flops)
        costs.append(replace(cost, peak_bytes=cost.peak_bytes - before))
    return costs


def matmul_flops(settings: TrainSettings) -> float:
    """Return the FLOP/s of the best of several large matrix products."""
    size = 8192 if settings.device.type == "cuda" else 2048
    dtype = getattr(torch, settings.precision)
    a, b = (torch.randn(size, size, device=settings.device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b, settings.device) for _ in range(8)]
    return 2 * size**3 / min(seconds)


def flops_per_sample(settings: TrainSettings) -> int:
    """Count the operations of one step per sample, forward and backward."""
    encoder = settings.encoder.model_copy(update={"checkpoints_activations": False})
    model = PretrainingModel(AudioEncoder(encoder), build_objective("wav2vec2", {}, encoder))
    batch = synthetic_batch(settings, 1).to(settings.device)
    with FlopCounterMode(display=False) as counter:
        pretraining_losses(model.to(settings.device), batch)["loss"].backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if "convolution" not in str(op))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes until it is done on the device."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def print_costs(costs: list[StepCost], settings: TrainSettings, console: Console) -> None:
    """Print the table."""
    console.print(
        f"pre-training step on {settings.device}, {settings.n_latent_steps} latent steps per "
        f"sample, {settings.precision}, {torch.get_num_threads()} threads, medians",
        highlight=False,
    )
    heads = ("batch", "s/step", "samples/s", "TFLOP/s", "of peak", "of sheet")
    table = Table(*heads, "peak MB", "growth", "wait", box=None, pad_edge=False)
    for cost in costs:
        sheet = "-" if cost.data_sheet_share is None else f"{cost.data_sheet_share:.0%}"
        table.add_row(
            str(cost.batch_size), f"{cost.step_s:.3f}", f"{cost.samples_per_s:.1f}",
            f"{cost.flops_per_s / 1e12:.3f}", f"{cost.peak_share:.0%}", sheet,
            f"{cost.peak_bytes / 1e6:.0f}", f"{cost.growth_bytes / 1e6:.1f}",
            f"{cost.data_wait_share:.1%}",
        )  # fmt: skip
    console.print(table)


def _measure(
    settings: TrainSettings, batch_size: int, *, flops: int, peak_flops: float
) -> StepCost:
    torch.compiler.reset()  # or a second batch size would be compiled for any size
    reset_peak(settings.device)
    step = training_step(settings)
    seconds: list[float] = []
    waits: list[float] = []
    quarter = 0
    with _batches(settings, batch_size) as batches:
        for _ in range(WARMUP_STEPS):
            step(next(batches))
        for number in range(settings.n_steps):
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            seconds.append(waits[-1] + timed(lambda batch=batch: step(batch), settings.device))
            if number == settings.n_steps // 4:
                quarter = current_bytes(settings.device)
    step_s = statistics.median(seconds)
    flops_per_s = flops / step_s
    sheet = data_sheet_flops(settings.device, settings.precision)
    return StepCost(
        batch_size=batch_size,
        step_s=step_s,
        samples_per_s=batch_size / step_s,
        flops_per_s=flops_per_s,
        peak_share=flops_per_s / peak_flops,
        data_sheet_share=None if sheet is None else flops_per_s / sheet,
        peak_bytes=peak_bytes(settings.device),
        growth_bytes=current_bytes(settings.device) - quarter,
        data_wait_share=sum(waits) / sum(seconds),
    )


def training_step(settings: TrainSettings) -> Callable[[Batch], object]:
    """Give a fresh model's training step."""
    torch.manual_seed(0)
    encoder = AudioEncoder(settings.encoder)
    model = PretrainingModel(encoder, build_objective("wav2vec2", {}, settings.encoder))
    optim = OptimConfig(warmup_steps=0)
    train = TrainConfig(
        steps=WARMUP_STEPS + settings.n_steps,
        precision=settings.precision,
        compile=settings.compiles,
    )
    learner = pretraining_learner(model.to(settings.device), optim)
    updater = Updater(learner, train=train, optim=optim, world=World(settings.device))
    updater.train_mode(0)
    return partial(updater.update, 0)


@contextmanager
def _batches(settings: TrainSettings, batch_size: int) -> Iterator[Iterator[Batch]]:
    """Give batches on the device: of the data set, or a synthetic one again and again."""
    if settings.data is None:
        batch = synthetic_batch(settings, batch_size).to(settings.device)
        yield repeat(batch)
        return
    dataset = open_dataset(settings.data)
    stride = settings.encoder.stride
    rows = np.flatnonzero(dataset.index.n_frames >= 2 * stride)
    order = TrainingOrder(
        dataset.index,
        dataset.manifest.fingerprint,
        OrderConfig(global_batch_size=batch_size, tail="wrap"),
        rows,
    )
    config = LoaderConfig(
        crop_frames=settings.n_latent_steps * stride, stride=stride, mask=MaskConfig()
    )
    n_steps = WARMUP_STEPS + settings.n_steps
    with closing(Loader(dataset, order, config).batches(0, n_steps)) as batches:
        yield on_device(batches, settings.device)


def synthetic_batch(settings: TrainSettings, batch_size: int) -> Batch:
    """Make a batch of noise, without padding, with as many masked steps as training has."""
    config, n_steps, masking = settings.encoder, settings.n_latent_steps, MaskConfig()
    n_masked = count_masked(n_steps, masking)
    generator = torch.Generator().manual_seed(0)
    n_frames = n_steps * config.stride
    logmel = torch.randn(batch_size, n_frames, config.n_mels, generator=generator).half()
    mask = torch.rand(batch_size, n_steps, generator=generator).argsort(dim=1) < n_masked
    shape = (batch_size, n_masked, masking.n_distractors)
    numbers = torch.arange(batch_size)
    return Batch(
        step=0,
        logmel=logmel,
        n_frames=torch.full((batch_size,), n_frames),
        labels=None,
        mask=mask,
        distractors=torch.randint(n_masked, shape, generator=generator, dtype=torch.int32),
        sources=torch.zeros_like(numbers),
        rows=numbers,
        keys=("",) * batch_size,
        is_padded=False,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
