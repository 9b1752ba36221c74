"""``melstream inspect`` and ``show``: look at what is built."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from .cli_options import Json, err_console, local_file, out_console

if TYPE_CHECKING:
    from ..shards.dataset import Dataset
    from .inspection import Inspection

inspect_app = typer.Typer()

Place = Annotated[str, Argument(metavar="URL", help="A data set: a folder, s3:// …")]


@inspect_app.command()
def inspect(
    place: Annotated[
        str, Argument(metavar="URL|RUN", help="A data set: a folder, s3:// …; or a training run.")
    ],
    against: Annotated[
        str | None, Option(metavar="URL", help="Another data set, to say what differs.")
    ] = None,
    label: Annotated[
        str | None, Option(metavar="NAME", help="Look at the samples of one class only.")
    ] = None,
    key: Annotated[str | None, Option(metavar="KEY", help="Say what is known of one clip.")] = None,
    sample: Annotated[
        int, Option("--sample", metavar="N", min=0, help="Read N clips and check them.")
    ] = 0,
    top: Annotated[int, Option(min=1, help="Classes to list.")] = 20,
    html: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            parser=local_file,
            help="Write a page with plots and clips to see.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a data set holds, and what to look at before training on it; or how a run went.

    Only manifest and index are read, unless `--sample` or `--html` ask for clips.

    Example: `melstream inspect shards/train --against shards/eval --html report.html`
    """
    from ..shards.dataset import open_dataset
    from .clips import check_samples
    from .compare import inspect_against
    from .fold_results import is_folds
    from .inspect import inspect_dataset
    from .inspect_page import print_inspection
    from .run_summary import is_run

    n_chosen = sum(option is not None for option in (against, label, key))
    if is_folds(place):
        _require_data_set(place, is_right=n_chosen + sample == 0)
        if html is not None:
            raise ValueError(f"`--html` is for one run, {place} holds folds; give one of them")
        _inspect_folds(Path(place), as_json=as_json)
        return
    if is_run(place):
        _require_data_set(place, is_right=n_chosen + sample == 0)
        _inspect_run(Path(place), html, top=top, as_json=as_json)
        return
    _require_one(n_chosen, has_key_and_html=key is not None and html is not None)
    dataset = open_dataset(place, reads_ranges=True)
    if key is not None:
        _inspect_clip(dataset, key, as_json=as_json)
        return
    if against is not None:
        found = inspect_against(dataset, open_dataset(against, reads_ranges=True))
    else:
        found = inspect_dataset(dataset, label=label)
    if sample:
        found = found.model_copy(update={"sample_check": check_samples(dataset, sample)})
    if html is not None:
        _write_page(html, found, dataset)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        print_inspection(found, out_console, top=top)
    if found.sample_check is not None and found.sample_check.problems:
        raise typer.Exit(1)


@inspect_app.command()
def show(
    place: Place,
    key: Annotated[str, Argument(metavar="KEY", help="The clip's key.")],
    png: Annotated[
        Path | None,
        Option(
            "--png", metavar="FILE", parser=local_file, help="Write the spectrogram as a picture."
        ),
    ] = None,
    audio: Annotated[
        Path | None,
        Option("--audio", metavar="FILE", parser=local_file, help="Write the waveform, as FLAC."),
    ] = None,
) -> None:
    """Say what is known of one clip and draw its spectrogram.

    Example: `melstream show shards/train kick_drum --png kick.png`
    """
    from ..shards.dataset import open_dataset
    from ..shards.files import write_bytes
    from .clips import describe_clip, find_row, read_own_info
    from .inspect_page import print_clip
    from .spectrogram import terminal_spectrogram, write_png

    dataset = open_dataset(place, reads_ranges=True)
    row = find_row(dataset, key)
    logmel, spec = dataset.read_logmel(row), dataset.manifest.features
    if audio is not None:
        if not dataset.index.flac_size[row]:
            raise ValueError(
                f"`--audio` needs the waveform, {dataset.url} does not keep it; build it with "
                "'melstream build … --keep-audio'"
            )
        audio.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(audio, dataset.read_member(row, "flac"))
    info = read_own_info(dataset, row)
    print_clip(describe_clip(dataset, row), out_console, source=info and info.source)
    if png is not None:
        png.parent.mkdir(parents=True, exist_ok=True)
        write_png(png, logmel, spec, title=key)
    elif out_console.color_system:
        height = max(8, min(spec.n_mels // 2, out_console.height - 4))
        picture = terminal_spectrogram(logmel, spec, width=out_console.width, height=height)
        out_console.print(picture, no_wrap=True, crop=True)
    for path in (png, audio):
        if path is not None:
            err_console.print(f"written: {path}", highlight=False, markup=False)


def _inspect_clip(dataset: "Dataset", key: str, *, as_json: bool) -> None:
    """Say what is known of one clip."""
    from .clips import describe_clip, find_row
    from .inspect_page import print_clip

    clip = describe_clip(dataset, find_row(dataset, key))
    if as_json:
        print(clip.model_dump_json(indent=1))
    else:
        print_clip(clip, out_console)


def _require_one(n_chosen: int, *, has_key_and_html: bool) -> None:
    if n_chosen > 1:
        raise ValueError(f"give only one of `--against`, `--label` and `--key`, found {n_chosen}")
    if has_key_and_html:
        raise ValueError("`--html` is for a data set; 'melstream show' draws one clip")


def _require_data_set(place: str, *, is_right: bool) -> None:
    if not is_right:
        raise ValueError(
            f"`--against`, `--label`, `--key` and `--sample` are for data sets, {place} is of "
            "training; leave them out"
        )


def _inspect_folds(folder: Path, *, as_json: bool) -> None:
    """Say what came of the folds of a data set."""
    from ..shards.keys import make_key
    from .fold_results import print_folds, read_folds, summarise

    results = read_folds(folder)
    if as_json:
        print(json.dumps(summarise(results), indent=1))
    else:
        print_folds(results, out_console)
        runs = ", ".join(str(folder / make_key(result.name)) for result in results)
        out_console.print(f"their runs: {runs}", highlight=False, markup=False)


def _inspect_run(folder: Path, html: Path | None, *, top: int, as_json: bool) -> None:
    """Say how a training run went."""
    from .run_page import print_run, run_json
    from .run_summary import read_run

    run = read_run(folder)
    if html is not None:
        from .run_report import write_run_report

        _tell_written(html, write_run_report(folder, html))
    if as_json:
        print(run_json(run))
    else:
        print_run(run, out_console, top=top)


def _write_page(html: Path, found: "Inspection", dataset: "Dataset") -> None:
    from .data_report import write_data_report

    _tell_written(html, write_data_report(html, found, dataset))


def _tell_written(path: Path, size_bytes: int) -> None:
    from .hours import megabytes

    err_console.print(f"written: {path}, {megabytes(size_bytes)}", highlight=False, markup=False)
