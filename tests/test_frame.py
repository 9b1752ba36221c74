"""The index as a pandas frame."""

import sys
from collections.abc import Callable

import numpy as np
import pandas
import pytest

from melstream.shards.dataset import Dataset
from melstream.shards.index import COLUMNS


def test_a_frame_has_names_and_every_figure(built: Callable[[str], Dataset]) -> None:
    dataset = built("train")
    frame = dataset.to_pandas()
    assert len(frame) == len(dataset)
    assert frame.index.name == "key"
    for row in (0, 17, len(dataset) - 1):
        entry, info = frame.loc[dataset.key(row)], dataset.read_info(row)
        assert entry["labels"] == info.labels
        assert entry["shard"] == dataset.shard_of(row).name
        assert entry["duration_s"] == pytest.approx(info.duration_s)
    for name in set(frame.columns) - {"labels", "shard", "split"}:
        np.testing.assert_array_equal(frame[name], dataset.index.column(name))
    named = {"key", "shard", "split", "label_indptr", "label_ids"}
    assert set(frame.columns) == set(COLUMNS) - named | {"labels", "shard", "split"}
    assert frame["split"].isna().all()
    by_class = frame.explode("labels").groupby("labels").size()
    assert by_class.sum() == len(dataset.index.label_ids)
    assert isinstance(frame, pandas.DataFrame)


def test_without_pandas_the_error_says_what_to_do(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs pandas.*'melstream\[pandas\]'"):
        small_dataset.to_pandas()
