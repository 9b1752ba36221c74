"""Mel scales and the triangular filter banks on them.

Two things differ between libraries, and ``FeatureSpec`` names both: the scale (``htk``
or ``slaney``), and where the sides of a triangle are straight: over Hz (HTK, librosa,
torchaudio's MelSpectrogram) or over mel (Kaldi). All triangles here peak at 1.
"""

import numpy as np
import numpy.typing as npt

from .spec import FeatureSpec

FloatArray = npt.NDArray[np.float64]

SLANEY_HZ_PER_MEL = 200.0 / 3  # below 1 kHz
SLANEY_KNEE_HZ = 1000.0
SLANEY_KNEE_MEL = SLANEY_KNEE_HZ / SLANEY_HZ_PER_MEL  # 15
SLANEY_MELS_PER_E = 27.0 / np.log(6.4)  # above: 27 mels for each factor of 6.4


def hz_to_mel(hz: npt.ArrayLike, *, mel_scale: str = "htk") -> FloatArray:
    """Convert frequencies to mels.

    Args:
        hz: frequencies in Hz, any shape.
        mel_scale: ``htk`` (1127 ln(1 + f/700), also Kaldi's) or ``slaney`` (linear up to
            1 kHz, logarithmic above; librosa's default).

    Returns:
        mel: float64, same shape.

    Source:
        Young et al., The HTK Book, section 5.4; Slaney 1998, Auditory Toolbox.

    >>> hz_to_mel([0, 1000, 6400], mel_scale="slaney")
    array([ 0., 15., 42.])
    """
    hz = np.asarray(hz, dtype=np.float64)
    if mel_scale == "htk":
        return 1127.0 * np.log1p(hz / 700.0)
    log_part = SLANEY_KNEE_MEL + SLANEY_MELS_PER_E * np.log(
        np.maximum(hz, SLANEY_KNEE_HZ) / SLANEY_KNEE_HZ
    )
    return np.where(hz < SLANEY_KNEE_HZ, hz / SLANEY_HZ_PER_MEL, log_part)


def mel_to_hz(mel: npt.ArrayLike, *, mel_scale: str = "htk") -> FloatArray:
    """Convert mels to frequencies in Hz: the inverse of ``hz_to_mel``.

    >>> mel_to_hz([0, 15, 42], mel_scale="slaney").round(9)
    array([   0., 1000., 6400.])
    """
    mel = np.asarray(mel, dtype=np.float64)
    if mel_scale == "htk":
        return 700.0 * np.expm1(mel / 1127.0)
    log_part = SLANEY_KNEE_HZ * np.exp(
        (np.maximum(mel, SLANEY_KNEE_MEL) - SLANEY_KNEE_MEL) / SLANEY_MELS_PER_E
    )
    return np.where(mel < SLANEY_KNEE_MEL, mel * SLANEY_HZ_PER_MEL, log_part)


def mel_edges_hz(spec: FeatureSpec) -> FloatArray:
    """Return the corners of the triangles, equally far apart in mel.

    Band m rises from ``edges[m]``, peaks at ``edges[m + 1]`` and ends at ``edges[m + 2]``.

    Returns:
        edges: float64, shape (n_mels + 2,), in Hz, from ``fmin`` to ``fmax``.

    >>> mel_edges_hz(FeatureSpec(n_mels=2)).round(1)
    array([  20. ,  952.2, 3091.3, 8000. ])
    """
    lowest, highest = hz_to_mel([spec.fmin, spec.fmax], mel_scale=spec.mel_scale)
    return mel_to_hz(np.linspace(lowest, highest, spec.n_mels + 2), mel_scale=spec.mel_scale)


def mel_filters(spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """Build the weights that sum FFT powers into mel bands.

    A band narrower than an FFT bin can lie between two of them; its weights are then all
    zero and its log-mel is always the floor (one band of ``kaldi128``, none of
    ``conformer64``).

    Returns:
        filters: float32, shape (n_mels, n_fft // 2 + 1), in [0, 1].

    >>> filters = mel_filters(FeatureSpec())
    >>> filters.shape, int((filters > 0).sum(axis=0).max())
    ((64, 257), 2)
    """
    bins = np.arange(spec.n_fft // 2 + 1) * (spec.sample_rate / spec.n_fft)
    edges = mel_edges_hz(spec)
    if spec.mel_triangles == "mel":
        bins = hz_to_mel(bins, mel_scale=spec.mel_scale)
        edges = hz_to_mel(edges, mel_scale=spec.mel_scale)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
