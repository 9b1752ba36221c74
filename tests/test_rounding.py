"""What a kernel computes does not depend on the CPU, nor on Numba's cache."""

import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from melstream.pipeline.rounding import SUM_LANES, fma, sum_float64, sum_squares_float64

PROGRAM = """
import hashlib
import numpy as np
from melstream.pipeline.logmel import LogMel
from melstream.pipeline.quality import mean_squares, measure_levels
from melstream.shards.spec import PRESETS

waveform = np.random.default_rng(0).normal(0.01, 0.1, 20_001).astype(np.float32)
for spec in PRESETS.values():
    print(hashlib.sha256(LogMel(spec)(waveform).tobytes()).hexdigest())
print(mean_squares(waveform, 160).sum(), measure_levels(waveform[:, None]))
"""


def run_program(cache: Path, **environment: str) -> str:
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment}
    return subprocess.run(
        [sys.executable, "-Ic", PROGRAM], env=env, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_features_are_the_same_on_another_cpu_and_from_the_cache(tmp_path: Path) -> None:
    oldest = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    compiled = run_program(tmp_path / "here")
    assert run_program(tmp_path / "here") == compiled
    assert run_program(tmp_path / "oldest", **oldest) == compiled


def test_fma_rounds_once() -> None:
    rng = np.random.default_rng(0)
    for a, b, c in rng.normal(0, 1, (200, 3)).astype(np.float32):
        c = np.float32(-a * b * (1 + 1e-6)) if rng.random() < 0.5 else c
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        found = Fraction(float(fma(a, b, c)))
        ulp = Fraction(float(np.spacing(np.float32(abs(float(exact))))))
        assert abs(found - exact) <= ulp / 2


@pytest.mark.parametrize("n", [0, 1, SUM_LANES - 1, SUM_LANES, 5 * SUM_LANES + 3])
def test_sums_are_those_of_exact_arithmetic(n: int) -> None:
    values = np.random.default_rng(n).normal(1, 1, n).astype(np.float32)
    squares = [float(v) ** 2 for v in values]
    for kernel, expected in (
        (sum_float64, math.fsum(map(float, values))),
        (sum_squares_float64, math.fsum(squares)),
    ):
        assert kernel(values) == pytest.approx(expected, rel=1e-14)
        assert kernel.py_func(values) == pytest.approx(expected, rel=1e-14)
