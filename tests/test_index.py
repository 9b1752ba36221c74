"""An index that is damaged, cut or hostile is an error when it is read, never other numbers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError
from melstream.shards.index import COLUMNS, HAS_ZEROS, Index
from melstream.shards.index_check import find_fault


def column_files(folder: Path, column: str) -> list[Path]:
    return [path for path in (folder / "index.zarr" / column / "c").rglob("*") if path.is_file()]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_whose_file_is_lost_is_no_column_of_zeros(
    small_dataset: Dataset, column: str
) -> None:
    (path,) = column_files(small_dataset.folder, column)
    path.unlink()
    with pytest.raises(DatasetError, match=rf"column `{column}` .*/{column}/c/0.* is missing"):
        open_dataset(small_dataset.folder).index.column(column)


@pytest.mark.parametrize("column", ["label_ids", "duration_s", "flac_size"])
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
    """It has no file for a column of zeros, and says nothing of that."""
    group = zarr.open_group(small_dataset.folder / "index.zarr", mode="r+")
    del group.attrs[HAS_ZEROS]
    shutil.rmtree(small_dataset.folder / "index.zarr" / "flac_size" / "c")
    assert not open_dataset(small_dataset.folder).index.flac_size.any()


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
