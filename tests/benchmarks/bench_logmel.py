"""Time log-mels of one clip on one thread: what ``melstream bench features`` does.

python tests/benchmarks/bench_logmel.py
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

from rich.console import Console

from melstream.tools.bench_features import bench_features, print_times

N_ROUNDS = 300

if __name__ == "__main__":
    print_times(bench_features(N_ROUNDS), Console())
