"""One temperature for all logits, so that over-confidence does not hide which learning rate is best."""

import math

import numpy as np
from scipy.optimize import minimize_scalar

from common.metrics import nll


def cross_fitted_temperature_nll(logits: np.ndarray, targets: np.ndarray, seed: int = 0) -> float:
    """Mean log loss (nats per row) after a temperature that was fitted on the other half of the rows.

    Late in training a net's errors fall while its log loss rises, only because it grows too sure of itself; label
    smoothing does the opposite. Dividing the logits by one fitted number takes both out (Guo 2017, arXiv
    1706.04599). ``logits`` is (n, classes), ``targets`` (n) numbers the classes; ``seed`` splits the rows.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    halves = order[::2], order[1::2]
    losses = [
        nll(logits[scored] / temperature(logits[fitted], targets[fitted]), targets[scored])
        for fitted, scored in (halves, halves[::-1])
    ]
    return float(np.average(losses, weights=[len(halves[1]), len(halves[0])]))


def temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The number > 0 that minimises the log loss of ``logits`` divided by it."""
    logits = np.asarray(logits, dtype=np.float64)
    found = minimize_scalar(
        lambda log_temperature: nll(logits / math.exp(log_temperature), targets), bounds=(-4, 4), method="bounded"
    )
    return math.exp(found.x)
