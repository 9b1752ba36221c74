"""From audio to log-mels, and from shards to batches.

    audio file -> load_waveform -> LogMel                        (building, inference)
    hours of audio -> decode_windows -> prepare -> LogMel        (the same, by windows)
    Dataset + TrainingOrder -> melstream.pipeline.loader.Loader -> Batch    (training)

``loader`` is the one module here that knows torch; it is not imported with the package, so
that the worker processes of a build need not load torch.
"""

from .decode import Decoded, decode_windows
from .length_order import LengthConfig, LengthOrder, padded_share
from .logmel import LogMel
from .masks import MaskConfig, count_masked, draw_distractors, draw_masks
from .order import EvaluationOrder, OrderConfig, TrainingOrder
from .quality import bandwidth_hz
from .waveform import LoadedWaveform, load_waveform, prepare, resample, to_mono

__all__ = [
    "Decoded",
    "EvaluationOrder",
    "LengthConfig",
    "LengthOrder",
    "LoadedWaveform",
    "LogMel",
    "MaskConfig",
    "OrderConfig",
    "TrainingOrder",
    "bandwidth_hz",
    "count_masked",
    "decode_windows",
    "draw_distractors",
    "draw_masks",
    "load_waveform",
    "padded_share",
    "prepare",
    "resample",
    "to_mono",
]
