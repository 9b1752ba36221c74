"""What the decoders have in common: a recording that is opened once and read in order.

``soundfile_reader`` and ``pyav_reader`` implement it; ``decode`` chooses between them and
knows the rules: limits, segments, and what counts as truncated.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..shards.errors import SampleError

Samples = npt.NDArray[np.float32]

LOSSY_TOLERANCE_S = 0.25
"""How much of what a lossy file declares may be missing, in seconds.

Encoder delay and padding (up to 0.1 s for AAC and MP3) and rounded durations make the
declared length of a whole file differ from the decoded one. One of the 9,035 Ogg files in
Debian's games gives 0.13 s less than its last page says.
"""

SKIP_BLOCK_VALUES = 2**20


class CannotOpenError(Exception):
    """This decoder cannot open the file; another may."""


class AudioReader(ABC):
    """An open recording.

    Subclasses set all of these when they open it:

    Args:
        path: the file.
        decoder: the library that reads it.
        format: the container, such as ``WAV``, ``FLAC``, ``MP3``, ``MOV``, ``MATROSKA``.
        sample_rate: Hz, as decoded.
        n_channels: as decoded.
        declared_samples: the length that the file declares, 0 if it does not.
        tolerance_s: how much of it may be missing, in seconds.
        position: place in the recording of the sample that ``fill`` gives next.
    """

    path: Path
    decoder: Literal["soundfile", "pyav"]
    format: str
    sample_rate: int
    n_channels: int
    declared_samples: int
    tolerance_s: float
    position: int

    @abstractmethod
    def fill(self, out: Samples) -> int:
        """Read on, into ``out``.

        Args:
            out: float32, C-contiguous, shape (n_samples, n_channels).

        Returns:
            samples read: fewer than ``len(out)`` only where the recording ends.

        Raises:
            SampleError: ``truncated``, the data are broken; ``undecodable``, rate or channels
                change on the way.
        """

    @abstractmethod
    def seek(self, sample: int) -> None:
        """Go on to ``sample``, or to the end if that comes first: ``position`` tells.

        Only once, before the first ``fill``; same errors.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def skip_to(self, sample: int) -> None:
        """Read on to ``sample`` and drop what comes before it."""
        block = np.empty(
            (max(1, SKIP_BLOCK_VALUES // self.n_channels), self.n_channels), np.float32
        )
        while self.position < sample:
            wanted = min(len(block), sample - self.position)
            if self.fill(block[:wanted]) < wanted:
                return

    def require_whole(self) -> None:
        """Insist, at the end, that as much came as the file declares.

        Raises:
            SampleError: ``truncated``.
        """
        n_missing = self.declared_samples - self.position
        if n_missing > self.tolerance_s * self.sample_rate:
            declared_s = self.declared_samples / self.sample_rate
            found_s = self.position / self.sample_rate
            raise truncated(self.path, f"{declared_s:.3f} s declared, {found_s:.3f} s decoded")


def truncated(path: Path, why: str) -> SampleError:
    """Say that the file is not whole."""
    return SampleError(f"{path}: {why}; fetch it again", reason="truncated")


def undecodable(path: Path, why: str) -> SampleError:
    """Say that no decoder makes sense of the file."""
    return SampleError(f"{path}: audio is required, cannot decode: {why}", reason="undecodable")
