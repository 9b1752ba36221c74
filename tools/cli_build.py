"""``melstream build CORPUS``: one command per corpus, made from the signature of its ``scan``."""

import inspect as signatures
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from typer import Option

from .cli_options import Json, err_console, out_console, resumable
from .corpora.corpus import Listing, find_corpora, find_recording_of
from .feature_file import FEATURES_HELP, FEATURES_METAVAR, read_features

if TYPE_CHECKING:
    from .build import BuildReport, Executor
    from .build_plan import Plan

build_app = typer.Typer(
    help="Turn audio files into a data set of log-mel shards.", no_args_is_help=True
)

Storage = Literal["float16", "uint8"]
Executors = Literal["processes", "ray"]
Window = Annotated[
    float | None,
    Option(
        "--window-seconds",
        min=0.1,
        help="Cut recordings into windows of this length; the last of each is shorter.",
    ),
]
DisjointFrom = Annotated[
    list[str] | None,
    Option(
        metavar="PLACE",
        help="Refuse if a clip stands in this data set or list of ids too; repeatable.",
    ),
]


def _build_options(
    out: Annotated[
        str, Option("--out", metavar="URL", help="A folder, or s3://, gs://, az:// and a path.")
    ],
    features: Annotated[
        str, Option(metavar=FEATURES_METAVAR, help=f"What a log-mel is: {FEATURES_HELP}")
    ] = "conformer64",
    storage: Annotated[
        Storage | None,
        Option(
            help="How log-mels are stored; uint8 takes half the bytes. Default: float16, or what "
            "the file of --features says."
        ),
    ] = None,
    keep_audio: Annotated[
        bool,
        Option(
            "--keep-audio", help="Keep the waveforms too, as FLAC at the features' sample rate."
        ),
    ] = False,
    window_s: Window = None,
    split: Annotated[
        list[str] | None, Option(help="Take only this split or fold of the corpus; repeatable.")
    ] = None,
    disjoint_from: DisjointFrom = None,
    min_seconds: Annotated[float, Option(min=0, help="Reject shorter clips.")] = 0.025,
    shard_samples: Annotated[
        int, Option(min=1, help="Maximum samples per shard (approximate with --window-seconds).")
    ] = 2_000,
    shard_mb: Annotated[
        float,
        Option(min=0.001, max=1e9, help="Approximate maximum shard size, in MB (10^6 bytes)."),
    ] = 256,
    limit: Annotated[
        int | None, Option(min=1, help="Use only a random sample of this many clips.")
    ] = None,
    jobs: Annotated[int, Option(min=0, help="Processes; 0 = one per core.")] = 0,
    part: Annotated[
        str,
        Option(
            metavar="I/N",
            help="Build part I of N: one of N jobs of a cluster, all with the same command.",
        ),
    ] = "1/1",
    executor: Annotated[
        Executors, Option(help="Where shards are built: processes here, or a Ray cluster.")
    ] = "processes",
    retry_failed: Annotated[
        bool,
        Option("--retry-failed", help="Try what a finished build lacks again; shards are added."),
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Say what would be done, and open no audio file.")
    ] = False,
    max_rejects: Annotated[
        float, Option(min=0, max=1, help="Exit 1 when a larger share of the files is rejected.")
    ] = 0.1,
    as_json: Json = False,
) -> None:
    """Declare the options that every corpus has."""


def _run(
    corpus: str,
    scan: Callable[[], Listing],
    options: dict[str, Any],
    corpus_options: dict[str, str | bool],
) -> None:
    from ..pipeline.parallel_map import n_cores
    from ..shards.storage import open_storage
    from .build import WHOLE, Part, build
    from .build_plan import PlanSettings, make_plan
    from .build_report import plan_as_json, print_plan
    from .build_retry import retry_failed
    from .progress import progress

    features = read_features(options["features"])
    if options["storage"]:
        features = features.model_copy(update={"storage_dtype": options["storage"]})
    settings = PlanSettings(  # before a scan that may take minutes
        corpus=corpus,
        features=features,
        min_duration_s=options["min_seconds"],
        window_s=options["window_s"],
        keep_audio=options["keep_audio"],
        splits=tuple(options["split"] or ()),
        limit=options["limit"],
        max_shard_samples=options["shard_samples"],
        max_shard_bytes=round(options["shard_mb"] * 1e6),
        corpus_options=corpus_options,
    )
    storage, part = open_storage(options["out"]), Part.parse(options["part"])
    if options["retry_failed"] and (part != WHOLE or options["dry_run"]):
        raise ValueError(
            "`--retry-failed` works on the whole data set; leave out --part and --dry-run"
        )
    if options["executor"] == "ray" and options["jobs"]:
        raise ValueError("`--jobs` goes with processes here; Ray takes every core of its cluster")
    plan = make_plan(scan(), settings)
    _require_disjoint(plan, options["disjoint_from"] or ())
    if options["dry_run"]:
        _show(options, plan_as_json, print_plan, plan)
        return
    run = _executor(options["executor"], options["jobs"] or n_cores())
    with resumable(), progress("building", plan.n_clips, err_console) as report:
        if options["retry_failed"]:
            result = retry_failed(plan, storage, run, report)
        else:
            result = build(plan, storage, run, report, part)
    _finish(result, options)


def _executor(name: Executors, n_jobs: int) -> "Executor":
    if name == "processes":
        from .build_workers import run_jobs

        return lambda jobs: run_jobs(jobs, n_jobs)
    from .build_ray import run_on_ray

    return run_on_ray


def _require_disjoint(plan: "Plan", places: Sequence[str]) -> None:
    if places:
        from .leaks import require_disjoint

        recording_of = find_recording_of(plan.settings.corpus) or str
        keys = [clip.key for clip in plan.listing.clips]
        require_disjoint(keys, places, recording_of=recording_of)


def _finish(result: "BuildReport", options: dict[str, Any]) -> None:
    from ..shards.storage import open_storage
    from .build_assemble import REJECTS_NAME
    from .build_report import print_report, report_as_json
    from .coverage import read_total

    _show(options, report_as_json, print_report, result)
    if result.manifest is None:
        return
    total = read_total(open_storage(result.url))
    share = 0.0 if total is None else total.rejected_share
    if share > options["max_rejects"]:
        err_console.print(
            f"[bold red]error:[/] {share:.1%} of the files were rejected, more than "
            f"--max-rejects {options['max_rejects']:.1%}; "
            f"{escape(result.url)}/{REJECTS_NAME} names each",
            highlight=False,
        )
        raise typer.Exit(1)


def _show(
    options: dict[str, Any],
    to_json: Callable[[Any], dict[str, Any]],
    print_table: Callable[..., None],
    found: object,
) -> None:
    if options["as_json"]:
        print(json.dumps(to_json(found), indent=1))
    else:
        print_table(found, out_console)


def _corpus_options(
    own: Sequence[signatures.Parameter], options: dict[str, Any]
) -> dict[str, str | bool]:
    """Return what was chosen of a corpus's own options, but for files, which may move."""
    chosen = {p.name: options[p.name] for p in own if options[p.name] != p.default}
    return {
        name.replace("_", "-"): value
        for name, value in chosen.items()
        if isinstance(value, str | bool)
    }


def _build_command(name: str, scan: Callable[..., Listing]) -> Callable[..., None]:
    """Make the command of one corpus: its own options, then those that all have."""
    common = signatures.signature(_build_options).parameters
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in signatures.signature(scan).parameters.values()]

    def command(**options: Any) -> None:
        shared = {key: options.pop(key) for key in common}
        _run(name, lambda: scan(**options), shared, _corpus_options(own, options))

    parameters = [*own, *(p.replace(kind=p.KEYWORD_ONLY) for p in common.values())]
    command.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


for _name, _module in find_corpora().items():
    _summary = (_module.__doc__ or "").strip().splitlines()[0]
    _help = f"{_summary}\n\nExample: `{_module.EXAMPLE}`"
    build_app.command(_name, help=_help)(_build_command(_name, _module.scan))
