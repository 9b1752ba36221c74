"""Histograms of log-mels per band: whole numbers, so that those of parts add up exactly.

The bins are the 256 codes of uint8 log-mels, which span all that a waveform in [-1, 1] can
give, whatever the values are stored as: bin c holds what code c would stand for.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

from ..shards.affine import LEVELS
from ..shards.spec import FeatureSpec


def count_values(
    stored: npt.NDArray[np.float16] | npt.NDArray[np.uint8], spec: FeatureSpec
) -> npt.NDArray[np.int64]:
    """Count the values of a log-mel by band and code.

    Args:
        stored: the log-mel as stored, float16 or uint8, shape (n_frames, n_mels).
        spec: what it was made with.

    Returns:
        int64, shape (n_mels, 256); each row adds up to n_frames.

    Raises:
        ValueError: another type than the spec says, or another number of bands.

    >>> spec = FeatureSpec(n_mels=2)
    >>> counts = count_values(np.full((10, 2), np.log(spec.log_floor), np.float16), spec)
    >>> counts.shape, counts[:, 0].tolist()
    ((2, 256), [10, 10])
    """
    if stored.dtype != spec.storage_dtype or stored.ndim != 2 or stored.shape[1] != spec.n_mels:
        raise ValueError(
            f"`stored` must be {spec.storage_dtype} of shape (n_frames, {spec.n_mels}), found "
            f"{stored.dtype} of shape {stored.shape}"
        )
    counts = np.zeros((spec.n_mels, LEVELS), np.int64)
    bits = stored.view(np.uint8 if spec.storage_dtype == "uint8" else np.uint16)
    code = spec.value_code
    _count(bits, _codes(spec.storage_dtype, code.scale, code.offset), counts)
    return counts


@lru_cache(maxsize=8)
def _codes(storage_dtype: str, scale: float, offset: float) -> npt.NDArray[np.uint8]:
    """Return the code of each bit pattern that a stored value can have."""
    if storage_dtype == "uint8":
        return np.arange(LEVELS, dtype=np.uint8)
    values = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
    values[~np.isfinite(values)] = 0  # no stored value is
    return np.rint(np.clip((values - offset) / scale, 0, LEVELS - 1)).astype(np.uint8)


@njit(cache=True, nogil=True)
def _count(bits, codes, counts):
    for frame in range(bits.shape[0]):
        for band in range(bits.shape[1]):
            counts[band, codes[bits[frame, band]]] += 1
