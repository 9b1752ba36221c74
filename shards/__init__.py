"""The format: what a data set on disk is, how it is written, read and checked.

    >>> from melstream import shards
    >>> dataset = shards.open("audioset/train")  # doctest: +SKIP
    >>> dataset.index.n_frames.mean(), dataset.read_logmel(0).shape  # doctest: +SKIP
    (987.3, (1001, 64))
    >>> dataset.to_pandas().explode("labels").groupby("labels").duration_s.sum()  # doctest: +SKIP

``FORMAT.md`` beside this file describes every file of a data set.
"""

from .affine import AffineCode
from .dataset import Dataset
from .dataset import open_dataset as open
from .errors import REASONS, DatasetError, MelstreamError, SampleError, ShardError
from .index import Index
from .keys import check_key, make_key
from .manifest import Manifest, ShardEntry, read_manifest
from .spec import PRESETS, FeatureSpec
from .storage import Storage, open_storage
from .verify import find_problems
from .writer import Sample, SampleInfo, ShardWriter, write_shard

__all__ = [
    "PRESETS",
    "REASONS",
    "AffineCode",
    "Dataset",
    "DatasetError",
    "FeatureSpec",
    "Index",
    "Manifest",
    "MelstreamError",
    "Sample",
    "SampleError",
    "SampleInfo",
    "ShardEntry",
    "ShardError",
    "ShardWriter",
    "Storage",
    "check_key",
    "find_problems",
    "make_key",
    "open",
    "open_storage",
    "read_manifest",
    "write_shard",
]
