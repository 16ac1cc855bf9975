"""Whether predictions of 90 % confidence are right nine times in ten."""

import numpy as np
import pandas as pd

from common.score.metrics import interval

# Of the probability of the predicted class: most rows of a good net lie above 99 %.
EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 1.0)


def reliability(confidence: np.ndarray, right: np.ndarray, edges: tuple[float, ...] = EDGES) -> pd.DataFrame:
    """How often predictions of about the same confidence are right.

    ``confidence`` (n) is the probability of the predicted class, ``right`` (n) whether it is the label. A row per bin
    that holds any: n, confidence (mean), accuracy, low and high (its 95 % interval).
    """
    bins = np.digitize(confidence, edges[1:-1])
    rows = []
    for number in np.unique(bins):
        own = bins == number
        n, correct = int(own.sum()), int(right[own].sum())
        rows.append((n, confidence[own].mean(), correct / n, *interval(n - correct, n)))
    return pd.DataFrame(rows, columns=["n", "confidence", "accuracy", "low", "high"])


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy over 15 bins of equal width (Guo 2017).

    0 to 1. It weighs a bin by its rows, so it says little about the few rows that a good net is unsure of.
    """
    bins = reliability(confidence, right, tuple(np.linspace(0, 1, 16)))
    return float(((bins.confidence - bins.accuracy).abs() * bins.n).sum() / bins.n.sum())
