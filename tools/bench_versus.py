"""Loaders side by side: each in a process of its own, in turns, over the same clips."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer
from typing import Any

from rich.console import Console
from rich.table import Table

from ..shards.dataset import open_dataset
from ..shards.errors import MelstreamError
from ..shards.storage import open_storage
from . import peer_loaders
from .fixed_clips import copy_clips
from .loader_contender import KINDS

ERROR_CHARS = 2_000  # of what a contender said before it ended
COPIED_BYTES = 2**28  # of the clips of a data set that loaders are compared over
ANSWER_S = 300.0  # longest wait for a contender; the first covers writing its own format
TURN_S = 0.5  # a turn lasts at least so long, and a whole number of epochs


@dataclass(frozen=True, slots=True)
class Contender:
    """A loader that can be timed.

    Args:
        name: for the table.
        command: the program, which answers as ``peer_loaders`` says.
        n_workers: processes beside the one that is timed.
    """

    name: str
    command: tuple[str, ...]
    n_workers: int = 0


@dataclass(frozen=True, slots=True)
class LoaderSpeed:
    """How fast a loader was.

    Args:
        name: of the loader, with its version.
        n_workers: processes beside the one that was timed.
        clips_per_s: of each round.
    """

    name: str
    n_workers: int
    clips_per_s: tuple[float, ...]

    @property
    def median(self) -> float:
        """Clips per second: median of the rounds."""
        return statistics.median(self.clips_per_s)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "median": self.median}


def compare(
    folder: Path,
    work: Path,
    *,
    n_cores: int = 1,
    n_rounds: int = 5,
    batch_size: int = 64,
    peer_python: str = sys.executable,
) -> list[LoaderSpeed]:
    """Time our loader, plain copies and the installed peers over a folder of clips.

    Args:
        folder: a data set of clips of one length.
        work: where the peers' own formats are kept; made where they are not there.
        n_cores: every process may use these cores, and no others.
        n_rounds: turns of each.
        batch_size: clips in a batch.
        peer_python: interpreter of the environment that has the peers.

    Returns:
        ours first; of a peer, the better of no worker processes and one for each core.

    Raises:
        MelstreamError: a contender failed.
    """
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:n_cores]))
    shared = ("--cores", cores, "--batch-size", str(batch_size))
    ours = [_ours(kind, folder, shared) for kind in KINDS]
    peers = _peers(folder, work, shared, n_cores, peer_python)
    return _best(_take_turns([*ours, *peers], n_rounds))


def compare_over(url: str, *, n_frames: int, batch_size: int) -> list[LoaderSpeed]:
    """Compare over copies of clips of a data set, all cut to one length, on one core.

    Args:
        url: of the data set.
        n_frames: of each copy; shorter clips are left out.
        batch_size: clips in a batch, at most.

    Raises:
        ValueError: no clip is so long.
        MelstreamError: the data set cannot be read, or a contender failed.
    """
    dataset = open_dataset(url)
    max_clips = max(1, COPIED_BYTES // (n_frames * dataset.manifest.features.frame_bytes))
    with tempfile.TemporaryDirectory(prefix="melstream-bench-") as folder:
        place = Path(folder) / "clips"
        clips = copy_clips(dataset, open_storage(place), n_frames=n_frames, max_clips=max_clips)
        return compare(place, Path(folder) / "peers", batch_size=min(batch_size, len(clips)))


def print_speeds(speeds: Sequence[LoaderSpeed], n_bytes: int, console: Console) -> None:
    """Print clips and bytes per second, and how many times as fast as each ours is.

    Args:
        speeds: as ``compare`` returns them.
        n_bytes: of the log-mel of one clip.
        console: where to.
    """
    table = Table(box=None, pad_edge=False)
    for title in ("", "clips/s", "GB/s", "x, masks", "x, none"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    masks, plain = speeds[:2]
    for speed in speeds:
        table.add_row(
            speed.name + (f", {speed.n_workers} workers" if speed.n_workers else ""),
            f"{speed.median:,.0f}",
            f"{speed.median * n_bytes / 1e9:.2f}",
            f"{masks.median / speed.median:.2f}",
            f"{plain.median / speed.median:.2f}",
        )
    console.print(table)
    console.print(
        "ours shuffles, crops and, in the first line, draws masks and 100 distractors; the others "
        "do not; the last two columns: how many times as fast ours is, with masks and without",
        style="dim",
        highlight=False,
    )


def _ours(kind: str, folder: Path, shared: tuple[str, ...]) -> Contender:
    module = f"{__package__}.loader_contender"
    command = (sys.executable, "-Im", module, kind, str(folder), *shared)
    return Contender(KINDS[kind], command)


def _peers(
    folder: Path, work: Path, shared: tuple[str, ...], n_cores: int, python: str
) -> Iterator[Contender]:
    program = (python, "-I", peer_loaders.__file__)
    answer = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    for name, version in json.loads(answer).items():
        for n_workers in (0, n_cores) if n_cores > 1 else (0,):
            places = (str(folder), "--work", str(work), "--workers", str(n_workers))
            yield Contender(f"{name} {version}", (*program, name, *places, *shared), n_workers)


def _take_turns(contenders: Sequence[Contender], n_rounds: int) -> list[LoaderSpeed]:
    with ExitStack() as stack:
        started = [(one, stack.enter_context(_start(one))) for one in contenders]
        speeds = {one: list[float]() for one in contenders}
        for _ in range(n_rounds):
            for one, ask in started:
                found = ask(TURN_S)
                speeds[one].append(found["n_clips"] / found["seconds"])
    return [LoaderSpeed(one.name, one.n_workers, tuple(speeds[one])) for one in contenders]


@contextmanager
def _start(contender: Contender) -> Iterator[Callable[[float], dict[str, float]]]:
    """Start a contender and wait until it has run an epoch; yields what gives it a turn."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            contender.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            bufsize=1,
            start_new_session=True,  # a group of its own, with its workers
        ) as process,
    ):
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        def answer() -> dict[str, float]:
            limit = Timer(ANSWER_S, end)  # the workers of a peer may wait for ever
            limit.start()
            try:
                line = answers.readline()
            finally:
                limit.cancel()
            if not line:
                errors.seek(0)
                raise MelstreamError(
                    f"{contender.name} ended, or gave no answer in {ANSWER_S:.0f} s: "
                    f"{errors.read()[-ERROR_CHARS:]}"
                )
            return json.loads(line)

        def ask(seconds: float) -> dict[str, float]:
            with suppress(BrokenPipeError):  # it ended: what it said last is the error
                asked.write(f"{seconds}\n")
            return answer()

        try:
            answer()
            yield ask
        finally:
            end()


def _best(speeds: Sequence[LoaderSpeed]) -> list[LoaderSpeed]:
    """Keep the faster of the lines of a name, where its first one stood."""
    best: dict[str, LoaderSpeed] = {}
    for speed in speeds:
        if speed.name not in best or speed.median > best[speed.name].median:
            best[speed.name] = speed
    return list(best.values())
