"""The metrics of numbers, of several columns the mean over them: functions of the answers to n rows."""

import math
from collections.abc import Sequence

import numpy as np

from common.score.answers import Answers


def mse(answers: Answers) -> float:
    """Mean squared error, in squared units of the target."""
    return float(answers.losses.mean())


def rmse(answers: Answers) -> float:
    """Root of the mean squared error, in the target's unit; of several columns the mean of their roots."""
    return float((((answers.predicted - answers.targets) ** 2).mean(axis=0) ** 0.5).mean())


def mae(answers: Answers) -> float:
    """Mean absolute error, in the target's unit."""
    return float(answers.costs.mean())


def rmsle(answers: Answers) -> float:
    """:func:`rmse` of log(1 + number), answers below 0 taken as 0; NaN where a target is -1 or less."""
    if (answers.targets <= -1).any():
        return math.nan
    logs = np.log1p(np.maximum(answers.predicted, 0)) - np.log1p(answers.targets)
    return float(((logs**2).mean(axis=0) ** 0.5).mean())


def r2(answers: Answers) -> float:
    """Share of the variance that is explained, at most 1; of a constant target 0, or 1 where it is met."""
    left = ((answers.predicted - answers.targets) ** 2).sum(axis=0)
    whole = ((answers.targets - answers.targets.mean(axis=0)) ** 2).sum(axis=0)
    constant = np.where(left > 0, 0.0, 1.0)
    return float(np.where(whole > 0, 1 - left / np.where(whole > 0, whole, 1), constant).mean())


def spearman(answers: Answers) -> float:
    """Correlation of the ranks, -1 to 1, equal numbers sharing their mean rank; NaN where either side is constant."""
    from scipy.stats import rankdata

    found = []
    for predicted, target in zip(answers.predicted.T, answers.targets.T, strict=True):
        ranks = [rankdata(side) - (len(target) + 1) / 2 for side in (predicted, target)]
        sizes = [float(side @ side) for side in ranks]
        found.append(float(ranks[0] @ ranks[1]) / (sizes[0] * sizes[1]) ** 0.5 if all(sizes) else math.nan)
    return mean_of_known(found)


def mean_of_known(values: Sequence[float]) -> float:
    """The mean of those that are known, NaN where none is."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
