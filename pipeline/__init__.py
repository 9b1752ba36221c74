"""From audio to log-mels, and from shards to batches.

    audio file -> load_waveform -> LogMel                        (building, inference)
    Dataset + TrainingOrder -> melstream.pipeline.loader.Loader -> Batch    (training)

``loader`` is the one module here that knows torch; it is not imported with the package, so
that the worker processes of a build need not load torch.
"""

from .logmel import LogMel
from .masks import MaskConfig, count_masked, draw_distractors, draw_masks
from .order import EvaluationOrder, OrderConfig, TrainingOrder
from .waveform import LoadedWaveform, load_waveform, resample, to_mono

__all__ = [
    "EvaluationOrder",
    "LoadedWaveform",
    "LogMel",
    "MaskConfig",
    "OrderConfig",
    "TrainingOrder",
    "count_masked",
    "draw_distractors",
    "draw_masks",
    "load_waveform",
    "resample",
    "to_mono",
]
