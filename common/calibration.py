"""One temperature for all logits, so that over-confidence does not hide which learning rate is best."""

import math

import numpy as np
from scipy.optimize import minimize_scalar

from common.metrics import nll

PARTS = 5  # a temperature is fitted on four fifths of the rows and scored on the fifth


def cross_fitted_temperature_nll(logits: np.ndarray, targets: np.ndarray, seed: int = 0) -> float:
    """Mean log loss (nats per row), each row after a temperature that was fitted without it.

    Late in training a net's errors fall while its log loss rises, only because it grows too sure of itself; label
    smoothing does the opposite. Dividing the logits by one fitted number takes both out (Guo 2017, arXiv
    1706.04599). ``logits`` is (n, classes), ``targets`` (n) numbers the classes; ``seed`` deals the rows.
    """
    part = np.random.default_rng(seed).permutation(len(targets)) % PARTS
    losses = np.empty(len(targets))
    for number in range(PARTS):
        scored = part == number
        scale = temperature(logits[~scored], targets[~scored])
        losses[scored] = nll(logits[scored] / scale, targets[scored])
    return float(losses.mean())


def temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The number from 1/8 to 8 that minimises the log loss of ``logits`` divided by it."""
    logits = np.asarray(logits, dtype=np.float64)
    found = minimize_scalar(
        lambda log_temperature: nll(logits / math.exp(log_temperature), targets),
        bounds=(-math.log(8), math.log(8)),
        method="bounded",
    )
    return math.exp(found.x)
