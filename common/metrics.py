"""Scores, all in numpy and float64: predictions are logits (n, classes), targets are class numbers (n)."""

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from common.cli import chosen
from common.errors import UserError


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities, float64, over the last axis."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64, over the last axis."""
    return np.exp(log_softmax(logits))


def log_mean_probability(logits: Sequence[np.ndarray] | np.ndarray, weights: Sequence[float] = ()) -> np.ndarray:
    """The log of the (weighted) mean probability of several models or views: m x (n, C) -> (n, C), float32.

    The sum is taken in logs, so a probability too small for a float stays finite.

    Args:
        logits: m arrays (n, C).
        weights: m numbers >= 0, at least one above 0; they are scaled to sum to 1. Without them all are equal.
    """
    shares = np.asarray(weights, dtype=np.float64) if len(weights) else np.ones(len(logits))
    shares = shares / shares.sum()
    total = np.full(np.shape(logits[0]), -np.inf)
    for member, share in zip(logits, shares, strict=True):
        if share > 0:
            total = np.logaddexp(total, log_softmax(member) + np.log(share))
    return total.astype(np.float32)


def targets_of(labels: Sequence[str] | np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Class numbers (int64, n) of text labels.

    Raises:
        UserError: a label that is not in the class list.
    """
    number = {name: position for position, name in enumerate(classes)}
    try:
        return np.fromiter((number[str(label)] for label in labels), dtype=np.int64, count=len(labels))
    except KeyError as error:
        what = f"label {error} is not one of {', '.join(classes)}"
        raise UserError("labels", what, "use the table the folds were made from") from None


def errors(logits: np.ndarray, targets: np.ndarray) -> int:
    """Rows whose largest logit is not the target's."""
    return int((np.argmax(logits, axis=-1) != targets).sum())


def accuracy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Share of rows whose largest logit is the target's, 0 to 1."""
    return 1.0 - errors(logits, targets) / len(targets)


def losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each row (n), nats."""
    return -log_softmax(logits)[np.arange(len(targets)), targets]


def nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean negative log likelihood (log loss), nats per row."""
    return float(losses(logits, targets).mean())


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean of ``first - second``, two losses (n) of the same rows, and its standard error.

    Paired, since a row that is hard for one blend is hard for the other: what they share cancels.
    """
    difference = first - second
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)


def confusion(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """How often class i (row) was predicted as class j (column): int64 (C, C)."""
    classes = logits.shape[-1]
    pairs = targets * classes + np.argmax(logits, axis=-1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def balanced_accuracy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean share of right rows over the classes that occur, 0 to 1."""
    counts = confusion(logits, targets)
    occurs = counts.sum(axis=1) > 0
    return float((counts.diagonal()[occurs] / counts.sum(axis=1)[occurs]).mean())


def macro_f1(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean F1 over the classes that occur or are predicted, 0 to 1."""
    counts = confusion(logits, targets)
    seen = counts.sum(axis=0) + counts.sum(axis=1)
    return float((2 * counts.diagonal()[seen > 0] / seen[seen > 0]).mean())


def top5(logits: np.ndarray, targets: np.ndarray) -> float:
    """Share of rows whose target has one of the five largest logits, 0 to 1."""
    of_target = np.take_along_axis(logits, targets[:, None], axis=1)
    return float(((logits > of_target).sum(axis=1) < 5).mean())


def quadratic_kappa(logits: np.ndarray, targets: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights, for classes that are grades, in the order of the class list; at most 1."""
    counts = confusion(logits, targets)
    grades = np.arange(len(counts))
    distances = (grades[:, None] - grades) ** 2
    by_chance = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    disagreement = (distances * by_chance).sum()
    return 1.0 - float((distances * counts).sum() / disagreement) if disagreement > 0 else 1.0


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
        what = f"quadratic_kappa needs grades in their order, labels are sorted as text ({', '.join(classes)})"
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


def score(logits: np.ndarray, targets: np.ndarray) -> dict[str, float | int]:
    """What tables of results show: n and every metric."""
    return {"n": len(targets)} | {name: metric(logits, targets) for name, metric in METRICS.items()}


def describe(found: Mapping[str, float], metric: str = "accuracy") -> str:
    """A score in words: accuracy, errors of n, 95 % interval, and ``metric``; ``found`` holds at least these and n."""
    low, high = interval(int(found["errors"]), int(found["n"]))
    counts = f"{found['errors']:,} errors of {found['n']:,}"
    words = f"{100 * found['accuracy']:.3f} %, {counts}, 95 % interval {100 * low:.3f} - {100 * high:.3f} %"
    return words if metric in ("accuracy", "errors") else f"{words}, {metric} {show(metric, found[metric])}"


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "errors": errors,
    "nll": nll,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "top5": top5,
    "quadratic_kappa": quadratic_kappa,
}
LOWER_IS_BETTER = ("errors", "nll")
