"""Compare loaders over the same clips of 10 s, on one core and on two.

    python tests/benchmarks/bench_loader.py [--peer-python peers/bin/python] [--folder FOLDER]

Every loader runs in a process of its own, pinned, over 8,000 clips of 1,000 frames of 64 bands
in float16 that lie in the page cache; they take turns, and medians of the rounds are shown.
Ours shuffles over 1 GiB, crops, and, in the first line, draws masks and 100 distractors. The
peers do none of it and read each copy of the clips as their documentation advises: webdataset
`.decode().batched()` and Megatron-Energon our tars, the others what their own writers made.
Of each the better of no worker processes and one per core is shown.

The peers may need an environment of their own:

    python -m venv peers
    peers/bin/pip install "torch==2.11.*" "torchvision==0.26.*" webdataset lhotse \\
        mosaicml-streaming litdata megatron-energon

With ``--epochs 10`` speed and memory of our loader are shown epoch after epoch instead; in the
first one each clip is mapped and compared with its hash.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from made_up_clips import CLIP_FRAMES, SPEC, write_clips
from rich.console import Console

from melstream.pipeline.masks import MaskConfig
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.storage import open_storage
from melstream.tools.bench_versus import compare, print_speeds
from melstream.tools.loader_contender import loader_epoch
from melstream.tools.peer_loaders import pin

CLIP_BYTES = CLIP_FRAMES * SPEC.frame_bytes


def memory_mb() -> dict[str, float]:
    """Return the memory of this process by kind, in megabytes; mapped shards are ``RssFile``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {kind: int(found[kind].split()[0]) * 1_024 / 1e6 for kind in ("RssAnon", "RssFile")}


def show_epochs(dataset: Dataset, n_epochs: int, console: Console) -> None:
    """Print speed and memory of each epoch with masks, on one core."""
    pin("0")
    loader_epoch(dataset, 64, MaskConfig())()  # compiles
    dataset = open_dataset(dataset.folder)  # that no log-mel of was looked at
    run = loader_epoch(dataset, 64, MaskConfig())
    for epoch in range(1, n_epochs + 1):
        start = time.perf_counter()
        n_clips = run()
        speed = n_clips / (time.perf_counter() - start)
        kinds = ", ".join(f"{kind} {size:.1f} MB" for kind, size in memory_mb().items())
        console.print(f"epoch {epoch:2}: {n_clips:,} clips, {speed:,.0f} clips/s, {kinds}")


def main() -> None:
    """Print one table per number of cores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, action="append", help="default: 1 and 2")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--folder", type=Path, help="keep the clips here for the next time")
    parser.add_argument("--epochs", type=int, help="show so many epochs of ours instead")
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="melstream-bench-") as temporary:
        folder = options.folder or Path(temporary)
        clips = folder / "clips"
        if not clips.exists():
            write_clips(open_storage(clips), options.clips)
        if options.epochs:
            show_epochs(open_dataset(clips), options.epochs, console)
            return
        for n_cores in options.cores or (1, 2):
            speeds = compare(
                clips,
                folder / "peers",
                n_cores=n_cores,
                n_rounds=options.rounds,
                peer_python=options.peer_python,
            )
            console.print(f"{n_cores} core{'s' * (n_cores > 1)}, median of {options.rounds} rounds")
            print_speeds(speeds, CLIP_BYTES, console)


if __name__ == "__main__":
    main()
