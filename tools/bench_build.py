"""``melstream bench build``: where the time of a build goes, beside what no build can do without.

The build, decoding and resampling alone, and lhotse follow one another on the same files, round
after round, so that all meet about the same load.
"""

import os
import resource
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..pipeline.parallel_map import n_cores
from ..shards.spec import FeatureSpec
from ..shards.storage import open_storage
from .bench_floor import floor_seconds
from .bench_lhotse import lhotse_seconds
from .build import BuildReport, build
from .build_plan import Plan, PlanSettings, make_plan
from .build_report import stage_seconds
from .build_workers import run_jobs
from .corpora import folder as folder_corpus

BYTES_PER_KIB = 1024  # Linux counts the peak in KiB
OTHER = "start, assemble, wait"


@dataclass(frozen=True, slots=True)
class BuildTimes:
    """What was measured.

    Args:
        n_files: audio files built.
        n_samples: that they became.
        duration_s: audio in the samples, in seconds.
        n_jobs: processes.
        wall_s: of each build, in seconds.
        floor_s: of decoding and resampling alone, in seconds, each round.
        lhotse_s: of lhotse, in seconds, each round; empty where it was left out.
        stages_s: median seconds of a process by stage, in all processes together.
        peak_bytes: most memory that a worker held.
        load: of the machine when it began: processes that ran or waited, over a minute.
    """

    n_files: int
    n_samples: int
    duration_s: float
    n_jobs: int
    wall_s: tuple[float, ...]
    floor_s: tuple[float, ...]
    lhotse_s: tuple[float, ...]
    stages_s: dict[str, float]
    peak_bytes: int
    load: float

    def ratio(self, others_s: tuple[float, ...]) -> float:
        """How many times as long as the build something took: median of the rounds."""
        return statistics.median(o / w for o, w in zip(others_s, self.wall_s, strict=True))

    def as_json(self) -> dict[str, Any]:
        """Return the figures and the ratios as plain data."""
        found = {name: getattr(self, name) for name in self.__slots__}
        found["x_real_time"] = self.duration_s / statistics.median(self.wall_s)
        found["build_over_floor"] = 1 / self.ratio(self.floor_s)
        if self.lhotse_s:
            found["x_lhotse"] = self.ratio(self.lhotse_s)
        return found


def bench_build(
    source: Path,
    *,
    window_s: float,
    n_jobs: int,
    limit: int | None,
    n_rounds: int,
    with_lhotse: bool,
) -> BuildTimes:
    """Build the audio files of a folder, time it, and throw the result away.

    Args:
        source: the folder; every file at any depth.
        window_s: duration of a sample, in seconds.
        n_jobs: processes; 0 = one per core.
        limit: files taken at most, a random sample; None = all.
        n_rounds: how often all is done.
        with_lhotse: time lhotse too.

    Raises:
        ValueError: no audio in the folder.
    """
    n_jobs = n_jobs or n_cores()
    load = os.getloadavg()[0]
    settings = PlanSettings(corpus="folder", features=FeatureSpec(), window_s=window_s, limit=limit)
    plan = make_plan(folder_corpus.scan(source, unlabelled=True), settings)
    reports, floors, peers, peak_bytes = list[BuildReport](), [], [], 0
    for number in range(n_rounds):
        reports.append(_in_folder(lambda folder: _build(plan, folder, n_jobs)))
        if not number:  # before any other child: the peak is that of all that ended
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            peak_bytes = peak * BYTES_PER_KIB
        floors.append(_floor(plan, n_jobs))
        if with_lhotse:
            peers.append(_in_folder(lambda folder: _lhotse(plan, folder, n_jobs)))
    return _summary(plan, reports, tuple(floors), tuple(peers), peak_bytes, n_jobs, load)


def print_times(times: BuildTimes, console: Console) -> None:
    """Print where the time goes and the ratios."""
    wall_s = statistics.median(times.wall_s)
    console.print(
        f"{times.n_files:,} files, {times.n_samples:,} samples, {times.duration_s / 3_600:.2f} h "
        f"in {wall_s:.1f} s by {times.n_jobs} processes: "
        f"{times.duration_s / wall_s:,.0f} x real time; peak memory of a worker "
        f"{times.peak_bytes / 1e6:,.0f} MB; load before: {times.load:.1f}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    for title in ("where the time goes", "seconds", "share"):
        table.add_column(title, justify="left" if title.startswith("w") else "right")
    whole_s = wall_s * times.n_jobs
    for stage, seconds in times.stages_s.items():
        table.add_row(stage, f"{seconds:.1f}", f"{seconds / whole_s:.0%}")
    console.print(table)
    console.print(
        f"decoding and resampling alone: {statistics.median(times.floor_s):.1f} s; the build "
        f"takes {1 / times.ratio(times.floor_s):.2f} x as long",
        highlight=False,
    )
    if times.lhotse_s:
        console.print(
            f"lhotse compute_and_store_features: {statistics.median(times.lhotse_s):.1f} s; the "
            f"build is {times.ratio(times.lhotse_s):.2f} x as fast",
            highlight=False,
        )


def _summary(
    plan: Plan,
    reports: list[BuildReport],
    floors: tuple[float, ...],
    peers: tuple[float, ...],
    peak_bytes: int,
    n_jobs: int,
    load: float,
) -> BuildTimes:
    manifest = reports[0].manifest
    assert manifest is not None  # of a whole build
    by_round = [_stages(report, n_jobs) for report in reports]
    return BuildTimes(
        n_files=plan.n_clips,
        n_samples=manifest.n_samples,
        duration_s=manifest.duration_s,
        n_jobs=n_jobs,
        wall_s=tuple(report.wall_s for report in reports),
        floor_s=floors,
        lhotse_s=peers,
        stages_s={n: statistics.median(stages[n] for stages in by_round) for n in by_round[0]},
        peak_bytes=peak_bytes,
        load=load,
    )


def _stages(report: BuildReport, n_jobs: int) -> dict[str, float]:
    """Return the seconds by stage, and what is left of the processes' time."""
    stages = stage_seconds(report.new)
    return {**stages, OTHER: n_jobs * report.wall_s - sum(stages.values())}


def _in_folder(run: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory(prefix="melstream-bench-") as folder:
        return run(Path(folder))


def _build(plan: Plan, folder: Path, n_jobs: int) -> BuildReport:
    storage = open_storage(folder / "data")
    return build(plan, storage, lambda jobs: run_jobs(jobs, n_jobs), lambda done, note: None)


def _paths(plan: Plan) -> list[Path]:
    found = (plan.listing.clips[place].path for place in plan.order)
    return [plan.listing.root / path for path in found if path is not None]


def _floor(plan: Plan, n_jobs: int) -> float:
    settings = plan.settings
    assert settings.window_s is not None
    rate = settings.features.sample_rate
    return floor_seconds(_paths(plan), window_s=settings.window_s, sample_rate=rate, n_jobs=n_jobs)


def _lhotse(plan: Plan, folder: Path, n_jobs: int) -> float:
    settings = plan.settings
    assert settings.window_s is not None
    return lhotse_seconds(
        _paths(plan),
        folder,
        window_s=settings.window_s,
        sample_rate=settings.features.sample_rate,
        n_mels=settings.features.n_mels,
        n_jobs=n_jobs,
    )
