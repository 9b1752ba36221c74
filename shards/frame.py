"""The index as a pandas frame, for notebooks."""

from itertools import pairwise
from typing import TYPE_CHECKING

from .index import COLUMNS, Index
from .manifest import Manifest

if TYPE_CHECKING:
    import pandas

NAMED = ("key", "shard", "split", "label_indptr", "label_ids")  # numbers that stand for names


def index_frame(index: Index, manifest: Manifest) -> "pandas.DataFrame":
    """Return an index as a frame; see ``Dataset.to_pandas``.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "`to_pandas` needs pandas, which is not installed; type "
            "\"pip install 'melstream[pandas]'\", or take the columns as arrays: "
            "`dataset.index.duration_s`"
        ) from error
    names, ids = manifest.label_names, index.label_ids.tolist()
    bounds = pairwise(index.label_indptr.tolist())
    shards = [shard.name for shard in manifest.shards]
    columns = {
        "labels": [tuple(names[i] for i in ids[start:end]) for start, end in bounds],
        "shard": pandas.Categorical.from_codes(index.shard, categories=shards),
        "split": pandas.Categorical.from_codes(index.split, categories=manifest.split_names),
    }
    columns |= {name: index.column(name) for name in COLUMNS if name not in NAMED}
    keys = [key.decode("ascii") for key in index.sample_keys().tolist()]
    return pandas.DataFrame(columns, index=pandas.Index(keys, name="key"))
