"""What runs on a GPU, without one: interpreted on a CPU, and compiled for a stand-in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
TESTS = Path(__file__).parent
PATIENCE_S = 600
TOLERANCE = 1e-6  # float32 against float64


def run(script: str, *arguments: str, cache: Path) -> str:
    caches = {name: str(cache) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "-I", TESTS / script, *arguments],
        env=os.environ | caches, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_depthwise_convolution_of_a_gpu_is_torchs(tmp_path: Path) -> None:
    """And its weight's gradient lies as the weight does, or DDP copies it and warns."""
    errors = run("interpreted_kernels.py", cache=tmp_path).split()
    assert len(errors) == 4
    assert all(float(error) < TOLERANCE for error in errors), errors


@pytest.mark.slow
def test_training_steps_compile_for_a_gpu(tmp_path: Path) -> None:
    """A constant that only a GPU's code generator spoiled stopped compiled pre-training there."""
    cases = "pretraining", "padded"
    lines = run("lowering_for_gpu.py", *cases, cache=tmp_path).splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{case}: 2 graphs" for case in cases]
    for line in lines:
        assert line.split().count("_convolve") == 2  # forward and backward
        assert line.split().count("_correlate") == 1
