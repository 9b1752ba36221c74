"""Histograms of log-mels: those of parts add up to that of the whole, and stand in the index."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SPEC, silent

from melstream.pipeline.logmel_counts import _count, count_values
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError
from melstream.shards.index import read_counts, write_index
from melstream.shards.spec import PRESETS, FeatureSpec
from melstream.shards.storage import open_storage
from melstream.shards.verify import find_problems
from melstream.tools.adopt import AdoptSettings, adopt
from melstream.tools.merge import merge
from melstream.tools.selection import Selection
from melstream.tools.subset import subset

CODED = SPEC.model_copy(update={"storage_dtype": "uint8"})


def codes_of(values: np.ndarray, spec: FeatureSpec) -> np.ndarray:
    code = spec.value_code
    codes = np.rint((values.astype(np.float64) - code.offset) / code.scale)
    return np.clip(codes, 0, 255).astype(np.uint8)


def counts_of_tars(dataset: Dataset) -> np.ndarray:
    """Count band by band what is in the tars, in float64 and without the kernel."""
    values = np.concatenate([dataset.read_logmel(row) for row in range(len(dataset))])
    codes = codes_of(values, dataset.manifest.features)
    return np.stack([np.bincount(codes[:, band], minlength=256) for band in range(codes.shape[1])])


@pytest.mark.parametrize("spec", [SPEC, CODED, PRESETS["kaldi128"]], ids=lambda s: s.storage_dtype)
def test_counts_are_those_of_the_codes(spec: FeatureSpec) -> None:
    logmel = np.random.default_rng(0).normal(-5, 6, (200, spec.n_mels)).astype(np.float32)
    stored = logmel.astype(np.float16) if spec.code is None else spec.code.encode(logmel)
    codes = stored if spec.code else codes_of(stored, spec)
    expected = np.stack([np.bincount(codes[:, b], minlength=256) for b in range(spec.n_mels)])
    np.testing.assert_array_equal(count_values(stored, spec), expected)
    counts = np.zeros((spec.n_mels, 256), np.int64)
    _count.py_func(codes, np.arange(256), counts)
    np.testing.assert_array_equal(counts, expected)


def test_what_is_not_stored_that_way_is_refused() -> None:
    for logmel in (np.zeros((3, 64), np.float32), np.zeros((3, 63), np.float16)):
        with pytest.raises(ValueError, match=r"`stored` must be float16 of shape \(n_frames, 64\)"):
            count_values(logmel, SPEC)  # pyright: ignore[reportArgumentType]


def test_a_build_counts_every_value_of_its_tars(built: Callable[[str], Dataset]) -> None:
    dataset = built("train")
    np.testing.assert_array_equal(dataset.logmel_counts, counts_of_tars(dataset))


def test_subset_merge_and_index_count_what_a_build_counts(
    built: Callable[[str], Dataset], tmp_path: Path
) -> None:
    train, held_out = built("train"), built("eval")
    both = merge([train, held_out], open_storage(tmp_path / "both"), silent)
    merged = open_dataset(both.url)
    assert train.logmel_counts is not None
    assert held_out.logmel_counts is not None
    np.testing.assert_array_equal(
        merged.logmel_counts, train.logmel_counts + held_out.logmel_counts
    )
    part = subset(
        train, open_storage(tmp_path / "part"), Selection(labels=("bell", "tabla")), silent
    )
    copied = open_dataset(part.url)
    np.testing.assert_array_equal(copied.logmel_counts, counts_of_tars(copied))
    before = (copied.folder / "index.zarr" / "logmel_counts" / "c" / "0" / "0").read_bytes()
    (copied.folder / "dataset.json").unlink()
    adopt(open_storage(copied.folder), AdoptSettings(SPEC), silent)
    after = (copied.folder / "index.zarr" / "logmel_counts" / "c" / "0" / "0").read_bytes()
    assert after == before


def test_a_set_without_counts_opens_and_gives_none_to_what_is_made_of_it(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    counted = small_dataset.logmel_counts
    old = open_storage(tmp_path / "old")
    write_index(old, small_dataset.index)
    assert read_counts(old, n_mels=64, n_frames=1) is None
    assert counted is not None
    storage = small_dataset.storage
    storage.delete_all("index.zarr/")
    write_index(storage, small_dataset.index)
    without = open_dataset(storage)
    assert without.logmel_counts is None
    assert not any(find_problems(without, full=False))


def test_counts_that_cannot_be_are_refused(small_dataset: Dataset) -> None:
    counts = np.array(small_dataset.logmel_counts)
    counts[3, 7] += 1
    write_index(small_dataset.storage, small_dataset.index, counts=counts)
    with pytest.raises(DatasetError, match=r"logmel_counts must count 2970 frames in each band"):
        _ = open_dataset(small_dataset.folder).logmel_counts
    problems = [p for p in find_problems(open_dataset(small_dataset.folder), full=False) if p]
    assert "logmel_counts" in str(problems[0])
    write_index(small_dataset.storage, small_dataset.index, counts=counts[:, :9].copy())
    with pytest.raises(DatasetError, match=r"not an array of shape \(64, 256\)"):
        _ = open_dataset(small_dataset.folder).logmel_counts
