"""The affine code of ``uint8`` log-mels: half the bytes of float16, with a known error.

    logmel ~ offset + scale * code,  code in 0..255

Scale and offset follow from the feature spec alone, so that shards can be written before the
data have been seen. The code spans all that a waveform in [-1, 1] can give: from the log of
the floor to the log of the largest band power. What lies outside (a float file that goes
beyond full scale) is cut to the ends.
"""

import math

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

LEVELS = 256


class AffineCode(BaseModel):
    """How ``uint8`` codes stand for log-mels.

    >>> code = AffineCode(scale=0.1, offset=-18.0)
    >>> code.decode(code.encode(np.array([-18.0, -17.96, 99.0], np.float32)))
    array([-18. , -18. ,   7.5], dtype=float32)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: float = Field(gt=0, description="log-mel from one code to the next")
    offset: float = Field(description="log-mel of code 0")

    @property
    def max_error(self) -> float:
        """Largest distance between a log-mel in range and its decoded code."""
        return self.scale / 2

    def encode(self, logmel: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Round log-mels to their nearest codes; any shape."""
        codes = (logmel - np.float32(self.offset)) * np.float32(1 / self.scale)
        return np.rint(np.clip(codes, 0, LEVELS - 1)).astype(np.uint8)

    def decode(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the log-mels that codes stand for; any shape."""
        return codes * np.float32(self.scale) + np.float32(self.offset)


def affine_code(*, log_floor: float, n_fft: int, win_length: int, preemphasis: float) -> AffineCode:
    """Return the code that spans every log-mel of a waveform in [-1, 1].

    The powers of all FFT bins sum to n_fft times the energy of the frame (Parseval), half of
    that in the positive frequencies; a frame has at most ``win_length`` times the square of
    the largest sample, which pre-emphasis raises to 1 + ``preemphasis``; and a triangle's
    weights are at most 1.

    Args:
        log_floor, n_fft, win_length, preemphasis: of the feature spec.
    """
    top_power = n_fft / 2 * win_length * (1 + preemphasis) ** 2
    offset = math.log(log_floor)
    return AffineCode(scale=(math.log(top_power) - offset) / (LEVELS - 1), offset=offset)
