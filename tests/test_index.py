"""An index that is damaged, cut or hostile is an error when it is read, never other numbers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import make_sample, write_dataset

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError
from melstream.shards.index import COLUMNS, HASHES, INDEX_HASH, Index
from melstream.shards.index_check import find_fault


def column_files(folder: Path, column: str) -> list[Path]:
    return [path for path in (folder / "index.zarr" / column / "c").rglob("*") if path.is_file()]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_whose_file_is_lost_is_no_column_of_zeros(
    small_dataset: Dataset, column: str
) -> None:
    files = column_files(small_dataset.folder, column)
    if not files:  # Zarr writes none for zeros
        assert not small_dataset.index.column(column).any()
        return
    files[0].unlink()
    with pytest.raises(DatasetError, match=rf"column `{column}` of the index is damaged"):
        open_dataset(small_dataset.folder).index.column(column)


@pytest.mark.parametrize("column", ["label_ids", "duration_s", "key"])
def test_no_flipped_bit_gives_other_values(small_dataset: Dataset, column: str) -> None:
    required = small_dataset.index.column(column)
    (path,) = column_files(small_dataset.folder, column)
    payload = path.read_bytes()
    for place in range(len(payload)):
        altered = bytearray(payload)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        try:
            found = open_dataset(small_dataset.folder).index.column(column)
        except DatasetError:
            continue
        assert np.array_equal(found, required, equal_nan=True), place


def test_an_index_of_an_older_version_is_read(small_dataset: Dataset) -> None:
    group = zarr.open_group(small_dataset.folder / "index.zarr", mode="r+")
    del group.attrs[HASHES]
    del group.attrs[INDEX_HASH]
    found = open_dataset(small_dataset.folder).index
    for column in COLUMNS:
        np.testing.assert_array_equal(found.column(column), small_dataset.index.column(column))


def test_the_index_of_another_manifest_is_refused(small_dataset: Dataset, tmp_path: Path) -> None:
    """As a copy leaves it that was cut after the manifest, of a set that was built anew."""
    samples = [make_sample(number, label_ids=(number % 2,)) for number in range(60)]
    other = write_dataset(tmp_path / "other", [samples], n_classes=3)
    shutil.copy(other.folder / "dataset.json", small_dataset.folder)
    with pytest.raises(DatasetError, match="not the index that the manifest was written with"):
        len(open_dataset(small_dataset.folder).index)


@pytest.mark.parametrize(
    ("column", "chunks"), [("start_s", (2**30,)), ("key", (60, 2**20)), ("label_ids", (2**40,))]
)
def test_a_small_file_that_asks_for_much_memory_is_refused(
    small_dataset: Dataset, column: str, chunks: tuple[int, ...]
) -> None:
    values = small_dataset.index.column(column)
    group = zarr.open_group(small_dataset.folder / "index.zarr", mode="r+")
    group.create_array(
        column, shape=values.shape, chunks=chunks, dtype=values.dtype, overwrite=True
    )
    with pytest.raises(DatasetError, match=rf"column `{column}` must have chunks"):
        len(open_dataset(small_dataset.folder).index)


def test_a_key_of_two_lines_is_not_legal(small_dataset: Dataset) -> None:
    columns = {name: small_dataset.index.column(name) for name in COLUMNS}
    keys = columns["key"].copy()
    keys[3, 2] = ord("\n")
    fault = find_fault(Index(columns | {"key": keys}), small_dataset.manifest)
    assert fault == "keys must be legal"
