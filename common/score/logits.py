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
        """Log probabilities, float64 (..., n, columns); the last column's is that of each of its ``others`` classes."""
        logits = np.asarray(self.values, dtype=np.float64)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        powers = np.exp(shifted)
        return shifted - np.log(powers.sum(axis=-1, keepdims=True) + (self.others - 1) * powers[..., -1:])

    def softmax(self) -> np.ndarray:
        """Probabilities, as :meth:`log_softmax`."""
        return np.exp(self.log_softmax())


def blocks(rows: int, width: int, numbers: int = BLOCK) -> Iterator[slice]:
    """Slices of ``rows`` rows, as many at a time as have at most so many ``numbers``; a small matrix is one block."""
    step = max(1, numbers // max(1, width))
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def mean_probability(outputs: Outputs, weights: Sequence[float] | np.ndarray = ()) -> Outputs:
    """The log of the (weighted) mean probability of several models or views: (m, n, columns) -> float32 (n, columns).

    The sum is taken in logs, so a probability too small for a float stays finite. ``weights`` are m numbers >= 0, at
    least one above 0, scaled to sum to 1; without them all are equal.
    """
    shares = np.asarray(weights, dtype=np.float64) if len(weights) else np.ones(len(outputs))
    shares = shares / shares.sum()
    mean = np.empty(outputs.values.shape[1:], dtype=np.float32)
    for rows in blocks(*mean.shape):
        total = np.full(mean[rows].shape, -np.inf)
        for member, share in zip(outputs, shares, strict=True):
            if share > 0:
                total = np.logaddexp(total, member[rows].log_softmax() + np.log(share))
        mean[rows] = total
    return replace(outputs, values=mean)


def log_loss(outputs: Outputs, targets: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each row (n), nats; ``targets`` are columns of the outputs."""
    found = np.empty(len(targets))
    for rows in blocks(*outputs.values.shape):
        own = targets[rows]
        found[rows] = -outputs[rows].log_softmax()[np.arange(len(own)), own]
    return found


def paired_difference(
    first: np.ndarray, second: np.ndarray, units: np.ndarray | Sequence[int] = ()
) -> tuple[float, float]:
    """Mean of ``first - second``, two losses (n) of the same rows, and its standard error.

    Paired, since a row that is hard for one blend is hard for the other: what they share cancels. Rows with equal
    ``units`` (n), such as those of one patient, go up and down together, and count as one of so many sums (A. Colin
    Cameron, D. Miller 2015, Journal of Human Resources 50, 2.2); without any, each row counts.
    """
    difference = first - second
    mean, n = float(difference.mean()), len(difference)
    of_unit = np.unique(units, return_inverse=True)[1] if len(units) else np.arange(n)
    if of_unit.max() == n - 1:  # each row is its own
        return mean, float(difference.std(ddof=1) / n**0.5)
    sums = np.bincount(of_unit, weights=difference - mean)
    if len(sums) == 1:  # nothing varies that could be seen to
        return mean, float("inf")
    return mean, float((np.square(sums).sum() * len(sums) / (len(sums) - 1)) ** 0.5 / n)
