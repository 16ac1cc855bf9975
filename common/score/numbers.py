"""What an answer is where a row has one or several numbers: the functions of the task regression.

A label is text: one number a target column, with SEPARATOR between them. A net has an output per column, in the
column's unit. A decision is the lowest and then the highest number of each column that may be answered.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from common.base.errors import UserError
from common.base.words import names_in_short
from common.score.answers import Answers
from common.score.logits import Outputs

SEPARATOR = ";"  # between the numbers of several columns, in our own files
BINS = 10  # strata of equal size, by which folds and --train-fraction keep the numbers even
ROWS_OF_A_BIN = 20  # at least
Decision = Sequence[float]


def number_in(cell: str) -> float:
    """The finite number that a cell says; NaN where it says none."""
    try:
        value = float(cell) if cell.isascii() and "_" not in cell else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def column_names(labels: Sequence[str], columns: Sequence[str] = ()) -> list[str]:
    """The target columns where they are known; else ``target``, or numbered ones."""
    count = labels[0].count(SEPARATOR) + 1 if len(labels) else 1
    if len(columns) == count:
        return list(columns)
    return [f"target {number}" for number in range(1, count + 1)] if count > 1 else ["target"]


def flaw_of_numbers(label: str) -> str:
    """Every cell is a finite number."""
    if not label:
        return "is empty"
    wrong = [cell for cell in label.split(SEPARATOR) if math.isnan(number_in(cell))]
    return f"{wrong[0]!r} is not a number" if wrong else ""


def quantile_of(labels: np.ndarray) -> np.ndarray:
    """The number of each row's bin, int64 (n): equally many rows a bin, equal numbers in one.

    Of several columns it is the mean of their places in their own order that is divided.
    """
    values = np.array([[number_in(cell) for cell in label.split(SEPARATOR)] for label in labels])
    places = np.stack([np.unique(column, return_inverse=True)[1] / len(column) for column in values.T]).mean(axis=0)
    bins = int(np.clip(len(labels) // ROWS_OF_A_BIN, 1, BINS))
    return np.searchsorted(np.quantile(places, np.arange(1, bins) / bins), places, side="right")


def numbers_of(labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """The numbers of each row, float64 (n, columns).

    Raises:
        UserError: a label that is no number, or not one for each column.
    """
    rows = [[number_in(cell) for cell in label.split(SEPARATOR)] for label in labels]
    for label, row in zip(labels, rows, strict=True):
        if len(row) != len(names) or not all(map(math.isfinite, row)):
            what = f"{label!r} is not a number for each of {names_in_short(names)}"
            raise UserError("labels", what, "use the table the folds were made from")
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


def texts_of(numbers: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Numbers (n, columns) as text (n), with as many digits as it takes to read back the same."""
    return np.array([SEPARATOR.join(map(str, row)) for row in np.asarray(numbers)], dtype=object)


def as_they_are(targets: Any, numbers: Any, smoothing: float) -> Any:
    """The targets of some columns; nothing is smoothed."""
    return targets[:, numbers]


# ---- outputs


def mean_number(outputs: Outputs, weights: Sequence[float] | np.ndarray = ()) -> Outputs:
    """The (weighted) mean of models or views: (m, n, columns) -> float32 (n, columns)."""
    shares = np.asarray(weights, dtype=np.float64) if len(weights) else np.ones(len(outputs))
    total = sum(share * member.astype(np.float64) for share, member in zip(shares, outputs.values, strict=True))
    return Outputs((total / shares.sum()).astype(np.float32))


def squared_error(outputs: Outputs, targets: np.ndarray) -> np.ndarray:
    """Mean over the columns of the squared difference, (n)."""
    return ((np.asarray(outputs.values, dtype=np.float64) - targets) ** 2).mean(axis=-1)


def absolute_error(outputs: Outputs, targets: np.ndarray, decision: Decision = ()) -> np.ndarray:
    """Mean over the columns of the difference of what is answered, (..., n)."""
    return np.abs(decided_numbers(outputs, decision).astype(np.float64) - targets).mean(axis=-1)


def decided_numbers(outputs: Outputs, decision: Decision = ()) -> np.ndarray:
    """The numbers, within the bounds of the decision where there is one, (..., n, columns)."""
    if not len(decision):
        return outputs.values
    low, high = np.split(np.asarray(decision, dtype=outputs.values.dtype), 2)
    return np.clip(outputs.values, low, high)


def seen_range(targets: np.ndarray) -> Decision:
    """The decision that keeps answers within the range of targets (n, columns)."""
    return (*targets.min(axis=0).tolist(), *targets.max(axis=0).tolist())


def number_answers(outputs: Outputs, targets: np.ndarray, names: Sequence[str], decision: Decision = ()) -> Answers:
    """The numbers that are answered, and how far off they are."""
    predicted = decided_numbers(outputs, decision).astype(np.float64)
    decided = Outputs(predicted)
    losses, costs = squared_error(decided, targets), absolute_error(decided, targets)
    return Answers(predicted, targets, losses, costs, np.zeros(len(costs), dtype=np.int64), names, outputs)


def no_temperature(outputs: Outputs, targets: np.ndarray) -> float:
    """A number has a unit: nothing divides it."""
    return 1.0


def errors_of_models(outputs: Outputs, targets: np.ndarray) -> np.ndarray:
    """How far off each of m models is, (n x columns, m): the error of a weighted mean is the mean of these."""
    return np.stack([(np.asarray(model.values, np.float64) - targets).ravel() for model in outputs], axis=1)


def named(columns: Sequence[str]) -> partial:
    """:func:`column_names` of these columns."""
    return partial(column_names, columns=tuple(columns))
