"""The metrics, a row each, all in numpy and float64: functions of the answers to n rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from common.base.cli import chosen
from common.base.errors import UserError
from common.base.words import names_in_short

if TYPE_CHECKING:
    from common.score.logits import Outputs
    from common.score.task import Task


@dataclass(frozen=True)
class Answers:
    """What the metrics are made of: the answer to each of n rows, and how far off it is."""

    predicted: np.ndarray  # what the task decides, in the form of its targets: class number, int64 (n)
    targets: np.ndarray  # what the label says, the same form
    losses: np.ndarray  # the task's loss: negative log likelihood, nats (n)
    costs: np.ndarray  # the task's cost: whether the answer is wrong, bool (n)
    ahead: np.ndarray  # how many classes have a larger logit than the target's, int64 (n)
    names: Sequence[str]  # of the outputs; empty: predicted and targets number the columns of a short form

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each class: its rows, its rows that are right, the rows predicted as it; int64 (classes) each."""
        of_each = (self.targets, self.targets[self.predicted == self.targets], self.predicted)
        rows, right, predicted = (np.bincount(numbers, minlength=len(self.names)) for numbers in of_each)
        return rows, right, predicted


def joined_answers(parts: Sequence[Answers]) -> Answers:
    """The answers to all rows of several parts, such as folds."""
    fields = ("predicted", "targets", "losses", "costs", "ahead")
    return replace(parts[0], **{field: np.concatenate([getattr(part, field) for part in parts]) for field in fields})


# ---- the functions


def accuracy(answers: Answers) -> float:
    """Share of rows whose answer is right, 0 to 1."""
    return 1.0 - errors(answers) / len(answers.costs)


def errors(answers: Answers) -> float:
    """Sum of the costs: the number of wrong rows, where an answer is right or wrong."""
    return answers.costs.sum().item()


def nll(answers: Answers) -> float:
    """Log loss, nats per row."""
    return float(answers.losses.mean())


def balanced_accuracy(answers: Answers) -> float:
    """Mean share of right rows over the classes that occur, 0 to 1."""
    rows, right, _ = answers.counts()
    return float((right[rows > 0] / rows[rows > 0]).mean())


def macro_f1(answers: Answers) -> float:
    """Mean F1 over the classes that occur or are predicted, 0 to 1."""
    rows, right, predicted = answers.counts()
    seen = rows + predicted
    return float((2 * right[seen > 0] / seen[seen > 0]).mean())


def top5(answers: Answers) -> float:
    """Share of rows whose target has one of the five largest logits, 0 to 1."""
    return float((answers.ahead < 5).mean())


def quadratic_kappa(answers: Answers) -> float:
    """Cohen's kappa with quadratic weights, at most 1, of grades: labels that are numbers, whose difference counts."""
    rows, _, predicted = answers.counts()
    grades, n = np.array([float(name) for name in answers.names]), len(answers.targets)
    grades -= grades.min()
    squares = (grades**2 * (rows + predicted)).sum()  # the sum over all pairs of (i - j)^2, multiplied out
    by_chance = squares - 2 * (grades * rows).sum() * (grades * predicted).sum() / n
    disagreement = ((grades[answers.targets] - grades[answers.predicted]) ** 2).sum()
    return float(1.0 - disagreement / by_chance) if by_chance > 0 else 1.0


def wilson(errors: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the ACCURACY at ``errors`` of ``n`` rows.

    Wilson's score interval (E. B. Wilson 1927, JASA 22): close to its level even where there are few errors,
    where the usual +- 2 standard errors is too short and can pass 1.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = 1 - errors / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_interval(answers: Answers) -> tuple[float, float]:
    """Wilson's interval of the accuracy."""
    return wilson(errors(answers), len(answers.costs))


def accuracy_words(found: Mapping[str, float]) -> str:
    """Accuracy, errors of n, 95 % interval; ``found`` holds at least these and n."""
    low, high = wilson(int(found["errors"]), int(found["n"]))
    counts = f"{found['errors']:,} errors of {found['n']:,}"
    return f"{100 * found['accuracy']:.3f} %, {counts}, 95 % interval {100 * low:.3f} - {100 * high:.3f} %"


# ---- the table


def every_class(names: Sequence[str]) -> str:
    """It must be known which class is which: not so of the columns of a short form."""
    return "" if len(names) else "to know every class"


def grades(names: Sequence[str]) -> str:
    """Every label must be a number, such as 3, 10.0 or -1."""
    try:
        are_numbers = all(math.isfinite(float(name)) and "_" not in name for name in names)
    except ValueError:
        are_numbers = False
    return "" if len(names) and are_numbers else "grades, labels that are numbers"


@dataclass(frozen=True)
class Metric:
    """One metric: all that the project knows of it."""

    of: Callable[[Answers], float]
    shown: str = ".2%"  # how Python formats it in a table: a share in per cent
    lower_is_better: bool = False
    # Names of the outputs -> what it lacks of them to have a value at all, "" if nothing.
    lacks: Callable[[Sequence[str]], str] = lambda names: ""
    says_nothing_up_to: int = 1  # with so many outputs its value is always the same
    interval: Callable[[Answers], tuple[float, float]] | None = None  # 95 %; None: not known
    words: Callable[[Mapping[str, float]], str] | None = None  # of a score; None: its name and value say enough


METRICS = {
    "accuracy": Metric(accuracy, interval=accuracy_interval, words=accuracy_words),
    "errors": Metric(errors, shown="g", lower_is_better=True),
    "nll": Metric(nll, shown=".4f", lower_is_better=True),
    "balanced_accuracy": Metric(balanced_accuracy, lacks=every_class),
    "macro_f1": Metric(macro_f1, lacks=every_class),
    "top5": Metric(top5, says_nothing_up_to=5),
    "quadratic_kappa": Metric(quadratic_kappa, shown=".4f", lacks=grades),
}


def check_metric(name: str, outputs: Sequence[str], known: Sequence[str] = tuple(METRICS)) -> None:
    """Refuse a metric that says nothing about these outputs; ``known`` are the task's metrics.

    Raises:
        UserError: no such metric, one that would always be the same, or one that lacks something.
    """
    metric = chosen("metric", name, {each: METRICS[each] for each in known})
    if len(outputs) <= metric.says_nothing_up_to:
        raise UserError("--metric", f"{name} is always 1 with {len(outputs)} classes", "choose another")
    if needed := metric.lacks(outputs):
        what = f"{name} needs {needed}, but the labels are {names_in_short(outputs)}"
        raise UserError("--metric", what, "choose another")


def goodness(name: str, value: float) -> float:
    """The value of a metric with its sign turned where lower is better: the largest is the best."""
    return -value if METRICS[name].lower_is_better else value


def show(name: str, value: float) -> str:
    """The value of a metric as a table shows it."""
    return f"{value:{METRICS[name].shown}}"


def score(task: "Task", outputs: "Outputs", targets: np.ndarray, names: Sequence[str] = ()) -> dict[str, float | int]:
    """What tables of results show: n and every metric of the task; ``names`` are the outputs', () of a short form."""
    return score_of(task.answers(outputs, targets, names), task.metrics)


def score_of(answers: Answers, metrics: Sequence[str]) -> dict[str, float | int]:
    """n and those of the ``metrics`` that lack nothing."""
    known = {name: METRICS[name] for name in metrics if not METRICS[name].lacks(answers.names)}
    return {"n": len(answers.losses)} | {name: metric.of(answers) for name, metric in known.items()}


def describe(found: Mapping[str, float], metric: str = "") -> str:
    """A score in words: the first metric of METRICS that it holds, and ``metric`` if that is another one."""
    first = next(name for name in METRICS if name in found)
    words = METRICS[first].words(found) if METRICS[first].words else f"{first} {show(first, found[first])}"
    return words if metric in ("", first, "errors") else f"{words}, {metric} {show(metric, found[metric])}"


def best_epoch(scores: Sequence[float]) -> int:
    """Index of the first epoch with the highest score."""
    return max(range(len(scores)), key=scores.__getitem__)
