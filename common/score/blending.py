"""Blends: one prediction from the predictions of several runs.

A method is fitted on the runs' out-of-fold outputs and gives a blend: a function of the same runs' outputs on any rows,
(runs, rows, columns) -> (rows, columns). A column is a class, and in short form (common/score/shortlist.py) one of a
row's likeliest classes or, the last one, all others.
Weights are fitted on the task's loss: by accuracy even the choice between two blends learns the noise of a few images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from common.score.answers import Answers
from common.score.logits import Outputs
from common.score.metrics import METRICS, accuracy, errors, goodness
from common.score.task import MULTICLASS, Task

GREEDY_ROUNDS = 50  # picks of the greedy selection: its weights are multiples of 1/50
# Inverse of the penalty on the stack's coefficients (scikit-learn's C), set beforehand and for any number of runs:
# two runs bear more (1e-2), ten less (1e-4), and a choice by the nested score would have to be nested as well.
STACK_C = 1e-3


@dataclass(frozen=True)
class OofOutputs:
    """What several runs say of rows that they have not seen: all that a blend is learned from."""

    outputs: Outputs  # float32 (runs, rows, columns)
    targets: np.ndarray  # (rows, ...): of the task; of a class the column it stands in
    fold: np.ndarray  # int64 (rows)
    groups: np.ndarray  # (runs): runs with the same number are one model trained several times
    hand_weights: np.ndarray  # (runs): the user's own weights, 0 or more; empty: none
    task: Task = MULTICLASS
    names: Sequence[str] = ()  # of the outputs; empty: the columns are those of a short form
    metric: str = ""  # what the competition scores by; empty: the task's first
    units: np.ndarray = field(default_factory=lambda: np.empty(0))  # (rows): equal where not independent; empty: none

    @property
    def judged_by(self) -> str:
        """The metric that runs and blends are compared by."""
        return self.metric or self.task.metrics[0]

    @property
    def is_judged_by_loss(self) -> bool:
        """Whether the task's loss decides between blends: it says what errors do with less noise."""
        return self.judged_by in ("accuracy", "errors", self.task.loss_metric)

    def answers(self, outputs: Outputs) -> Answers:
        """What the metrics look at, of outputs (rows, columns) for all rows."""
        return self.task.answers(outputs, self.targets, self.names)

    def cost(self, outputs: Outputs, targets: np.ndarray) -> float:
        """What outputs (m, columns) cost by the metric, lower is better: errors, where these count."""
        if METRICS[self.judged_by].of in (accuracy, errors):  # no need for losses and ranks
            return self.task.cost(outputs, targets).sum().item()
        answers = self.task.answers(outputs, targets, self.names)
        return -goodness(self.judged_by, METRICS[self.judged_by].of(answers))

    def rows(self, mask: np.ndarray) -> "OofOutputs":
        """Some rows; ``mask`` is bool (rows)."""
        units = self.units[mask] if len(self.units) else self.units
        outputs, targets, fold = self.outputs[:, mask], self.targets[mask], self.fold[mask]
        return replace(self, outputs=outputs, targets=targets, fold=fold, units=units)

    def only(self, runs: Sequence[int]) -> "OofOutputs":
        """Some runs, by their positions."""
        hand_weights = self.hand_weights[runs] if len(self.hand_weights) else self.hand_weights
        return replace(self, outputs=self.outputs[runs], groups=self.groups[runs], hand_weights=hand_weights)

    def with_noise(self, noise: np.ndarray) -> "OofOutputs":
        """With further runs, (more, rows, columns), each a model of its own that the user gives no weight."""
        groups = np.concatenate([self.groups, self.groups.max() + 1 + np.arange(len(noise))])
        hand_weights = self.hand_weights
        if len(hand_weights):
            hand_weights = np.append(hand_weights, np.zeros(len(noise)))
        outputs = replace(self.outputs, values=np.concatenate([self.outputs.values, noise]))
        return replace(self, outputs=outputs, groups=groups, hand_weights=hand_weights)


class Blend(Protocol):
    """What a method learned."""

    weights: np.ndarray  # (runs), summing to 1; empty where a run has no single weight

    def __call__(self, outputs: Outputs) -> Outputs: ...


Method = Callable[[OofOutputs], Blend]


# ---- nothing to learn


@dataclass(frozen=True)
class WeightedMean:
    """The task's average; the weights (runs) sum to 1."""

    weights: np.ndarray
    task: Task

    def __call__(self, outputs: Outputs) -> Outputs:
        return self.task.average(outputs, self.weights)


def mean(data: OofOutputs) -> WeightedMean:
    """The same weight for every run."""
    return WeightedMean(np.full(len(data.outputs), 1 / len(data.outputs)), data.task)


@dataclass(frozen=True)
class GeometricMean:
    """The weighted mean of the log probabilities, scaled to sum to 1: one run that is sure of a no has a veto."""

    weights: np.ndarray

    def __call__(self, outputs: Outputs) -> Outputs:
        weighted = zip(self.weights, outputs, strict=True)
        total = sum(weight * run.log_softmax() for weight, run in weighted)
        return replace(outputs, values=replace(outputs, values=total).log_softmax().astype(np.float32))


def geometric_mean(data: OofOutputs) -> GeometricMean:
    """The same weight for every run, on log probabilities."""
    return GeometricMean(np.full(len(data.outputs), 1 / len(data.outputs)))


def by_hand(data: OofOutputs) -> WeightedMean:
    """The user's own weights, scaled to sum to 1; equal ones for what is left once every run with a weight is out."""
    if not data.hand_weights.sum():
        return mean(data)
    return WeightedMean(data.hand_weights / data.hand_weights.sum(), data.task)


@dataclass(frozen=True)
class Vote:
    """Each group of runs averages its probabilities and has one vote; at a tie the mean of the groups decides.

    A class's probability is (votes + mean) / (groups + 1): the mean never outweighs a vote, and nothing is 0.
    """

    groups: np.ndarray  # (runs)
    task: Task

    @property
    def weights(self) -> np.ndarray:
        sizes = np.array([(self.groups == group).sum() for group in self.groups])
        return 1 / (sizes * len(set(self.groups)))

    def __call__(self, outputs: Outputs) -> Outputs:
        groups = [outputs[self.groups == group] for group in np.unique(self.groups)]
        averages = replace(outputs, values=np.stack([self.task.average(group).values for group in groups]))
        shares = np.exp(self.task.average(averages).values.astype(np.float64))
        for votes in self.task.decide(averages):
            is_for_tail = votes == shares.shape[1] - 1
            shares[np.arange(len(shares)), votes] += np.where(is_for_tail, 1 / outputs.others, 1)
        floor = np.finfo(np.float32).tiny
        shares = np.maximum(shares / (len(averages) + 1), floor)
        return replace(outputs, values=np.log(shares).astype(np.float32))


def vote(data: OofOutputs) -> Vote:
    """One vote for each run's most probable class."""
    return Vote(np.arange(len(data.outputs)), data.task)


def group_vote(data: OofOutputs) -> Vote:
    """Several trainings of one model are averaged, then each model has one vote."""
    return Vote(data.groups, data.task)


# ---- learned


def best(data: OofOutputs) -> WeightedMean:
    """The run that is best by the metric, at a tie the one with the lower loss."""
    order = [(data.cost(run, data.targets), data.task.loss(run, data.targets).mean()) for run in data.outputs]
    return WeightedMean(np.eye(len(order))[order.index(min(order))], data.task)


def best_weights(outputs: Outputs, targets: np.ndarray, task: Task) -> np.ndarray:
    """The weights (models), summing to 1, that minimise the loss of the weighted mean of outputs (models, n, columns),
    trained until they stand still."""
    # Brings torch, which is not loaded before inputs are checked.
    from common.score.softmax_ensemble import trained_weights

    return trained_weights(task.parts(outputs, targets), task.mixture_loss)


def softmax_weights(data: OofOutputs) -> WeightedMean:
    """:func:`best_weights` of the runs."""
    return WeightedMean(best_weights(data.outputs, data.targets, data.task), data.task)


def convex(data: OofOutputs) -> WeightedMean:
    """The weights of the lowest squared error, exactly: none below 0, summing to 1.

    With G the mean products of the models' errors it is the smallest w'Gw. Divided by that, w is the nonnegative
    solution of Gu = 1 with a slack where u is 0 (Karush, Kuhn and Tucker's conditions): nonnegative least squares
    (Lawson and Hanson 1974). Equal runs get equal weights by a ridge of a millionth.
    """
    from scipy.optimize import nnls

    errors = data.task.parts(data.outputs, data.targets)
    products = errors.T @ errors / len(errors)
    scale = np.trace(products) / len(products) or 1.0
    lower = np.linalg.cholesky(products / scale + 1e-6 * np.eye(len(products)))
    weights = nnls(lower.T, np.linalg.solve(lower, np.ones(len(products))))[0]
    return WeightedMean(weights / weights.sum(), data.task)


@dataclass(frozen=True)
class TemperedMean:
    """A weighted mean of runs whose outputs are first divided by a temperature of each run's own."""

    temperatures: np.ndarray  # (runs), float32 like stored outputs
    mean: WeightedMean

    @property
    def weights(self) -> np.ndarray:
        return self.mean.weights

    def __call__(self, outputs: Outputs) -> Outputs:
        return self.mean(outputs / self.temperatures[:, None, None])


def tempered(data: OofOutputs) -> TemperedMean:
    """:func:`softmax_weights` of runs that are equally well calibrated.

    The log loss of runs as they are prefers the one whose probabilities are nearer to how often it is right, which
    after label smoothing need not be the one that knows more; a temperature for each leaves what they know.
    """
    found = [data.task.calibrate(run, data.targets) for run in data.outputs]
    temperatures = np.array(found, dtype=np.float32)
    calibrated = replace(data, outputs=data.outputs / temperatures[:, None, None])
    return TemperedMean(temperatures, softmax_weights(calibrated))


def greedy(data: OofOutputs) -> WeightedMean:
    """Pick runs one after another, again and again, each time the one that lowers the mean's loss most.

    Ensemble selection with replacement from a sorted start (Caruana 2004, "Ensemble selection from libraries of
    models"); the picks up to the lowest loss count.
    """
    parts = data.task.parts(data.outputs, data.targets)
    picks, total, lowest = [], np.zeros(len(parts)), []
    for picked in range(1, GREEDY_ROUNDS + 1):
        found = data.task.mixture_loss((total[:, None] + parts) / picked).mean(axis=0)
        picks.append(int(found.argmin()))
        lowest.append(found.min())
        total += parts[:, picks[-1]]
    counts = np.bincount(picks[: int(np.argmin(lowest)) + 1], minlength=len(data.outputs))
    return WeightedMean(counts / counts.sum(), data.task)


@dataclass(frozen=True)
class Stack:
    """A multinomial logistic regression on all runs' log probabilities; it can learn which run knows which class."""

    regression: object  # scikit-learn's
    classes: int

    @property
    def weights(self) -> np.ndarray:
        return np.empty(0)

    def __call__(self, outputs: Outputs) -> Outputs:
        probabilities = np.zeros((outputs.values.shape[1], self.classes))
        probabilities[:, self.regression.classes_] = self.regression.predict_proba(_features(outputs))
        # a class the fit never saw has 0
        return Outputs(np.log(np.maximum(probabilities, 1e-15)).astype(np.float32))


def stack(data: OofOutputs) -> Stack:
    """Stacking by scikit-learn's logistic regression, its coefficients held small by an L2 penalty."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=STACK_C, tol=1e-3, max_iter=1000)
    return Stack(regression.fit(_features(data.outputs), data.targets), data.outputs.values.shape[-1])


def _features(outputs: Outputs) -> np.ndarray:
    """(runs, rows, classes) -> (rows, runs x classes), log probabilities."""
    return outputs.log_softmax().transpose(1, 0, 2).reshape(outputs.values.shape[1], -1)


BLENDS: dict[str, Method] = {
    "mean": mean,
    "geometric": geometric_mean,
    "hand": by_hand,
    "vote": vote,
    "group-vote": group_vote,
    "best": best,
    "softmax": softmax_weights,
    "convex": convex,
    "tempered": tempered,
    "greedy": greedy,
    "stack": stack,
}


def unusable(
    groups: np.ndarray,
    hand_weights: Sequence[float],
    rows: int,
    columns: int,
    others: int = 1,
    task: Task = MULTICLASS,
    metric: str = "",
) -> dict[str, tuple[str, str]]:
    """The methods that make no sense for such runs: why, and what to do about it.

    ``groups``, ``hand_weights`` and ``metric`` are those of :class:`OofOutputs`, ``columns`` and ``others`` those of
    its outputs; no predictions are needed, so that a method can be refused before any are read.
    """
    count = len(groups)
    coefficients = (count * columns + 1) * columns
    reasons = {}
    if not len(hand_weights):
        reasons["hand"] = ("no weights were given", "add --shares, one for each run")
    if len(set(groups)) in (1, count):
        reasons["group-vote"] = ("needs two or more models, one of them trained more than once", "use vote or mean")
    if others > 1:
        reasons["stack"] = ("learns from every class, but each row keeps only its likeliest", "use another")
    elif coefficients > rows:
        reasons["stack"] = (f"would learn {coefficients:,} coefficients from {rows:,} rows", "blend fewer runs")
    if metric and METRICS[metric].looks_at != "answers":
        for name in ("vote", "group-vote"):
            reasons[name] = (f"throws away the {METRICS[metric].looks_at} that {metric} looks at", "use another")
    for name in BLENDS.keys() - set(task.blends):
        reasons[name] = (f"does not fit {task.name}", f"use one of: {', '.join(task.blends)}")
    return reasons


def usable(data: OofOutputs) -> list[str]:
    """The names of the methods that make sense for these runs."""
    rows, columns = data.outputs.values.shape[1:]
    reasons = unusable(data.groups, data.hand_weights, rows, columns, data.outputs.others, data.task, data.metric)
    return [name for name in BLENDS if name not in reasons]
