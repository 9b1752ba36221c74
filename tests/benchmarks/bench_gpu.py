"""What only a GPU can show, in one call: that it computes what a CPU does, and how fast.

    python tests/benchmarks/bench_gpu.py --out gpu.json

It prints as it goes. First come losses and gradients of the paper's small encoder against
float32 on the CPU, then the depthwise convolution by itself, then whole steps and encoders
beside named peers, eager and compiled, and last the kernels of the large encoder's step,
longest first. A part that fails is named, and the others run; then the exit status is 1.
"""

import argparse
import json
import platform
import statistics
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from melstream.model.conformer import depthwise_convolution
from melstream.model.encoder import PRESETS, AudioEncoder
from melstream.model.objectives import build_objective
from melstream.model.pretraining import PretrainingModel
from melstream.pipeline.batch import Batch
from melstream.tools.bench_train import (
    TrainSettings,
    bench_train,
    print_costs,
    synthetic_batch,
    timed,
    training_step,
)
from melstream.tools.bench_train_peers import bench_encoders, print_encoder_times
from melstream.tools.pretrain import pretraining_losses
from melstream.tools.train_step import COMPILER_OPTIONS

CONSOLE = Console(width=150, highlight=False, markup=False)
N_ROUNDS, N_LAUNCHES = 10, 20


def main() -> None:
    """Run every part, and keep what was found."""
    options = parse()
    device = torch.device(options.device)
    CONSOLE.print(f"torch {torch.__version__}, {name_of(device)}")
    found: dict[str, Any] = {"torch": torch.__version__, "device": name_of(device)}
    failed = []
    for name in options.parts or PARTS:
        CONSOLE.rule(name)
        torch.compiler.reset()
        try:
            found[name] = PARTS[name](device, options)
        except Exception:  # the other parts have to use the machine while it is there
            traceback.print_exc()
            failed.append(name)
        options.out.write_text(json.dumps(found, indent=1))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all of them")
    parser.add_argument("--presets", nargs="+", default=["cf-s", "cf-l"])
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[64], help="each takes compiling anew"
    )
    parser.add_argument("--latent-steps", type=int, default=250)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="try the script itself")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    return parser.parse_args()


def name_of(device: torch.device) -> str:
    """Name the GPU, or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def settings_of(device: torch.device, preset: str, options: argparse.Namespace) -> TrainSettings:
    """Describe a measured step: bfloat16, compiled."""
    return TrainSettings(
        PRESETS[preset], device, "bfloat16",
        n_steps=options.steps, n_latent_steps=options.latent_steps, compiles=True,
    )  # fmt: skip


def check_agreement(device: torch.device, options: argparse.Namespace) -> Any:
    """Compare loss and gradients with those of float32 on the CPU, without dropout."""
    config = PRESETS["tiny" if options.small else "cf-s"].model_copy(update={"dropout": 0.0})
    cpu = TrainSettings(config, torch.device("cpu"), "float32", n_steps=1, n_latent_steps=125)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    batch = synthetic_batch(cpu, 4)
    torch.manual_seed(0)
    model = PretrainingModel(AudioEncoder(config), build_objective("wav2vec2", {}, config))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    expected = loss_and_gradient(model, batch, cpu)
    found = {}
    for precision, compiles in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        settings = replace(cpu, device=device, precision=precision, compiles=compiles)
        model.load_state_dict(weights)
        torch.compiler.reset()
        loss, gradient = loss_and_gradient(model, batch, settings)
        relative = (gradient - expected[1]).norm() / expected[1].norm()
        figures = {"loss": loss, "on the CPU": expected[0], "gradient's error": float(relative)}
        CONSOLE.print(f"{precision}, {'compiled' if compiles else 'eager'}: {figures}")
        found[f"{precision} {compiles}"] = figures
        bound = 1e-4 if precision == "float32" else 5e-2
        if abs(loss - expected[0]) > bound * expected[0] or relative > 10 * bound:
            raise ValueError(f"loss and gradient must be within {bound:g} of the CPU's, see above")
    return found


def loss_and_gradient(
    model: PretrainingModel, batch: Batch, settings: TrainSettings
) -> tuple[float, Tensor]:
    """Take one forward and backward pass; the gradients of all parameters in one vector."""
    model.to(settings.device).train()
    runs = torch.compile(model, options=COMPILER_OPTIONS) if settings.compiles else model
    model.zero_grad(set_to_none=True)
    with settings.autocast():
        loss = pretraining_losses(runs, batch.to(settings.device))["loss"]
    loss.backward()
    gradients = [p.grad.detach().float().cpu().flatten() for p in model.parameters()]
    return float(loss.detach()), torch.cat(gradients)


def time_convolutions(device: torch.device, options: argparse.Namespace) -> Any:
    """Time forward and backward of the depthwise convolution in bfloat16, in microseconds."""
    batch, n_steps, widths = (2, 20, (16,)) if options.small else (64, 250, (256, 768))
    found = {}
    for dim, kernel_size, (name, run) in product(widths, (15, 31), convolutions().items()):
        shapes = (batch, n_steps, dim), (dim, 1, 1, kernel_size), (dim,)
        inputs = [torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes]
        step = partial(forward_and_backward, run, [x.requires_grad_() for x in inputs])
        step()  # compiles
        key = f"{dim} wide, kernel {kernel_size}, {name}"
        seconds = statistics.median(timed(repeated(step), device) for _ in range(N_ROUNDS))
        found[key] = 1e6 * seconds / N_LAUNCHES
        CONSOLE.print(f"{key}: {found[key]:,.0f} us")
    return found


def repeated(step: Callable[[], object]) -> Callable[[], None]:
    """Do a small thing often, so that a GPU has a queue and launching is not what is timed."""

    def run() -> None:
        for _ in range(N_LAUNCHES):
            step()

    return run


def forward_and_backward(run: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Compute an output and the gradients of all inputs."""
    output = run(*inputs)
    torch.autograd.grad(output, inputs, output.detach())


def convolutions() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Give the ways to do it."""

    def channels_first(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, padding = weight.squeeze(2), weight.shape[3] // 2
        out = F.conv1d(x.mT.contiguous(), weight, bias, padding=padding, groups=len(weight))
        return out.mT.contiguous()

    def channels_last(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padding = weight.shape[3] // 2
        x = x.unsqueeze(2).permute(0, 3, 1, 2)
        out = F.conv2d(x, weight.transpose(2, 3), bias, padding=(padding, 0), groups=len(weight))
        return out.permute(0, 2, 3, 1).squeeze(2)

    return {
        "melstream": depthwise_convolution,
        "channels last": channels_last,
        "channels first, with both copies": channels_first,
        "melstream, compiled": torch.compile(depthwise_convolution, dynamic=False),
        "channels last, compiled": torch.compile(channels_last, dynamic=False),
        "channels first, compiled": torch.compile(channels_first, dynamic=False),
    }


def time_steps(device: torch.device, options: argparse.Namespace) -> Any:
    """Time whole pre-training steps, compiled, in bfloat16."""
    found = {}
    for preset in options.presets:
        settings = settings_of(device, preset, options)
        costs = bench_train(settings, options.batch_sizes)
        print_costs(costs, settings, CONSOLE)
        found[preset] = [cost.as_json() for cost in costs]
    return found


def time_peers(device: torch.device, options: argparse.Namespace) -> Any:
    """Time encoders of one shape, eager and compiled."""
    found = {}
    for preset, compiles, size in product(options.presets, (False, True), options.batch_sizes[:2]):
        settings = replace(settings_of(device, preset, options), compiles=compiles)
        torch.compiler.reset()
        key = f"{preset}, {'compiled' if compiles else 'eager'}, batch {size}"
        CONSOLE.print(key)
        times = bench_encoders(settings, size)
        print_encoder_times(times, CONSOLE)
        found[key] = [one.as_json() for one in times]
    return found


def profile_step(device: torch.device, options: argparse.Namespace) -> str:
    """List the kernels of a compiled step of the last preset, longest first."""
    settings = settings_of(device, options.presets[-1], options)
    batch = synthetic_batch(settings, options.batch_sizes[-1]).to(device)
    step = training_step(settings)
    for _ in range(3):
        step(batch)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as profiler:
        step(batch)
    table = profiler.key_averages().table(
        sort_by=f"self_{device.type}_time_total", row_limit=30, max_name_column_width=90
    )
    CONSOLE.print(table)
    return table


PARTS: dict[str, Callable[[torch.device, argparse.Namespace], Any]] = {
    "agreement": check_agreement,
    "convolution": time_convolutions,
    "steps": time_steps,
    "peers": time_peers,
    "kernels": profile_step,
}

if __name__ == "__main__":
    main()
