"""``melstream index``, ``subset``, ``merge`` and ``export-lhotse``: work with what is built."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from typer import Argument, Option

from ..shards.manifest import Manifest
from .cli_options import Json, err_console, local_path, out_console
from .feature_file import FEATURES_HELP, FEATURES_METAVAR, read_features
from .text_tables import many

data_app = typer.Typer()

Place = Annotated[str, Argument(metavar="URL", help="A data set: a folder, s3:// …")]
NewPlace = Annotated[
    str, Option("--out", metavar="URL", help="A new or empty folder, or s3://, gs://, az://.")
]


@data_app.command()
def index(
    place: Annotated[str, Argument(metavar="URL", help="Where the tars are: a folder, s3:// …")],
    features: Annotated[
        str,
        Option(
            metavar=FEATURES_METAVAR,
            help=f"How the log-mels were made, which cannot be guessed: {FEATURES_HELP}",
        ),
    ],
    logmel_field: Annotated[
        str | None,
        Option(
            metavar="FIELD",
            help="Member that holds the log-mel. Default: `logmel.npy`, or the only .npy member.",
        ),
    ] = None,
    label_field: Annotated[
        str | None,
        Option(metavar="FIELD", help="JSON field that lists the class names. Default: `labels`."),
    ] = None,
    make_keys: Annotated[
        bool,
        Option("--make-keys", help="Turn names that are not valid keys (such as a/b) into keys."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a data set of WebDataset tars from elsewhere; the tars stay as they are.

    Example: `melstream index tars/train --features conformer64 --logmel-field mel.npy`
    """
    from ..shards.storage import open_storage
    from .adopt import AdoptSettings, adopt, find_tars
    from .progress import progress

    settings = AdoptSettings(read_features(features), logmel_field, label_field, make_keys)
    storage = open_storage(place)
    with progress("indexing", len(find_tars(storage)), err_console) as report:
        found = adopt(storage, settings, report)
    if as_json:
        more = {"logmel_field": found.logmel_field, "label_field": found.label_field}
        _print_json(found.url, found.manifest, **more, n_unlabelled=found.n_unlabelled)
        return
    _print_totals(found.url, found.manifest)
    classes = len(found.manifest.label_names)
    _print(f"log-mels from `{found.logmel_field}`")
    _print(
        f"labels from `{found.label_field}`: {classes:,} classes, {found.n_unlabelled:,} without"
    )
    for kind, count in found.manifest.n_ignored.items():
        _print(f"{count:,} members ignored: {kind}")


@data_app.command()
def subset(
    place: Place,
    out: NewPlace,
    label: Annotated[
        list[str] | None,
        Option(help="Keep samples of this class; repeatable; a sample with any of them is kept."),
    ] = None,
    split: Annotated[
        list[str] | None,
        Option(help="Keep samples of this split; repeatable; a sample with any of them is kept."),
    ] = None,
    ids: Annotated[
        str | None, Option("--ids", metavar="FILE", help="Keep the keys in this file, one a line.")
    ] = None,
    not_ids: Annotated[
        str | None, Option("--not-ids", metavar="FILE", help="Leave out the keys in this file.")
    ] = None,
    not_in: Annotated[
        str | None,
        Option(
            "--not-in",
            metavar="URL",
            help="Leave out what this data set has too: by key, audio or recording.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        Option(
            metavar="BOUND", help="Keep samples within a bound, as 'duration_s>=1'; repeatable."
        ),
    ] = None,
    drop_duplicates: Annotated[
        bool, Option("--drop-duplicates", help="Keep the first of samples with the same audio.")
    ] = False,
    shard_samples: Annotated[int | None, Option(min=1, help="Maximum samples per shard.")] = None,
    shard_mb: Annotated[
        float | None, Option(min=0.001, help="Maximum shard size, in MB (10^6 bytes).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy some samples of a data set into a new one, byte for byte.

    Example: `melstream subset shards/train --out shards/dogs --label Dog --where 'duration_s>=5'`
    """
    from ..shards.dataset import open_dataset
    from ..shards.storage import open_storage
    from .progress import progress
    from .selection import Bound, Selection
    from .subset import Limits
    from .subset import subset as copy

    bounds = tuple(Bound.parse(text) for text in where or ())
    selection = Selection(
        tuple(label or ()), tuple(split or ()), ids, not_ids, not_in, bounds, drop_duplicates
    )
    limits = Limits(shard_samples, None if shard_mb is None else round(shard_mb * 1e6))
    dataset = open_dataset(place)
    with progress("copying", len(dataset), err_console) as report:
        found = copy(dataset, open_storage(out), selection, report, limits)
    n_duplicates = found.selected.n_duplicates
    if as_json:
        _print_json(found.url, found.manifest, n_from=found.n_from, n_duplicates=n_duplicates)
        return
    for step, n_left in found.selected.steps:
        _print(f"{many(n_left, 'sample')} left after {step}")
    if drop_duplicates:
        _print(f"{many(n_duplicates, 'sample')} dropped, the same audio as another")
    _print_totals(found.url, found.manifest)


@data_app.command()
def merge(
    places: Annotated[list[str], Argument(metavar="URL URL …", help="Two or more data sets.")],
    out: NewPlace,
    as_json: Json = False,
) -> None:
    """Join data sets with the same features into a new one.

    Example: `melstream merge shards/esc50 shards/fsd50k --out shards/both`
    """
    from ..shards.dataset import open_dataset
    from ..shards.storage import open_storage
    from .merge import merge as join
    from .progress import progress

    datasets = [open_dataset(place) for place in places]
    n_shards = sum(len(dataset.manifest.shards) for dataset in datasets)
    with progress("copying", n_shards, err_console) as report:
        found = join(datasets, open_storage(out), report)
    if as_json:
        _print_json(found.url, found.manifest, n_equal_audio=found.n_equal_audio)
        return
    _print_totals(found.url, found.manifest)
    if found.n_equal_audio:
        _print(
            f"{found.n_equal_audio:,} samples have the audio of another; 'melstream subset "
            "--drop-duplicates' leaves them out"
        )


@data_app.command("export-lhotse")
def export_lhotse(
    place: Place,
    out: Annotated[
        Path,
        Option(
            "--out",
            metavar="FOLDER",
            parser=local_path,
            help="Gets cuts.jsonl.gz and the features.",
        ),
    ],
) -> None:
    """Copy a data set into cuts with precomputed features that lhotse loads by itself.

    Example: `melstream export-lhotse shards/train --out cuts/train`
    """
    from ..shards.dataset import open_dataset
    from .export_lhotse import export_cuts
    from .progress import progress

    dataset = open_dataset(place)
    with progress("exporting", len(dataset), err_console) as report:
        path = export_cuts(dataset, out, lambda done: report(done, "samples"))
    _print(f"{len(dataset):,} cuts: lhotse.CutSet.from_file({str(path)!r})")


def _print_json(url: str, manifest: Manifest, **more: object) -> None:
    names = ("n_samples", "duration_s", "ids_hash", "fingerprint")
    told = {name: getattr(manifest, name) for name in names}
    print(json.dumps({"url": url, "n_shards": len(manifest.shards), **told, **more}, indent=1))


def _print_totals(url: str, manifest: Manifest) -> None:
    from .hours import hours

    _print(
        f"{url}: {many(manifest.n_samples, 'sample')} in {many(len(manifest.shards), 'shard')}, "
        f"{hours(manifest.duration_s)}"
    )


def _print(text: str) -> None:
    out_console.print(escape(text), highlight=False, soft_wrap=True)
