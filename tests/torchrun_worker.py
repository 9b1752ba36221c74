"""One process of a training run that is killed, or told to stop, where a test wants it.

    torchrun … torchrun_worker.py KILL_AT STOP_AT pretrain …

In its first life the process of rank 1 is killed by SIGKILL before update ``KILL_AT``; in any
life it gets a SIGTERM before update ``STOP_AT``, and the process of rank 0 gets none.
"""

import os
import signal
import sys

import torch

from melstream.pipeline.batch import Batch
from melstream.tools.cli import main
from melstream.tools.train_step import Updater

if __name__ == "__main__":
    kill_at, stop_at = int(sys.argv.pop(1)), int(sys.argv.pop(1))
    is_first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    original = Updater.update

    def update(self: Updater, step: int, batch: Batch) -> dict[str, torch.Tensor]:
        if os.environ["RANK"] == "1":
            if step == kill_at and is_first_life:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, batch)

    Updater.update = update
    main()
