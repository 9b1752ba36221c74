"""A training process on a machine that dies as a whole where a test wants it.

    torchrun … torchrun_machine.py KILL_AT pretrain …

Before update ``KILL_AT`` this process and the torchrun that started it are killed by SIGKILL.
"""

import os
import signal
import sys

import torch

from melstream.pipeline.batch import Batch
from melstream.tools.cli import main
from melstream.tools.train_step import Updater

if __name__ == "__main__":
    kill_at = int(sys.argv.pop(1))
    original = Updater.update

    def update(self: Updater, step: int, batch: Batch) -> dict[str, torch.Tensor]:
        if step == kill_at:
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, step, batch)

    Updater.update = update
    main()
