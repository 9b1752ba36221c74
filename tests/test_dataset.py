"""A data set is read as it was written, or the error says where it is not."""

import errno
import json
import mmap
import os
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_sample, write_dataset

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError, SampleError, ShardError
from melstream.shards.index import COLUMNS, key_bytes, key_strings, read_index
from melstream.shards.manifest import Manifest, read_manifest
from melstream.shards.storage import StorageError
from melstream.shards.verify import find_problems


def test_every_sample_is_read_as_it_was_written(small_dataset: Dataset) -> None:
    for row in range(len(small_dataset)):
        sample = make_sample(row, n_frames=20 + row, label_ids=(row % 3,))
        np.testing.assert_array_equal(small_dataset.read_logmel(row), sample.logmel)
        assert small_dataset.read_info(row) == sample.info
        assert small_dataset.key(row) == sample.key
        assert tuple(small_dataset.index.labels(row)) == sample.label_ids


def test_index_columns_have_the_documented_types_and_places(small_dataset: Dataset) -> None:
    index_hash = small_dataset.manifest.index_hash
    index = read_index(small_dataset.storage, n_samples=60, n_classes=3, index_hash=index_hash)
    for name, dtype in COLUMNS.items():
        assert index.column(name).dtype == dtype
    assert index.shard.tolist() == [0] * 7 + [1] * 13 + [2] * 12 + [3] * 19 + [4] * 9
    assert len(index) == 60


def test_index_of_a_set_without_labels_is_read(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", [[make_sample(0), make_sample(1)]])
    assert dataset.index.label_indptr.tolist() == [0, 0, 0]
    assert dataset.index.labels(1).tolist() == []


def test_keys_survive_their_column() -> None:
    keys = ["-a_b", "A", "x" * 89]
    assert [key.decode() for key in key_strings(key_bytes(keys))] == keys


def test_manifest_survives_its_file(small_dataset: Dataset) -> None:
    assert read_manifest(small_dataset.storage) == small_dataset.manifest
    assert len(small_dataset.manifest.fingerprint) == 16


def test_fingerprint_changes_with_the_content(small_dataset: Dataset) -> None:
    manifest = small_dataset.manifest
    shard = manifest.shards[0].model_copy(update={"sha256": "f" * 64})
    changed = manifest.model_copy(update={"shards": (shard, *manifest.shards[1:])})
    assert changed.fingerprint != manifest.fingerprint


def test_a_folder_without_a_data_set_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="build one with 'melstream build'"):
        open_dataset(tmp_path / "nothing")
    (tmp_path / ".build").mkdir()
    (tmp_path / ".build" / "plan.json").write_text("{}")
    with pytest.raises(DatasetError, match="unfinished build"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "format version 1"),
        ("feature_hash", "0" * 16, "edited by hand"),
        ("n_samples", 61, "sum over shards"),
        ("surprise", 1, "surprise"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(
    small_dataset: Dataset, field: str, value: object, message: str
) -> None:
    path = small_dataset.folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(DatasetError, match=message):
        open_dataset(small_dataset.folder)


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/passwd", "a.pth", "sub/a.tar"])
def test_a_shard_name_cannot_leave_the_folder(small_dataset: Dataset, name: str) -> None:
    content = json.loads(small_dataset.manifest.model_dump_json())
    content["shards"][0]["name"] = name
    with pytest.raises(ValueError, match="shards"):
        Manifest.model_validate(content)


def test_half_a_pair_of_surrogates_is_no_name(small_dataset: Dataset) -> None:
    path = small_dataset.folder / "dataset.json"
    feature_hash = small_dataset.manifest.feature_hash
    path.write_text(path.read_text().replace(feature_hash, "\\ud800"))
    with pytest.raises(DatasetError, match=r"dataset.json must be text, found: .*; copy it again"):
        open_dataset(small_dataset.folder)


def test_a_data_set_says_what_it_is(small_dataset: Dataset) -> None:
    expected = f"Dataset({small_dataset.url}: 60 samples, 0.0 h, 3 classes)"
    assert repr(small_dataset) == expected


def test_a_missing_index_column_is_named(small_dataset: Dataset) -> None:
    shutil.rmtree(small_dataset.folder / "index.zarr" / "n_frames")
    with pytest.raises(DatasetError, match="lacks the columns n_frames"):
        len(open_dataset(small_dataset.folder).index)


def problems(dataset: Dataset, *, full: bool) -> list[str]:
    found = find_problems(open_dataset(dataset.folder), full=full)
    return [str(problem) for problem in found if problem is not None]


def test_a_whole_data_set_has_no_problems(small_dataset: Dataset) -> None:
    assert problems(small_dataset, full=True) == []


def test_a_truncated_shard_is_found_without_reading_it(small_dataset: Dataset) -> None:
    path = small_dataset.folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-10_240])
    (problem,) = problems(small_dataset, full=False)
    assert "train-000001.tar must have" in problem
    with pytest.raises(ShardError, match="copy it again") as caught:
        open_dataset(small_dataset.folder).read_logmel(7)
    assert caught.value.shard == "train-000001.tar"


def test_a_shard_that_is_cut_while_it_is_in_use_is_an_error(small_dataset: Dataset) -> None:
    small_dataset.read_logmel(7)
    os.truncate(small_dataset.folder / "train-000001.tar", 4_096)
    with pytest.raises(ShardError, match=r"train-000001.tar had \d+ bytes and was cut to 4096"):
        small_dataset.read_logmel(19)


def n_open(folder: Path) -> int:
    """How many files below a folder this process has open."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.islink(link))


def test_the_data_sets_of_a_process_share_a_quarter_of_its_file_descriptors(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = [small_dataset]
    for name in ("a", "b"):
        shutil.copytree(small_dataset.folder, tmp_path / name)
        datasets.append(open_dataset(tmp_path / name))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (28, 28))
    for _ in range(2):
        for row in range(60):
            for dataset in datasets:
                assert dataset.read_logmel(row)[0, 1] == row
    assert n_open(tmp_path) == 7
    del dataset, datasets
    small_dataset.read_logmel(0)
    assert n_open(tmp_path) <= 5


def test_too_many_open_files_say_what_to_type(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(StorageError, match=r"train-000000.tar cannot be mapped: .*'ulimit -n"):
        small_dataset.read_logmel(0)


def test_a_missing_shard_is_found(small_dataset: Dataset) -> None:
    (small_dataset.folder / "train-000004.tar").unlink()
    (problem,) = problems(small_dataset, full=False)
    assert "train-000004.tar is missing" in problem


def test_one_flipped_bit_in_a_payload_is_found(small_dataset: Dataset) -> None:
    path = small_dataset.folder / "train-000002.tar"
    content = bytearray(path.read_bytes())
    content[int(small_dataset.index.logmel_offset[25]) + 200] ^= 1
    path.write_bytes(content)
    assert problems(small_dataset, full=False) == []
    (problem,) = problems(small_dataset, full=True)
    assert "clip-0025" in problem
    with pytest.raises(ShardError, match="hash differs") as caught:
        open_dataset(small_dataset.folder).read_logmel(25)
    assert (caught.value.shard, caught.value.key) == ("train-000002.tar", "clip-0025")


def test_one_flipped_bit_in_a_tar_header_is_found(small_dataset: Dataset) -> None:
    path = small_dataset.folder / "train-000003.tar"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    (problem,) = problems(small_dataset, full=True)
    assert "sha256" in problem


def test_errors_survive_the_way_back_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(ShardError("broken", shard="a.tar", key="k")))
    assert (str(error), error.shard, error.key) == ("broken", "a.tar", "k")
    sample = pickle.loads(pickle.dumps(SampleError("no", reason="empty", key="k")))
    assert (str(sample), sample.reason, sample.key) == ("no", "empty", "k")


def test_a_reject_reason_is_one_of_the_list() -> None:
    with pytest.raises(ValueError, match="`reason` must be one of"):
        SampleError("no", reason="whatever")
