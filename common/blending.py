"""Blends: one prediction from the predictions of m runs.

A method is fitted on the runs' logits (m, n, classes) of rows they have not seen and the targets (n), and gives a
blend: a function of the same runs' logits on any rows, (m, rows, classes) -> log probabilities (rows, classes).
Weights are fitted on log loss: by accuracy even the choice between two blends learns the noise of a few images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from common.calibration import temperature
from common.metrics import errors, log_mean_probability, log_softmax, losses, nll

if TYPE_CHECKING:
    import torch

GREEDY_ROUNDS = 50  # picks of the greedy selection: its weights are multiples of 1/50
# Inverse of the penalty on the stack's coefficients (scikit-learn's C), set beforehand and for any number of runs:
# two runs bear more (1e-2), ten less (1e-4), and a choice by the nested score would have to be nested as well.
STACK_C = 1e-3


class Blend(Protocol):
    """What a method learned."""

    weights: np.ndarray  # (m), summing to 1; empty where a run has no single weight

    def __call__(self, logits: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Members:
    """What is known of the m runs beside their predictions."""

    groups: np.ndarray  # (m): runs with the same number are one model trained several times
    by_hand: np.ndarray  # (m): weights that the user gave; empty: none
    others: int = 1  # classes that the logits' last column stands for; above 1 the columns differ from row to row

    def only(self, kept: np.ndarray) -> "Members":
        """Some of them; ``kept`` indexes the m runs."""
        by_hand = self.by_hand[kept] if len(self.by_hand) else self.by_hand
        return replace(self, groups=self.groups[kept], by_hand=by_hand)


Method = Callable[[np.ndarray, np.ndarray, Members], Blend]


def unusable(members: Members, rows: int, classes: int) -> dict[str, tuple[str, str]]:
    """The methods that make no sense for these members: why, and what to do about it."""
    count = len(members.groups)
    coefficients = (count * classes + 1) * classes
    reasons = {}
    if not len(members.by_hand):
        reasons["hand"] = ("there are no weights", "add --weights, one for each run")
    if len(set(members.groups)) in (1, count):
        reasons["group-vote"] = ("no model stands against another that was trained more than once", "use vote or mean")
    if members.others > 1:
        reasons["stack"] = ("learns from every class, of which each row has but its likeliest", "use another")
    elif coefficients > rows:
        reasons["stack"] = (f"would learn {coefficients:,} coefficients from {rows:,} rows", "blend fewer runs")
    return reasons


# ---- nothing to learn


@dataclass(frozen=True)
class Mixture:
    """The log of the weighted mean probability; the weights (m) sum to 1."""

    weights: np.ndarray
    others: int

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return log_mean_probability(logits, self.weights, self.others)


def mean(logits: np.ndarray, targets: np.ndarray, members: Members) -> Mixture:
    """The same weight for every run."""
    return Mixture(np.full(len(logits), 1 / len(logits)), members.others)


@dataclass(frozen=True)
class GeometricMean:
    """The weighted mean of the log probabilities, scaled to sum to 1: one run that is sure of a no has a veto."""

    weights: np.ndarray
    others: int

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        members = zip(self.weights, logits, strict=True)
        total = sum(weight * log_softmax(member, self.others) for weight, member in members)
        return log_softmax(total, self.others).astype(np.float32)


def geometric_mean(logits: np.ndarray, targets: np.ndarray, members: Members) -> GeometricMean:
    """The same weight for every run, on log probabilities."""
    return GeometricMean(np.full(len(logits), 1 / len(logits)), members.others)


def by_hand(logits: np.ndarray, targets: np.ndarray, members: Members) -> Mixture:
    """The user's own weights, scaled to sum to 1."""
    return Mixture(members.by_hand / members.by_hand.sum(), members.others)


@dataclass(frozen=True)
class Vote:
    """Each group of runs averages its probabilities and has one vote; at a tie the mean of the groups decides.

    A class's probability is (votes + mean) / (groups + 1): the mean never outweighs a vote, and nothing is 0.
    """

    groups: np.ndarray  # (m)
    others: int

    @property
    def weights(self) -> np.ndarray:
        sizes = np.array([(self.groups == group).sum() for group in self.groups])
        return 1 / (sizes * len(set(self.groups)))

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        groups = [logits[self.groups == group] for group in np.unique(self.groups)]
        averages = np.stack([log_mean_probability(group, others=self.others) for group in groups])
        shares = np.exp(log_mean_probability(averages, others=self.others).astype(np.float64))
        for votes in averages.argmax(axis=-1):
            is_for_others = votes == shares.shape[1] - 1
            shares[np.arange(len(shares)), votes] += np.where(is_for_others, 1 / self.others, 1)
        floor = np.finfo(np.float32).tiny
        return np.log(np.maximum(shares / (len(averages) + 1), floor)).astype(np.float32)


def vote(logits: np.ndarray, targets: np.ndarray, members: Members) -> Vote:
    """One vote for each run's most probable class."""
    return Vote(np.arange(len(logits)), members.others)


def group_vote(logits: np.ndarray, targets: np.ndarray, members: Members) -> Vote:
    """Several trainings of one model are averaged, then each model has one vote."""
    return Vote(members.groups, members.others)


# ---- learned


def best(logits: np.ndarray, targets: np.ndarray, members: Members) -> Mixture:
    """The run with the fewest errors, at a tie with the lower log loss."""
    order = [(errors(member, targets), nll(member, targets, members.others)) for member in logits]
    return Mixture(np.eye(len(logits))[order.index(min(order))], members.others)


def target_probabilities(logits: np.ndarray, targets: np.ndarray, others: int = 1) -> np.ndarray:
    """What each run says of the right class, (n, m), divided by the row's largest.

    All that the log loss of a mixture depends on, but for a constant; the division keeps rows of which every run
    is sure and wrong above 0. The last column stands for ``others`` classes.
    """
    logs = np.stack([-losses(member, targets, others) for member in logits], axis=1)
    return np.maximum(np.exp(logs - logs.max(axis=1, keepdims=True)), np.finfo(np.float64).tiny)


def ensemble_model(members: int) -> "torch.nn.Module":
    """The learnable mixture: probabilities (..., members) -> their weighted mean (...), float64.

    It starts at equal weights: from a random start, training that stops early gives another blend each time.
    """
    import torch

    class EnsembleModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Parameter(torch.zeros(members, dtype=torch.float64))

        def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
            return probabilities @ torch.softmax(self.weights, dim=-1)

    return EnsembleModel()


def softmax_weights(logits: np.ndarray, targets: np.ndarray, members: Members) -> Mixture:
    """The weights that minimise the log loss of the mixture, trained until they stand still.

    The loss is convex in the weights, so the start decides only what identical runs get: equal shares.
    """
    import torch

    probabilities = torch.from_numpy(target_probabilities(logits, targets, members.others))
    model = ensemble_model(len(logits))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=1000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> "torch.Tensor":
        optimizer.zero_grad()
        value = -model(probabilities).log().mean()
        value.backward()
        return value

    optimizer.step(loss)
    return Mixture(torch.softmax(model.weights.detach(), dim=-1).numpy(), members.others)


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
class TemperedMixture:
    """A mixture of runs whose logits are first divided by a temperature of each run's own."""

    temperatures: np.ndarray  # (m), float32 like stored logits
    mixture: Mixture

    @property
    def weights(self) -> np.ndarray:
        return self.mixture.weights

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return self.mixture(logits / self.temperatures[:, None, None])


def tempered(logits: np.ndarray, targets: np.ndarray, members: Members) -> TemperedMixture:
    """:func:`softmax_weights` of runs that are equally well calibrated.

    The log loss of runs as they are prefers the one whose probabilities are nearer to how often it is right, which
    after label smoothing need not be the one that knows more; a temperature for each leaves what they know.
    """
    temperatures = np.array([temperature(member, targets, members.others) for member in logits], dtype=np.float32)
    mixture = softmax_weights(logits / temperatures[:, None, None], targets, members)
    return TemperedMixture(temperatures, mixture)


def greedy(logits: np.ndarray, targets: np.ndarray, members: Members) -> Mixture:
    """Pick runs one after another, again and again, each time the one that lowers the mean's log loss most.

    Ensemble selection with replacement from a sorted start (Caruana 2004, "Ensemble selection from libraries of
    models"); the picks up to the lowest log loss count.
    """
    probabilities = target_probabilities(logits, targets, members.others)
    picks, total, lowest = [], np.zeros(len(targets)), []
    for picked in range(1, GREEDY_ROUNDS + 1):
        found = -np.log((total[:, None] + probabilities) / picked).mean(axis=0)
        picks.append(int(found.argmin()))
        lowest.append(found.min())
        total += probabilities[:, picks[-1]]
    counts = np.bincount(picks[: int(np.argmin(lowest)) + 1], minlength=len(logits))
    return Mixture(counts / counts.sum(), members.others)


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


def stack(logits: np.ndarray, targets: np.ndarray, members: Members) -> Stack:
    """Stacking by scikit-learn's logistic regression, its coefficients held small by an L2 penalty."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=STACK_C, tol=1e-3, max_iter=1000)
    return Stack(regression.fit(_features(logits), targets), logits.shape[-1])


def _features(logits: np.ndarray) -> np.ndarray:
    """(m, rows, classes) -> (rows, m x classes), log probabilities."""
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
