"""``melstream bench``: how fast this machine is, beside named peers in the same run."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .cli_options import Device, Json, choose_device, local_path, out_console

bench_app = typer.Typer(
    help="Measure speed on this machine, beside named peers.", no_args_is_help=True
)


@bench_app.command("build")
def bench_build(
    source: Annotated[
        Path, Argument(metavar="FOLDER", parser=local_path, help="Audio files, at any depth.")
    ],
    window_s: Annotated[
        float, Option("--window-seconds", min=0.1, help="Length of a sample.")
    ] = 10.0,
    jobs: Annotated[int, Option(min=0, help="Processes; 0 = one per core.")] = 0,
    limit: Annotated[
        int | None, Option(min=1, help="Use only a random sample of this many files.")
    ] = None,
    rounds: Annotated[
        int, Option(min=1, help="Repeat the measurement this many times; medians are shown.")
    ] = 1,
    versus: Annotated[bool, Option("--vs", help="Time lhotse too.")] = False,
    as_json: Json = False,
) -> None:
    """Build a folder of audio, say where the time goes, and throw the result away.

    Example: `melstream bench build recordings --limit 100 --vs`
    """
    from .bench_build import bench_build as run
    from .bench_build import print_times

    times = run(
        source, window_s=window_s, n_jobs=jobs, limit=limit, n_rounds=rounds, with_lhotse=versus
    )
    if as_json:
        print(json.dumps(times.as_json(), indent=1))
    else:
        print_times(times, out_console)


@bench_app.command("features")
def bench_features(
    rounds: Annotated[int, Option(min=1, help="Times that each takes its turn.")] = 300,
    as_json: Json = False,
) -> None:
    """Time the log-mel of 10 s on one thread, beside torchaudio's and lhotse's.

    Example: `melstream bench features`
    """
    from .bench_features import bench_features as run
    from .bench_features import print_times

    found = run(rounds)
    if as_json:
        print(json.dumps([times.as_json() for times in found], indent=1))
    else:
        print_times(found, out_console)


@bench_app.command("train")
def bench_train(
    preset: Annotated[str, Option(help="Encoder: tiny, cf-s or cf-l.")] = "cf-s",
    batch_size: Annotated[
        list[int] | None, Option(min=1, help="Samples per step; repeatable. Default: 8.")
    ] = None,
    steps: Annotated[int, Option(min=1, help="Measured steps.")] = 10,
    crop_s: Annotated[
        float, Option("--crop-seconds", min=0.1, help="Length of a sample, at 100 frames/s.")
    ] = 10.0,
    device: Device = "auto",
    bfloat16: Annotated[bool, Option("--bfloat16", help="Autocast instead of float32.")] = False,
    compiles: Annotated[bool, Option("--compile", help="Use torch.compile.")] = False,
    checkpoints: Annotated[
        bool, Option("--checkpoint-activations", help="Less memory, more work.")
    ] = False,
    data: Annotated[
        str | None, Option(metavar="URL", help="Read batches from here; else they are synthetic.")
    ] = None,
    versus: Annotated[
        bool, Option("--vs", help="Time torchaudio's and transformers' encoders too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Time a pre-training step: samples and FLOP per second, share of the peak, memory.

    Example: `melstream bench train --preset cf-s --batch-size 8 --batch-size 16 --vs`
    """
    from ..model.encoder import PRESETS
    from .bench_train import TrainSettings, print_costs
    from .bench_train import bench_train as run
    from .bench_train_peers import bench_encoders, print_encoder_times

    if preset not in PRESETS:
        raise ValueError(f"`--preset` must be one of {', '.join(PRESETS)}, found {preset!r}")
    encoder = PRESETS[preset].model_copy(update={"checkpoints_activations": checkpoints})
    settings = TrainSettings(
        encoder,
        choose_device(device),
        "bfloat16" if bfloat16 else "float32",
        n_steps=steps,
        n_latent_steps=max(2, round(100 * crop_s / encoder.stride)),
        compiles=compiles,
        data=data,
    )
    sizes = batch_size or [8]
    costs = run(settings, sizes)
    times = bench_encoders(settings, sizes[0]) if versus else []
    if as_json:
        found = {"steps": [c.as_json() for c in costs], "encoders": [t.as_json() for t in times]}
        print(json.dumps(found, indent=1))
        return
    print_costs(costs, settings, out_console)
    if times:
        print_encoder_times(times, out_console)


@bench_app.command("loader")
def bench_loader(
    data: Annotated[str, Argument(metavar="URL", help="A data set: a folder, s3:// …")],
    batch_size: Annotated[int, Option(min=1, help="Clips in a batch.")] = 64,
    crop_s: Annotated[
        float | None,
        Option("--crop-seconds", min=0.1, help="Length of a crop; default: the median clip's."),
    ] = None,
    seconds: Annotated[
        float, Option(min=0.1, help="Seconds per turn; each contender gets three turns.")
    ] = 2.0,
    cache: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            parser=local_path,
            help="Keep shards of an object store here; default: in memory.",
        ),
    ] = None,
    preset: Annotated[
        str,
        Option(help="Encoder that is trained for the headspace: tiny, cf-s, cf-l, or none."),
    ] = "tiny",
    device: Device = "auto",
    versus: Annotated[
        bool, Option("--vs", help="Time other loaders that are installed, too, on one core.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Time the loader over a data set, and say whether a trainer would wait for it.

    Example: `melstream bench loader shards/train --preset cf-s --vs`
    """
    from ..model.encoder import PRESETS
    from ..pipeline.shard_cache import CacheConfig
    from .bench_loader import LoaderSettings, print_figures
    from .bench_loader import bench_loader as run
    from .bench_versus import compare_over, print_speeds

    if preset not in (*PRESETS, "none"):
        raise ValueError(f"`--preset` must be one of {', '.join(PRESETS)}, none, found {preset!r}")
    settings = LoaderSettings(
        batch_size=batch_size,
        crop_s=crop_s,
        seconds=seconds,
        preset=None if preset == "none" else preset,
        device=choose_device(device),
        cache=CacheConfig(folder=cache),
    )
    found = run(data, settings)
    speeds = compare_over(data, n_frames=found.crop_frames, batch_size=batch_size) if versus else []
    if as_json:
        print(json.dumps({**found.as_json(), "vs": [s.as_json() for s in speeds]}, indent=1))
        return
    print_figures(found, out_console)
    if versus:
        out_console.print("\none core, one length, batches in turns, medians", style="bold")
        print_speeds(speeds, found.clip_bytes, out_console)
