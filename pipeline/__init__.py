"""From audio to log-mels, and from shards to batches.

    audio file -> load_waveform -> LogMel                        (building, inference)
    hours of audio -> decode_windows -> prepare -> LogMel        (the same, by windows)
    Dataset + TrainingOrder -> melstream.pipeline.loader.Loader -> Batch    (training)
    Dataset + LengthOrder -> the same, in batches of similar length
    "s3://…" + OrderConfig -> melstream.pipeline.stream.BatchStream (for torch's DataLoader)
    kept_audio(Dataset), or tar_audio(tars made elsewhere) -> AudioLogMels  (on the fly)
    Dataset -> melstream.pipeline.webdataset_stages.shard_samples           (webdataset)

``batch``, ``loader``, ``stream`` and ``webdataset_stages`` load torch; they are not imported with
the package, so that the worker processes of a build need not load it.
"""

from .audio_logmels import AudioConfig, AudioLogMels, AudioSample, pad_logmels
from .decode import Decoded, decode_windows
from .length_order import LengthConfig, LengthOrder, padded_share
from .logmel import LogMel
from .masks import MaskConfig, count_masked, draw_distractors, draw_masks
from .order import EvaluationOrder, OrderConfig, TrainingOrder
from .quality import bandwidth_hz
from .raw_audio import RawAudio, kept_audio, tar_audio
from .waveform import LoadedWaveform, load_waveform, prepare, resample, to_mono

__all__ = [
    "AudioConfig",
    "AudioLogMels",
    "AudioSample",
    "Decoded",
    "EvaluationOrder",
    "LengthConfig",
    "LengthOrder",
    "LoadedWaveform",
    "LogMel",
    "MaskConfig",
    "OrderConfig",
    "RawAudio",
    "TrainingOrder",
    "bandwidth_hz",
    "count_masked",
    "decode_windows",
    "draw_distractors",
    "draw_masks",
    "kept_audio",
    "load_waveform",
    "pad_logmels",
    "padded_share",
    "prepare",
    "resample",
    "tar_audio",
    "to_mono",
]
