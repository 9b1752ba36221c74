"""Mean and deviation of the log-mel per band, from sums that add up over shards and sets."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..shards.manifest import Manifest


@dataclass(frozen=True, slots=True, eq=False)
class BandSums:
    """Sums over log-mel frames, in float64.

    Args:
        n_frames: how many were added.
        total: sum per band, shape (n_mels,).
        squares: sum of squares per band, shape (n_mels,).

    >>> one, two = BandSums.of(np.array([[1.0], [3.0]])), BandSums.of(np.array([[5.0]]))
    >>> mean, std = (one + two).mean_and_std()
    >>> mean, round(std[0] ** 2, 3)
    ((3.0,), 2.667)
    """

    n_frames: int
    total: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]

    @classmethod
    def zero(cls, n_mels: int) -> Self:
        """Return the sums of no frame."""
        return cls(0, np.zeros(n_mels), np.zeros(n_mels))

    @classmethod
    def of(cls, logmel: npt.NDArray[Any]) -> Self:
        """Return the sums of one log-mel, shape (n_frames, n_mels)."""
        values = logmel.astype(np.float64)
        return cls(len(values), values.sum(0), np.square(values).sum(0))

    @classmethod
    def of_dataset(cls, manifest: Manifest, n_frames: int) -> Self:
        """Return the sums that a manifest's mean and deviation stand for."""
        mean, std = np.array(manifest.band_mean), np.array(manifest.band_std)
        return cls(n_frames, n_frames * mean, n_frames * (std**2 + mean**2))

    def __add__(self, other: "BandSums") -> "BandSums":
        """Return the sums of both."""
        return BandSums(
            self.n_frames + other.n_frames, self.total + other.total, self.squares + other.squares
        )

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per band; at least one frame is required."""
        mean = self.total / self.n_frames
        std = np.sqrt(np.maximum(self.squares / self.n_frames - mean**2, 0))
        return tuple(mean.tolist()), tuple(std.tolist())
