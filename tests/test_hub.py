"""A data set folder is one that Hugging Face ``datasets`` reads, by its tars and by its card."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melstream.shards.dataset import Dataset


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``datasets``, offline and with its caches in a temporary folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def same(dataset: Dataset, read: Any) -> bool:
    """Compare keys, log-mels and json of every sample."""
    assert len(read) == len(dataset)
    for row, sample in enumerate(read):
        assert sample["__key__"] == dataset.key(row)
        np.testing.assert_array_equal(
            np.array(sample["logmel.npy"], np.float16), dataset.read_stored(row)
        )
        info = json.loads(dataset.read_member(row, "json"))
        assert sample["json"] == info
        assert sample["json"]["labels"] == list(dataset.read_info(row).labels)
    return True


def test_the_tars_are_read_by_name(
    built: Callable[[str], Dataset], hub: Any, tmp_path: Path
) -> None:
    dataset = built("eval")
    files = [str(dataset.folder / shard.name) for shard in dataset.manifest.shards]
    read = hub.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert same(dataset, read)


def test_the_folder_is_read_by_its_card(
    built: Callable[[str], Dataset], hub: Any, tmp_path: Path
) -> None:
    dataset = built("eval")
    read = hub.load_dataset(str(dataset.folder), cache_dir=str(tmp_path / "cache"))
    assert list(read) == ["train"]
    assert same(dataset, read["train"])


def test_the_folder_is_streamed(built: Callable[[str], Dataset], hub: Any) -> None:
    dataset = built("eval")
    read = hub.load_dataset(str(dataset.folder), split="train", streaming=True)
    assert [sample["__key__"] for sample in read] == [
        dataset.key(row) for row in range(len(dataset))
    ]
