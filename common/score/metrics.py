"""The metrics, a row each, all in numpy and float64: functions of the answers to n rows."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Literal

import numpy as np

from common.base.cli import chosen
from common.base.errors import UserError
from common.base.words import names_in_short
from common.score.answers import Answers
from common.score.areas import auc, auc_and_error, average_precision
from common.score.number_metrics import mae, mse, r2, rmse, rmsle, spearman

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


def average_precision_at(answers: Answers, k: int = 5) -> float:
    """Mean of 1 / place of the target among the ``k`` likeliest classes, 0 where it is none of them (MAP@k)."""
    return float(precision_of_rows(answers, k).mean())


def precision_of_rows(answers: Answers, k: int = 5) -> np.ndarray:
    """1 / place of each row's target, float64 (n)."""
    return np.where(answers.ahead < k, 1 / (1.0 + answers.ahead), 0.0)


def f1(answers: Answers) -> float:
    """F1 of the positive class, 0 to 1; 0 where it neither occurs nor is predicted."""
    rows, right, predicted = (int(of_each[answers.positive]) for of_each in answers.counts())
    return 2 * right / (rows + predicted) if rows + predicted else 0.0


def mcc(answers: Answers) -> float:
    """Matthews' correlation of answers and labels, -1 to 1 (Gorodkin 2004 for more than two classes).

    0 where all labels, or all answers, are the same.
    """
    rows, right, predicted = (of_each.astype(float) for of_each in answers.counts())
    n = rows.sum()
    spread = (n**2 - (rows**2).sum()) * (n**2 - (predicted**2).sum())
    return float((right.sum() * n - (rows * predicted).sum()) / spread**0.5) if spread > 0 else 0.0


def quadratic_kappa(answers: Answers) -> float:
    """Cohen's kappa with quadratic weights, at most 1, of grades: labels that are numbers, whose difference counts."""
    rows, _, predicted = answers.counts()
    grades, n = np.array([float(name) for name in answers.names]), len(answers.targets)
    grades -= grades.min()
    squares = (grades**2 * (rows + predicted)).sum()  # the sum over all pairs of (i - j)^2, multiplied out
    by_chance = squares - 2 * (grades * rows).sum() * (grades * predicted).sum() / n
    disagreement = ((grades[answers.targets] - grades[answers.predicted]) ** 2).sum()
    return float(1.0 - disagreement / by_chance) if by_chance > 0 else 1.0


def f_of_rows(answers: Answers, beta: float) -> np.ndarray:
    """F-beta of the labels answered, float64 (n), 0 to 1; nothing answered where nothing is right counts 1."""
    sets = answers.targets & answers.predicted, answers.targets, answers.predicted
    both, true, said = (each.sum(axis=1) for each in sets)
    sizes = beta**2 * true + said
    return np.where(sizes > 0, (1 + beta**2) * both / np.maximum(sizes, 1), 1.0)


def sample_f1(answers: Answers) -> float:
    """Mean of :func:`f_of_rows` in which precision and recall count alike."""
    return float(f_of_rows(answers, 1.0).mean())


def sample_f2(answers: Answers) -> float:
    """Mean of :func:`f_of_rows` in which recall counts twice as much as precision."""
    return float(f_of_rows(answers, 2.0).mean())


def number_words(found: Mapping[str, float]) -> str:
    """RMSE, MAE and R2, as far as they are known, of n rows."""
    known = ", ".join(f"{name} {show(name, found[name])}" for name in ("rmse", "mae", "r2") if name in found)
    return f"{known} of {found['n']:,} rows"


def wilson(errors: float, n: float, level: float = 0.95) -> tuple[float, float]:
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


def auc_interval(answers: Answers) -> tuple[float, float]:
    """Wilson's interval of a share that has the AUC's standard error.

    Plus and minus two standard errors, and the bootstrap's percentiles, are too short where there are few positives.
    """
    value, error, fewest = auc_and_error(answers)
    n = value * (1 - value) / error**2 if error > 0 else fewest
    return wilson((1 - value) * n, n) if n else (math.nan, math.nan)


def accuracy_words(found: Mapping[str, float]) -> str:
    """Accuracy, errors of n, 95 % interval; ``found`` holds at least these and n, and ``low`` and ``high`` where rows
    are not independent."""
    low, high = (found["low"], found["high"]) if "low" in found else wilson(int(found["errors"]), int(found["n"]))
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


def two_classes(names: Sequence[str]) -> str:
    """One of two classes must be the positive one."""
    return "" if len(names) == 2 else "two classes"


@dataclass(frozen=True)
class Metric:
    """One metric: all that the project knows of it."""

    of: Callable[[Answers], float]
    shown: str = ".2%"  # how Python formats it in a table: a share in per cent
    lower_is_better: bool = False
    # What it is made of: the answers alone, the order of a row's classes, or the probabilities. What blurs these, such
    # as a vote, does not fit it.
    looks_at: Literal["answers", "order", "probabilities"] = "answers"
    on_request: bool = False  # takes time, or a number in its name: computed only where it is asked for
    # Names of the outputs -> what it lacks of them to have a value at all, "" if nothing.
    lacks: Callable[[Sequence[str]], str] = lambda names: ""
    says_nothing_up_to: int = 1  # with so many outputs its value is always the same
    above: float = -math.inf  # where all targets must lie for it to have a value
    interval: Callable[[Answers], tuple[float, float]] | None = None  # 95 %; None: the bootstrap's (bootstrap.py)
    costs: Callable[[Answers], np.ndarray] | None = None  # of each row (n), where it is a mean over rows
    words: Callable[[Mapping[str, float]], str] | None = None  # of a score; None: its name and value say enough

    @property
    def of_ranks(self) -> bool:
        """Whether it looks at all rows' probabilities together, by their ranks."""
        return self.looks_at == "probabilities" and self.costs is None


class Metrics(dict[str, Metric]):
    """Rows by name; that of ``map@k`` stands for map@1, map@2 and so on."""

    def __missing__(self, name: str) -> Metric:
        row, k = self[row_name(name)], depth_of(name)
        return replace(row, of=partial(row.of, k=k), costs=partial(row.costs, k=k), says_nothing_up_to=1)


def row_name(name: str) -> str:
    """The name of a metric's row: ``map@k`` of ``map@5``; other names are their own.

    Raises:
        KeyError: there is none.
    """
    own = "map@k" if depth_of(name) else name
    if own not in METRICS:
        raise KeyError(name)
    return own


def depth_of(name: str) -> int:
    """The number in a metric's name, 5 of ``map@5``; 0 of others."""
    found = re.fullmatch("map@([1-9][0-9]{0,3})", name)
    return int(found[1]) if found else 0


METRICS = Metrics(
    {
        "accuracy": Metric(
            accuracy, interval=accuracy_interval, costs=lambda answers: answers.costs, words=accuracy_words
        ),
        "errors": Metric(errors, shown="g", lower_is_better=True, costs=lambda answers: answers.costs),
        "nll": Metric(
            nll, shown=".4f", lower_is_better=True, looks_at="probabilities", costs=lambda answers: answers.losses
        ),
        "balanced_accuracy": Metric(balanced_accuracy, lacks=every_class),
        "macro_f1": Metric(macro_f1, lacks=every_class),
        "top5": Metric(top5, looks_at="order", says_nothing_up_to=5, costs=lambda answers: answers.ahead >= 5),
        "exact_match": Metric(accuracy, interval=accuracy_interval, costs=lambda answers: answers.costs),
        "sample_f1": Metric(sample_f1, costs=lambda answers: 1 - f_of_rows(answers, 1.0)),
        "sample_f2": Metric(sample_f2, costs=lambda answers: 1 - f_of_rows(answers, 2.0)),
        "map": Metric(average_precision, looks_at="probabilities"),
        "mean_auc": Metric(auc, shown=".4f", looks_at="probabilities", interval=auc_interval),
        "rmse": Metric(rmse, says_nothing_up_to=0, shown=".5g", lower_is_better=True, words=number_words),
        "mse": Metric(
            mse, says_nothing_up_to=0, shown=".5g", lower_is_better=True, costs=lambda answers: answers.losses
        ),
        "mae": Metric(
            mae, says_nothing_up_to=0, shown=".5g", lower_is_better=True, costs=lambda answers: answers.costs
        ),
        "rmsle": Metric(rmsle, above=-1.0, says_nothing_up_to=0, shown=".5g", lower_is_better=True),
        "r2": Metric(r2, says_nothing_up_to=0, shown=".4f"),
        "spearman": Metric(spearman, says_nothing_up_to=0, shown=".4f"),
        "quadratic_kappa": Metric(quadratic_kappa, shown=".4f", lacks=grades),
        "f1": Metric(f1, lacks=two_classes),
        "mcc": Metric(mcc, shown=".4f", lacks=every_class),
        "auc": Metric(
            auc,
            shown=".4f",
            looks_at="probabilities",
            on_request=True,
            lacks=every_class,
            interval=auc_interval,
        ),
        "average_precision": Metric(
            average_precision, shown=".4f", looks_at="probabilities", on_request=True, lacks=every_class
        ),
        "map@k": Metric(
            average_precision_at,
            shown=".4f",
            looks_at="order",
            on_request=True,
            costs=lambda answers, k=5: 1 - precision_of_rows(answers, k),
        ),
    }
)


def check_metric(name: str, outputs: Sequence[str], known: Sequence[str] = tuple(METRICS)) -> None:
    """Refuse a metric that says nothing about these outputs; ``known`` are the task's metrics.

    Raises:
        UserError: no such metric, one that would always be the same, or one that lacks something.
    """
    check_metric_name(name, known)
    metric = METRICS[name]
    if len(outputs) <= metric.says_nothing_up_to:
        raise UserError("--metric", f"{name} is always 1 with {len(outputs)} classes", "choose another")
    if needed := metric.lacks(outputs):
        what = f"{name} needs {needed}, but the labels are {names_in_short(outputs)}"
        raise UserError("--metric", what, "choose another")


def check_targets(name: str, targets: np.ndarray) -> None:
    """Raise UserError where a metric has no value of such targets (n, ...)."""
    above = METRICS[name].above
    if targets.dtype.kind == "f" and (targets <= above).any():
        what = f"{name} needs targets above {above:g}, and one is {targets.min():g}"
        raise UserError("--metric", what, "choose another")


def check_metric_name(name: str, known: Sequence[str] = tuple(METRICS)) -> None:
    """Raise UserError unless a metric is one of the ``known`` rows."""
    chosen("metric", "map@k" if depth_of(name) else name, dict.fromkeys(known))


def check_positive(positive: str, outputs: Sequence[str]) -> None:
    """Raise UserError where the class that is looked for is none of the ``outputs``; "" is none in particular."""
    if positive and positive not in outputs:
        raise UserError("--positive", f"{positive} is no class", f"the classes are {names_in_short(outputs)}")


def goodness(name: str, value: float) -> float:
    """The value of a metric with its sign turned where lower is better: the largest is the best."""
    return -value if METRICS[name].lower_is_better else value


def show(name: str, value: float) -> str:
    """The value of a metric as a table shows it."""
    return f"{value:{METRICS[name].shown}}"


def counted(value: float, sign: str = "") -> str:
    """A number of errors, or a mean cost, as a table shows it; ``sign`` is Python's."""
    return f"{value:{sign},}" if isinstance(value, int | np.integer) else f"{value:{sign},.4g}"


def in_table(name: str, value: float, unit: str = "") -> str:
    """The value of a metric with a digit more than :func:`show` gives; of a share in per cent, ``unit`` behind it."""
    return f"{100 * value:.3f}{unit}" if METRICS[name].shown.endswith("%") else f"{value:.5f}"


def score_of(answers: Answers, metrics: Sequence[str], asked: str = "") -> dict[str, float | int]:
    """n and those of the ``metrics`` that take no time, and the one ``asked`` for, as far as they have a value here."""
    known = {name: METRICS[name] for name in shown_metrics(metrics, asked)}
    values = {name: metric.of(answers) for name, metric in known.items() if not what_lacks(name, answers)}
    return {"n": len(answers.losses)} | {name: value for name, value in values.items() if not math.isnan(value)}


def shown_metrics(metrics: Sequence[str], asked: str = "") -> list[str]:
    """Those of a task's ``metrics`` that are computed always, and the one ``asked`` for."""
    usual = [name for name in metrics if not METRICS[name].on_request]
    return list(dict.fromkeys([*usual, *([asked] if asked else [])]))


def what_lacks(name: str, answers: Answers) -> str:
    """What a metric lacks to have a value of these answers, "" if nothing; a short form has no area under a curve."""
    has_none = answers.outputs is None and answers.ranks is None
    return "every class's probability" if METRICS[name].of_ranks and has_none else METRICS[name].lacks(answers.names)


def describe(found: Mapping[str, float], metric: str = "") -> str:
    """A score in words: ``metric``, if it is a number of its own, and the first metric of METRICS that it holds."""
    first = next(name for name in METRICS if name in found)
    words = METRICS[first].words(found) if METRICS[first].words else f"{first} {show(first, found[first])}"
    return words if metric in ("", first, "errors") or metric not in found else f"{show_named(found, metric)}, {words}"


def show_named(found: Mapping[str, float], metric: str) -> str:
    """``auc 0.8312``."""
    return f"{metric} {show(metric, found[metric])}"


def best_epoch(scores: Sequence[float]) -> int:
    """Index of the first epoch with the highest score; one that has none (NaN) is never the best of several."""
    return max(range(len(scores)), key=lambda epoch: -math.inf if math.isnan(scores[epoch]) else scores[epoch])
