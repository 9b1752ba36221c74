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

CLIP_S = 10.0
N_CLASSES = 527
STEPS = ("start", "list", "plan", "write parts", "assemble", "open", "read columns", "epoch order")


def listing(n_clips: int) -> Any:
    """Return a corpus of clips named as AudioSet's are."""
    from melstream.tools.corpora.corpus import Clip, Listing

    clips = tuple(
        Clip(
            key=f"key{number:08d}_{number % 97 * 1_000}",
            path=f"unbalanced/{number // 1_000:05d}/key{number:08d}_{number % 97 * 1_000}.flac",
            labels=(number % N_CLASSES, (number + 7) % N_CLASSES),
            source=f"unbalanced/{number // 1_000:05d}/key{number:08d}_{number % 97 * 1_000}.flac",
            start_s=float(number % 97),
            duration_s=CLIP_S,
        )
        for number in range(n_clips)
    )
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
