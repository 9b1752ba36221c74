"""``melstream evaluate``, ``embed`` and ``export``: what is done with a trained model."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from typer import Argument, Option

from .cli_options import (
    Data,
    Device,
    Json,
    Out,
    choose_device,
    err_console,
    local_file,
    local_path,
    only,
    out_console,
)

model_app = typer.Typer()


@model_app.command()
def evaluate(
    model: Annotated[
        Path,
        Argument(
            metavar="RUN",
            parser=local_path,
            help="A run of `melstream finetune`, a checkpoint of one, or a model's folder.",
        ),
    ],
    data: Data,
    out: Annotated[
        Path | None,
        Option("--out", metavar="FILE", parser=local_file, help="Write the figures as JSON."),
    ] = None,
    split: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Measure on this split of --data alone; repeatable."),
    ] = None,
    top: Annotated[int, Option(min=0, help="Classes to list, weakest first.")] = 10,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a tagger on a labelled data set: mAP, mAUC, d', accuracy, per class.

    Of clips longer than a minute the first minute counts.

    Example: `melstream evaluate runs/finetune --data shards/eval`
    """
    from .evaluate import as_json as to_json
    from .evaluate import evaluate as run
    from .evaluate import print_metrics, write_report

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    metrics, card = run(model, only(data), device=choose_device(device), splits=split or ())
    if as_json:
        print(json.dumps(to_json(metrics, card), indent=1))
    else:
        print_metrics(metrics, card, out_console, top)
    if out is not None:
        write_report(out, metrics, card)


@model_app.command()
def embed(
    model: Annotated[
        Path,
        Argument(
            metavar="RUN",
            parser=local_path,
            help="A run of `melstream pretrain` or `finetune`, a checkpoint of one, or a model's "
            "folder.",
        ),
    ],
    sources: Annotated[
        list[str],
        Argument(metavar="URL|FILES", help="A data set, or audio files and folders of them."),
    ],
    out: Annotated[
        Path,
        Option("--out", metavar="FOLDER", parser=local_path, help="Where the Zarr group goes."),
    ],
    frames: Annotated[
        bool, Option("--frames", help="Keep every latent step, not only each clip's mean.")
    ] = False,
    layer: Annotated[
        int | None,
        Option(min=1, help="Conformer block to embed with, from 1 on; without it the last."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Write embeddings, and a tagger's scores, of a data set or of audio files, as Zarr.

    The group has `key`, `clips` (the embeddings), of a tagger `scores`, of a labelled data set
    `labels`. Of a data set's clips longer than a minute the first minute counts.

    Example: `melstream embed runs/pretrain shards/eval --out eval.zarr`
    """
    from .embed import embed as run
    from .text_tables import many

    report = run(
        model,
        sources,
        out,
        layer=layer,
        has_frames=frames,
        device=choose_device(device),
        console=err_console,
    )
    for reject in report.rejects:
        err_console.print(f"[yellow]left out:[/] {escape(reject)}", highlight=False, soft_wrap=True)
    out_console.print(f"{many(report.n_clips, 'clip')}: {out}", highlight=False)
    if report.rejects:
        raise typer.Exit(1)


@model_app.command()
def export(
    model: Annotated[
        Path,
        Argument(
            metavar="RUN",
            parser=local_path,
            help="A run of `melstream pretrain` or `finetune`, a checkpoint of one, or a model's "
            "folder.",
        ),
    ],
    out: Out,
    onnx: Annotated[
        bool, Option("--onnx", help="Write model.onnx, too: waveform in, answer out.")
    ] = False,
    torch_export: Annotated[
        bool, Option("--torch-export", help="Write model.pt2, too, for `torch.export.load`.")
    ] = False,
) -> None:
    """Write a trained model with its card to a folder of its own, to publish or to serve.

    The folder is what `melstream.model.load` reads, and what the Hugging Face Hub takes.

    Example: `melstream export runs/tagger --out dog-tagger --onnx`
    """
    from .export import export as run

    run(model, out, onnx=onnx, program=torch_export)
    for path in sorted(out.iterdir()):
        out_console.print(f"{path.stat().st_size:>13,} B  {path}", highlight=False, soft_wrap=True)
