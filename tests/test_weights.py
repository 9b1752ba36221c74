"""Weights are AST's, expected counts have the mean 1, and rounding keeps the expectation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import make_sample, replace_index, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from melstream.pipeline.order import OrderConfig, TrainingOrder
from melstream.pipeline.weights import (
    WeightConfig,
    class_counts,
    epoch_counts,
    expected_counts,
    sample_weights,
)
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError
from melstream.shards.index import COLUMNS, Index

FIXED_STEP = 2.0**-32  # expected counts are multiples of it
LABELS = st.lists(st.lists(st.integers(0, 6), max_size=4, unique=True), min_size=1, max_size=60)


def make_index(labels: Sequence[Sequence[int]]) -> Index:
    counts = [len(of_row) for of_row in labels]
    return Index(
        {
            "n_frames": np.ones(len(labels), np.int32),
            "label_indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            "label_ids": np.array([one for of_row in labels for one in of_row], np.int32),
        }
    )


def ast_weights(labels: Sequence[Sequence[int]]) -> list[float]:
    """AST's gen_weight_file.py, line by line."""
    label_count = np.zeros(7)
    for sample_labels in labels:
        for label in sample_labels:
            label_count[label] = label_count[label] + 1
    label_weight = 1000.0 / (label_count + 0.01)
    sample_weight = np.zeros(len(labels))
    for i, sample_labels in enumerate(labels):
        for label in sample_labels:
            sample_weight[i] += label_weight[label]
    return sample_weight.tolist()


@settings(deadline=None, max_examples=60)
@given(labels=LABELS.filter(any))
def test_the_inverse_formula_gives_the_numbers_of_ast(labels: list[list[int]]) -> None:
    assert sample_weights(make_index(labels), WeightConfig()).tolist() == ast_weights(labels)


def test_the_inverse_square_root_is_softer() -> None:
    index = make_index([[0]] * 16 + [[1]] + [[0, 1]] * 3)
    config = WeightConfig(formula="inverse_sqrt", smoothing=0.0)
    weights = sample_weights(index, config)
    of_0, of_1 = 1000 / 19**0.5, 1000 / 4**0.5
    np.testing.assert_allclose(weights[[0, 16, 17]], [of_0, of_1, of_0 + of_1], rtol=1e-12)


def test_only_the_rows_that_take_part_are_counted() -> None:
    labels = [[0], [0, 1], [1], [2], []]
    rows = np.array([1, 3])
    index, part = make_index(labels), make_index([labels[row] for row in rows])
    assert class_counts(index, rows, n_classes=4).tolist() == [1, 1, 1, 0]
    assert class_counts(index).tolist() == [2, 2, 1]
    config = WeightConfig()
    assert sample_weights(index, config, rows).tolist() == sample_weights(part, config).tolist()


def test_a_label_that_the_manifest_does_not_name_is_an_error_that_names_the_sample(
    small_dataset: Dataset,
) -> None:
    """It would take 16 GB to count up to this one."""
    columns = {name: np.array(small_dataset.index.column(name)) for name in COLUMNS}
    columns["label_ids"][7] = 2**31 - 1
    replace_index(small_dataset, columns)
    index = open_dataset(small_dataset.folder).index
    expected = "labels of the manifest, found 2147483647 in sample 'clip-0007'; copy it again"
    with pytest.raises(DatasetError, match=expected):
        class_counts(index)
    config = OrderConfig(global_batch_size=4, weights=WeightConfig())
    with pytest.raises(DatasetError, match=expected):
        TrainingOrder(index, "f" * 32, config)


def test_every_label_of_the_manifest_is_counted(tmp_path: Path) -> None:
    samples = [make_sample(n, label_ids=(1,)) for n in range(3)]
    dataset = write_dataset(tmp_path / "set", [samples], n_classes=4)
    assert class_counts(dataset.index).tolist() == [0, 3, 0, 0]


def test_a_set_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="need labels, found none in 2 samples"):
        sample_weights(make_index([[], []]), WeightConfig())


def naive_expected(weights: np.ndarray, bound: float) -> np.ndarray:
    """Find the scale by bisection."""
    low, high = 0.0, bound * len(weights) / weights[weights > 0].min() + len(weights)
    for _ in range(200):
        middle = (low + high) / 2
        is_low = np.minimum(weights * middle, bound).mean() < 1
        low, high = (middle, high) if is_low else (low, middle)
    return np.minimum(weights * high, bound)


@settings(deadline=None, max_examples=100)
@given(
    weights=st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=60),
    bound=st.sampled_from([1.0, 1.5, 2.0, 20.0, None]),
)
def test_expected_counts_have_the_mean_one_and_keep_the_bound(
    weights: list[float], bound: float | None
) -> None:
    given_weights = np.array(weights)
    expected = expected_counts(given_weights, bound)
    assert abs(expected.mean() - 1) < FIXED_STEP
    assert expected.max() <= (bound or np.inf)
    naive = naive_expected(given_weights, bound or 1e9)
    np.testing.assert_allclose(expected, naive, rtol=1e-6, atol=FIXED_STEP)


def test_samples_without_a_label_are_not_served() -> None:
    expected = expected_counts(np.array([1.0, 0.0, 1.0, 0.0]))
    assert expected.tolist() == [2.0, 0.0, 2.0, 0.0]
    counts = [epoch_counts(expected, seed=0, epoch=epoch).tolist() for epoch in range(3)]
    assert counts == [[2, 0, 2, 0]] * 3


def test_a_bound_that_cannot_fill_an_epoch_is_refused_with_the_least_that_can() -> None:
    weights = np.array([1.0, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"`max_repeats` must be at least 4: 1 of 4 .* found 3"):
        expected_counts(weights, 3)
    assert expected_counts(weights, 4).tolist() == [4.0, 0.0, 0.0, 0.0]


@settings(deadline=None, max_examples=60)
@given(
    expected=st.lists(st.floats(0, 100), min_size=1, max_size=40),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 10**6),
)
def test_a_count_is_the_expectation_rounded_up_or_down(
    expected: list[float], seed: int, epoch: int
) -> None:
    fixed = np.rint(np.array(expected) / FIXED_STEP) * FIXED_STEP
    counts = epoch_counts(fixed, seed=seed, epoch=epoch)
    assert ((counts == np.floor(fixed)) | (counts == np.ceil(fixed))).all()
    many = sum(epoch_counts(fixed, seed=seed, epoch=epoch + later) for later in range(10))
    assert (np.abs(many - 10 * fixed) < 1).all()  # no clip is left out longer than it has to be


def test_the_expectation_is_exact_over_samples_in_every_epoch() -> None:
    """Within five standard deviations of the mean of 100,000 independent draws."""
    n = 100_000
    for value in (0.2, 0.5, 2.3):
        fraction = value % 1
        for epoch in (0, 1, 7, 10**9):
            counts = epoch_counts(np.full(n, value), seed=3, epoch=epoch)
            deviation = (fraction * (1 - fraction) / n) ** 0.5
            assert abs(counts.mean() - value) < 5 * deviation


def test_a_fifth_stands_in_every_fifth_epoch() -> None:
    counts = np.stack([epoch_counts(np.full(50, 0.2), seed=1, epoch=e) for e in range(25)])
    assert (counts.reshape(5, 5, 50).sum(axis=1) == 1).all()
    assert len(set(counts[:5].argmax(axis=0).tolist())) == 5  # not all in the same


def test_a_count_depends_on_seed_and_row_not_on_the_other_rows() -> None:
    expected, rows = np.full(1_000, 0.5), np.arange(1_000)
    counts = epoch_counts(expected, seed=1, epoch=4)
    part = epoch_counts(expected[::3], rows[::3], seed=1, epoch=4)
    np.testing.assert_array_equal(part, counts[::3])
    other = epoch_counts(expected, seed=2, epoch=4)
    assert 0.4 < (other == counts).mean() < 0.6


def test_one_label_each_makes_all_classes_equal() -> None:
    """Up to AST's 0.01, which counts for more in a class of one."""
    index = make_index([[0]] * 900 + [[1]] * 90 + [[2]] * 10)
    expected = expected_counts(sample_weights(index, WeightConfig()))
    np.testing.assert_allclose(np.bincount(index.label_ids, expected), [1000 / 3] * 3, rtol=1e-3)
    capped = expected_counts(sample_weights(index, WeightConfig()), max_repeats=5)
    np.testing.assert_allclose(np.bincount(index.label_ids, capped)[2], 50)
