"""What tagging is judged by: mAP, mean AUC, d', accuracy, and each class alone.

Averages are macro: every class counts the same. A class for which a measure is
undefined, such as one without positives, is left out of the mean and counted,
instead of entering it as 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from sklearn.metrics import average_precision_score, roc_auc_score

from .tagger import Task

Scores = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TaggingMetrics:
    """The figures of one evaluation; shares and areas are in [0, 1], without unit.

    A mean is None where no class defines it; per class, NaN says so.
    """

    task: Task
    n_samples: int
    n_classes: int
    mean_average_precision: float | None
    """Macro over the classes with a positive sample."""
    n_classes_skipped: int
    """Classes without a positive sample: not in ``mean_average_precision``."""
    mean_auc: float | None
    """Area under the ROC curve, macro over the classes with positives and negatives."""
    n_classes_skipped_auc: int
    """Classes without positives or without negatives: not in ``mean_auc``."""
    d_prime: float | None
    """Of ``mean_auc``: one value from the macro AUC, not a mean over classes."""
    accuracy: float | None
    """Share of samples whose highest score is their class; single_label only."""
    balanced_accuracy: float | None
    """Mean ``recall`` over the classes with a positive sample; single_label only."""
    average_precision: npt.NDArray[np.float64]
    """Shape (n_classes,)."""
    auc: npt.NDArray[np.float64]
    """Shape (n_classes,)."""
    n_positives: npt.NDArray[np.int64]
    """Shape (n_classes,): positive samples."""
    recall: npt.NDArray[np.float64] | None
    """Shape (n_classes,): share of a class's samples found; single_label only."""

    def summary(self) -> dict[str, float | int]:
        """Give the single figures that are defined, by the names to log them under."""
        figures = {
            "mAP": self.mean_average_precision,
            "mAUC": self.mean_auc,
            "d_prime": self.d_prime,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "n_classes_skipped": self.n_classes_skipped,
            "n_classes_skipped_auc": self.n_classes_skipped_auc,
        }
        return {name: figure for name, figure in figures.items() if figure is not None}


def tagging_metrics(scores: Scores, labels: Labels, task: Task) -> TaggingMetrics:
    """Judge the scores of a whole evaluation set.

    Args:
        scores: floating, shape (n_samples, n_classes); higher is likelier. Only their
            order counts, so logits do as well as probabilities.
        labels: bool, shape (n_samples, n_classes); for single_label one per row.
        task: multi_label or single_label; the latter adds the accuracies.

    Returns:
        The figures.

    Raises:
        ValueError: shapes that differ, no sample, labels that are not bool, a score
            that is not finite, or a single_label row without exactly one label.
    """
    _check(scores, labels, task)
    n_positives = labels.sum(axis=0, dtype=np.int64)
    has_positives = n_positives > 0
    has_both = has_positives & (n_positives < len(labels))
    average_precision = _per_class(average_precision_score, scores, labels, where=has_positives)
    auc = _per_class(roc_auc_score, scores, labels, where=has_both)
    mean_auc = _mean_of_defined(auc)
    recall = _recall(scores, labels) if task == "single_label" else None
    return TaggingMetrics(
        task=task,
        n_samples=labels.shape[0],
        n_classes=labels.shape[1],
        mean_average_precision=_mean_of_defined(average_precision),
        n_classes_skipped=int((~has_positives).sum()),
        mean_auc=mean_auc,
        n_classes_skipped_auc=int((~has_both).sum()),
        d_prime=None if mean_auc is None else d_prime(mean_auc),
        accuracy=None if recall is None else float(_is_right(scores, labels).mean()),
        balanced_accuracy=None if recall is None else _mean_of_defined(recall),
        average_precision=average_precision,
        auc=auc,
        n_positives=n_positives,
        recall=recall,
    )


def d_prime(auc: float) -> float:
    """Turn an area under the ROC curve into the distance of two unit normals.

    Args:
        auc: in [0, 1], no unit.

    Returns:
        sqrt(2) times the standard normal quantile of ``auc``, in standard deviations;
        0 for chance, infinite for a perfect 1.

    Source:
        Hershey et al. 2017, arXiv:1609.09430.

    >>> round(d_prime(0.97), 3)
    2.66
    """
    return float(np.sqrt(2.0) * ndtri(auc))


def _check(scores: Scores, labels: Labels, task: Task) -> None:
    if scores.ndim != 2 or scores.shape != labels.shape or not scores.size:
        raise ValueError(
            "`scores` and `labels` must both have shape (n_samples, n_classes), neither 0, "
            f"found {scores.shape} and {labels.shape}"
        )
    if labels.dtype != np.bool_:
        raise ValueError(f"`labels` must be bool, found {labels.dtype}; compare with 0.5 first")
    n_broken = int((~np.isfinite(scores)).any(axis=1).sum())
    if n_broken:
        raise ValueError(
            f"`scores` must be finite, found NaN or infinity in {n_broken} of {len(scores)} rows"
        )
    n_wrong = int((labels.sum(axis=1) != 1).sum())
    if task == "single_label" and n_wrong:
        raise ValueError(
            f"each row of `labels` must have exactly one label for task single_label, "
            f"found {n_wrong} of {len(labels)} rows with none or several; "
            "the task may be multi_label"
        )


def _per_class(
    measure: Callable[..., Any], scores: Scores, labels: Labels, *, where: Labels
) -> npt.NDArray[np.float64]:
    values = np.full(labels.shape[1], np.nan)
    for label in np.flatnonzero(where):
        values[label] = measure(labels[:, label], scores[:, label])
    return values


def _mean_of_defined(values: npt.NDArray[np.float64]) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _is_right(scores: Scores, labels: Labels) -> npt.NDArray[np.bool_]:
    return scores.argmax(axis=1) == labels.argmax(axis=1)


def _recall(scores: Scores, labels: Labels) -> npt.NDArray[np.float64]:
    n_found = labels[_is_right(scores, labels)].sum(axis=0)
    n_positives = labels.sum(axis=0)
    return np.divide(
        n_found, n_positives, out=np.full(labels.shape[1], np.nan), where=n_positives > 0
    )
