"""What every metric is a function of: the answers to n rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.score.logits import Outputs


@dataclass(frozen=True)
class Answers:
    """What the metrics are made of: the answer to each of n rows, and how far off it is."""

    predicted: np.ndarray  # what the task decides, in the form of its targets: class number, int64 (n), or labels
    targets: np.ndarray  # what the label says, the same form: of label sets bool (n, labels), of numbers float64 (n, c)
    losses: np.ndarray  # the task's loss: negative log likelihood, nats, or squared error (n)
    costs: np.ndarray  # the task's cost: whether the answer is wrong, bool, or how far off it is (n)
    ahead: np.ndarray  # how many classes come before the target's, int64 (n); of label sets and numbers 0
    names: Sequence[str]  # of the outputs; empty: predicted and targets number the columns of a short form
    outputs: Outputs | None = None  # (n, columns), for metrics of probabilities; None: a short form
    probabilities: Callable[[Outputs], np.ndarray] = Outputs.softmax  # of the outputs, the task's
    positive: int = 1  # number of the class that is looked for, where there are two
    ranks: np.ndarray | None = None  # int32 (n, columns), see ranked(); None: not yet looked at

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each class or label: its rows, those that are right, the rows predicted as it; int64 (classes) each."""
        if self.targets.ndim == 2:
            of_labels = (self.targets, self.targets & self.predicted, self.predicted)
            rows, right, predicted = (each.sum(axis=0) for each in of_labels)
            return rows, right, predicted
        of_each = (self.targets, self.targets[self.predicted == self.targets], self.predicted)
        rows, right, predicted = (np.bincount(numbers, minlength=len(self.names)) for numbers in of_each)
        return rows, right, predicted

    def rows(self, numbers: np.ndarray) -> "Answers":
        """The answers to some rows, int64 (m); one may be among them several times. They have ranks or no outputs."""
        taken = {field: getattr(self, field)[numbers] for field in _OF_EACH_ROW}
        return replace(self, **taken, outputs=None, ranks=None if self.ranks is None else self.ranks[numbers])

    def ranked(self) -> "Answers":
        """With the ranks of the probabilities in each column, from 0, equal ones alike: all that an area under a curve
        looks at, and quickly counted where rows are drawn again and again."""
        if self.ranks is not None or self.outputs is None:
            return self
        shares = self.probabilities(self.outputs)
        ranks = [np.unique(column, return_inverse=True)[1].astype(np.int32) for column in shares.T]
        return replace(self, ranks=np.stack(ranks, axis=1))

    def with_predicted(self, predicted: np.ndarray) -> "Answers":
        """With other predictions, right or wrong as a whole."""
        wrong = predicted != self.targets
        return replace(self, predicted=predicted, costs=wrong.any(axis=1) if wrong.ndim == 2 else wrong)

    def without_outputs(self) -> "Answers":
        """The same without what most metrics do not look at, and what is large."""
        return replace(self, outputs=None, ranks=None)


_OF_EACH_ROW = ("predicted", "targets", "losses", "costs", "ahead")


def joined_answers(parts: Sequence[Answers]) -> Answers:
    """The answers to all rows of several parts, such as folds."""
    joined = {field: np.concatenate([getattr(part, field) for part in parts]) for field in _OF_EACH_ROW}
    outputs = [part.outputs.values for part in parts if part.outputs is not None]
    whole = Outputs(np.concatenate(outputs)) if len(outputs) == len(parts) else None
    return replace(parts[0], **joined, outputs=whole, ranks=None)
