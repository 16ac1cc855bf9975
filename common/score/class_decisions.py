"""What decides between classes where the likeliest is not the best answer: the ways of the task multiclass.

A decision (common/score/decisions.py) is empty, the likeliest class; or a threshold of the second class's probability;
or, for grades, each column's grade and then, in order, the cut points between which the expected grade falls.
"""

import numpy as np

from common.score.answers import Answers
from common.score.logits import Outputs
from common.score.metrics import METRICS, goodness

STEPS = 200  # candidates for a threshold or a cut point, equally many rows between them
ROUNDS = 3  # over the cut points, each time with the others held


def likeliest_class(outputs: Outputs, answers: Answers, metric: str) -> tuple[float, ...]:
    """Nothing to learn."""
    return ()


def threshold(outputs: Outputs, answers: Answers, metric: str) -> tuple[float, ...] | None:
    """The threshold of the second class's probability with the best metric, of several as good the one in their middle.

    None with more classes.
    """
    if outputs.values.shape[-1] != 2:
        return None
    shares = outputs.softmax()[:, 1]
    tried = candidates(shares)
    found = np.array([_value(answers, metric, shares >= share) for share in tried])
    best = tried[found == found.max()]
    return (float(best[len(best) // 2]),)


def cut_points(outputs: Outputs, answers: Answers, metric: str) -> tuple[float, ...] | None:
    """Cut points on the expected grade, one after another from the middles between grades; None for other metrics."""
    if metric != "quadratic_kappa" or outputs.values.shape[-1] < 3:
        return None
    grades = np.array([float(name) for name in answers.names])
    in_order, expected = np.argsort(grades), expected_grade(outputs, grades)
    cuts = (grades[in_order][1:] + grades[in_order][:-1]) / 2
    tried, best = candidates(expected), -np.inf
    for _ in range(ROUNDS):
        for number in range(len(cuts)):
            low, high = np.concatenate([[-np.inf], cuts, [np.inf]])[[number, number + 2]]
            for place in (cuts[number], *tried[(tried > low) & (tried < high)]):
                moved = np.where(np.arange(len(cuts)) == number, place, cuts)
                found = _value(answers, metric, in_order[np.searchsorted(moved, expected, side="right")])
                if found > best:
                    best, cuts = found, moved
    return (*grades.tolist(), *cuts.tolist())


def decided_class(outputs: Outputs, decision: tuple[float, ...] = ()) -> np.ndarray:
    """The column that a decision takes, int64 (..., n)."""
    if not len(decision):
        return outputs.values.argmax(axis=-1)
    if len(decision) == 1:
        return (outputs.softmax()[..., 1] >= decision[0]).astype(np.int64)
    grades, cuts = np.split(np.asarray(decision), [outputs.values.shape[-1]])
    return np.argsort(grades)[np.searchsorted(cuts, expected_grade(outputs, grades), side="right")]


def expected_grade(outputs: Outputs, grades: np.ndarray) -> np.ndarray:
    """The mean of the grades, weighted by their probabilities, (..., n)."""
    return outputs.softmax() @ grades


def candidates(values: np.ndarray) -> np.ndarray:
    """Places between values (n), at most STEPS."""
    known = np.unique(np.quantile(values, np.linspace(0, 1, STEPS + 1), method="nearest"))
    return (known[1:] + known[:-1]) / 2 if len(known) > 1 else known


def _value(answers: Answers, metric: str, predicted: np.ndarray) -> float:
    return goodness(metric, METRICS[metric].of(answers.with_predicted(predicted.astype(np.int64))))
