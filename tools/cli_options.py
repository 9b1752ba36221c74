"""What the verbs of the command line share: consoles, options, and how an interrupt is told."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer import Option

if TYPE_CHECKING:
    import torch

out_console = Console()
err_console = Console(stderr=True)
silent_console = Console(quiet=True)


def local_path(text: str | Path) -> Path:
    """Read a path on a disk of this machine; a default may be one already.

    Raises:
        typer.BadParameter: it is the address of something in an object store.
    """
    if "://" in str(text):
        raise typer.BadParameter(
            f"must be on a disk of this machine, found {text}; copy it over, before or afterwards"
        )
    return Path(text)


def local_file(text: str | Path) -> Path:
    """Read the path of a file to be written, on a disk of this machine.

    Raises:
        typer.BadParameter: there is a folder of that name, or it is in an object store.
    """
    path = local_path(text)
    if path.is_dir():
        raise typer.BadParameter(f"must be a file to write, found the folder {path}")
    return path


Json = Annotated[bool, Option("--json", help="Print JSON instead of text.")]
Out = Annotated[
    Path, Option("--out", metavar="FOLDER", parser=local_path, help="Where the result goes.")
]
RunOut = Annotated[
    Path | None,
    Option("--out", metavar="FOLDER", parser=local_path, help="Where the run goes; required."),
]
Data = Annotated[
    list[str], Option("--data", metavar="URL", help="A data set made by `melstream build`.")
]
RunData = Annotated[
    list[str] | None,
    Option(
        "--data",
        metavar="URL",
        help="A data set made by `melstream build`; required. Pre-training takes several, see "
        "`data.shares`.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    Option(
        "--set", metavar="SECTION.FIELD=VALUE", help="Change one field of the recipe; repeatable."
    ),
]
Resume = Annotated[bool, Option("--resume", help="Go on from the last checkpoint in --out.")]
PrintConfig = Annotated[
    bool, Option("--print-config", help="Print the resolved recipe as TOML and stop.")
]
Device = Annotated[str, Option(help="cpu, cuda, cuda:1 …; `auto` takes a GPU where there is one.")]


def only(data: list[str]) -> str:
    """Return the one data set; of several, click would take the last in silence.

    Raises:
        ValueError: there are several.
    """
    if len(data) > 1:
        raise ValueError(
            f"`--data` must be one data set here, found {len(data)}; make one of them with "
            "'melstream merge'"
        )
    return data[0]


@contextlib.contextmanager
def resumable(
    how: str = "the same command goes on where it was", console: Console = err_console
) -> Iterator[None]:
    """Say after Ctrl-C that nothing is lost, and how it goes on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        console.print(f"interrupted; {how}", highlight=False)
        raise typer.Exit(130) from interrupt


def choose_device(name: str) -> "torch.device":
    """Return the device of ``--device``.

    Raises:
        ValueError: no such device, or it is not there.
    """
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
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"`--device {name}` must be one of the {torch.cuda.device_count()} GPUs here, counted "
            "from cuda:0"
        )
    return device
