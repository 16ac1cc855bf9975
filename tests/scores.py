"""Scores as scipy and numpy compute them, for tests to compare with."""

import numpy as np
from scipy import special


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return special.log_softmax(np.asarray(logits, dtype=np.float64), axis=-1)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


def row_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -log_softmax(logits)[np.arange(len(targets)), targets]


def nll(logits: np.ndarray, targets: np.ndarray) -> float:
    return row_losses(logits, targets).mean()


def count_errors(logits: np.ndarray, targets: np.ndarray) -> int:
    return (logits.argmax(axis=-1) != targets).sum()


def log_mean_probability(logits, weights=None) -> np.ndarray:
    return np.log(np.average(softmax(logits), axis=0, weights=weights))
