"""The metrics, a row each, all in numpy and float64: functions of the answers to n rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

    predicted: np.ndarray  # what the task decides, in the form of its targets: class number, int64 (n), or labels
    targets: np.ndarray  # what the label says, the same form; of label sets bool (n, labels)
    losses: np.ndarray  # the task's loss: negative log likelihood, nats (n)
    costs: np.ndarray  # the task's cost: whether the answer is wrong, bool (n)
    ahead: np.ndarray  # how many classes have a larger logit than the target's, int64 (n); of label sets 0
    names: Sequence[str]  # of the outputs; empty: predicted and targets number the columns of a short form
    probabilities: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # of label sets, float64 (n, labels)

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each class or label: its rows, those that are right, the rows predicted as it; int64 (classes) each."""
        if self.targets.ndim == 2:
            of_labels = (self.targets, self.targets & self.predicted, self.predicted)
            rows, right, predicted = (each.sum(axis=0) for each in of_labels)
            return rows, right, predicted
        of_each = (self.targets, self.targets[self.predicted == self.targets], self.predicted)
        rows, right, predicted = (np.bincount(numbers, minlength=len(self.names)) for numbers in of_each)
        return rows, right, predicted


def joined_answers(parts: Sequence[Answers]) -> Answers:
    """The answers to all rows of several parts, such as folds."""
    fields = ("predicted", "targets", "losses", "costs", "ahead", "probabilities")
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


def sample_f(answers: Answers, beta: float) -> float:
    """Mean over rows of the F-beta of the labels answered, 0 to 1; nothing answered where nothing is right counts 1."""
    both, true, said = (each.sum(axis=1) for each in _sets(answers))
    sizes = beta**2 * true + said
    return float(np.where(sizes > 0, (1 + beta**2) * both / np.maximum(sizes, 1), 1.0).mean())


def sample_f1(answers: Answers) -> float:
    """:func:`sample_f` in which precision and recall count alike."""
    return sample_f(answers, 1.0)


def sample_f2(answers: Answers) -> float:
    """:func:`sample_f` in which recall counts twice as much as precision."""
    return sample_f(answers, 2.0)


def _sets(answers: Answers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return answers.targets & answers.predicted, answers.targets, answers.predicted


def mean_average_precision(answers: Answers) -> float:
    """Mean over labels that occur of :func:`average_precision`, 0 to 1; NaN where none does."""
    columns = zip(answers.probabilities.T, answers.targets.T, strict=True)
    return _mean([average_precision(scores, is_true) for scores, is_true in columns if is_true.any()])


def mean_auc(answers: Answers) -> float:
    """Mean of :func:`roc_auc` over labels that some rows have and some lack, 0 to 1; NaN where there is none."""
    columns = zip(answers.probabilities.T, answers.targets.T, strict=True)
    return _mean([roc_auc(scores, is_true) for scores, is_true in columns if is_true.any() and not is_true.all()])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def roc_auc(scores: np.ndarray, is_true: np.ndarray) -> float:
    """How often a true row has a higher score than one that is not, ties counting half; both (n), of either some."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    true, false = int(is_true.sum()), int((~is_true).sum())
    return float((ranks[is_true].sum() - true * (true + 1) / 2) / (true * false))


def average_precision(scores: np.ndarray, is_true: np.ndarray) -> float:
    """The sum of precision x gain in recall from the highest score down; both (n), at least one true."""
    _, place, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    true = np.cumsum(np.bincount(place, weights=is_true))
    precision = true / np.cumsum(counts)
    return float((precision * np.diff(true, prepend=0)).sum() / true[-1])


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
    "exact_match": Metric(accuracy, interval=accuracy_interval),
    "sample_f1": Metric(sample_f1),
    "sample_f2": Metric(sample_f2),
    "map": Metric(mean_average_precision),
    "mean_auc": Metric(mean_auc, shown=".4f"),
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
    """n and those of the ``metrics`` that lack nothing and have a value."""
    known = {name: METRICS[name] for name in metrics if not METRICS[name].lacks(answers.names)}
    values = {name: metric.of(answers) for name, metric in known.items()}
    return {"n": len(answers.losses)} | {name: value for name, value in values.items() if not math.isnan(value)}


def describe(found: Mapping[str, float], metric: str = "") -> str:
    """A score in words: the first metric of METRICS that it holds, and ``metric`` if that is another one."""
    first = next(name for name in METRICS if name in found)
    words = METRICS[first].words(found) if METRICS[first].words else f"{first} {show(first, found[first])}"
    return words if metric in ("", first, "errors") else f"{words}, {metric} {show(metric, found[metric])}"


def best_epoch(scores: Sequence[float]) -> int:
    """Index of the first epoch with the highest score."""
    return max(range(len(scores)), key=scores.__getitem__)
