"""One temperature for all logits: over-confidence then hides neither the best learning rate nor the best blend."""

import math

import numpy as np

from common.score.logits import Outputs


def temperature(outputs: Outputs, targets: np.ndarray) -> float:
    """The number from 1/8 to 8 that minimises the log loss of outputs (n, columns) divided by it.

    Late in training a net's errors fall while its log loss rises, only because it grows too sure of itself; label
    smoothing does the opposite, and so does averaging. One number takes all of it out and leaves every answer as it
    is (Guo 2017, arXiv 1706.04599). Fit it on what is used: after averaging, not on each net before (Rahaman and
    Thiery 2021, arXiv 2007.08792). ``targets`` (n) are each label's column.
    """
    from scipy.optimize import minimize_scalar  # a second that who only trains does not pay

    by_class = np.ascontiguousarray(np.asarray(outputs.values, dtype=np.float64).T)  # numpy sums long rows much faster
    above = by_class - by_class[targets, np.arange(len(targets))]  # of each class over the right one
    highest = above.max(axis=0)
    below = above - highest

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        powers = np.exp(below * scale)
        return float((np.log(powers.sum(axis=0) + (outputs.others - 1) * powers[-1]) + highest * scale).mean())

    found = minimize_scalar(loss, bounds=(-math.log(8), math.log(8)), method="bounded")
    return math.exp(found.x)
