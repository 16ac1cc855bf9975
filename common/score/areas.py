"""Areas under curves, of probabilities' ranks: AUC and average precision, and how sure an AUC is."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from common.score.answers import Answers
from common.score.number_metrics import mean_of_known


def auc(answers: Answers) -> float:
    """Area under the ROC curve, 0 to 1: of two classes, or the mean over labels, or over one class against the rest.

    Those that no row, or every row, has are left out; NaN where none is left.
    """
    return mean_of_known(auc_of_columns(answers))


def average_precision(answers: Answers) -> float:
    """Area under the precision-recall curve as a sum of steps, 0 to 1: of the positive class of two, or the mean over
    labels, or over one class against the rest.

    Those that no row has are left out; NaN where none is left.
    """
    return mean_of_known(precision_of_columns(answers))


def auc_of_columns(answers: Answers) -> list[float]:
    """:func:`auc` of each label, or of the positive class, or of each class against the rest; NaN where it has none."""
    return areas(answers, _area)


def precision_of_columns(answers: Answers) -> list[float]:
    """:func:`average_precision` of each label, or of the positive class, or of each class against the rest."""
    return areas(answers, _precision)


def areas(answers: Answers, area: Callable[[np.ndarray, np.ndarray], float]) -> list[float]:
    """``area`` of the positives and negatives at each rank (from the lowest) of each column that counts."""
    return [area(positives, negatives) for _, _, positives, negatives in _columns(answers)]


def auc_and_error(answers: Answers) -> tuple[float, float, int]:
    """:func:`auc`, its standard error, and the fewest positives or negatives of a column that counts.

    The error is that of E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson (1988, Biometrics 44) for the mean of the
    columns' areas; 0 where every positive ranks above every negative, or is alone.
    """
    shares, values, fewest = np.zeros(len(answers.targets)), [], []
    for own, is_positive, positives, negatives in _columns(answers):
        m, n = int(positives.sum()), int(negatives.sum())
        if m and n:
            below = (negatives.cumsum() - negatives / 2) / n
            above = 1 - (positives.cumsum() - positives / 2) / m
            values.append(float((positives * below).sum() / m))
            fewest.append(min(m, n))
            # A row's own share of the error; of a sample of m, the variance is estimated with m - 1.
            shares += np.where(
                is_positive,
                (below[own] - values[-1]) / (m * max(m - 1, 1)) ** 0.5,
                (above[own] - values[-1]) / (n * max(n - 1, 1)) ** 0.5,
            )
    if not values or min(fewest) == 1:
        return mean_of_known(values), 0.0, min(fewest, default=0)
    return mean_of_known(values), float((shares**2).sum() ** 0.5 / len(values)), min(fewest)


def _columns(answers: Answers) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each column that counts: each row's rank in it (n), whether it is positive (n), and how many positives and
    negatives each rank has, from the lowest."""
    ranks, targets = answers.ranked().ranks, answers.targets
    for column in [answers.positive] if ranks.shape[1] == 2 and targets.ndim == 1 else range(ranks.shape[1]):
        own, is_positive = ranks[:, column], targets == column if targets.ndim == 1 else targets[:, column]
        positives = np.bincount(own[is_positive], minlength=own.max() + 1)
        yield own, is_positive, positives, np.bincount(own, minlength=len(positives)) - positives


def _area(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Share of pairs of a positive and a negative in which the positive ranks higher; equal ranks count half."""
    below, pairs = negatives.cumsum() - negatives / 2, positives.sum() * negatives.sum()
    return float((positives * below).sum() / pairs) if pairs else math.nan


def _precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Mean over the positives of the precision at their rank."""
    right, counted = positives[::-1].cumsum(), (positives + negatives)[::-1].cumsum()
    total = (positives[::-1] * right / np.maximum(counted, 1)).sum()
    return float(total / positives.sum()) if positives.any() else math.nan
