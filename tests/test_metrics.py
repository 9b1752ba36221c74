"""Tagging metrics against closed forms and naive loops."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score

from melstream.model import d_prime, tagging_metrics


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def naive_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean, over the positives, of the precision when each is reached (no tied scores)."""
    ranked = labels[np.argsort(-scores)]
    precisions = [ranked[: i + 1].mean() for i in range(len(ranked)) if ranked[i]]
    return float(np.mean(precisions))


def naive_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order; a tie is half a pair."""
    pairs = scores[labels][:, None] - scores[~labels][None, :]
    return float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def test_each_class_is_the_naive_loop(rng: np.random.Generator) -> None:
    labels = rng.random((80, 6)) < 0.3
    scores = rng.normal(size=(80, 6)) + labels
    metrics = tagging_metrics(scores, labels, "multi_label")
    ap = [naive_average_precision(scores[:, c], labels[:, c]) for c in range(6)]
    auc = [naive_auc(scores[:, c], labels[:, c]) for c in range(6)]
    np.testing.assert_allclose(metrics.average_precision, ap)
    np.testing.assert_allclose(metrics.auc, auc)
    assert metrics.mean_average_precision == pytest.approx(np.mean(ap))
    assert metrics.mean_auc == pytest.approx(np.mean(auc))
    assert metrics.n_positives.tolist() == labels.sum(axis=0).tolist()
    assert metrics.accuracy is metrics.balanced_accuracy is metrics.recall is None


def test_perfect_scores_are_one(rng: np.random.Generator) -> None:
    labels = rng.random((50, 4)) < 0.5
    metrics = tagging_metrics(labels.astype(np.float32), labels, "multi_label")
    assert metrics.mean_average_precision == 1.0
    assert metrics.mean_auc == 1.0
    assert metrics.d_prime == math.inf


def test_constant_scores_are_chance(rng: np.random.Generator) -> None:
    labels = rng.random((50, 4)) < 0.5
    metrics = tagging_metrics(np.zeros((50, 4)), labels, "multi_label")
    np.testing.assert_allclose(metrics.average_precision, labels.mean(axis=0))
    assert metrics.mean_auc == 0.5
    assert metrics.d_prime == 0.0


def test_undefined_classes_are_skipped_and_counted(rng: np.random.Generator) -> None:
    labels = rng.random((40, 5)) < 0.4
    labels[:, 1] = False
    labels[:, 3] = True
    scores = rng.normal(size=(40, 5))
    metrics = tagging_metrics(scores, labels, "multi_label")
    assert (metrics.n_classes_skipped, metrics.n_classes_skipped_auc) == (1, 2)
    assert np.isnan(metrics.average_precision).tolist() == [False, True, False, False, False]
    assert np.isnan(metrics.auc).tolist() == [False, True, False, True, False]
    assert metrics.mean_average_precision == pytest.approx(
        np.mean(metrics.average_precision[[0, 2, 3, 4]])
    )
    assert metrics.mean_auc == pytest.approx(np.mean(metrics.auc[[0, 2, 4]]))


def test_a_mean_over_no_class_is_none() -> None:
    metrics = tagging_metrics(np.zeros((3, 2)), np.zeros((3, 2), dtype=bool), "multi_label")
    assert metrics.mean_average_precision is metrics.mean_auc is metrics.d_prime is None
    assert metrics.summary() == {"n_classes_skipped": 2, "n_classes_skipped_auc": 2}


def test_d_prime_is_of_the_macro_auc_and_separates_two_normals(
    rng: np.random.Generator,
) -> None:
    assert d_prime(0.97) == pytest.approx(math.sqrt(2) * norm.ppf(0.97))
    labels = np.arange(20_000)[:, None] % 2 == 0
    metrics = tagging_metrics(rng.normal(size=labels.shape) + 1.5 * labels, labels, "multi_label")
    assert metrics.d_prime == pytest.approx(1.5, abs=0.05)  # sampling error of 10,000 each


def test_single_label_accuracies_are_sklearns(rng: np.random.Generator) -> None:
    classes = rng.choice(4, size=60, p=[0.6, 0.2, 0.1, 0.1])
    labels = np.eye(4, dtype=bool)[classes]
    scores = rng.normal(size=(60, 4)) + labels
    metrics = tagging_metrics(scores, labels, "single_label")
    found = scores.argmax(axis=1)
    assert metrics.accuracy == pytest.approx(np.mean(found == classes))
    assert metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(classes, found))
    assert metrics.recall is not None
    assert metrics.recall[0] == pytest.approx(np.mean(found[classes == 0] == 0))
    assert {"mAP", "mAUC", "d_prime", "accuracy"} < metrics.summary().keys()


def test_recall_of_a_class_without_samples_is_not_in_the_balanced_accuracy() -> None:
    labels = np.eye(3, dtype=bool)[[0, 0, 1]]
    metrics = tagging_metrics(np.eye(3)[[0, 2, 1]], labels, "single_label")
    assert metrics.recall is not None
    assert metrics.recall[:2].tolist() == [0.5, 1.0]
    assert math.isnan(metrics.recall[2])
    assert metrics.balanced_accuracy == 0.75


@pytest.mark.parametrize(
    ("scores", "labels", "task", "match"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3), bool), "multi_label", r"found \(3, 2\) and \(3, 3\)"),
        (np.zeros((0, 2)), np.zeros((0, 2), bool), "multi_label", "neither 0"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "multi_label", "must be bool, found float64"),
        (np.full((3, 2), np.nan), np.zeros((3, 2), bool), "multi_label", "in 3 of 3 rows"),
        (np.zeros((3, 2)), np.ones((3, 2), bool), "single_label", "exactly one label .* 3 of 3"),
    ],
)
def test_input_that_cannot_be_judged_is_refused(
    scores: np.ndarray, labels: np.ndarray, task: str, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        tagging_metrics(scores, labels, task)  # type: ignore[arg-type]
