"""``melstream pretrain`` and ``melstream finetune``, alone or under torchrun."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from .cli_options import (
    Device,
    Overrides,
    PrintConfig,
    Resume,
    RunData,
    RunOut,
    choose_device,
    err_console,
    local_path,
    only,
    out_console,
    resumable,
    silent_console,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from .distributed import World
    from .fold_results import FoldResult
    from .training import Result

train_app = typer.Typer()

PretrainName = Annotated[
    str,
    Argument(
        metavar="RECIPE",
        help="demo-pretrain, pretrain-cf-s, pretrain-cf-l, or the path of a TOML file.",
    ),
]
FinetuneName = Annotated[
    str,
    Argument(
        metavar="RECIPE",
        help="demo-finetune, finetune-audioset-20k, finetune-audioset-2m, finetune-esc50, "
        "linear-probe, or the path of a TOML file.",
    ),
]
Encoder = Annotated[
    Path | None,
    Option(
        metavar="RUN",
        parser=local_path,
        help="A run of `melstream pretrain` or `finetune`, or a checkpoint of one; without it, "
        "from scratch.",
    ),
]


@train_app.command()
def pretrain(
    recipe: PretrainName,
    data: RunData = None,
    out: RunOut = None,
    encoder: Encoder = None,
    overrides: Overrides = None,
    device: Device = "auto",
    resume: Resume = False,
    print_config: PrintConfig = False,
) -> None:
    """Pre-train an encoder on unlabelled log-mels.

    Example: `melstream pretrain demo-pretrain --data shards/train --out runs/pretrain`

    On other audio, from where a run has come: `melstream pretrain demo-pretrain --data shards/birds
    --encoder runs/pretrain --out runs/birds`

    A mixture from a bucket: `melstream pretrain pretrain-cf-s --data s3://bucket/audioset --data
    s3://bucket/fsd50k --set data.shares=[0.9,0.1] --set data.cache.folder=/scratch/cache …`

    On several GPUs: `torchrun --nproc-per-node 8 --max-restarts 3 --no-python melstream
    pretrain …`
    """
    from .recipe import PretrainRecipe
    from .recipe_file import as_toml, load_recipe

    config = load_recipe(recipe, PretrainRecipe, overrides or ())
    if print_config:
        print(as_toml(config))
        return
    data, out = _required(data, out)
    _require_no_sizes(encoder, overrides)
    from .pretrain import pretrain as run

    with _world(device) as (world, console):
        result = run(
            config,
            data,
            out,
            device=world.device,
            console=console,
            encoder_path=encoder,
            resume=resume,
            world=world,
        )
        _finish_run(out, result, world)


@train_app.command()
def finetune(
    recipe: FinetuneName,
    data: RunData = None,
    out: RunOut = None,
    encoder: Encoder = None,
    split: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Learn from this split of --data alone; repeatable."),
    ] = None,
    valid: Annotated[str | None, Option(metavar="URL", help="Data set to validate on.")] = None,
    valid_split: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Validate on this split of --data; repeatable."),
    ] = None,
    folds: Annotated[
        bool,
        Option(
            "--folds",
            help="Cross-validate: for each split of --data, learn from the others, evaluate on it.",
        ),
    ] = False,
    overrides: Overrides = None,
    device: Device = "auto",
    resume: Resume = False,
    print_config: PrintConfig = False,
) -> None:
    """Fine-tune a tagger on a labelled data set.

    Example: `melstream finetune demo-finetune --data shards/train --encoder runs/pretrain
    --out runs/finetune`

    Splits of one data set: `melstream finetune finetune-audioset-20k --data shards/fsd50k --split
    train --valid-split val --encoder runs/pretrain --out runs/fsd50k`

    Five folds: `melstream finetune finetune-esc50 --folds --data shards/esc50 --encoder
    runs/pretrain --out runs/esc50`
    """
    from .recipe import FinetuneRecipe
    from .recipe_file import as_toml, is_overridden, load_recipe

    config = load_recipe(recipe, FinetuneRecipe, overrides or ())
    if print_config:
        print(as_toml(config))
        return
    data, out = _required(data, out)
    place = only(data)
    _require_one_measure(folds=folds, valid=valid, splits=split, valid_splits=valid_split)
    every, is_measured = config.train.validate_every, folds or valid or valid_split
    if every and not is_measured and is_overridden("train.validate_every", overrides or ()):
        raise ValueError(
            f"`--set train.validate_every={every}` needs held-out data; give --valid or "
            "--valid-split, or leave it out"
        )
    _require_no_sizes(encoder, overrides)
    from .finetune import finetune as run
    from .folds import finetune_folds
    from .parts import part_of_splits
    from .training_data import open_data

    with _world(device) as (world, console):
        how: dict[str, Any] = {
            "device": world.device,
            "console": console,
            "encoder_path": encoder,
            "resume": resume,
            "world": world,
        }
        if folds:
            _finish_folds(out, finetune_folds(config, place, out, **how), world)
        else:
            part = None
            if split or valid_split:
                (dataset,) = open_data(place, config.data)
                part = part_of_splits(dataset, split or (), valid_split or ())
            _finish_run(out, run(config, place, out, valid=valid, part=part, **how), world)


def _require_one_measure(
    *, folds: bool, valid: str | None, splits: list[str] | None, valid_splits: list[str] | None
) -> None:
    """Refuse options that each say what to measure on.

    Raises:
        ValueError: several of them were given.
    """
    if folds and (valid or splits or valid_splits):
        raise ValueError(
            "`--folds` holds out each split of --data in turn; leave --valid, --split and "
            "--valid-split out"
        )
    if valid and valid_splits:
        raise ValueError("`--valid` and `--valid-split` both say what to validate on; give one")


def _required(data: list[str] | None, out: Path | None) -> tuple[list[str], Path]:
    """Give what only ``--print-config`` may leave out.

    Raises:
        ValueError: it was left out.
    """
    if not data or out is None:
        raise ValueError(f"`{'--out' if data else '--data'}` is required, found none")
    return data, out


def _require_no_sizes(encoder: Path | None, overrides: list[str] | None) -> None:
    """Refuse to change the sizes of an encoder that is given.

    Raises:
        ValueError: an override of ``[model]`` beside an encoder.
    """
    if encoder is not None and any(
        override.partition("=")[0].strip().partition(".")[0] == "model"
        for override in overrides or ()
    ):
        raise ValueError(
            "`--set model.…` is for a model from scratch, --encoder has sizes of its own; leave "
            "one out (of fine-tuning, finetune.dropout and finetune.layer_drop can be changed)"
        )


@contextmanager
def _world(device: str) -> "Iterator[tuple[World, Console]]":
    """Join the other processes; only the main one has a console that shows something."""
    from .distributed import join_world

    with join_world(choose_device(device)) as world:
        console = err_console if world.is_main else silent_console
        with resumable("--resume goes on from the last checkpoint", console):
            yield world, console


def _finish_run(out: Path, result: "Result", world: "World") -> None:
    """Say how a run ended and where its files are."""
    if not world.is_main:
        return
    if not result.is_complete:
        out_console.print(
            f"stopped at step {result.step}, checkpoint written; --resume goes on", highlight=False
        )
        return
    loss = f", loss {result.figures['loss']:.3f}" if "loss" in result.figures else ""
    from .model_folder import read_model

    model_step = read_model(out)[1].steps
    chosen = "" if model_step == result.step else f" (of step {model_step})"
    out_console.print(
        f"{result.step} steps in {result.wall_s:.1f} s{loss}; model{chosen}: {out / 'model'}",
        highlight=False,
    )
    out_console.print(f"curves: tensorboard --logdir {out}", highlight=False)


def _finish_folds(out: Path, results: "list[FoldResult] | None", world: "World") -> None:
    """Print the figures of all folds, or say how to go on."""
    if not world.is_main:
        return
    if results is None:
        out_console.print("stopped, checkpoint written; --resume goes on", highlight=False)
        return
    from .fold_results import SUMMARY_NAME, print_folds

    print_folds(results, out_console)
    out_console.print(f"figures: {out / SUMMARY_NAME}", highlight=False)
