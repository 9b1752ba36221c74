"""From batches to a model: encoder, objectives, tagger, metrics, optimiser, checkpoints.

Networks take tensors; ``checkpoint``, ``model_file``, ``inference``, ``graph`` and what they use
read and write files.
Nothing of ``shards`` or ``pipeline`` is imported: the batch is the contract.
"""

from .augment import AugmentConfig, augment
from .averaging import WeightAverage, average_states
from .checked_files import CheckpointError, DamagedCheckpointError
from .checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    set_aside,
)
from .encoder import (
    PRESETS,
    AudioEncoder,
    BandNormalizer,
    ContextEncoder,
    EncoderConfig,
    FeatureEncoder,
)
from .hiding import Hidden, HidingConfig, draw_hidden
from .inference import AudioModel, Embeddings, Tags, load
from .logmel import FeatureConfig, TorchLogMel
from .metrics import TaggingMetrics, d_prime, tagging_metrics
from .model_file import SavedModel, load_model_file, save_model
from .objectives import OBJECTIVES, Wav2Vec2, Wav2Vec2Config, build_objective
from .optim import (
    OptimConfig,
    build_optimizer,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)
from .pretraining import PretrainingModel
from .quantizer import GumbelQuantizer, QuantizerConfig
from .tagger import Tagger, TaggerConfig
from .torchaudio_names import convert_torchaudio_state

__all__ = [
    "OBJECTIVES",
    "PRESETS",
    "AudioEncoder",
    "AudioModel",
    "AugmentConfig",
    "BandNormalizer",
    "Checkpoint",
    "CheckpointError",
    "ContextEncoder",
    "DamagedCheckpointError",
    "Embeddings",
    "EncoderConfig",
    "FeatureConfig",
    "FeatureEncoder",
    "GumbelQuantizer",
    "Hidden",
    "HidingConfig",
    "OptimConfig",
    "PretrainingModel",
    "QuantizerConfig",
    "SavedModel",
    "Tagger",
    "TaggerConfig",
    "TaggingMetrics",
    "Tags",
    "TorchLogMel",
    "Wav2Vec2",
    "Wav2Vec2Config",
    "WeightAverage",
    "augment",
    "average_states",
    "build_objective",
    "build_optimizer",
    "convert_torchaudio_state",
    "d_prime",
    "draw_hidden",
    "latest_checkpoint",
    "learning_rate",
    "load",
    "load_checkpoint",
    "load_model_file",
    "parameter_groups",
    "prune_checkpoints",
    "save_checkpoint",
    "save_model",
    "set_aside",
    "set_learning_rate",
    "tagging_metrics",
]
