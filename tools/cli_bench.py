"""``melstream bench``: how fast this machine is, beside named peers in the same run."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .cli_options import Json, out_console

bench_app = typer.Typer(
    help="Measure speed on this machine, beside named peers.", no_args_is_help=True
)


@bench_app.command("build")
def bench_build(
    source: Annotated[Path, Argument(metavar="FOLDER", help="Audio files, at any depth.")],
    window_s: Annotated[
        float, Option("--window-seconds", min=0.1, help="Length of a sample.")
    ] = 10.0,
    jobs: Annotated[int, Option(min=0, help="Processes; 0 = one per core.")] = 0,
    limit: Annotated[
        int | None, Option(min=1, help="Take so many files only, a random sample.")
    ] = None,
    rounds: Annotated[int, Option(min=1, help="Do it all so often; medians are shown.")] = 1,
    peer: Annotated[bool, Option("--lhotse/--no-lhotse", help="Time lhotse too.")] = True,
    as_json: Json = False,
) -> None:
    """Build a folder of audio, say where the time goes, and throw the result away.

    Example: `melstream bench build recordings --limit 100`
    """
    from .bench_build import bench_build as run
    from .bench_build import print_times

    times = run(
        source, window_s=window_s, n_jobs=jobs, limit=limit, n_rounds=rounds, with_lhotse=peer
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
