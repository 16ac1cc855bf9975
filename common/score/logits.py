"""Logits (n, columns) in numpy and float64: probabilities, their mean, and what they cost.

Predictions in short form (common/runs/predictions.py) have the columns of a row's likeliest classes and a last one that
stands for ``others`` classes, each with that logit; a target is then the column of the row's label. With ``others`` = 1
every column is a class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

BLOCK = 1 << 18  # numbers worked on at a time: 2 MB as float64, which stay in the cache


@dataclass(frozen=True)
class Outputs:
    """What one or several models say of n rows, in whatever form: the value that is averaged, scored and blended."""

    values: np.ndarray  # float (..., n, columns): numbers of the last layer, or of an average
    others: int = 1  # classes that the last column stands for; above 1 the columns differ from row to row

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> "Outputs":
        return replace(self, values=self.values[index])

    def __truediv__(self, scale: Any) -> "Outputs":
        return replace(self, values=self.values / scale)

    def log_softmax(self) -> np.ndarray:
        """Log probabilities, float64 (..., n, columns)."""
        return log_softmax(self.values, self.others)

    def softmax(self) -> np.ndarray:
        """Probabilities, float64 (..., n, columns); the last column's is that of each of its ``others`` classes."""
        return softmax(self.values, self.others)


def blocks(rows: int, width: int, numbers: int = BLOCK) -> Iterator[slice]:
    """Slices of ``rows`` rows, as many at a time as have at most so many ``numbers``; a small matrix is one block."""
    step = max(1, numbers // max(1, width))
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def log_softmax(logits: np.ndarray, others: int = 1) -> np.ndarray:
    """Log probabilities, float64, over the last axis, whose last column stands for ``others`` classes."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    return shifted - np.log(powers.sum(axis=-1, keepdims=True) + (others - 1) * powers[..., -1:])


def softmax(logits: np.ndarray, others: int = 1) -> np.ndarray:
    """Probabilities, float64, over the last axis; the last column's is that of each of its ``others`` classes."""
    return np.exp(log_softmax(logits, others))


def log_mean_probability(
    logits: Sequence[np.ndarray] | np.ndarray, weights: Sequence[float] = (), others: int = 1
) -> np.ndarray:
    """The log of the (weighted) mean probability of several models or views: m x (n, C) -> (n, C), float32.

    The sum is taken in logs, so a probability too small for a float stays finite.

    Args:
        logits: m arrays (n, C).
        weights: m numbers >= 0, at least one above 0; they are scaled to sum to 1. Without them all are equal.
        others: how many classes the last column stands for.
    """
    shares = np.asarray(weights, dtype=np.float64) if len(weights) else np.ones(len(logits))
    shares = shares / shares.sum()
    mean = np.empty(np.shape(logits[0]), dtype=np.float32)
    for rows in blocks(*mean.shape):
        total = np.full(mean[rows].shape, -np.inf)
        for member, share in zip(logits, shares, strict=True):
            if share > 0:
                total = np.logaddexp(total, log_softmax(member[rows], others) + np.log(share))
        mean[rows] = total
    return mean


def row_losses(logits: np.ndarray, targets: np.ndarray, others: int = 1) -> np.ndarray:
    """Negative log likelihood of each row (n), nats; ``targets`` are columns of the logits."""
    found = np.empty(len(targets))
    for rows in blocks(*logits.shape):
        own = targets[rows]
        found[rows] = -log_softmax(logits[rows], others)[np.arange(len(own)), own]
    return found


def nll(logits: np.ndarray, targets: np.ndarray, others: int = 1) -> float:
    """Mean negative log likelihood (log loss), nats per row."""
    return float(row_losses(logits, targets, others).mean())


def count_errors(logits: np.ndarray, targets: np.ndarray) -> int:
    """Rows whose largest logit is not the target's."""
    return int((np.argmax(logits, axis=-1) != targets).sum())


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean of ``first - second``, two losses (n) of the same rows, and its standard error.

    Paired, since a row that is hard for one blend is hard for the other: what they share cancels.
    """
    difference = first - second
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)
