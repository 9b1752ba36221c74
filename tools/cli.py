"""The command line: ``melstream VERB``. Each verb parses its options and calls one function.

Exit codes: 0 done, or stopped with a checkpoint as it was told to; 1 problems in the data, or a
failure that may be over when the same is called again; 2 a wrong call, or no such data set or
model. Heavy imports happen inside the verbs, so that ``--help`` answers at once.
"""

import errno
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from typer import Argument, Option

from ..shards.errors import DatasetError, MelstreamError
from ..shards.storage import UnansweredError
from .cli_bench import bench_app
from .cli_build import build_app
from .cli_data import data_app
from .cli_inspect import inspect_app
from .cli_model import model_app
from .cli_options import (
    Json,
    err_console,
    local_path,
    out_console,
    resumable,
)
from .cli_train import train_app

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    help="Raw audio in, a self-supervised audio model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(build_app, name="build")
app.add_typer(bench_app, name="bench")
app.add_typer(inspect_app)
app.add_typer(data_app)
app.add_typer(train_app)
app.add_typer(model_app)


def main() -> None:
    """Run the command line; the entry point of the ``melstream`` script."""
    try:
        app()
    except (MelstreamError, ValueError, OSError) as error:
        if os.environ.get("MELSTREAM_TRACEBACK"):
            raise
        err_console.print(f"[bold red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        sys.exit(2 if _is_wrong_call(error) else 1)


def _is_wrong_call(error: BaseException) -> bool:
    """Say whether the same call would fail again; what a network did may be over then."""
    return isinstance(error, ValueError | DatasetError) and not isinstance(error, UnansweredError)


def _plain(error: BaseException) -> str:
    lines = [str(error), *getattr(error, "__notes__", [])]
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        lines[0] += "; make room and type the same command again: what is finished is kept"
    return escape("\n".join(lines))


def _print_version(is_asked: bool) -> None:
    if is_asked:
        out_console.print(f"melstream {version('melstream')}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        Option("--version", help="Print the version.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Declare the options before the verb."""


@app.command()
def verify(
    data: Annotated[str, Argument(metavar="URL", help="A data set: a folder, s3:// …")],
    full: Annotated[bool, Option("--full", help="Read every byte, not sizes only.")] = False,
) -> None:
    """Check that a data set is whole.

    Example: `melstream verify shards/train --full`
    """
    from ..shards.dataset import open_dataset
    from ..shards.verify import find_problems
    from .progress import progress
    from .text_tables import many

    dataset = open_dataset(data)
    n_shards = len(dataset.manifest.shards)
    problems, n_done = [], 0
    with progress("verifying", n_shards, err_console) as report:
        for problem in find_problems(dataset, full=full):
            problems += [problem] if problem else []
            n_done += not isinstance(problem, DatasetError)  # of the whole, not of a shard
            report(n_done, "shards")
    for problem in problems:
        err_console.print(f"[bold red]error:[/] {_plain(problem)}", highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    checked = "every byte of" if full else "sizes and counts of"
    out_console.print(
        f"whole: {checked} {many(n_shards, 'shard')}, {many(len(dataset), 'sample')}",
        highlight=False,
    )


@app.command()
def demo(
    out: Annotated[
        Path,
        Option(
            "--out",
            metavar="FOLDER",
            parser=local_path,
            help="Where everything goes; a second run goes on from there.",
        ),
    ] = Path("melstream-demo"),
    source: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            parser=local_path,
            help="Your own recordings instead: a folder with train/CLASS/ and eval/CLASS/.",
        ),
    ] = None,
    jobs: Annotated[int, Option(min=0, help="Processes that build; 0 = one per core.")] = 0,
) -> None:
    """Tell the whole story on the recordings that ship, in under three minutes.

    Example: `melstream demo --out /tmp/melstream-demo`
    """
    from ..pipeline.parallel_map import n_cores
    from .demo import run_demo

    with resumable():
        run_demo(out, source=source, n_jobs=jobs or n_cores(), console=out_console)


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
