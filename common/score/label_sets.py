"""What an answer is where a row has several labels, or none: the functions of the task multilabel.

A label set is text: its names in order, with SEPARATOR between them; the empty text is the empty set. A net has an
output per label, the log-odds that the row has it. A decision is one threshold of the probability for all labels, or
one for each, after a first number that says whether a row gets its likeliest label where none passes.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from common.base.errors import UserError
from common.base.words import names_in_short
from common.score.answers import Answers
from common.score.logits import Outputs, blocks

SEPARATOR = "|"  # in our own files; a competition's may have another (common/data/labels.py)
Decision = Sequence[float]


def names_in(label: str) -> tuple[str, ...]:
    """The names of a label set."""
    return tuple(label.split(SEPARATOR)) if label else ()


def set_names(labels: Sequence[str]) -> list[str]:
    """The distinct names of all sets, sorted as text: this order is the order of a model's outputs."""
    return sorted({name for label in set(labels) for name in names_in(label)})


def flaw_of_set(label: str) -> str:
    """A set names each of its labels once, in order."""
    names = names_in(label)
    if not all(names):
        return "has a label without a name"
    return "" if list(names) == sorted(set(names)) else "does not name each of its labels once, in order"


def rarest_name(labels: np.ndarray) -> np.ndarray:
    """Of each set (n) the name that the fewest rows have, text; what should be spread evenly before all else."""
    counts = Counter(name for label in labels for name in names_in(label))
    rarest = [min(names_in(label), key=lambda name: (counts[name], name), default="") for label in labels]
    return np.array(rarest, dtype=object)


def membership(labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Whether each row has each label, bool (n, labels).

    Raises:
        UserError: a label that is not among the names.
    """
    number = {name: position for position, name in enumerate(names)}
    found = np.zeros((len(labels), len(names)), dtype=bool)
    try:
        for row, label in enumerate(labels):
            found[row, [number[name] for name in names_in(label)]] = True
    except KeyError as error:
        what = f"label {error} is not one of {names_in_short(names)}"
        raise UserError("labels", what, "use the table the folds were made from") from None
    return found


def sets_of(targets: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The label set of each row of bool (n, labels) as text (n)."""
    texts = [SEPARATOR.join(names[at] for at in np.flatnonzero(row)) for row in targets]
    return np.array(texts, dtype=object)


def smoothed_membership(targets: Any, numbers: Any, smoothing: float) -> Any:
    """1 - s/2 for a label that the row has, s/2 for one that it lacks; (m, labels)."""
    return targets[:, numbers] * (1 - smoothing) + smoothing / 2


# ---- outputs


def sigmoid(outputs: Outputs) -> np.ndarray:
    """Probabilities, float64 (..., n, labels)."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(outputs.values, dtype=np.float64)))


def set_probability(outputs: Outputs) -> np.ndarray:
    """The probability of each row's likeliest set (n), its labels taken as independent of one another."""
    odds = np.asarray(outputs.values, dtype=np.float64)
    return np.exp(-np.logaddexp(0.0, -np.abs(odds)).sum(axis=-1))


def mean_odds(outputs: Outputs, weights: Sequence[float] | np.ndarray = ()) -> Outputs:
    """The log-odds of the (weighted) mean probability of models or views: (m, n, labels) -> float32 (n, labels).

    Yes and no are summed in logs, so that neither is lost where it is small. ``weights`` are m numbers >= 0, at least
    one above 0, scaled to sum to 1; without them all are equal.
    """
    shares = np.asarray(weights, dtype=np.float64) if len(weights) else np.ones(len(outputs))
    shares = shares / shares.sum()
    mean = np.empty(outputs.values.shape[1:], dtype=np.float32)
    for rows in blocks(*mean.shape):
        yes, no = (np.full(mean[rows].shape, -np.inf) for _ in range(2))
        for member, share in zip(outputs.values, shares, strict=True):
            if share > 0:
                odds = member[rows].astype(np.float64)
                yes = np.logaddexp(yes, np.log(share) - np.logaddexp(0.0, -odds))
                no = np.logaddexp(no, np.log(share) - np.logaddexp(0.0, odds))
        mean[rows] = yes - no
    return Outputs(mean)


def losses_of_labels(outputs: Outputs, targets: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each yes or no, nats, (..., n, labels)."""
    odds = np.asarray(outputs.values, dtype=np.float64)
    return np.logaddexp(0.0, np.where(targets, -odds, odds))


def binary_log_loss(outputs: Outputs, targets: np.ndarray) -> np.ndarray:
    """Mean negative log likelihood of a row's labels (n), nats per label."""
    return losses_of_labels(outputs, targets).mean(axis=-1)


def is_another_set(outputs: Outputs, targets: np.ndarray, decision: Decision = ()) -> np.ndarray:
    """Whether the set that is answered differs from the row's in any label, bool (..., n)."""
    return (chosen_labels(outputs, decision) != targets).any(axis=-1)


def chosen_labels(outputs: Outputs, decision: Decision = ()) -> np.ndarray:
    """The labels whose probability reaches the threshold (1/2 without a decision), bool (..., n, labels)."""
    odds = np.asarray(outputs.values, dtype=np.float64)
    never_empty, shares = decision[0] if len(decision) else 0.0, thresholds_in(decision)
    found = odds >= np.log(shares) - np.log1p(-shares)
    if never_empty:
        likeliest = odds.argmax(axis=-1)[..., None] == np.arange(odds.shape[-1])
        found |= likeliest & ~found.any(axis=-1, keepdims=True)
    return found


def thresholds_in(decision: Decision = ()) -> np.ndarray:
    """The probabilities from which on a label is answered, float (labels), or (1) where one is for all."""
    return np.array(decision[1:] if len(decision) else (0.5,), dtype=np.float64)


def set_answers(outputs: Outputs, targets: np.ndarray, names: Sequence[str], decision: Decision = ()) -> Answers:
    """The labels of each row that are answered, and its loss."""
    predicted = chosen_labels(outputs, decision)
    wrong = (predicted != targets).sum(axis=1)
    losses = binary_log_loss(outputs, targets)
    ahead = np.zeros(len(wrong), dtype=np.int64)
    return Answers(predicted, targets, losses, wrong > 0, ahead, names, outputs, sigmoid)


def odds_temperature(outputs: Outputs, targets: np.ndarray) -> float:
    """The number from 1/8 to 8 that minimises the log loss of outputs (n, labels) divided by it (Guo 2017)."""
    from scipy.optimize import minimize_scalar

    signed = np.where(targets, -1.0, 1.0) * np.asarray(outputs.values, dtype=np.float64)
    found = minimize_scalar(
        lambda log_scale: float(np.logaddexp(0.0, signed * np.exp(-log_scale)).mean()),
        bounds=(-np.log(8), np.log(8)),
        method="bounded",
    )
    return float(np.exp(found.x))


def right_sides(outputs: Outputs, targets: np.ndarray) -> np.ndarray:
    """What each of m models says of each label's right side, yes or no, (n x labels, m), divided by the largest."""
    logs = -np.stack([losses_of_labels(model, targets).ravel() for model in outputs], axis=1)
    return np.maximum(np.exp(logs - logs.max(axis=1, keepdims=True)), np.finfo(np.float64).tiny)


def half_odds(odds: np.ndarray) -> np.ndarray:
    """Log-odds in half precision, none of which changes its sign or becomes infinite."""
    kept = np.finfo(np.float16)
    sizes = np.clip(np.abs(odds), kept.smallest_subnormal, kept.max)
    return np.copysign(sizes, odds).astype(np.float16)
