"""Plan, assemble and open a data set of millions of made-up clips: time and peak memory.

    python tests/benchmarks/bench_scale.py [--clips 2000000] [--json]

No audio is decoded: listing, plan, done records, index parts and manifest are real, what stands
in them is made up, and the tars are empty files of the declared size. Each step runs in a process
of its own, whose peak memory is what the operating system says.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

N_STARTS = 97
CLIP_S = 10.0
N_CLASSES = 527


def listing(n_clips: int) -> Any:
    """Return a corpus of clips named as AudioSet's are."""
    from melstream.tools.corpora.corpus import Clip, Listing

    starts = [float(start) for start in range(N_STARTS)]  # readers share equal values, too

    def clip(number: int) -> Clip:
        key = f"key{number:08d}_{number % N_STARTS * 1_000}"
        path = f"unbalanced/{number // 1_000:05d}/{key}.flac"
        labels = (number % N_CLASSES, (number + 7) % N_CLASSES)
        return Clip(key, path, labels, path, starts[number % N_STARTS], CLIP_S)

    clips = tuple(clip(number) for number in range(n_clips))
    names = tuple(f"class {number:03d}" for number in range(N_CLASSES))
    return Listing(root=Path("/made-up"), clips=clips, label_names=names)


def plan_of(n_clips: int) -> Any:
    """Plan them; every file is said to have the same size."""
    from melstream.shards.spec import FeatureSpec
    from melstream.tools import build_plan

    def sizes(listing: Any) -> Any:
        return np.full(len(listing.clips), 500_000, np.int64)

    build_plan._file_sizes = sizes
    settings = build_plan.PlanSettings(corpus="made-up", features=FeatureSpec())
    return build_plan.make_plan(listing(n_clips), settings)


def fill(plan: Any, folder: Path) -> None:
    """Leave what the workers of a build leave: tars, index parts and done records."""
    from melstream.shards.index import COLUMNS, Index, key_bytes
    from melstream.shards.manifest import ShardEntry
    from melstream.shards.storage import open_storage
    from melstream.tools.band_sums import BandSums
    from melstream.tools.build_job import DoneRecord, make_job, write_part

    storage, rng = open_storage(folder), np.random.default_rng(0)
    folder.mkdir(parents=True)
    n_mels = plan.settings.features.n_mels
    for number in range(plan.n_shards):
        job = make_job(plan, storage, "train", number)
        n = len(job.clips)
        columns = {name: rng.integers(0, 2**31, n).astype(d) for name, d in COLUMNS.items()}
        columns |= figures(n, rng)
        columns["key"] = key_bytes([clip.key for clip in job.clips])
        columns["shard"] = np.zeros(n, np.int32)
        columns["n_frames"] = np.full(n, 1_001, np.int32)
        columns["logmel_offset"] = 512 + 131_072 * np.arange(n)
        columns["logmel_size"] = np.full(n, 128_256)
        columns["label_ids"] = np.array([i for c in job.clips for i in c.labels], np.int32)
        columns["label_indptr"] = np.arange(n + 1) * 2
        for name in ("logmel_hash", "json_hash", "audio_hash"):
            columns[name] = rng.integers(0, 2**63, n).astype(np.uint64)
        counts = np.zeros((n_mels, 256), np.int64)
        counts[:, 100] = 1_001 * n
        mean = np.full(n_mels, -8.0)
        sums = BandSums(1_001 * n, 1_001 * n * mean, 1_001 * n * (mean**2 + 4), counts)
        write_part(job, Index(columns), sums)
        with (folder / job.tar_name).open("wb") as file:
            file.truncate(131_072 * n)  # takes no room
        entry = ShardEntry(
            name=job.tar_name, size_bytes=131_072 * n, n_samples=n, sha256=f"{number:064x}"
        )
        record = DoneRecord(
            entry=entry,
            n_clips=n,
            rejects=(),
            duration_s=CLIP_S * n,
            seconds={},
        )
        (folder / job.record_name).write_bytes(record.model_dump_json().encode())


def figures(n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Make up what recordings of the usual kind would show."""
    silence = np.float32(rng.beta(0.2, 4, n))
    return {
        "split": np.full(n, -1, np.int16),
        "start_s": np.float32(rng.integers(0, N_STARTS, n)),
        "duration_s": np.full(n, CLIP_S, np.float32),
        "sample_rate": rng.choice(np.array([22_050, 44_100, 48_000], np.int32), n),
        "n_channels": rng.integers(1, 3, n).astype(np.int16),
        "peak": np.float32(rng.beta(6, 1, n)),
        "rms_dbfs": np.float32(rng.normal(-23, 5, n)),
        "clipped_share": np.float32(rng.exponential(1e-4, n) * (rng.random(n) < 0.2)),
        "silence_share": np.where(silence > 0.01, silence, 0),
        "dc_offset": np.float32(rng.normal(0, 1e-4, n)),
        "bandwidth_hz": np.float32(rng.choice([5_702, 7_673, 8_000], n, p=[0.1, 0.1, 0.8])),
    }


def assemble_step(n_clips: int, folder: Path) -> dict[str, float]:
    """Plan, fill and assemble; each with its time and the peak until then."""
    figures: dict[str, float] = {}
    from melstream.shards.storage import open_storage
    from melstream.tools.build_assemble import assemble
    from melstream.tools.build_job import make_job

    figures["start_mb"] = memory_mb()
    start = time.perf_counter()
    plan = plan_of(n_clips)
    figures |= {"plan_s": time.perf_counter() - start, "plan_mb": memory_mb()}
    figures["n_shards"] = plan.n_shards
    start = time.perf_counter()
    fill(plan, folder)
    figures |= {"fill_s": time.perf_counter() - start, "fill_mb": memory_mb()}
    start = time.perf_counter()
    storage = open_storage(folder)
    jobs = [make_job(plan, storage, "train", shard) for shard in range(plan.n_shards)]
    assemble(plan, storage, jobs)
    return figures | {"assemble_s": time.perf_counter() - start, "assemble_mb": memory_mb()}


def open_step(n_clips: int, folder: Path) -> dict[str, float]:
    """Open the data set, and read what an epoch's order needs, then every column."""
    from melstream.shards.dataset import open_dataset
    from melstream.shards.index import COLUMNS

    figures = {"import_mb": memory_mb()}
    start = time.perf_counter()
    dataset = open_dataset(str(folder))
    names = ("shard", "n_frames", "logmel_offset", "logmel_size")
    columns = [dataset.index.column(name) for name in names]
    assert all(len(column) == n_clips for column in columns)
    figures |= {"open_s": time.perf_counter() - start, "open_mb": memory_mb()}
    start = time.perf_counter()
    for name in COLUMNS:
        dataset.index.column(name)
    return figures | {"columns_s": time.perf_counter() - start, "columns_mb": memory_mb()}


def memory_mb() -> float:
    """Return the peak memory of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024 / 1e6


def run_step(name: str, n_clips: int, folder: Path) -> dict[str, float]:
    """Run one step in a process of its own."""
    command = [sys.executable, __file__, "--clips", str(n_clips), "--step", name, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Run every step and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=2_000_000)
    parser.add_argument("--step", choices=("assemble", "open"))
    parser.add_argument("folder", nargs="?", type=Path)
    options = parser.parse_args()
    if options.step:
        step = assemble_step if options.step == "assemble" else open_step
        sys.stdout.write(json.dumps(step(options.clips, options.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="melstream-scale-") as place:
        folder = Path(place) / "data"
        figures = run_step("assemble", options.clips, folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        index = sum(path.stat().st_size for path in files if "index.zarr" in path.parts)
        figures["index_mb"] = index / 1e6
        figures["manifest_mb"] = (folder / "dataset.json").stat().st_size / 1e6
        figures |= run_step("open", options.clips, folder)
    figures["plan_bytes_per_clip"] = (
        (figures["plan_mb"] - figures["start_mb"]) * 1e6 / options.clips
    )
    sys.stdout.write("".join(f"{name:22}{value:12.2f}\n" for name, value in figures.items()))


if __name__ == "__main__":
    main()
