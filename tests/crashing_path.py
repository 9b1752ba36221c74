"""A folder in which some files kill or hang who opens them, as a broken C library does."""

import os
import signal
from pathlib import Path, PosixPath


class CrashingPath(PosixPath):
    """A path that ends its process when it is joined with a name that holds ``crash``."""

    def __truediv__(self, name: object) -> Path:
        if "crash" in str(name):
            os.kill(os.getpid(), signal.SIGSEGV)
        while "hang" in str(name):
            os.sched_yield()
        return Path(self) / str(name)
