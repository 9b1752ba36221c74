"""Statistics of the log-mel per band, from sums that add up over shards and sets."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..pipeline.logmel_counts import count_values
from ..shards.affine import LEVELS
from ..shards.dataset import Dataset
from ..shards.spec import FeatureSpec


@dataclass(frozen=True, slots=True, eq=False)
class BandSums:
    """Sums over log-mel frames.

    Args:
        n_frames: how many were added.
        total: sum per band, float64, shape (n_mels,).
        squares: sum of squares per band, float64, shape (n_mels,).
        counts: frames by band and code, int64, shape (n_mels, 256); None: not recorded
            throughout.

    >>> spec = FeatureSpec(n_mels=1)
    >>> one = BandSums.of(np.array([[1.0], [3.0]], np.float16), spec)
    >>> both = one + BandSums.of(np.array([[5.0]], np.float16), spec)
    >>> mean, std = both.mean_and_std()
    >>> mean, round(std[0] ** 2, 3), int(both.counts.sum())
    ((3.0,), 2.667, 3)
    """

    n_frames: int
    total: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64] | None

    @classmethod
    def zero(cls, n_mels: int) -> Self:
        """Return the sums of no frame."""
        return cls(0, np.zeros(n_mels), np.zeros(n_mels), np.zeros((n_mels, LEVELS), np.int64))

    @classmethod
    def of(cls, stored: npt.NDArray[Any], spec: FeatureSpec) -> Self:
        """Return the sums of one log-mel as it is stored, shape (n_frames, n_mels)."""
        logmel = stored if spec.code is None else spec.code.decode(stored)
        values = logmel.astype(np.float64)
        counts = count_values(stored, spec)
        return cls(len(values), values.sum(0), np.square(values).sum(0), counts)

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Self:
        """Return the sums that a data set's manifest and index stand for."""
        manifest = dataset.manifest
        n_frames = int(dataset.index.n_frames.sum(dtype=np.int64))
        mean, std = np.array(manifest.band_mean), np.array(manifest.band_std)
        squares = n_frames * (std**2 + mean**2)
        return cls(n_frames, n_frames * mean, squares, dataset.logmel_counts)

    def __add__(self, other: "BandSums") -> "BandSums":
        """Return the sums of both."""
        counts = None
        if self.counts is not None and other.counts is not None:
            counts = self.counts + other.counts
        return BandSums(
            self.n_frames + other.n_frames,
            self.total + other.total,
            self.squares + other.squares,
            counts,
        )

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per band; at least one frame is required."""
        mean = self.total / self.n_frames
        std = np.sqrt(np.maximum(self.squares / self.n_frames - mean**2, 0))
        return tuple(mean.tolist()), tuple(std.tolist())
