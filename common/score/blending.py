"""Blends: one prediction from the predictions of several runs.

A method is fitted on the runs' out-of-fold logits and gives a blend: a function of the same runs' logits on any rows,
(runs, rows, columns) -> log probabilities (rows, columns). A column is a class, and in short form
(common/score/shortlist.py) one of a row's likeliest classes or, the last one, all others.
Weights are fitted on log loss: by accuracy even the choice between two blends learns the noise of a few images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from common.score.calibration import temperature
from common.score.logits import errors, log_mean_probability, log_softmax, losses, nll

GREEDY_ROUNDS = 50  # picks of the greedy selection: its weights are multiples of 1/50
# Inverse of the penalty on the stack's coefficients (scikit-learn's C), set beforehand and for any number of runs:
# two runs bear more (1e-2), ten less (1e-4), and a choice by the nested score would have to be nested as well.
STACK_C = 1e-3


@dataclass(frozen=True)
class OofLogits:
    """What several runs say of rows that they have not seen: all that a blend is learned from."""

    logits: np.ndarray  # float32 (runs, rows, columns)
    targets: np.ndarray  # int64 (rows): the column of each row's label
    fold: np.ndarray  # int64 (rows)
    groups: np.ndarray  # (runs): runs with the same number are one model trained several times
    hand_weights: np.ndarray  # (runs): the user's own weights, 0 or more; empty: none
    tail_classes: int = 1  # classes that the last column stands for; above 1 the columns differ from row to row

    def rows(self, mask: np.ndarray) -> "OofLogits":
        """Some rows; ``mask`` is bool (rows)."""
        return replace(self, logits=self.logits[:, mask], targets=self.targets[mask], fold=self.fold[mask])

    def only(self, runs: Sequence[int]) -> "OofLogits":
        """Some runs, by their positions."""
        hand_weights = self.hand_weights[runs] if len(self.hand_weights) else self.hand_weights
        return replace(self, logits=self.logits[runs], groups=self.groups[runs], hand_weights=hand_weights)

    def with_noise(self, noise: np.ndarray) -> "OofLogits":
        """With further runs, (more, rows, columns), each a model of its own that the user gives no weight."""
        groups = np.concatenate([self.groups, self.groups.max() + 1 + np.arange(len(noise))])
        hand_weights = self.hand_weights
        if len(hand_weights):
            hand_weights = np.append(hand_weights, np.zeros(len(noise)))
        return replace(self, logits=np.concatenate([self.logits, noise]), groups=groups, hand_weights=hand_weights)


class Blend(Protocol):
    """What a method learned."""

    weights: np.ndarray  # (runs), summing to 1; empty where a run has no single weight

    def __call__(self, logits: np.ndarray) -> np.ndarray: ...


Method = Callable[[OofLogits], Blend]


# ---- nothing to learn


@dataclass(frozen=True)
class WeightedMean:
    """The log of the weighted mean probability; the weights (runs) sum to 1."""

    weights: np.ndarray
    tail_classes: int

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return log_mean_probability(logits, self.weights, self.tail_classes)


def mean(data: OofLogits) -> WeightedMean:
    """The same weight for every run."""
    return WeightedMean(np.full(len(data.logits), 1 / len(data.logits)), data.tail_classes)


@dataclass(frozen=True)
class GeometricMean:
    """The weighted mean of the log probabilities, scaled to sum to 1: one run that is sure of a no has a veto."""

    weights: np.ndarray
    tail_classes: int

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        weighted = zip(self.weights, logits, strict=True)
        total = sum(weight * log_softmax(run, self.tail_classes) for weight, run in weighted)
        return log_softmax(total, self.tail_classes).astype(np.float32)


def geometric_mean(data: OofLogits) -> GeometricMean:
    """The same weight for every run, on log probabilities."""
    return GeometricMean(np.full(len(data.logits), 1 / len(data.logits)), data.tail_classes)


def by_hand(data: OofLogits) -> WeightedMean:
    """The user's own weights, scaled to sum to 1; equal ones for what is left once every run with a weight is out."""
    if not data.hand_weights.sum():
        return mean(data)
    return WeightedMean(data.hand_weights / data.hand_weights.sum(), data.tail_classes)


@dataclass(frozen=True)
class Vote:
    """Each group of runs averages its probabilities and has one vote; at a tie the mean of the groups decides.

    A class's probability is (votes + mean) / (groups + 1): the mean never outweighs a vote, and nothing is 0.
    """

    groups: np.ndarray  # (runs)
    tail_classes: int

    @property
    def weights(self) -> np.ndarray:
        sizes = np.array([(self.groups == group).sum() for group in self.groups])
        return 1 / (sizes * len(set(self.groups)))

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        groups = [logits[self.groups == group] for group in np.unique(self.groups)]
        averages = np.stack([log_mean_probability(group, others=self.tail_classes) for group in groups])
        shares = np.exp(log_mean_probability(averages, others=self.tail_classes).astype(np.float64))
        for votes in averages.argmax(axis=-1):
            is_for_tail = votes == shares.shape[1] - 1
            shares[np.arange(len(shares)), votes] += np.where(is_for_tail, 1 / self.tail_classes, 1)
        floor = np.finfo(np.float32).tiny
        return np.log(np.maximum(shares / (len(averages) + 1), floor)).astype(np.float32)


def vote(data: OofLogits) -> Vote:
    """One vote for each run's most probable class."""
    return Vote(np.arange(len(data.logits)), data.tail_classes)


def group_vote(data: OofLogits) -> Vote:
    """Several trainings of one model are averaged, then each model has one vote."""
    return Vote(data.groups, data.tail_classes)


# ---- learned


def best(data: OofLogits) -> WeightedMean:
    """The run with the fewest errors, at a tie with the lower log loss."""
    order = [(errors(run, data.targets), nll(run, data.targets, data.tail_classes)) for run in data.logits]
    return WeightedMean(np.eye(len(order))[order.index(min(order))], data.tail_classes)


def target_probabilities(logits: np.ndarray, targets: np.ndarray, tail_classes: int = 1) -> np.ndarray:
    """What each of m runs says of the right class, (n, m), divided by the row's largest.

    All that the log loss of a weighted mean depends on, but for a constant; the division keeps rows of which every
    run is sure and wrong above 0.

    Args:
        logits: (m, n, columns); the last column stands for ``tail_classes`` classes.
        targets: (n), the column of each row's label.
    """
    logs = np.stack([-losses(run, targets, tail_classes) for run in logits], axis=1)
    return np.maximum(np.exp(logs - logs.max(axis=1, keepdims=True)), np.finfo(np.float64).tiny)


def softmax_weights(data: OofLogits) -> WeightedMean:
    """The weights that minimise the log loss of the weighted mean, trained until they stand still."""
    from common.score.softmax_ensemble import (
        trained_weights,  # brings torch, which is not loaded before inputs are checked
    )

    probabilities = target_probabilities(data.logits, data.targets, data.tail_classes)
    return WeightedMean(trained_weights(probabilities), data.tail_classes)


def convex_weights(probabilities: np.ndarray) -> np.ndarray:
    """The weights (m) of :func:`softmax_weights` by a solver for convex problems; ``probabilities`` are (n, m).

    Sequential quadratic programming on the simplex (scipy's SLSQP): a second opinion on what training finds, and
    quick where there is no torch.
    """
    from scipy.optimize import minimize

    count = probabilities.shape[1]

    def loss_and_slope(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixture = probabilities @ weights
        return -np.log(mixture).mean(), -(probabilities / mixture[:, None]).mean(axis=0)

    found = minimize(
        loss_and_slope,
        np.full(count, 1 / count),
        jac=True,
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    weights = np.clip(found.x, 0, 1)
    return weights / weights.sum()


@dataclass(frozen=True)
class TemperedMean:
    """A weighted mean of runs whose logits are first divided by a temperature of each run's own."""

    temperatures: np.ndarray  # (runs), float32 like stored logits
    mean: WeightedMean

    @property
    def weights(self) -> np.ndarray:
        return self.mean.weights

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return self.mean(logits / self.temperatures[:, None, None])


def tempered(data: OofLogits) -> TemperedMean:
    """:func:`softmax_weights` of runs that are equally well calibrated.

    The log loss of runs as they are prefers the one whose probabilities are nearer to how often it is right, which
    after label smoothing need not be the one that knows more; a temperature for each leaves what they know.
    """
    found = [temperature(run, data.targets, data.tail_classes) for run in data.logits]
    temperatures = np.array(found, dtype=np.float32)
    calibrated = replace(data, logits=data.logits / temperatures[:, None, None])
    return TemperedMean(temperatures, softmax_weights(calibrated))


def greedy(data: OofLogits) -> WeightedMean:
    """Pick runs one after another, again and again, each time the one that lowers the mean's log loss most.

    Ensemble selection with replacement from a sorted start (Caruana 2004, "Ensemble selection from libraries of
    models"); the picks up to the lowest log loss count.
    """
    probabilities = target_probabilities(data.logits, data.targets, data.tail_classes)
    picks, total, lowest = [], np.zeros(len(probabilities)), []
    for picked in range(1, GREEDY_ROUNDS + 1):
        found = -np.log((total[:, None] + probabilities) / picked).mean(axis=0)
        picks.append(int(found.argmin()))
        lowest.append(found.min())
        total += probabilities[:, picks[-1]]
    counts = np.bincount(picks[: int(np.argmin(lowest)) + 1], minlength=len(data.logits))
    return WeightedMean(counts / counts.sum(), data.tail_classes)


@dataclass(frozen=True)
class Stack:
    """A multinomial logistic regression on all runs' log probabilities; it can learn which run knows which class."""

    regression: object  # scikit-learn's
    classes: int

    @property
    def weights(self) -> np.ndarray:
        return np.empty(0)

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        probabilities = np.zeros((logits.shape[1], self.classes))
        probabilities[:, self.regression.classes_] = self.regression.predict_proba(_features(logits))
        return np.log(np.maximum(probabilities, 1e-15)).astype(np.float32)  # a class the fit never saw has 0


def stack(data: OofLogits) -> Stack:
    """Stacking by scikit-learn's logistic regression, its coefficients held small by an L2 penalty."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=STACK_C, tol=1e-3, max_iter=1000)
    return Stack(regression.fit(_features(data.logits), data.targets), data.logits.shape[-1])


def _features(logits: np.ndarray) -> np.ndarray:
    """(runs, rows, classes) -> (rows, runs x classes), log probabilities."""
    return log_softmax(logits).transpose(1, 0, 2).reshape(logits.shape[1], -1)


BLENDS: dict[str, Method] = {
    "mean": mean,
    "geometric": geometric_mean,
    "hand": by_hand,
    "vote": vote,
    "group-vote": group_vote,
    "best": best,
    "softmax": softmax_weights,
    "tempered": tempered,
    "greedy": greedy,
    "stack": stack,
}


def unusable(
    groups: np.ndarray, hand_weights: Sequence[float], rows: int, classes: int, tail_classes: int = 1
) -> dict[str, tuple[str, str]]:
    """The methods that make no sense for such runs: why, and what to do about it.

    ``groups``, ``hand_weights`` and ``tail_classes`` are those of :class:`OofLogits`; no predictions are needed, so
    that a method can be refused before any are read.
    """
    count = len(groups)
    coefficients = (count * classes + 1) * classes
    reasons = {}
    if not len(hand_weights):
        reasons["hand"] = ("no weights were given", "add --weights, one for each run")
    if len(set(groups)) in (1, count):
        reasons["group-vote"] = ("needs two or more models, one of them trained more than once", "use vote or mean")
    if tail_classes > 1:
        reasons["stack"] = ("learns from every class, but each row keeps only its likeliest", "use another")
    elif coefficients > rows:
        reasons["stack"] = (f"would learn {coefficients:,} coefficients from {rows:,} rows", "blend fewer runs")
    return reasons


def usable(data: OofLogits) -> list[str]:
    """The names of the methods that make sense for these runs."""
    reasons = unusable(data.groups, data.hand_weights, *data.logits.shape[1:], data.tail_classes)
    return [name for name in BLENDS if name not in reasons]
