"""Losses after a temperature that was fitted on other rows, and how often confidence is right."""

from typing import TYPE_CHECKING

import numpy as np

from common.score.logits import Outputs
from common.score.metrics import wilson
from common.score.task import Task

if TYPE_CHECKING:
    import pandas as pd

PARTS = 5  # a temperature is fitted on four fifths of the rows and scored on the fifth


def cross_fitted(outputs: Outputs, targets: np.ndarray, part: np.ndarray, task: Task) -> Outputs:
    """``outputs`` (n, columns), each row divided by what the task calibrates without its part; ``part`` (n) numbers two
    or more parts."""
    values = np.empty(np.shape(outputs.values))
    for number in np.unique(part):
        rows = part == number
        values[rows] = outputs.values[rows] / task.calibrate(outputs[~rows], targets[~rows])
    return Outputs(values, outputs.others)


def calibrated_loss(outputs: Outputs, targets: np.ndarray, task: Task) -> float:
    """Mean loss of the task, each row after a temperature that was fitted without it."""
    part = np.random.default_rng(0).permutation(len(targets)) % PARTS
    return float(task.loss(cross_fitted(outputs, targets, part, task), targets).mean())


# Of the probability of the predicted class: most rows of a good net lie above 99 %.
EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 1.0)


def reliability(confidence: np.ndarray, right: np.ndarray, edges: tuple[float, ...] = EDGES) -> "pd.DataFrame":
    """How often predictions of about the same confidence are right.

    ``confidence`` (n) is the probability of the predicted class, ``right`` (n) whether it is the label. A row per bin
    that holds any: n, confidence (mean), accuracy, low and high (its 95 % interval).
    """
    import pandas as pd

    bins = np.digitize(confidence, edges[1:-1])
    rows = []
    for number in np.unique(bins):
        own = bins == number
        n, correct = int(own.sum()), int(right[own].sum())
        rows.append((n, confidence[own].mean(), correct / n, *wilson(n - correct, n)))
    return pd.DataFrame(rows, columns=["n", "confidence", "accuracy", "low", "high"])


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy over 15 bins of equal width (Guo 2017).

    0 to 1. It weighs a bin by its rows, so it says little about the few rows that a good net is unsure of.
    """
    bins = reliability(confidence, right, tuple(np.linspace(0, 1, 16)))
    return float(((bins.confidence - bins.accuracy).abs() * bins.n).sum() / bins.n.sum())
