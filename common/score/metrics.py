"""Scores, all in numpy and float64: predictions are logits (n, classes), targets are class numbers (n).
For the short form of predictions see common/score/logits.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from common.base.cli import chosen
from common.base.errors import UserError
from common.base.words import names_in_short
from common.score.logits import blocks, losses


def targets_of(labels: Sequence[str] | np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Class numbers (int64, n) of text labels.

    Raises:
        UserError: a label that is not in the class list.
    """
    number = {name: position for position, name in enumerate(classes)}
    try:
        return np.fromiter((number[str(label)] for label in labels), dtype=np.int64, count=len(labels))
    except KeyError as error:
        what = f"label {error} is not one of {names_in_short(classes)}"
        raise UserError("labels", what, "use the table the folds were made from") from None


# ---- metrics


@dataclass(frozen=True)
class Answers:
    """What the metrics are made of: the answer to each of n rows, and how far off it is."""

    predicted: np.ndarray  # class number of the largest logit, int64 (n)
    targets: np.ndarray  # class number of the label, int64 (n)
    losses: np.ndarray  # negative log likelihood, nats (n)
    ahead: np.ndarray  # how many classes have a larger logit than the target's, int64 (n)
    classes: int

    @property
    def right(self) -> np.ndarray:
        """Whether each row's answer is right, bool (n)."""
        return self.predicted == self.targets

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each class: its rows, its rows that are right, the rows predicted as it; int64 (classes) each."""
        of_each = (self.targets, self.targets[self.right], self.predicted)
        rows, right, predicted = (np.bincount(numbers, minlength=self.classes) for numbers in of_each)
        return rows, right, predicted


def answers_of(logits: np.ndarray, targets: np.ndarray, others: int = 1) -> Answers:
    """The answers of predictions; in short form the class numbers are columns."""
    predicted, ahead = (np.empty(len(targets), dtype=np.int64) for _ in range(2))
    for rows in blocks(*logits.shape):
        own = logits[rows]
        of_target = np.take_along_axis(own, targets[rows, None], axis=1)
        predicted[rows], ahead[rows] = own.argmax(axis=1), (own > of_target).sum(axis=1)
    return Answers(predicted, targets, losses(logits, targets, others), ahead, logits.shape[1])


def joined_answers(parts: Sequence[Answers]) -> Answers:
    """The answers to all rows of several parts, such as folds."""
    names = ("predicted", "targets", "losses", "ahead")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **joined)


def share_right(answers: Answers) -> float:
    """Accuracy: share of rows whose answer is right, 0 to 1."""
    return 1.0 - wrong_rows(answers) / len(answers.targets)


def wrong_rows(answers: Answers) -> int:
    """Rows whose answer is wrong."""
    return int((~answers.right).sum())


def mean_loss(answers: Answers) -> float:
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
    """Cohen's kappa with quadratic weights, for classes that are grades, in the order of the class list; at most 1."""
    rows, _, predicted = answers.counts()
    grades, n = np.arange(answers.classes), len(answers.targets)
    squares = (grades**2 * (rows + predicted)).sum()  # the sum over all pairs of (i - j)^2, multiplied out
    by_chance = float(squares) - 2 * float((grades * rows).sum()) * float((grades * predicted).sum()) / n
    disagreement = float(((answers.targets - answers.predicted) ** 2).sum())
    return 1.0 - disagreement / by_chance if by_chance > 0 else 1.0


def check_metric(name: str, classes: Sequence[str]) -> None:
    """Refuse a metric that says nothing about these classes.

    Raises:
        UserError: no such metric, top5 of at most five classes, or kappa of grades that are not in their order.
    """
    chosen("metric", name, METRICS)
    if name == "top5" and len(classes) <= 5:
        raise UserError("--metric", f"top5 is always 1 with {len(classes)} classes", "choose another")
    grades = [int(label) for label in classes if label.isdecimal()]
    if name == "quadratic_kappa" and grades != sorted(grades):
        what = f"quadratic_kappa needs grades in order, but labels are sorted as text ({names_in_short(classes)})"
        raise UserError("--metric", what, "write the labels with leading zeros")


def goodness(name: str, value: float) -> float:
    """The value of a metric with its sign turned where lower is better: the largest is the best."""
    return -value if name in LOWER_IS_BETTER else value


def show(name: str, value: float) -> str:
    """The value of a metric as a table shows it: shares in per cent."""
    return (
        f"{value:.4f}" if name in ("nll", "quadratic_kappa") else f"{value:g}" if name == "errors" else f"{value:.2%}"
    )


def interval(errors: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the ACCURACY at ``errors`` of ``n`` rows.

    Wilson's score interval (E. B. Wilson 1927, JASA 22): close to its level even where there are few errors,
    where the usual +- 2 standard errors is too short and can pass 1.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = 1 - errors / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def score(logits: np.ndarray, targets: np.ndarray, others: int = 1) -> dict[str, float | int]:
    """What tables of results show: n and every metric; of short forms those that need no class numbers."""
    found = score_of(answers_of(logits, targets, others))
    return found if others == 1 else {name: value for name, value in found.items() if name not in OF_CLASSES}


def score_of(answers: Answers) -> dict[str, float | int]:
    """n and every metric."""
    return {"n": len(answers.targets)} | {name: metric(answers) for name, metric in METRICS.items()}


def describe(found: Mapping[str, float], metric: str = "accuracy") -> str:
    """A score in words: accuracy, errors of n, 95 % interval, and ``metric``; ``found`` holds at least these and n."""
    low, high = interval(int(found["errors"]), int(found["n"]))
    counts = f"{found['errors']:,} errors of {found['n']:,}"
    words = f"{100 * found['accuracy']:.3f} %, {counts}, 95 % interval {100 * low:.3f} - {100 * high:.3f} %"
    return words if metric in ("accuracy", "errors") else f"{words}, {metric} {show(metric, found[metric])}"


METRICS: dict[str, Callable[[Answers], float]] = {
    "accuracy": share_right,
    "errors": wrong_rows,
    "nll": mean_loss,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "top5": top5,
    "quadratic_kappa": quadratic_kappa,
}
LOWER_IS_BETTER = ("errors", "nll")
OF_CLASSES = ("balanced_accuracy", "macro_f1", "quadratic_kappa")


def best_epoch(scores: Sequence[float]) -> int:
    """Index of the first epoch with the highest score."""
    return max(range(len(scores)), key=scores.__getitem__)
