"""Thresholds of label sets, learned for a metric: the ways of the task multilabel (common/score/decisions.py)."""

import numpy as np

from common.score.answers import Answers
from common.score.label_sets import chosen_labels
from common.score.logits import Outputs
from common.score.metrics import METRICS, goodness

GRID = np.round(np.arange(0.02, 0.99, 0.02), 2)  # of one threshold for all labels
COARSE = np.round(np.arange(0.04, 0.97, 0.04), 2)  # of each label's own
ROUNDS = 2  # over the labels, each time with the others' thresholds held
MOST = 2e9  # comparisons that one learning of each label's threshold may take; beyond, there is one for all


def half(outputs: Outputs, answers: Answers, metric: str) -> tuple[float, ...]:
    """1/2, whatever the metric."""
    return (never_empty(answers), 0.5)


def one_for_all(outputs: Outputs, answers: Answers, metric: str) -> tuple[float, ...]:
    """The threshold of all labels with the best metric; of several as good the one in their middle."""
    found = np.array([_value(outputs, answers, metric, (never_empty(answers), share)) for share in GRID])
    best = GRID[found == found.max()]
    return (never_empty(answers), float(best[len(best) // 2]))


def one_a_label(outputs: Outputs, answers: Answers, metric: str) -> tuple[float, ...]:
    """A threshold for each label, one label after another from the best one for all."""
    never, shared = one_for_all(outputs, answers, metric)
    rows, labels = answers.targets.shape
    if rows * labels * labels * ROUNDS * len(COARSE) > MOST:
        return (never, shared)
    thresholds = np.full(labels, shared)
    best = _value(outputs, answers, metric, (never, *thresholds))
    for _ in range(ROUNDS):
        for label in range(labels):
            for share in COARSE:
                tried = np.where(np.arange(labels) == label, share, thresholds)
                found = _value(outputs, answers, metric, (never, *tried))
                if found > best:
                    best, thresholds = found, tried
    return (never, *thresholds.tolist())


def never_empty(answers: Answers) -> float:
    """1 where no row's set is empty: then a row without a label gets its likeliest; else 0."""
    return float(answers.targets.any(axis=1).all())


def _value(outputs: Outputs, answers: Answers, metric: str, decision: tuple[float, ...]) -> float:
    return goodness(metric, METRICS[metric].of(answers.with_predicted(chosen_labels(outputs, decision))))
