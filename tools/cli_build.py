"""``melstream build CORPUS``: one command per corpus, made from the signature of its ``scan``."""

import inspect as signatures
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from ..shards.spec import PRESETS
from .cli_options import Json, Out, err_console, out_console, resumable
from .corpora.corpus import Listing, find_corpora

build_app = typer.Typer(
    help="Turn audio files into a data set of log-mel shards.", no_args_is_help=True
)


def _build(
    corpus: str,
    listing: Listing,
    out: Path,
    *,
    features: str,
    min_seconds: float,
    shard_samples: int,
    shard_mb: float,
    jobs: int,
    max_rejects: float,
    as_json: bool,
) -> None:
    from .build import build
    from .build_plan import PlanSettings, make_plan
    from .build_report import print_report, report_as_json
    from .progress import progress

    settings = PlanSettings(
        corpus=corpus,
        features=PRESETS[features],
        min_duration_s=min_seconds,
        max_shard_samples=shard_samples,
        max_shard_bytes=round(shard_mb * 1e6),
    )
    plan = make_plan(listing, settings)
    with resumable(), progress("building", plan.n_clips, err_console) as report:
        result = build(plan, out, n_jobs=jobs or os.cpu_count() or 1, report=report)
    if as_json:
        print(json.dumps(report_as_json(result), indent=1))
    else:
        print_report(result, out_console)
    if result.reject_share > max_rejects:
        err_console.print(
            f"[bold red]error:[/] {result.reject_share:.1%} of the files were rejected, more than "
            f"--max-rejects {max_rejects:.1%}; {out / 'rejects.jsonl'} names each",
            highlight=False,
        )
        raise typer.Exit(1)


def _require_preset(name: str) -> None:
    if name not in PRESETS:
        raise ValueError(f"`--features` must be one of {', '.join(PRESETS)}, found {name!r}")


def _common_build_options(
    out: Out,
    features: Annotated[
        str, Option(help="Feature preset: conformer64 or kaldi128.")
    ] = "conformer64",
    min_seconds: Annotated[float, Option(min=0, help="Reject shorter clips.")] = 0.025,
    shard_samples: Annotated[int, Option(min=1, help="Most samples in a shard.")] = 2_000,
    shard_mb: Annotated[float, Option(min=0.001, help="Most megabytes in a shard.")] = 256,
    jobs: Annotated[int, Option(min=0, help="Processes; 0 = one per core.")] = 0,
    max_rejects: Annotated[
        float, Option(min=0, max=1, help="Exit 1 when a larger share of the files is rejected.")
    ] = 0.1,
    as_json: Json = False,
) -> None:
    """Declare the options that every corpus has."""


def _build_command(name: str, scan: Callable[..., Listing]) -> Callable[..., None]:
    """Make the command of one corpus: its own options, then the common ones."""
    common = signatures.signature(_common_build_options).parameters
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in signatures.signature(scan).parameters.values()]

    def command(**options: Any) -> None:
        shared = {key: options.pop(key) for key in common}
        _require_preset(shared["features"])  # before a scan that may take minutes
        _build(name, scan(**options), **shared)

    parameters = [*own, *(p.replace(kind=p.KEYWORD_ONLY) for p in common.values())]
    command.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


for _name, _module in find_corpora().items():
    _summary = (_module.__doc__ or "").strip().splitlines()[0]
    _help = f"{_summary}\n\nExample: `{_module.EXAMPLE}`"
    build_app.command(_name, help=_help)(_build_command(_name, _module.scan))
