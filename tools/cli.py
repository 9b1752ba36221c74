"""The command line: ``melstream VERB``. Each verb parses its options and calls one function.

Exit codes: 0 done, 1 problems in the data, 2 a wrong call. Heavy imports happen inside the
verbs, so that ``--help`` answers at once.
"""

import contextlib
import inspect as signatures
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer import Argument, Option

from ..shards.errors import DatasetError, MelstreamError
from .corpora.corpus import Listing, find_corpora

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    help="Raw audio in, a self-supervised audio model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
build_app = typer.Typer(
    help="Turn audio files into a data set of log-mel shards.", no_args_is_help=True
)
app.add_typer(build_app, name="build")

out_console = Console()
err_console = Console(stderr=True)

Json = Annotated[bool, Option("--json", help="Print JSON instead of text.")]
Out = Annotated[Path, Option("--out", metavar="FOLDER", help="Where the result goes.")]
Data = Annotated[
    Path, Option("--data", metavar="FOLDER", help="A data set made by `melstream build`.")
]
Overrides = Annotated[
    list[str] | None,
    Option(
        "--set", metavar="SECTION.FIELD=VALUE", help="Change one field of the recipe; repeatable."
    ),
]
Resume = Annotated[bool, Option("--resume", help="Go on from the last checkpoint in --out.")]
PrintConfig = Annotated[bool, Option("--print-config", help="Show the resolved recipe and stop.")]
Device = Annotated[str, Option(help="cpu, cuda, cuda:1 …; `auto` takes a GPU where there is one.")]


def main() -> None:
    """Run the command line; the entry point of the ``melstream`` script."""
    try:
        app()
    except (MelstreamError, ValueError, OSError) as error:
        if os.environ.get("MELSTREAM_TRACEBACK"):
            raise
        err_console.print(f"[bold red]error:[/] {_plain(error)}", highlight=False)
        sys.exit(2 if isinstance(error, ValueError | DatasetError) else 1)


def _plain(error: BaseException) -> str:
    from rich.markup import escape

    return escape("\n".join([str(error), *getattr(error, "__notes__", [])]))


def _print_version(is_asked: bool) -> None:
    if is_asked:
        out_console.print(f"melstream {version('melstream')}", highlight=False)
        raise typer.Exit


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    """Say after Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        err_console.print("interrupted; the same command goes on where it was")
        raise typer.Exit(130) from interrupt


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        Option("--version", help="Print the version.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Declare the options before the verb."""


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
    from ..shards.spec import PRESETS
    from .build import build
    from .build_plan import PlanSettings, make_plan
    from .build_report import print_report, report_as_json
    from .progress import progress

    if features not in PRESETS:
        raise ValueError(f"`--features` must be one of {', '.join(PRESETS)}, found {features!r}")
    settings = PlanSettings(
        corpus=corpus,
        features=PRESETS[features],
        min_duration_s=min_seconds,
        max_shard_samples=shard_samples,
        max_shard_bytes=round(shard_mb * 1e6),
    )
    plan = make_plan(listing, settings)
    with _resumable(), progress("building", plan.n_clips, err_console) as report:
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
        _build(name, scan(**options), **shared)

    parameters = [*own, *(p.replace(kind=p.KEYWORD_ONLY) for p in common.values())]
    command.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


for _name, _module in find_corpora().items():
    _summary = (_module.__doc__ or "").strip().splitlines()[0]
    _help = f"{_summary}\n\nExample: `{_module.EXAMPLE}`"
    build_app.command(_name, help=_help)(_build_command(_name, _module.scan))


@app.command()
def inspect(
    data: Annotated[Path, Argument(metavar="FOLDER", help="A data set.")],
    top: Annotated[int, Option(min=1, help="Classes to list.")] = 20,
    as_json: Json = False,
) -> None:
    """Say what a data set holds.

    Example: `melstream inspect shards/train --top 50`
    """
    from .inspect import inspect as describe
    from .inspect import print_description

    found = describe(data)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print_description(found, out_console, top=top)


@app.command()
def verify(
    data: Annotated[Path, Argument(metavar="FOLDER", help="A data set.")],
    full: Annotated[bool, Option("--full", help="Read every byte, not sizes only.")] = False,
) -> None:
    """Check that a data set is whole.

    Example: `melstream verify shards/train --full`
    """
    from ..shards.dataset import open_dataset
    from ..shards.verify import find_problems
    from .progress import progress

    dataset = open_dataset(data)
    n_shards = len(dataset.manifest.shards)
    problems = []
    with progress("verifying", n_shards, err_console) as report:
        for done, problem in enumerate(find_problems(dataset, full=full), start=1):
            problems += [problem] if problem else []
            report(done, "shards")
    for problem in problems:
        err_console.print(f"[bold red]error:[/] {_plain(problem)}", highlight=False)
    if problems:
        raise typer.Exit(1)
    checked = "every byte of" if full else "sizes and counts of"
    out_console.print(
        f"whole: {checked} {n_shards} shards, {len(dataset)} samples", highlight=False
    )


@app.command()
def pretrain(
    recipe: Annotated[str, Argument(help="A packaged recipe, or the path of a TOML file.")],
    data: Data,
    out: Out,
    overrides: Overrides = None,
    device: Device = "auto",
    resume: Resume = False,
    print_config: PrintConfig = False,
) -> None:
    """Pre-train an encoder on unlabelled log-mels.

    Example: `melstream pretrain demo-pretrain --data shards/train --out runs/pretrain`
    """
    from .recipe import PretrainRecipe, load_recipe

    config = load_recipe(recipe, PretrainRecipe, overrides or ())
    if print_config:
        print(config.model_dump_json(indent=1))
        return
    from .pretrain import pretrain as run

    result = run(config, data, out, device=_device(device), console=err_console, resume=resume)
    _finish_run(out, result.is_complete, result.step, result.wall_s, result.figures)


@app.command()
def finetune(
    recipe: Annotated[str, Argument(help="A packaged recipe, or the path of a TOML file.")],
    data: Data,
    out: Out,
    encoder: Annotated[
        Path | None,
        Option(metavar="RUN", help="A run of `melstream pretrain`; without it, from scratch."),
    ] = None,
    valid: Annotated[Path | None, Option(metavar="FOLDER", help="Data set to validate on.")] = None,
    overrides: Overrides = None,
    device: Device = "auto",
    resume: Resume = False,
    print_config: PrintConfig = False,
) -> None:
    """Fine-tune a tagger on a labelled data set.

    Example: `melstream finetune demo-finetune --data shards/train --encoder runs/pretrain
    --out runs/finetune`
    """
    from .recipe import FinetuneRecipe, load_recipe

    config = load_recipe(recipe, FinetuneRecipe, overrides or ())
    if print_config:
        print(config.model_dump_json(indent=1))
        return
    from .finetune import finetune as run

    result = run(
        config,
        data,
        out,
        device=_device(device),
        console=err_console,
        encoder_path=encoder,
        valid=valid,
        resume=resume,
    )
    _finish_run(out, result.is_complete, result.step, result.wall_s, result.figures)


@app.command()
def evaluate(
    model: Annotated[Path, Argument(metavar="RUN", help="A run of `melstream finetune`.")],
    data: Data,
    out: Annotated[
        Path | None, Option("--out", metavar="FILE", help="Write the figures as JSON.")
    ] = None,
    top: Annotated[int, Option(min=0, help="Classes to list, weakest first.")] = 10,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a tagger on a labelled data set: mAP, mAUC, d', accuracy, per class.

    Example: `melstream evaluate runs/finetune --data shards/eval`
    """
    from .evaluate import as_json as to_json
    from .evaluate import evaluate as run
    from .evaluate import print_metrics, write_report

    metrics, card = run(model, data, device=_device(device))
    if out is not None:
        write_report(out, metrics, card)
    if as_json:
        print(json.dumps(to_json(metrics, card), indent=1))
    else:
        print_metrics(metrics, card, out_console, top)


@app.command()
def demo(
    out: Annotated[
        Path,
        Option(
            "--out",
            metavar="FOLDER",
            help="Where everything goes; a second run goes on from there.",
        ),
    ] = Path("melstream-demo"),
    source: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="train/<class>/ and eval/<class>/ of your own instead."),
    ] = None,
    jobs: Annotated[int, Option(min=0, help="Processes that build; 0 = one per core.")] = 0,
) -> None:
    """Tell the whole story on the recordings that ship, in under three minutes.

    Example: `melstream demo --out /tmp/melstream-demo`
    """
    from .demo import run_demo

    with _resumable():
        run_demo(out, source=source, n_jobs=jobs or os.cpu_count() or 1, console=out_console)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what works on this machine, what does not, and how to mend it.

    Example: `melstream doctor`
    """
    from dataclasses import asdict

    from .doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = (
                "[green]ok[/]  "
                if finding.is_ok
                else ("[red]FAIL[/]" if finding.is_required else "[dim]none[/]")
            )
            out_console.print(f"{mark} {finding.name}", highlight=False, end=" ")
            out_console.print(finding.detail, style="dim", markup=False, highlight=False)
            if not finding.is_ok:
                out_console.print(f"     {finding.remedy}", markup=False, highlight=False)
    if any(finding.is_required and not finding.is_ok for finding in findings):
        raise typer.Exit(1)


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"`--device` must be auto, cpu, cuda or cuda:N, found {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"`--device {name}` needs a GPU and torch sees none; see 'melstream doctor'"
        )
    return device


def _finish_run(
    out: Path, is_complete: bool, step: int, wall_s: float, figures: dict[str, float]
) -> None:
    """Say how a run ended and where its files are."""
    if not is_complete:
        out_console.print(
            f"stopped at step {step}, checkpoint written; --resume goes on", highlight=False
        )
        return
    loss = f", loss {figures['loss']:.3f}" if "loss" in figures else ""
    out_console.print(
        f"{step} steps in {wall_s:.1f} s{loss}; model: {out / 'model'}", highlight=False
    )
    out_console.print(f"curves: tensorboard --logdir {out}", highlight=False)
