"""One temperature for all logits: over-confidence then hides neither the best learning rate nor the best blend."""

import math

import numpy as np

from common.score.metrics import nll

PARTS = 5  # a temperature is fitted on four fifths of the rows and scored on the fifth


def temperature(logits: np.ndarray, targets: np.ndarray, others: int = 1) -> float:
    """The number from 1/8 to 8 that minimises the log loss of ``logits`` divided by it.

    Late in training a net's errors fall while its log loss rises, only because it grows too sure of itself; label
    smoothing does the opposite, and so does averaging. One number takes all of it out and leaves every answer as it
    is (Guo 2017, arXiv 1706.04599). Fit it on what is used: after averaging, not on each net before (Rahaman and
    Thiery 2021, arXiv 2007.08792). ``logits`` are (n, columns), ``targets`` (n) each label's column; the last column
    stands for ``others`` classes.
    """
    from scipy.optimize import minimize_scalar  # a second that who only trains does not pay

    by_class = np.ascontiguousarray(np.asarray(logits, dtype=np.float64).T)  # numpy sums long rows much faster
    above = by_class - by_class[targets, np.arange(len(targets))]  # of each class over the right one
    highest = above.max(axis=0)
    below = above - highest

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        powers = np.exp(below * scale)
        return float((np.log(powers.sum(axis=0) + (others - 1) * powers[-1]) + highest * scale).mean())

    found = minimize_scalar(loss, bounds=(-math.log(8), math.log(8)), method="bounded")
    return math.exp(found.x)


def cross_fitted(logits: np.ndarray, targets: np.ndarray, part: np.ndarray, others: int = 1) -> np.ndarray:
    """``logits`` (n, classes), each row divided by a temperature fitted without its part; ``part`` (n) numbers two or
    more parts, the last column stands for ``others`` classes."""
    tempered = np.empty(np.shape(logits))
    for number in np.unique(part):
        rows = part == number
        tempered[rows] = logits[rows] / temperature(logits[~rows], targets[~rows], others)
    return tempered


def cross_fitted_temperature_nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean log loss (nats per row), each row after a temperature that was fitted without it.

    ``logits`` is (n, classes), ``targets`` (n) numbers the classes.
    """
    part = np.random.default_rng(0).permutation(len(targets)) % PARTS
    return nll(cross_fitted(logits, targets, part), targets)
